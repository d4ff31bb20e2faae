"""Members of answers that neither the API nor the proxy knows: what is collected, and how pieces are joined."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.messages import ProviderState, Usage
from proxy.providers.model import Finished
from proxy.providers.openai.stream_parser import AnswerReader
from proxy.providers.openai.unknown_members import MAX_COLLECTED_BYTES, UnknownMembers, without_unknown


def state_of(*deltas: dict[str, Any], reason: str = "stop") -> ProviderState | None:
    reader = AnswerReader(max_answer_bytes=1 << 20, provider="host model", max_line_bytes=8 << 20)
    frames = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    frames.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    body = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames)
    found = reader.feed(f"{body}data: [DONE]\n\n".encode())[-1]
    assert isinstance(found, Finished)
    return found.state


def call(index: int = 0, **more: Any) -> dict[str, Any]:
    return {"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": "{}"}, **more}


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        pytest.param(["ab", "cd"], "abcd", id="text in pieces"),
        pytest.param(["ab", "ab", "ab"], "ab", id="the same text each time"),
        pytest.param(["ab", "abcd"], "abcd", id="all of the text so far"),
        pytest.param([["a"], ["b"]], ["a", "b"], id="a list in pieces"),
        pytest.param([{"a": "x"}, {"a": "y", "b": 1}], {"a": "xy", "b": 1}, id="an object in pieces"),
        pytest.param([1, 2], 2, id="a number"),
        pytest.param(["a", 1], 1, id="values of different types"),
    ],
)
def test_pieces_are_joined(pieces: list[Any], whole: Any) -> None:
    of_message = state_of(*({"vendor": piece} for piece in pieces), {"tool_calls": [call()]})
    of_call = state_of(
        {"tool_calls": [call()]}, *({"tool_calls": [{"index": 0, "vendor": piece}]} for piece in pieces)
    )

    assert of_message == ProviderState("host model", {"vendor": whole})
    assert of_call == ProviderState("host model", calls=[{"vendor": whole}])


def test_known_and_empty_members_are_not_collected() -> None:
    empty: dict[str, Any] = {
        "role": "assistant",
        "annotations": [],
        "audio": None,
        "vendor": None,
        "other": "",
        "third": [],
    }

    assert state_of({**empty, "content": "Hi"}, {"content": " there", "reasoning": "So."}) is None


def test_members_of_several_calls_stay_with_their_call() -> None:
    state = state_of(
        {"tool_calls": [call(0), call(1, vendor="b")]},
        {"tool_calls": [{"index": 1, "function": {"vendor": "of the function"}}]},
    )

    assert state == ProviderState(
        "host model", calls=[{}, {"vendor": "b", "function": {"vendor": "of the function"}}]
    )


def test_members_next_to_text_are_collected_if_the_first_chunk_has_some() -> None:
    state = state_of({"content": "a", "vendor": "x"}, {"content": "b", "vendor": "y"})

    assert state == ProviderState("host model", {"vendor": "xy"})


def test_members_behind_the_text_are_collected_without_those_next_to_it() -> None:
    state = state_of({"content": "a"}, {"content": "b", "vendor": "x"}, {"vendor": "y"})

    assert state == ProviderState("host model", {"vendor": "y"})


@pytest.mark.parametrize(
    "usage",
    [
        pytest.param({"prompt_tokens": 3, "completion_tokens": 2}, id="usual"),
        pytest.param({"prompt_tokens": 3.0, "completion_tokens": 2, "total_tokens": "?"}, id="unusual"),
        pytest.param({"prompt_tokens": 3, "completion_tokens": 2, "cost": 0.1}, id="with another member"),
    ],
)
def test_usage_is_read_with_and_without_unknown_members(usage: dict[str, Any]) -> None:
    found = []
    for members in ({}, {"vendor": "x"}):
        reader = AnswerReader(max_answer_bytes=1000, provider="host model")
        frames: list[dict[str, Any]] = [
            {"choices": [{"delta": {"content": "a", **members}}]},
            {"choices": [], "usage": usage},
            {"choices": [{"delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {}},
        ]
        body = "".join(f"data: {json.dumps(frame)}\n\n" for frame in frames)
        found.append(reader.feed(f"{body}data: [DONE]\n\n".encode())[-1])

    assert found == [
        Finished("stop", Usage(3, 2)),
        Finished("stop", Usage(3, 2), state=ProviderState("host model", {"vendor": "x"})),
    ]


def test_members_of_a_whole_message_are_collected_once() -> None:
    reader = AnswerReader(max_answer_bytes=1000, provider="host model")
    message = {"role": "assistant", "content": None, "tool_calls": [call(vendor="v")], "signature": "s"}
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}]}

    found = reader.read_whole(json.dumps(body).encode())[-1]

    assert isinstance(found, Finished)
    assert found.state == ProviderState("host model", {"signature": "s"}, [{"vendor": "v"}])


def test_members_of_too_many_chunks_are_dropped() -> None:
    members = UnknownMembers()
    chunk = json.dumps({"choices": [{"delta": {"vendor": "x" * 1_000_000}}]}).encode()
    for _ in range(MAX_COLLECTED_BYTES // len(chunk) + 1):
        members.read(chunk)

    assert members.joined() == {}


@pytest.mark.parametrize("chunk", [b"{", b'{"choices": 1}', b'{"choices": [{"delta": {"a": NaN}}]}'])
def test_chunks_that_are_invalid_have_no_members(chunk: bytes) -> None:
    members = UnknownMembers()

    assert members.read(chunk) == ((), ())
    assert members.joined() == {}


def test_only_known_state_is_left() -> None:
    state = ProviderState("p", {"reasoning_content": "r", "vendor": 1}, [{"id": "x", "function": {"a": 1}}])

    assert without_unknown(state) == ProviderState("p", {"reasoning_content": "r"}, [{"id": "x"}])
