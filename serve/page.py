"""The page at `/`: one file with all that it needs, and the example pictures beside it."""

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

_PAGE = Path(__file__).with_name("page.html")
_EXAMPLES = Path(__file__).parents[1] / "examples" / "imgs"


def page_routes(examples: Path = _EXAMPLES) -> list[BaseRoute]:
    """The page, the names of the examples, and the examples; where there are none, the page does without."""
    html = _PAGE.read_bytes()
    headers = {
        "Content-Security-Policy": content_policy(html.decode()),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
    }
    names = sorted(path.name for path in examples.glob("*.png"))

    async def page(_: Request) -> Response:
        return Response(html, headers=headers, media_type="text/html")

    async def listed(_: Request) -> Response:
        return JSONResponse({"data": names})

    return [
        Route("/", page),
        Route("/examples", listed),
        Mount("/examples", StaticFiles(directory=examples, check_dir=False)),
    ]


def content_policy(html: str) -> str:
    """What a browser may do on a page: run its own script and style, by their hashes, and ask this server."""
    script, style = (_hashes(html, tag) for tag in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; img-src 'self' data:;"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hashes(html: str, tag: str) -> str:
    inline = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    return " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in inline
    )
