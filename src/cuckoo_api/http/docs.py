"""``/docs``: the OpenAPI document as a page for people, whole without the internet.

The page and what belongs to it ship with the server, hold nothing of this one's, and need no token:
a browser has none to show when it opens a page. What the page shows does, and the page asks for it.
"""

from __future__ import annotations

from pathlib import Path

from aiohttp import web

from cuckoo_api.http.downloads import HTML, Download

SCRIPT = "text/javascript; charset=utf-8"
STYLE = "text/css; charset=utf-8"

_VIEWER = Path(__file__).with_name("viewer")
SCRIPTS = {
    "docs.js": _VIEWER / "docs.js",
    "swagger-ui-bundle.js": _VIEWER / "swagger-ui" / "swagger-ui-bundle.js",
}
STYLES = {
    "docs.css": _VIEWER / "docs.css",
    "swagger-ui.css": _VIEWER / "swagger-ui" / "swagger-ui.css",
}

_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""Whatever the viewer's code would like to do: nothing leads away from this server."""


async def page(request: web.Request) -> web.StreamResponse:
    """This interface as a page for people; needs no authentication, its content does."""
    # relative, and so right behind a proxy that serves it below a path of its own
    folder = "" if request.path.endswith("/") else "docs/"
    text = (_VIEWER / "index.html").read_text("utf-8").replace("{folder}", folder)
    headers = {
        "Content-Type": HTML,
        "Content-Security-Policy": _POLICY,
        "Referrer-Policy": "no-referrer",
    }
    return web.Response(body=text.encode(), headers=headers)


async def script(request: web.Request) -> web.StreamResponse:
    """A script of the page."""
    return Download(SCRIPTS[request.match_info["script"]], SCRIPT)


async def style(request: web.Request) -> web.StreamResponse:
    """A style sheet of the page."""
    return Download(STYLES[request.match_info["style"]], STYLE)
