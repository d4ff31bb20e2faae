"""The short way to the chat endpoint: whatever happens on it looks as it would through the framework."""

from __future__ import annotations

from contextlib import suppress

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from proxy.errors import ConversationNotFound
from proxy.routes import error_handlers
from proxy.routes.application import Application
from proxy.routes.middleware.request_log import RequestContext
from proxy.routes.request_body import ClientDisconnected


class Endpoint:
    """Responds, or raises the given error."""

    def __init__(self, failure: Exception | None) -> None:
        self._failure = failure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._failure is not None:
            raise self._failure
        await PlainTextResponse(type(scope["app"]).__name__)(scope, receive, send)


def application(failure: Exception | None = None) -> Application:
    app = Application(around=[RequestContext], around_direct=[RequestContext])
    error_handlers.install(app)
    endpoint = error_handlers.PlainEndpoint(Endpoint(failure))
    app.add_direct_endpoint("POST", "/short", endpoint)
    app.router.routes.append(Route("/short", endpoint, methods=["POST"]))
    app.router.routes.append(Route("/long", endpoint, methods=["POST"]))
    return app


async def ask(
    app: Application, path: str, *, method: str = "POST", root_path: str = ""
) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the answer to a request without a body."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": root_path,
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    with suppress(RuntimeError):
        await app(scope, receive, send)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


@pytest.mark.parametrize(
    "failure",
    [None, ConversationNotFound("conv_a"), RuntimeError("something of ours broke")],
    ids=["an answer", "an error of ours", "an error that nobody expected"],
)
async def test_both_ways_answer_alike(failure: Exception | None) -> None:
    app = application(failure)

    short_status, short_headers, short_body = await ask(app, "/short")
    long_status, _, long_body = await ask(app, "/long")

    assert (short_status, short_body) == (long_status, long_body)
    assert short_headers["x-request-id"].startswith("req_")


async def test_an_unexpected_error_reaches_the_server_so_that_it_is_logged() -> None:
    failure = RuntimeError("something of ours broke")

    with pytest.raises(RuntimeError) as raised:
        await error_handlers.PlainEndpoint(Endpoint(failure))(
            {"state": {"facts": {"status": 200}}}, _nothing, _nowhere
        )

    assert raised.value is failure


async def test_client_that_disconnects_gets_no_response() -> None:
    facts: dict[str, object] = {}

    await error_handlers.PlainEndpoint(Endpoint(ClientDisconnected()))(
        {"state": {"facts": facts}}, _nothing, _nowhere
    )

    assert facts == {"outcome": "client_disconnect"}


async def test_other_methods_and_a_root_path_go_through_the_framework() -> None:
    app = application()

    assert (await ask(app, "/short", method="GET"))[0] == 405
    assert (await ask(app, "/below/short", root_path="/below"))[2] == b"Application"


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _nowhere(message: Message) -> None:
    raise AssertionError("the answer had begun")
