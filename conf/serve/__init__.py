"""The settings of `run_server.py`."""
# ruff: noqa: RUF009  (the functions called in the dataclasses return fields)

from dataclasses import dataclass, field
from typing import Any

from conf.schema import ModelSettings, Range, Schema, number, setting, typed

_MILLISECONDS = Range(1, 86_400_000)


@dataclass
class ServeSettings:
    host: str = typed("127.0.0.1", "where to listen; 0.0.0.0 is every network", "an address or a host's name")
    port: int = number(8000, "where to listen; 0: any free port", "an integer", Range(0, 65535))
    grpc_port: int = number(
        50051, "where gRPC listens; 0: any free port, -1: nowhere", "an integer", Range(-1, 65535)
    )
    keys_file: str | None = typed(
        None,
        "API keys: who has none is not let in",
        "a path to a file with a key on each line, or null: everybody is",
    )
    host_names: list[str] = typed(
        [],
        "without keys: names by which the server may be called, beside localhost and addresses",
        "a list [example.com], or null: none",
    )
    rate: str | None = typed(
        None,
        "how often a key may begin a stream; without keys, all together",
        "such as 60/minute, or 10/second;600/hour, or null",
    )
    picture_hosts: list[str] = typed(
        [],
        "hosts from which pictures are fetched by http(s); redirects and addresses are checked",
        "a list [example.com,example.com:8443], or null: nothing is fetched",
    )
    content_filter: str | None = typed(
        None,
        "decides which text is shown: makes a filter for each stream, which is called with the text, delta by"
        " delta, and ends the stream by returning False",
        "MODULE:NAME of a class or function that Python can import, or null: all text is shown",
    )
    fetch_ms: int = number(5000, "to fetch one picture", "an integer", _MILLISECONDS)
    rows: list[int] = number(
        [1, 4, 16, 32, 50],
        "sizes of the batch, ascending; the last is how many streams run at once",
        "a list [a,b] of integers",
        Range(1, 4096),
    )
    context: int = number(
        2048,
        "prompt and answer of one stream together, in tokens",
        "an integer",
        Range(2, 2**31 - 1),
        "and the model's own context",
    )
    chunks: list[int] = number(
        [32, 64, 128],
        "sizes of the pieces in which prompts are fed, ascending, in tokens",
        "a list [a,b] of integers",
        Range(1, 65536),
    )
    burst_ms: int = number(
        33,
        "milliseconds that a program of steps takes about: the more, the fewer are started, and the more "
        "tokens come at once",
        "an integer",
        Range(0, 10_000),
    )
    waiting: int = number(64, "streams that may wait for a row", "an integer", Range(0, 100_000))
    pictures: list[str] = typed(
        [],
        "sizes of pictures whose programs are compiled at the start; one of another number of patches "
        "compiles its own when it comes, and all streams wait",
        "a list [384x384,640x480] of WIDTHxHEIGHT, or null: all that the checkpoint that ships needs",
    )
    picture_cache_mb: int = number(
        256,
        "memory for pictures that were seen, in MiB; keys share none of them",
        "an integer",
        Range(0, 2**20),
    )
    prefix_cache_mb: int = number(
        256,
        "memory for what prompts begin with alike, in MiB; keys share none of it",
        "an integer",
        Range(0, 2**20),
    )
    request_ms: int = number(
        30_000, "for a request to come in: its head, and then its body", "an integer", _MILLISECONDS
    )
    heartbeat_ms: int = number(
        10_000, "a silent stream says that it lives as often as this", "an integer", _MILLISECONDS
    )
    resume_window_ms: int = number(
        5000, "how long a stream goes on that nobody reads", "an integer", _MILLISECONDS
    )
    resume_events: int = number(256, "events kept for readers that come back", "an integer", Range(5, 2**20))
    drain_timeout_ms: int = number(
        30_000, "how long running streams may take when the server stops", "an integer", Range(0, 86_400_000)
    )


@dataclass
class LimitSettings:
    """Of one request."""

    body_bytes: int = number(32 * 2**20, "of the body", "an integer", Range(1, 2**40))
    messages: int = number(256, "of the conversation", "an integer", Range(1, 2**20))
    pictures: int = number(8, "in all messages", "an integer", Range(0, 4096))
    picture_bytes: int = number(16 * 2**20, "of one picture's file", "an integer", Range(1, 2**40))
    picture_pixels: int = number(50_000_000, "of all pictures, decoded", "an integer", Range(1, 2**40))
    picture_frames: int = number(
        256, "of one animation, of which the first is taken", "an integer", Range(1, 2**40)
    )
    picture_ms: int = number(5000, "to decode one picture", "an integer", _MILLISECONDS)
    prompt_characters: int = number(
        262_144,
        "of all texts together; as tokens, they have to fit serve.context",
        "an integer",
        Range(1, 2**40),
    )
    new_tokens: int = number(2**20, "of the answer, beside serve.context", "an integer", Range(1, 2**40))
    stop_strings: int = number(4, "that end an answer", "an integer", Range(0, 4096))
    stop_length: int = number(256, "of one of them, in characters", "an integer", Range(1, 2**20))


@dataclass
class BackpressureSettings:
    enabled: bool = setting(True, "a stream whose reader is slow waits for it", "true or false")
    max_unacked_chunks: int = number(
        100, "chunks on their way to a reader; then the stream takes no step", "an integer", Range(1, 2**20)
    )
    ack_timeout_ms: int = number(
        5000, "how long it waits before it is cancelled", "an integer", _MILLISECONDS
    )
    slow_consumer_threshold_ms: int = number(
        1000, "a chunk on its way for longer makes its reader a slow one", "an integer", _MILLISECONDS
    )


@dataclass
class AdaptiveSettings:
    """Each interval: over `scale_up_threshold` in use and first tokens in time, 5 streams more; under
    `scale_down_threshold`, 2 fewer. But for what would make that swing or fail in an overload:

    - a time to first token above its target lowers the limit by 2, too, and that is a ceiling which rises by
      one in 12 adjustments: else the limit would rise by 5 into the same breach again;
    - it rises by 5 only below 0.8 of the target, as just below it 5 more would be too many;
    - the time in the queue is no part of that time, as in an overload it grows whatever the limit is; where
      it is over `target_latency_ms`, the limit rises also below `scale_up_threshold`: bursts are short.
    """

    enabled: bool = setting(
        True, "the limit of streams follows the load", "true or false: always max_streams"
    )
    min_streams: int = number(5, "the lowest limit", "an integer", Range(1, 4096))
    max_streams: int = number(
        50, "the highest limit", "an integer", Range(1, 4096), "and the largest of serve.rows"
    )
    target_ttft_ms: int = number(
        1000,
        "a first token that takes longer, from the beginning of its prompt, lowers the limit",
        "an integer",
        _MILLISECONDS,
    )
    target_latency_ms: int = number(
        100, "a longer time in the queue raises the limit", "an integer", _MILLISECONDS
    )
    adjustment_interval_ms: int = number(5000, "between two adjustments", "an integer", _MILLISECONDS)
    scale_up_threshold: float = number(
        0.8, "the share of the limit in use above which it rises", "a number", Range(0, 1)
    )
    scale_down_threshold: float = number(0.3, "the share below which it falls", "a number", Range(0, 1))


@dataclass
class PoolingSettings:
    enabled: bool = setting(True, "garbage is collected off the path of tokens", "true or false")
    pool_cleanup_interval_ms: int = number(30_000, "between two collections", "an integer", _MILLISECONDS)


@dataclass
class StreamMetricsSettings:
    enabled: bool = setting(True, "figures for Prometheus, as telemetry.enabled", "true or false")
    track_ttft: bool = setting(True, "of them, the times to first tokens", "true or false")
    track_throughput: bool = setting(True, "of them, tokens per second", "true or false")
    track_cancellations: bool = setting(True, "of them, cancelled streams", "true or false")


@dataclass
class RegistrySettings:
    default_timeout_ms: int = number(
        300_000,
        "the longest that a stream may take, also an endless one, from its request",
        "an integer",
        _MILLISECONDS,
    )
    cleanup_interval_ms: int = number(
        60_000, "how long an ended stream can be read again", "an integer", _MILLISECONDS
    )
    max_active_streams: int = number(10, "the limit at the start", "an integer", Range(1, 4096))
    adaptive_limits: AdaptiveSettings = field(default_factory=AdaptiveSettings)
    backpressure: BackpressureSettings = field(default_factory=BackpressureSettings)
    chunk_pooling: PoolingSettings = field(default_factory=PoolingSettings)
    metrics: StreamMetricsSettings = field(default_factory=StreamMetricsSettings)


@dataclass
class TelemetrySettings:
    enabled: bool = setting(True, "figures for Prometheus", "true or false")
    prometheus_host: str = typed(
        "127.0.0.1", "where; whoever reaches it reads them, without a key", "an address or a host's name"
    )
    prometheus_port: int = number(9464, "where; 0: any free port", "an integer", Range(0, 65535))
    otlp_endpoint: str | None = typed(
        None,
        "where traces go by OTLP over HTTP, a span for each stream; needs --extra otel",
        "such as http://localhost:4318/v1/traces, or null: nowhere",
    )


@dataclass
class ServerSettings:
    defaults: list[Any] = field(default_factory=lambda: ["_self_", {"env": "base"}])
    model: ModelSettings = field(default_factory=ModelSettings)
    serve: ServeSettings = field(default_factory=ServeSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    stream_registry: RegistrySettings = field(default_factory=RegistrySettings)
    telemetry: TelemetrySettings = field(default_factory=TelemetrySettings)


_WITHOUT = {
    "stream_registry.chunk_pooling.pool_size": "chunks are encoded once and shared, and none is pooled",
    "stream_registry.metrics.export_interval_ms": "figures are read when Prometheus asks for them",
}

_ENVIRONMENTS: dict[str, dict[str, Any]] = {
    "base": {},
    "production": {
        "serve": {"rows": [1, 4, 16, 32, 50, 100], "resume_events": 512},
        "stream_registry": {
            "adaptive_limits": {"max_streams": 100},
            "backpressure": {"max_unacked_chunks": 200},
        },
    },
    "development": {
        "stream_registry": {"adaptive_limits": {"max_streams": 20, "adjustment_interval_ms": 1000}}
    },
    "test": {
        "stream_registry": {
            "adaptive_limits": {"enabled": False},
            "backpressure": {"enabled": False},
            "chunk_pooling": {"enabled": False},
        }
    },
}

SERVER = Schema("server_settings", ServerSettings, {"env": _ENVIRONMENTS}, ("env",), _WITHOUT)
