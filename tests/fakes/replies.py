"""What the fake provider answers: scripts of bytes, waits, hangs and cuts.

A reply fits both forms of a request: asked with ``stream: true`` it is a stream of events, otherwise one JSON
body. Where a piece or a step may be an ``asyncio.Event``, a stream waits there until the test sets it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Protocol

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"


class Stop(Enum):
    """How a reply stops in the middle."""

    HANG = "say nothing more and keep the connection"
    CUT = "reset the connection"
    END = "end the body properly"


Step = bytes | asyncio.Event | Stop


class Asked(Protocol):
    """What a reply may know of its request."""

    number: int
    body: Any


Script = Callable[[Asked], tuple[str, list[Step]]]


@dataclass(frozen=True)
class Reply:
    """A script: content type and steps for a request, after a head of ``status`` and ``headers``."""

    script: Script
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    before: tuple[Step, ...] = ()
    """Done before the head is sent."""
    is_bare: bool = False
    """The steps are all that is written: no head, no HTTP."""

    def held(self, event: asyncio.Event, after: int | None = None) -> Reply:
        """Wait for ``event`` after this number of steps (each streamed event is one; None: before the head)."""
        return self._stopped(event, after)

    def cut(self, after: int | None = None) -> Reply:
        """Reset the connection there."""
        return self._stopped(Stop.CUT, after)

    def hang(self, after: int | None = None) -> Reply:
        """Say nothing more from there on."""
        return self._stopped(Stop.HANG, after)

    def end(self, after: int) -> Reply:
        """End the body there, as if that were all."""
        return self._stopped(Stop.END, after)

    def _stopped(self, step: Step, after: int | None) -> Reply:
        if after is None:
            return replace(self, before=(*self.before, step))

        def script(requested: Asked) -> tuple[str, list[Step]]:
            kind, steps = self.script(requested)
            return kind, [*steps[:after], step, *steps[after:]]

        return replace(self, script=script)


def text(
    content: str,
    *,
    chunks: int | Sequence[str | asyncio.Event] = 2,
    usage: Mapping[str, Any] | None = USAGE,
    finish: str = "stop",
    reasoning: str | None = None,
) -> Reply:
    """Answer with text, streamed in ``chunks`` pieces of much the same size, or in just those given."""
    pieces = _split(content, chunks) if isinstance(chunks, int) else list(chunks)
    deltas: list[dict[str, Any] | asyncio.Event] = [
        piece if isinstance(piece, asyncio.Event) else {"content": piece} for piece in pieces
    ]
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if reasoning is not None:
        deltas.insert(0, {"reasoning_content": reasoning})
        message["reasoning_content"] = reasoning
    return _answer(lambda requested: (deltas, message), finish, usage)


def calls(
    *wanted: tuple[str, Mapping[str, Any] | str],
    text: str | None = None,
    pieces: int = 2,
    interleave: bool = False,
    ids: Sequence[str] | None = None,
    usage: Mapping[str, Any] | None = USAGE,
    finish: str = "tool_calls",
) -> Reply:
    """Answer with tool calls (name, arguments as an object or as JSON text), ``text`` before them.

    Arguments come in ``pieces`` pieces; interleaved, the second piece of the first call comes after the first
    piece of the last. Ids are ``call_<number of the request>_<index>`` unless given.
    """

    def message_and_deltas(requested: Asked) -> tuple[list[Any], dict[str, Any]]:
        whole = [
            {
                "id": ids[index] if ids is not None else f"call_{requested.number}_{index}",
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
                },
            }
            for index, (name, arguments) in enumerate(wanted)
        ]
        deltas: list[Any] = [{"tool_calls": [piece]} for piece in _call_pieces(whole, pieces, interleave)]
        if text:
            deltas[:0] = [{"content": piece} for piece in _split(text, 2)]
        return deltas, {"role": "assistant", "content": text, "refusal": None, "tool_calls": whole}

    return _answer(message_and_deltas, finish, usage)


def error(
    status: int,
    body: Mapping[str, Any] | str | bytes | None = None,
    headers: Mapping[str, str] | None = None,
    *,
    code: str | None = None,
    message: str = "The provider said no, with details that callers must not see.",
) -> Reply:
    """Refuse with a status; the body is OpenAI's envelope unless given (text is sent as HTML)."""
    if body is None:
        body = {"error": {"message": message, "type": "provider_error", "param": None, "code": code}}
    if isinstance(body, Mapping):
        return raw(json.dumps(body).encode(), status=status, headers=headers, content_type=JSON)
    content = body.encode() if isinstance(body, str) else body
    return raw(content, status=status, headers=headers, content_type="text/html")


def raw(
    *steps: Step, status: int = 200, headers: Mapping[str, str] | None = None, content_type: str = SSE
) -> Reply:
    """Answer with exactly these bytes as the body."""
    return Reply(lambda requested: (content_type, list(steps)), status, dict(headers or {}))


def bare(*steps: Step) -> Reply:
    """Write exactly these bytes to the connection, without any HTTP around them, and close it."""
    return Reply(lambda requested: ("", list(steps)), is_bare=True)


def events(*payloads: Mapping[str, Any] | str | bytes | asyncio.Event | Stop, done: bool = True) -> Reply:
    """Answer with a stream of these ``data:`` payloads (objects are encoded), by default with ``[DONE]``."""
    steps = [_event(payload) for payload in payloads]
    return raw(*steps, *([_event("[DONE]")] if done else []))


def hang() -> Reply:
    """Take the request and never answer."""
    return raw().hang()


def cut() -> Reply:
    """Take the request and reset the connection."""
    return raw().cut()


def chunk(delta: Mapping[str, Any] | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """One streamed chunk as OpenAI writes it, for ``events``; ``more`` are further keys of the chunk."""
    return {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 1_750_000_000,
        "model": "fake-model",
        "choices": [{"index": 0, "delta": dict(delta or {}), "finish_reason": finish, "logprobs": None}],
        **more,
    }


def _answer(
    content: Callable[[Asked], tuple[list[Any], dict[str, Any]]], finish: str, usage: Mapping[str, Any] | None
) -> Reply:
    def script(requested: Asked) -> tuple[str, list[Step]]:
        deltas, message = content(requested)
        request = requested.body if isinstance(requested.body, dict) else {}
        about = {"id": f"chatcmpl-fake-{requested.number}", "model": request.get("model", "fake-model")}
        if not request.get("stream"):
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
            whole = {**chunk(), **about, "object": "chat.completion", "choices": [choice]}
            if usage is not None:
                whole["usage"] = dict(usage)
            return JSON, [json.dumps(whole).encode()]
        wants_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        first = {"role": "assistant", "content": None if "tool_calls" in message else "", "refusal": None}
        steps: list[Step] = []
        for delta in (first, *deltas):
            if isinstance(delta, asyncio.Event):
                steps.append(delta)
            else:
                steps.append(_event(chunk(delta, **about)))
        steps.append(_event(chunk({}, finish, **about)))
        if wants_usage and usage is not None:
            steps.append(_event({**chunk(), **about, "choices": [], "usage": dict(usage)}))
        return SSE, [*steps, _event("[DONE]")]

    return Reply(script)


def _call_pieces(whole: Sequence[dict[str, Any]], pieces: int, interleave: bool) -> list[dict[str, Any]]:
    heads, tails = [], []
    for index, call in enumerate(whole):
        function = call["function"]
        heads.append({**call, "index": index, "function": {"name": function["name"], "arguments": ""}})
        tails.append(
            [
                {"index": index, "function": {"arguments": part}}
                for part in _split(function["arguments"], pieces)
            ]
        )
    if not interleave:
        return [piece for head, tail in zip(heads, tails, strict=True) for piece in (head, *tail)]
    rounds = itertools.zip_longest(*tails)
    return heads + [piece for parts in rounds for piece in parts if piece is not None]


def _split(content: str, count: int) -> list[str]:
    size = max(1, -(-len(content) // max(1, count)))
    return [content[start : start + size] for start in range(0, len(content), size)]


def _event(payload: Mapping[str, Any] | str | bytes | asyncio.Event | Stop) -> Step:
    if isinstance(payload, asyncio.Event | Stop):
        return payload
    if isinstance(payload, Mapping):
        payload = json.dumps(payload)
    content = payload.encode() if isinstance(payload, str) else payload
    return b"data: " + content + b"\n\n"


def joined(steps: Iterable[Step]) -> bytes | None:
    """The steps as one body, or None when they hold waits or stops."""
    whole = list(steps)
    return (
        b"".join(step for step in whole if isinstance(step, bytes))
        if all(isinstance(step, bytes) for step in whole)
        else None
    )
