"""From the server's settings to what `serve` takes."""

import contextlib
import importlib.util
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.typed import UsageError, shorten
from conf.serve import RegistrySettings, ServerSettings, ServeSettings

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from serve.adaptive_limit import LimitConfig
    from serve.hosts import Hosts
    from serve.hub import HubConfig
    from serve.observer import Observer
    from serve.stream_rules import StreamRules

_PATIENCE_MS = 60_000
_ADAPTIVE = "stream_registry.adaptive_limits"


def hub_config(settings: ServerSettings) -> "HubConfig":
    """What the server lets its clients do.

    Raises:
        SettingsError: values that do not fit together.
    """
    from serve.engine_config import EngineConfig  # noqa: PLC0415  (imports JAX)
    from serve.fetch import Fetcher  # noqa: PLC0415
    from serve.filters import load_filter  # noqa: PLC0415
    from serve.hosts import Hosts  # noqa: PLC0415
    from serve.hub import HubConfig  # noqa: PLC0415
    from serve.keys import Keys, read_keys  # noqa: PLC0415
    from serve.metrics import SWITCHES  # noqa: PLC0415
    from serve.prepare import RequestLimits  # noqa: PLC0415
    from serve.rates import Rates  # noqa: PLC0415

    given, registry = settings.serve, settings.stream_registry
    with _named("serve"):
        engine = EngineConfig(
            rows=tuple(given.rows),
            context=given.context,
            chunks=tuple(given.chunks),
            burst=given.burst_ms / 1e3,
            waiting=given.waiting,
            pictures=tuple(map(_size, given.pictures)) or EngineConfig.pictures,
            picture_bytes=given.picture_cache_mb * 2**20,
            prefix_bytes=given.prefix_cache_mb * 2**20,
        )
    pooling = registry.chunk_pooling
    rules, streams = _rules(given, registry), _streams(registry)
    with _named("limits"):
        limits = RequestLimits(**vars(settings.limits))
    with _named("serve"):
        keys = Keys() if given.keys_file is None else read_keys(given.keys_file)
        hosts = Hosts(given.host_names, any_name=keys.needed)
        rates = Rates(given.rate)
        fetcher = Fetcher(
            given.picture_hosts, seconds=given.fetch_ms / 1e3, max_bytes=settings.limits.picture_bytes
        )
        content_filter = load_filter(given.content_filter)
    with _named(_ADAPTIVE):
        return HubConfig(
            name=Path(settings.model.name).name,
            engine=engine,
            rules=rules,
            limits=limits,
            streams=streams,
            heartbeat=given.heartbeat_ms / 1e3,
            patience=given.request_ms / 1e3,
            retained=registry.cleanup_interval_ms / 1e3,
            keys=keys,
            hosts=hosts,
            rates=rates,
            fetcher=fetcher,
            content_filter=content_filter,
            observer=_observer(settings.telemetry.otlp_endpoint),
            untracked=[name for name in SWITCHES if not getattr(registry.metrics, name)],
            collecting=pooling.pool_cleanup_interval_ms / 1e3 if pooling.enabled else None,
        )


def check_installed() -> None:
    """Raises UsageError where what only the server needs is missing."""
    for name in (
        "blake3",
        "grpc",
        "grpc_health",
        "grpc_reflection",
        "httpcore",
        "httptools",
        "limits",
        "msgspec",
        "prometheus_client",
        "starlette",
        "uvicorn",
        "uvloop",
        "websockets",
    ):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"the server needs {name}; uv sync --extra serve installs it")


def listening_socket(settings: ServeSettings) -> socket.socket:
    """On the address; who connects is answered as soon as the server runs.

    Raises:
        UsageError: the address is not to be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"serve.host: {shorten(settings.host)}: {_reason(error)}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # What waits in the kernel looks delivered: a small buffer shows early that a reader has stopped.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # who takes nothing for so long is gone
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _PATIENCE_MS)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise UsageError(
            f"serve.port: {settings.port} on {shorten(settings.host)}: {_reason(error)}"
        ) from None
    return listener


def metrics_server(settings: ServerSettings, registry: "CollectorRegistry", hosts: "Hosts") -> str | None:
    """Answer scrapes in a thread of its own; returns where, or None where it is switched off.

    No key is asked for, as scrapers have none: who may reach the address may read the figures.

    Args:
        hosts: by which it may be called.

    Raises:
        UsageError: the address is not to be had.
    """
    from prometheus_client import start_http_server  # noqa: PLC0415

    if not (settings.telemetry.enabled and settings.stream_registry.metrics.enabled):
        return None
    port, host = settings.telemetry.prometheus_port, settings.telemetry.prometheus_host
    try:
        server, _ = start_http_server(port, host, registry)
        server.set_app(_guarded(server.get_app(), hosts))
    except OSError as error:
        raise UsageError(f"telemetry.prometheus_port: {port} on {shorten(host)}: {_reason(error)}") from None
    return f"http://{host_port(host, server.server_port)}/metrics"


def _guarded(app: Any, hosts: "Hosts") -> Any:
    """A WSGI application for requests that mean this server."""
    from serve.problems import Problem  # noqa: PLC0415

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        try:
            hosts.check(environ.get("HTTP_HOST"))
        except Problem as problem:
            start_response("421 Misdirected Request", [("Content-Type", "text/plain; charset=utf-8")])
            return [problem.message.encode()]
        return app(environ, start_response)

    return answer


def url(listener: socket.socket) -> str:
    """Where a browser finds it."""
    return "http://" + host_port(*listener.getsockname()[:2])


def host_port(host: str, port: int) -> str:
    """An address as it is written."""
    return f"{f'[{host}]' if ':' in host else host}:{port}"


def _observer(endpoint: str | None) -> "Observer":
    from serve.observer import Observer  # noqa: PLC0415

    if endpoint is None:
        return Observer()
    if importlib.util.find_spec("opentelemetry") is None:
        raise UsageError("telemetry.otlp_endpoint: needs OpenTelemetry; uv sync --extra otel installs it")
    from serve.traces import Traces, otlp  # noqa: PLC0415

    return Traces(otlp(endpoint))


def _size(given: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", given)
    if found is None:
        raise UsageError(f"serve.pictures: {shorten(given)}; allowed: WIDTHxHEIGHT, such as 640x480")
    return int(found[1]), int(found[2])


def _rules(given: ServeSettings, registry: RegistrySettings) -> "StreamRules":
    from serve.stream_rules import StreamRules  # noqa: PLC0415

    flow = registry.backpressure
    window, ring = flow.max_unacked_chunks, given.resume_events
    if not flow.enabled:  # a whole answer is kept: its reader misses nothing, however slow it is
        window, ring = None, max(ring, given.context + 4)
    with _named("stream_registry.backpressure"):
        return StreamRules(
            max_unacked_chunks=window,
            ack_timeout=flow.ack_timeout_ms / 1e3,
            slow_consumer=flow.slow_consumer_threshold_ms / 1e3,
            ring=ring,
            grace=given.resume_window_ms / 1e3,
            deadline=registry.default_timeout_ms / 1e3,
        )


def _streams(registry: RegistrySettings) -> "LimitConfig":
    from serve.adaptive_limit import LimitConfig  # noqa: PLC0415

    given = registry.adaptive_limits
    with _named(_ADAPTIVE):
        return LimitConfig(
            enabled=given.enabled,
            min_streams=given.min_streams,
            max_streams=given.max_streams,
            initial=registry.max_active_streams,
            target_ttft=given.target_ttft_ms / 1e3,
            target_queue=given.target_latency_ms / 1e3,
            interval=given.adjustment_interval_ms / 1e3,
            scale_up=given.scale_up_threshold,
            scale_down=given.scale_down_threshold,
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def _named(group: str) -> Iterator[None]:
    """Errors name the settings as the command line does."""
    from models import SettingsError  # noqa: PLC0415

    try:
        yield
    except SettingsError as error:
        name, colon, rest = str(error).partition(":")
        path = {"ring": "serve.resume_events", "keys": "serve.keys_file"}.get(name, f"{group}.{name}")
        raise SettingsError(f"{path}{colon}{rest}") from None
