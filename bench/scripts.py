"""Responses of the fake upstream, by model name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from bench import responses

WORD = b" word"
"""Text of every chunk. It occurs nowhere else in a response, so counting it counts chunks."""
TRANSFER = "transfer_to_talker"
"""The handoff tool that the first agent of the team ``handoff`` calls."""


@dataclass(frozen=True, slots=True)
class Script:
    """A response of ``chunks`` chunks, ``per_write`` per write, with ``pause`` seconds between writes."""

    chunks: int
    per_write: int = 1
    pause: float = 0.0
    transfers: bool = False
    """Respond with a tool call instead of words."""
    is_endless: bool = False
    """After its chunks the response stays open without further data."""
    is_responses: bool = False
    """The model is called on the Responses API."""


SCRIPTS = {
    "single": Script(200, pause=0.02),
    "paced": Script(100, pause=0.02),
    "bursts": Script(3000, per_write=20, pause=0.02),
    "responses": Script(3000, per_write=20, pause=0.02, is_responses=True),
    "plain": Script(10, per_write=10),
    "history": Script(10, per_write=10),
    "first": Script(1),
    "waiting": Script(1, is_endless=True),
    "transferring": Script(0, transfers=True),
    "talking": Script(40, pause=0.01),
}
HANDOFF = ("transferring", "talking")
"""Models of the two calls in a turn of the team ``handoff``."""


@cache
def streamed(model: str) -> tuple[bytes, ...]:
    """Return the writes of a streamed response; the first one includes the HTTP head."""
    script = SCRIPTS[model]
    if script.transfers:
        frames = [_frame(model, delta) for delta in _call_deltas()]
        writes = [b"".join(frames) + _ending(model, "tool_calls")]
    elif script.is_responses:
        word = _chunked(responses.delta(WORD.decode()))
        writes = [word * script.per_write] * (script.chunks // script.per_write)
        writes[0] = _chunked(responses.opening(model)) + writes[0]
        writes[-1] += _chunked(responses.ending(model)) + b"0\r\n\r\n"
    else:
        word = _frame(model, {"content": WORD.decode()})
        whole, rest = divmod(script.chunks, script.per_write)
        writes = [word * script.per_write] * whole + ([word * rest] if rest else [])
        writes[0] = _frame(model, {"role": "assistant", "content": "", "refusal": None}) + writes[0]
        if not script.is_endless:
            writes[-1] += _ending(model, "stop")
    writes[0] = _STREAM_HEAD + writes[0]
    return tuple(writes)


@cache
def plain(model: str) -> bytes:
    """Return a response that is not streamed."""
    body = json.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": model,
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": WORD.decode() * SCRIPTS[model].chunks,
                        "refusal": None,
                    },
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": _USAGE,
        }
    ).encode()
    return _PLAIN_HEAD % len(body) + body


_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_PLAIN_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
_USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 10,
    "total_tokens": 30,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}


def _frame(model: str, delta: dict[str, Any] | None, **changes: Any) -> bytes:
    """Return a chunk of about the size of the official API, with SSE and HTTP chunk framing."""
    choice = {"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": None}
    chunk = {
        "id": "chatcmpl-CmBenchBenchBenchBenchBenchBe",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": "fp_50cad350e4",
        "choices": [choice],
        "usage": None,
    }
    data = b"data: " + json.dumps({**chunk, **changes}, separators=(",", ":")).encode() + b"\n\n"
    return _chunked(data)


def _ending(model: str, reason: str) -> bytes:
    finish = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}
    return (
        _frame(model, None, choices=[finish])
        + _frame(model, None, choices=[], usage=_USAGE)
        + _chunked(b"data: [DONE]\n\n")
        + b"0\r\n\r\n"
    )


def _call_deltas() -> list[dict[str, Any]]:
    call = {"index": 0, "id": "call_bench", "type": "function"}
    pieces = ("{", '"reason":', '"wants to talk"', "}")
    return [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{**call, "function": {"name": TRANSFER, "arguments": ""}}],
        },
        *({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces),
    ]


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
