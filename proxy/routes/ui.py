"""The page: static files, under a policy that lets them load nothing from elsewhere and run nothing that was written
into them.
"""

from __future__ import annotations

from pathlib import Path

from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WEB = Path(__file__).parent.parent / "web"
"""The files; ``vendor`` holds the libraries, which are gathered at the installation."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "frame-src 'self'",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        # Markup comes from the sanitiser or not at all.
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
DIAGRAM = "/page/diagram.html"
DIAGRAM_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        # Mermaid writes a style sheet and style attributes into each diagram.
        "style-src 'unsafe-inline'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'self'",
        # An opaque origin: the frame has no access to the page, its storage or the API.
        "sandbox allow-scripts",
    )
)
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    # Asked for again each time, and answered with 304 as long as nothing changed.
    (b"cache-control", b"no-cache"),
]


def page_routes() -> list[BaseRoute]:
    """Return the routes of the page; none of them needs a key, for none tells anything."""
    index = _Guarded(_index)
    return [
        Route("/", index, methods=["GET"], include_in_schema=False),
        Route("/client", index, methods=["GET"], include_in_schema=False),
        Mount("/page", _Guarded(StaticFiles(directory=WEB))),
    ]


class _Guarded:
    """Adds the headers that hold a browser to what the page needs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = DIAGRAM_POLICY if scope["path"] == DIAGRAM else POLICY
                security = (b"content-security-policy", policy.encode())
                message["headers"] = [*message.get("headers", ()), security, *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_guarded)


async def _index(scope: Scope, receive: Receive, send: Send) -> None:
    await FileResponse(WEB / "index.html")(scope, receive, send)


def has_libraries() -> bool:
    """Whether the libraries of the page are there; without them it shows plain text."""
    return (WEB / "vendor" / ".gathered").is_file()
