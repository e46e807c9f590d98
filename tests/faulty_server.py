"""`run_server.py` with places that fail once for each file of their name in a folder, the first argument.

They wait as long as there is a file of their name and `.held`.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv.pop(1))
PLACES = {  # name: module and function, or class and method
    "decoder": ("serve.decoder", "Decoder.open"),
    "tower": ("serve.pictures", "encode_vision"),
    "prefill": ("serve.prefill", "prefill_chunk"),
    "step": ("serve.batch", "decode"),
    "text": ("sample.text", "TextStream.push"),
    "sse": ("serve.sse", "frame"),
    "chat": ("serve.chat_frames", "ChatWords.chunks"),
    "web_socket": ("serve.web_socket", "SocketWire.tell"),
    "rpc": ("serve.rpc.service", "message_of"),
    "filter": ("tests.filters", "NoThirdImage.__init__"),
    "judge": ("tests.filters", "NoThirdImage.__call__"),
}


def failing(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        while (FOLDER / f"{name}.held").exists():
            time.sleep(0.005)
        try:
            (FOLDER / name).unlink()
        except FileNotFoundError:
            return original(*arguments, **options)
        raise RuntimeError(f"secret: {name}")

    return call


def break_all() -> None:
    from importlib import import_module

    for name, (module, path) in PLACES.items():
        *owners, attribute = path.split(".")
        owner = import_module(module)
        for step in owners:
            owner = getattr(owner, step)
        setattr(owner, attribute, failing(name, getattr(owner, attribute)))


if __name__ == "__main__":
    from cli.command import leave, run_command
    from conf.serve import SERVER
    from run_server import serve

    def broken(*arguments: Any) -> int:
        break_all()
        return serve(*arguments)

    leave(run_command(broken, "", sys.argv[1:], SERVER))
