"""A server: pictures and prompts come in by HTTP, tokens go out as they are made."""

import signal
import sys

from cli.command import DONE, leave, run_command
from cli.generation import load
from cli.interrupts import INTERRUPTED, Interrupts
from cli.report import Report
from cli.serving import check_installed, hub_config, listening_socket, metrics_server, url
from conf.serve import SERVER, ServerSettings


def serve(settings: ServerSettings, report: Report, interrupts: Interrupts) -> int:
    check_installed()
    listener = listening_socket(settings.serve)
    loaded, compilations = load(settings.model, report)

    import uvloop  # noqa: PLC0415  (settings are checked before anything large is imported)

    from serve.hub import Hub  # noqa: PLC0415
    from serve.server import serve as serve_hub  # noqa: PLC0415

    hub = Hub(loaded, hub_config(settings))
    metrics = metrics_server(settings, hub.metrics.registry)
    report.line(f"listening on {url(listener)}" + (f" | metrics on {metrics}" if metrics else ""))
    report.begin("compiling, or fetching what was compiled before")

    def ready() -> None:
        report.end()
        report.line(f"ready | {compilations}")

    stopped_by = uvloop.run(
        serve_hub(hub, listener, ready=ready, drain=settings.serve.drain_timeout_ms / 1e3)
    )
    report.end()
    report.line("stopped")
    return INTERRUPTED if stopped_by == signal.SIGINT else DONE


if __name__ == "__main__":
    leave(run_command(serve, __doc__ or "", sys.argv[1:], SERVER))
