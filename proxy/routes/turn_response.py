"""Write a turn as the response to a request, in the format of any API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from msgspec.structs import replace
from starlette.types import Send
from typing_extensions import TypeIs

from proxy.events import Failed
from proxy.routes.client_connection import ClientConnection
from proxy.routes.dependencies import Services
from proxy.routes.streaming import IGNORED_HEADER, SSE, Builder, Encoder, Framing, Headers, answer, stream
from proxy.service.turns import TurnHandle
from proxy.turns.live import LiveTurn
from proxy.wire.chat.completion import AnswerOptions
from proxy.wire.errors import ErrorResponse, error_response
from proxy.wire.responses.options import ResponseOptions

Options = TypeVar("Options", AnswerOptions, ResponseOptions)


def write_turn(
    services: Services,
    opened: TurnHandle,
    connection: ClientConnection,
    encoder: Encoder | Builder,
    *,
    ignored: Sequence[str] = (),
    parameters: Mapping[str, str] = {},
    to_problem: Callable[[Failed], ErrorResponse] = error_response,
    is_resumed: bool = False,
    framing: Framing = SSE,
) -> Awaitable[None]:
    """Return what writes the turn: a stream with an ``Encoder``, one JSON object at its end with a ``Builder``.

    ``ignored`` are parameters without effect on any team; ``parameters`` are names that the API has for parameters of
    chat completions. ``to_problem`` words a failure, ``is_resumed`` means that an earlier response had the headers,
    and ``framing`` applies to streams. If the client disconnects before it has received the
    whole response, the turn is handled as its disconnect policy says.

    Raises:
        ClientDisconnected: The client stopped reading.
    """
    facts = connection.scope["state"]["facts"]
    facts["turn_id"], facts["conversation_id"] = opened.turn_id, opened.conversation_id
    timeouts = services.timeouts
    left = partial(_client_left, facts, opened.live)
    headers = turn_headers(opened, ignored, facts, parameters)
    # No coroutine here: it would be resumed with each part of a stream.
    if _is_encoder(encoder):
        return stream(
            opened.live,
            encoder,
            headers,
            connection,
            timeouts,
            is_resumed=is_resumed,
            to_problem=to_problem,
            parameters=parameters,
            framing=framing,
            left=left,
        )
    return answer(
        opened.live,
        encoder,
        headers,
        connection,
        timeouts,
        to_problem=to_problem,
        parameters=parameters,
        left=left,
    )


def _client_left(facts: dict[str, object], live: LiveTurn) -> None:
    facts.update(outcome="client_disconnect")
    live.on_client_disconnect()


async def write_nothing_more(send: Send, headers: Headers) -> None:
    """Respond that a stream has no further events.

    ``EventSource`` reconnects after the end of a response, except after 204 (HTML Standard, 9.2.3).
    """
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def has_frames(live: LiveTurn, encoder: Encoder) -> bool:
    """Whether the stream of an ended turn has a frame; True for a turn that is running."""
    if not live.is_over:
        return True
    with live.reader(is_observer=True) as reader:
        while reader.position < live.length:
            if any(map(encoder.encode, await reader.next())):
                return True
    return False


def _is_encoder(encoder: Encoder | Builder) -> TypeIs[Encoder]:
    # ``isinstance`` with a runtime-checkable protocol takes some ten microseconds.
    return hasattr(encoder, "encode")


def encoder_options(
    opened: TurnHandle, requested: Options | None, decode: Callable[[bytes], Options]
) -> Options:
    """Return the options of the response encoder, with id and time of the turn.

    They are those of this request (``requested``), or of the earlier request that began the turn.
    """
    options = requested if opened.stored_options is None else decode(opened.stored_options)
    assert options is not None
    if opened.match == "side-request":
        # One model answers it, so there are no handoffs to report.
        options = replace(options, events="none")
    return replace(options, id=opened.turn_id, created=int(opened.created_at))


def turn_headers(
    opened: TurnHandle, ignored: Sequence[str], facts: dict[str, object], parameters: Mapping[str, str] = {}
) -> Headers:
    """Return the response headers about the turn, and add the ignored parameters to the request log."""
    if opened.ignored:
        ignored = [*ignored, *(parameters.get(name, name) for name in opened.ignored)]
    headers = [(b"x-conversation-match", opened.match.encode())]
    if opened.conversation_id:
        headers.append((b"x-conversation-id", opened.conversation_id.encode()))
    if ignored:
        facts.update(ignored=list(ignored))
        headers.append((IGNORED_HEADER, ", ".join(ignored).encode("latin-1", "replace")))
    if opened.is_replayed:
        headers.append((b"idempotency-replayed", b"true"))
    return headers
