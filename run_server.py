"""A server: pictures and prompts come in by HTTP, tokens go out as they are made."""

import signal
import sys

from cli.command import DONE, leave, run_command
from cli.generation import load
from cli.interrupts import INTERRUPTED, Interrupts
from cli.report import Report
from cli.serving import check_installed, host_port, hub_config, listening_socket, metrics_server, url
from conf.serve import SERVER, ServerSettings


def serve(settings: ServerSettings, report: Report, interrupts: Interrupts) -> int:
    check_installed()
    listener = listening_socket(settings.serve)
    loaded, compilations = load(settings.model, report)

    import uvloop  # noqa: PLC0415  (settings are checked before anything large is imported)

    from serve.hub import Hub  # noqa: PLC0415
    from serve.server import serve as serve_hub  # noqa: PLC0415

    hub = Hub(loaded, hub_config(settings))
    metrics = metrics_server(settings, hub.metrics.registry, hub.config.hosts)

    def listening(rpc: int | None) -> None:
        places = {
            "listening": url(listener),
            "gRPC": rpc and host_port(settings.serve.host, rpc),
            "metrics": metrics,
        }
        report.line(" | ".join(f"{what} on {where}" for what, where in places.items() if where))
        report.begin("compiling, or fetching what was compiled before")

    def ready() -> None:
        report.end()
        report.line(f"ready | {compilations}")

    rpc = None if settings.serve.grpc_port < 0 else host_port(settings.serve.host, settings.serve.grpc_port)
    drain = settings.serve.drain_timeout_ms / 1e3
    stopped_by = uvloop.run(serve_hub(hub, listener, rpc, listening=listening, ready=ready, drain=drain))
    report.end()
    report.line("stopped")
    return INTERRUPTED if stopped_by == signal.SIGINT else DONE


if __name__ == "__main__":
    leave(run_command(serve, __doc__ or "", sys.argv[1:], SERVER))
