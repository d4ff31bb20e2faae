"""Further pieces of the arguments of a call, which are read without the rest of the parser."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from proxy.errors import UpstreamFailed
from proxy.providers.model import ModelDelta, ToolCallPiece
from proxy.providers.openai.stream_parser import AnswerReader


def chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None, **more}]}


def piece(arguments: Any, index: Any = 0, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"arguments": arguments}, **more}]}


def begin(index: int = 0) -> dict[str, Any]:
    return {
        "tool_calls": [{"index": index, "id": f"id{index}", "function": {"name": "find", "arguments": ""}}]
    }


def read(chunks: Sequence[dict[str, Any]], before: bytes, limit: int) -> list[ModelDelta | str]:
    """Return the deltas, and the name of the failure that ended them; ``before`` is in front of the JSON of each."""
    reader = AnswerReader(max_answer_bytes=limit)
    deltas: list[ModelDelta | str] = []
    try:
        for one in chunks:
            deltas += reader.feed(b"data:%b%b\n\n" % (before, json.dumps(one).encode()))
        deltas += reader.feed(b"data: [DONE]\n\n")
    except UpstreamFailed as failure:
        deltas.append(type(failure).__name__)
    return deltas


_ARGUMENTS = ('{"q', '":', ' "a', "b", 'c"}', "ü", "\ud83d", "\ude42", "", " ", "{}", "\x00", None, {"q": 1})
_OTHERS: Sequence[dict[str, Any]] = (
    {"content": "text"},
    {"content": " ", **piece("x")},
    {"reasoning_content": "hm", **piece("x")},
    {"refusal": "no", **piece("x")},
    {"function_call": {"name": "g", "arguments": "{}"}, **piece("x")},
    {"tool_calls": [*piece("x")["tool_calls"], *piece("y", 1)["tool_calls"]]},
    {"tool_calls": []},
    piece("x", id="id0"),
    piece("x", index=None),
    piece("x", index=7),
    piece("x", extra_content={"s": 1}),
    {"role": "assistant", **piece("x")},
    begin(1),
    {},
)


def some_chunks(draw: random.Random) -> list[dict[str, Any]]:
    chunks = [chunk({"role": "assistant", "content": draw.choice((None, "", "text"))}), chunk(begin())]
    for _ in range(draw.randint(1, 12)):
        delta = draw.choice(_OTHERS) if draw.random() < 0.2 else piece(draw.choice(_ARGUMENTS))
        more = {"usage": {"prompt_tokens": 1, "completion_tokens": 2}} if draw.random() < 0.1 else {}
        chunks.append({**chunk(delta, index=int(draw.random() < 0.05)), **more})
    return [*chunks, chunk({}, finish_reason="tool_calls")]


@pytest.mark.parametrize("seed", range(200))
def test_they_are_read_as_any_other_delta(seed: int) -> None:
    draw = random.Random(seed)
    chunks, limit = some_chunks(draw), draw.choice((15, 10_000))

    # Data after another blank is read by the rest of the parser.
    assert read(chunks, b" ", limit) == read(chunks, b"  ", limit)


def test_they_are_deltas_at_once() -> None:
    chunks = [chunk(begin()), chunk(piece('{"q":')), chunk(piece(' "a"}'))]

    pieces = [ToolCallPiece(0, '{"q":', "find", "id0"), ToolCallPiece(0, ' "a"}')]
    assert read([*chunks, chunk({}, finish_reason="stop")], b" ", 100)[:2] == pieces
