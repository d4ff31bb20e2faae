"""Events that differ in their text only are read without a parser, with the same result."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest

from proxy.errors import UpstreamFailed
from proxy.events import TextDelta
from proxy.providers.model import ModelDelta
from proxy.providers.openai.repeated_frame import MAX_REPEATED, RepeatedData, RepeatedFrame
from proxy.providers.openai.stream_chunk import (
    Chunk,
    ChunkChoice,
    ChunkDelta,
    decoded,
    only_delta,
    only_text,
)
from proxy.providers.openai.stream_parser import AnswerReader

Change = Callable[[dict[str, Any]], object]


def chunk(text: str = " word", **delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"content": text, **delta}, "logprobs": None, "finish_reason": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice], "usage": None}


def packed(value: object, *, is_ascii: bool = False) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=is_ascii).encode()


def event(value: object) -> bytes:
    return b"data: %b\n\n" % packed(value)


KEY = b'"content"'


def data_of(data: bytes, key: bytes = KEY) -> RepeatedData:
    found = RepeatedData.of(data, key)
    assert found is not None
    return found


def frame_of(text: str = " word") -> RepeatedFrame:
    return RepeatedFrame(b"", data_of(packed(chunk(text))))


@pytest.mark.parametrize("text", ["x", " word", "ü", "日本語", "🙂", "a: {1, [2]}"])
def test_an_event_with_another_text_has_this_text(text: str) -> None:
    assert frame_of().texts(event(chunk(text))) == [text]
    assert frame_of(text).texts(event(chunk())) == [" word"]


def test_a_space_before_the_text_is_part_of_the_frame() -> None:
    spaced = json.dumps(chunk()).encode()
    frame = RepeatedFrame(b"", data_of(spaced))

    assert frame.texts(b"data: %b\n\n" % json.dumps(chunk("other")).encode()) == ["other"]
    assert frame.texts(event(chunk("other"))) is None


def test_several_events_have_several_texts() -> None:
    received = b"".join(event(chunk(text)) for text in ("one", " two", "ü"))

    assert frame_of().texts(received) == ["one", " two", "ü"]


@pytest.mark.parametrize(
    "received",
    [
        pytest.param(event(chunk("")), id="empty text"),
        pytest.param(event(chunk("a\nb")), id="escaped line break"),
        pytest.param(event(chunk('a"b')), id="escaped quotation mark"),
        pytest.param(event(chunk("a\u2028b")), id="line separator"),
        pytest.param(event(chunk("ab")).replace(b"ab", b"a\tb"), id="raw control character"),
        pytest.param(event(chunk("ab")).replace(b"ab", b"a\xffb"), id="not UTF-8"),
        pytest.param(event(chunk("ab")).replace(b"ab", b'a","content":"b'), id="another member"),
        pytest.param(event(chunk("ab"))[:-1], id="incomplete"),
        pytest.param(event(chunk("ab"))[1:], id="without its start"),
        pytest.param(event(chunk("ab")) + event(chunk("ab", role="assistant")), id="another frame behind"),
        pytest.param(
            event(chunk("a")) + event(chunk("ab", role="assistant")) + event(chunk("b")), id="another within"
        ),
        pytest.param(event(chunk("ab")) + b": ping\n\n" + event(chunk("ab")), id="comment between"),
        pytest.param(event(chunk("x" * MAX_REPEATED)), id="too long"),
        pytest.param(b"", id="nothing"),
        pytest.param(b"data: [DONE]\n\n", id="end"),
    ],
)
def test_anything_else_has_none(received: bytes) -> None:
    assert frame_of().texts(received) is None


def test_head_and_tail_do_not_overlap() -> None:
    frame = RepeatedFrame(b"", data_of(b'{"content":"x"}'))

    assert frame.texts(b'data: {"content":"y"}\n\n') == ["y"]
    assert frame.texts(b'data: {"content":"}\n\n') is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(packed(chunk("a", note="\\")), id="an escape"),
        pytest.param(packed(chunk("a", meta={"content": "a"})), id="two members of this name"),
        pytest.param(packed(chunk("a")).replace(b",", b",\n"), id="several lines"),
        pytest.param(b"", id="empty"),
    ],
)
def test_a_frame_that_cannot_be_determined_is_none(data: bytes) -> None:
    assert RepeatedData.of(data, KEY) is None


def _on_choice(**members: Any) -> Change:
    return lambda chunk: chunk["choices"][0].update(members)


def _on_delta(**members: Any) -> Change:
    return lambda chunk: chunk["choices"][0]["delta"].update(members)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda chunk: None, True, id="text"),
        pytest.param(_on_delta(role="assistant", refusal=None), True, id="role"),
        pytest.param(_on_delta(content=""), False, id="empty"),
        pytest.param(_on_delta(content=None), False, id="null"),
        pytest.param(_on_delta(content=[{"type": "text", "text": "x"}]), False, id="parts"),
        pytest.param(_on_delta(reasoning_content="x"), False, id="reasoning"),
        pytest.param(_on_delta(reasoning_details=[{}]), False, id="provider state"),
        pytest.param(_on_delta(tool_calls=[{"index": 0}]), False, id="call"),
        pytest.param(_on_delta(refusal="x"), False, id="refusal"),
        pytest.param(_on_choice(index=1), False, id="second choice"),
        pytest.param(_on_choice(finish_reason="stop"), False, id="finish reason"),
        pytest.param(_on_choice(finish_reason=""), True, id="empty finish reason"),
        pytest.param(_on_choice(logprobs={"content": []}), False, id="log probabilities"),
        pytest.param(_on_choice(message={"content": "x"}), False, id="whole message"),
        pytest.param(_on_choice(usage={"total_tokens": 1}), False, id="usage of a choice"),
        pytest.param(_on_choice(error={"message": "x"}), False, id="error of a choice"),
        pytest.param(_on_choice(delta=None), False, id="no delta"),
        pytest.param(lambda chunk: chunk.update(usage={"total_tokens": 1}), False, id="usage"),
        pytest.param(lambda chunk: chunk.update(error={"message": "x"}), False, id="error"),
        pytest.param(lambda chunk: chunk.update(handoff={"type": "x"}), False, id="event of a team"),
        pytest.param(lambda chunk: chunk.update(handoff={}), True, id="empty event of a team"),
        pytest.param(_on_choice(logprobs={}), True, id="empty log probabilities"),
        pytest.param(lambda chunk: chunk.update(choices=[]), False, id="no choice"),
        pytest.param(lambda chunk: chunk["choices"].append(chunk["choices"][0]), False, id="two choices"),
    ],
)
def test_only_a_piece_of_text_is_repeated(change: Change, expected: bool) -> None:
    value = chunk()
    change(value)

    delta = only_delta(decoded(packed(value)))

    assert (only_text(delta) if delta is not None else "") == (" word" if expected else "")


def test_a_chunk_with_any_further_member_has_more_than_text() -> None:
    without_meaning = {"choices", "delta", "content"}

    for name in {*Chunk.__struct_fields__, *ChunkChoice.__struct_fields__} - without_meaning:
        value = chunk()
        (value if name in Chunk.__struct_fields__ else value["choices"][0])[name] = {"content": "x"}
        assert only_delta(decoded(packed(value))) is None, name
    for name in {*ChunkDelta.__struct_fields__} - without_meaning:
        value = chunk()
        value["choices"][0]["delta"][name] = [{}]
        delta = only_delta(decoded(packed(value)))
        assert delta is not None, name
        assert only_text(delta) == "", name


# --- the reader ---


def read(reads: Sequence[bytes], *, max_answer_bytes: int = 10_000) -> list[ModelDelta | str]:
    """Return the deltas of the reads, and the name of the failure that ended them."""
    reader = AnswerReader(max_answer_bytes=max_answer_bytes)
    deltas: list[ModelDelta | str] = []
    try:
        for received in reads:
            deltas += reader.feed(received)
            if reader.failure is not None:
                raise reader.failure
        if not reader.is_finished:
            deltas += reader.end()
    except UpstreamFailed as failure:
        deltas.append(type(failure).__name__)
    return deltas


def halves(events: Sequence[bytes]) -> list[bytes]:
    """Return reads that begin and end within an event, and complete one each, so that all of them are parsed."""
    whole = b"".join(events)
    cuts = [0, *(sum(map(len, events[: at + 1])) - 3 for at in range(len(events))), len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(cuts)]


_WORDS = (
    " word",
    "x",
    "ü",
    " 日本",
    "🙂",
    "a\nb",
    'say "hi"',
    "back\\slash",
    "",
    " ",
    "\u2028",
    "<think>",
    "</think>",
)
_OTHERS: Sequence[Change] = (
    _on_delta(role="assistant"),
    _on_delta(reasoning_content="hm"),
    _on_delta(unknown_member=[1]),
    _on_delta(content=None),
    _on_delta(tool_calls=[{"index": 0, "id": "1", "function": {"name": "f", "arguments": "{}"}}]),
    _on_choice(finish_reason="stop"),
    _on_choice(index=1),
    _on_choice(logprobs={"content": [{"token": "x"}]}),
    _on_choice(logprobs={}),
    _on_choice(finish_reason=""),
    _on_delta(content=["x", {"type": "text", "text": "y"}]),
    lambda chunk: chunk.update(handoff={}),
    lambda chunk: chunk.update(handoff={"type": "x"}),
    lambda chunk: chunk.update(usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}),
    lambda chunk: chunk.update(obfuscation="xyz"),
    lambda chunk: chunk.update(error={"message": "x"}),
)


def some_events(draw: random.Random, longest: int) -> list[bytes]:
    """Return events most of which differ in their text only, also in their padding, or in their frame now and then."""
    is_padded = draw.random() < 0.3
    events = []
    for _ in range(draw.randint(1, longest)):
        value = chunk(draw.choice(_WORDS if draw.random() < 0.3 else _WORDS[:5]))
        if is_padded:
            value["obfuscation"] = draw.choice(("", "a", "b1"))
        if draw.random() < 0.1:
            draw.choice(_OTHERS)(value)
        data = packed(value, is_ascii=draw.random() < 0.05)
        line = draw.choice(
            (b"event: name\ndata: %b\n\n", b"data:%b\n\n", b"data: %b\r\n\r\n", b"data: %b \n\n")
        )
        events.append((line if draw.random() < 0.05 else b"data: %b\n\n") % data)
        if draw.random() < 0.05:
            events.append(b": ping\n\n")
    events.append(b"data: [DONE]\n\n")
    return events


@pytest.mark.parametrize("seed", range(40))
def test_the_deltas_are_those_of_the_parser(seed: int) -> None:
    draw = random.Random(seed)
    events = some_events(draw, 40)
    limit = draw.choice((20, 10_000))
    reads = []
    rest = list(events)
    while rest:
        count = draw.randint(1, 4)
        reads.append(b"".join(rest[:count]))
        del rest[:count]

    parsed = read(halves(events), max_answer_bytes=limit)

    if limit > 20:
        assert read(reads, max_answer_bytes=limit) == parsed
    assert read(events, max_answer_bytes=limit) == parsed


@pytest.mark.parametrize("seed", range(80))
def test_however_the_network_cuts_the_events_the_deltas_are_the_same(seed: int) -> None:
    draw = random.Random(seed)
    events = some_events(draw, 200)
    whole = b"".join(events)
    cuts = sorted(draw.sample(range(1, len(whole)), draw.randint(0, 8)))
    reads = [whole[start:end] for start, end in itertools.pairwise((0, *cuts, len(whole)))]

    parsed = read(halves(events))

    assert read(reads) == parsed
    assert read([whole]) == parsed


@pytest.mark.parametrize("seed", range(80))
def test_a_chunk_that_has_only_text_is_read_as_any_other(seed: int) -> None:
    events = some_events(random.Random(seed), 60)
    # Data after another blank is none of a frame, and is not read as text alone.
    blank = [one.replace(b"data: {", b"data:  {") for one in events]

    assert read(halves(events)) == read(halves(blank))


@pytest.mark.parametrize("limit", range(12))
def test_an_answer_in_one_read_is_cut_at_the_same_event(limit: int) -> None:
    events = [event(chunk(text)) for text in ("one", "two", "ü", "four")]

    assert read([b"".join(events)], max_answer_bytes=limit) == read(halves(events), max_answer_bytes=limit)


def calls_of_feed(*texts: str) -> int:
    """Return how many Python functions are called while one read with these texts is processed."""
    reader, received = AnswerReader(max_answer_bytes=10_000), b"".join(event(chunk(text)) for text in texts)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        deltas = reader.feed(received)
    finally:
        sys.setprofile(None)
    assert deltas == [TextDelta(text) for text in texts]
    return calls


def test_events_of_one_read_that_differ_in_their_text_only_are_not_parsed() -> None:
    assert calls_of_feed("Hello", *[" wörld"] * 5) == calls_of_feed("Hello", *[" wörld"] * 50)
    assert calls_of_feed("Hello", *["\n"] * 50) > calls_of_feed("Hello", *[" wörld"] * 50) + 150


def test_the_first_events_with_another_text_are_read_up_to_something_else() -> None:
    same = [packed(chunk(text)) for text in (" one", "ü")]

    assert data_of(packed(chunk())).leading_texts(same) == [" one", "ü"]
    assert data_of(packed(chunk())).leading_texts([*same, packed(chunk("a\nb")), *same]) == [" one", "ü"]
    assert data_of(packed(chunk())).leading_texts([*same, packed(chunk("b", role="assistant"))]) == [
        " one",
        "ü",
    ]
    assert data_of(packed(chunk())).leading_texts([packed(chunk("")), *same]) == []
    assert data_of(packed(chunk())).leading_texts([packed(chunk("b", role="assistant")), *same]) == []
    assert data_of(packed(chunk())).leading_texts([b"\n".join(same)]) == []
    assert data_of(packed(chunk())).leading_texts([b"%b\n\ndata: %b" % (same[0], same[1])]) == []


def padded(number: object = 4, text: str = "x", padding: str = "a1", **members: Any) -> bytes:
    data = {"type": "text", "sequence_number": number, "item_id": "i", "delta": text, **members}
    return packed({**data, "obfuscation": padding})


def named(data: bytes) -> bytes:
    return b"event: text\ndata: %b\n\n" % data


def varying_frame(data: bytes) -> RepeatedFrame:
    return RepeatedFrame(b"text", data_of(data, b'"delta"'))


def test_number_and_padding_of_an_event_are_skipped() -> None:
    frame = varying_frame(padded())

    assert frame.texts(named(padded(123, "ü", ""))) == ["ü"]
    assert frame.texts(named(padded(5, " one")) + named(padded(6, " two", "abc"))) == [" one", " two"]


def test_the_first_events_with_another_padding_are_read_up_to_something_else() -> None:
    frame = data_of(padded(), b'"delta"')
    same = [padded(5, " one"), padded(6, "ü", "")]

    assert frame.leading_texts(same) == [" one", "ü"]
    assert frame.leading_texts([*same, padded(7, "a\nb"), *same]) == [" one", "ü"]
    assert frame.leading_texts([*same, padded(7, type="other")]) == [" one", "ü"]
    assert frame.leading_texts([b"%b\n\ndata: %b" % (same[0], same[1])]) == []


@pytest.mark.parametrize(
    "received",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(named(padded(5))[:-1], id="incomplete"),
        pytest.param(named(padded(5)) + b": ping\n\n", id="comment"),
        pytest.param(padded(5), id="only data"),
        pytest.param(named(padded("5")), id="number as text"),
        pytest.param(named(padded(-5)), id="negative number"),
        pytest.param(named(padded(5, "")), id="empty text"),
        pytest.param(named(padded(5, 'a"b')), id="escaped text"),
        pytest.param(named(padded(5, "x", "a\\")), id="escaped padding"),
        pytest.param(named(padded(5, "x", "ü")), id="other padding"),
        pytest.param(named(padded(5, logprobs=[1])), id="another member"),
        pytest.param(named(padded(5)).replace(b'"x"', b'"\xff"'), id="not UTF-8"),
        pytest.param(named(padded(5, "x" * MAX_REPEATED)), id="too long"),
    ],
)
def test_an_event_that_differs_otherwise_has_no_text(received: bytes) -> None:
    frame = varying_frame(padded())
    assert frame.texts(received) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(packed({"delta": "x", "obfuscation": "a", "sequence_number": 4}), id="number behind"),
        pytest.param(packed({"obfuscation": "a", "delta": "x"}), id="padding before"),
    ],
)
def test_members_in_another_order_are_part_of_the_frame(data: bytes) -> None:
    frame = varying_frame(data)

    assert frame.texts(named(data)) == ["x"]
    assert frame.texts(named(data.replace(b'"a"', b'"b"').replace(b":4", b":5"))) is None


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(padded(note="\\"), id="an escape"),
        pytest.param(padded().replace(b",", b",\n"), id="several lines"),
        pytest.param(padded(other={"delta": "x"}), id="two texts"),
    ],
)
def test_a_varying_frame_that_cannot_be_determined_is_none(data: bytes) -> None:
    assert RepeatedData.of(data, b'"delta"') is None
