"""Static files: the page at ``/`` and ``/client``, Swagger UI at ``/docs``, ReDoc at ``/redoc``.

Their Content Security Policy allows only files of this server and no inline scripts.
"""

from __future__ import annotations

from pathlib import Path

from starlette.responses import FileResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

WEB = Path(__file__).parent.parent / "web"
"""The files; ``vendor`` has the libraries, which are downloaded at installation."""
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
VIEWERS = {"/docs": "docs.html", "/redoc": "redoc.html"}
"""Pages that show ``/openapi.json``."""
VIEWER_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        # ReDoc creates two style elements, whose hashes these are: an empty one, to which it adds rules through the
        # CSSOM, and that of perfect-scrollbar, which changes with its version in package-lock.json.
        "style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"
        " 'sha256-QMIg+bpjm3JdElJ388KYke01izlUW0UoNOeKjpMxdgc='",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        # The viewers write markup as strings: the default policy passes it to the sanitiser.
        "trusted-types dompurify dompurify#swagger-ui default",
    )
)
_POLICIES = {DIAGRAM: DIAGRAM_POLICY, **dict.fromkeys(VIEWERS, VIEWER_POLICY)}
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    # Revalidated at each request: 304 as long as the file is unchanged.
    (b"cache-control", b"no-cache"),
]


def page_routes() -> list[BaseRoute]:
    """Return the routes; none of them needs an API key, because the files contain no data of this server."""
    files = {"/": "index.html", "/client": "index.html", **VIEWERS}
    return [
        *(
            Route(path, _Guarded(_html_page(WEB / name)), methods=["GET"], include_in_schema=False)
            for path, name in files.items()
        ),
        Mount("/page", _Guarded(StaticFiles(directory=WEB))),
    ]


def _html_page(file: Path) -> FileResponse:
    # Without the type, it is looked up in those of the system, which are 350 KB.
    return FileResponse(file, media_type="text/html")


class _Guarded:
    """Adds the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = _POLICIES.get(scope["path"], POLICY)
                security = (b"content-security-policy", policy.encode())
                message["headers"] = [*message.get("headers", ()), security, *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_guarded)


def has_libraries() -> bool:
    """Whether the libraries of the page are there; without them it shows plain text."""
    return (WEB / "vendor" / ".gathered").is_file()
