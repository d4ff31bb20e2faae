"""Several texts that arrived together are encoded at once, with the same frames as one by one."""

from __future__ import annotations

import random

import pytest

from proxy.events import Entry, Event, Handoff, ModelCalled, Started, TextDelta
from proxy.wire.chat.answer_text import TextJoiner
from proxy.wire.chat.completion import AnswerOptions
from proxy.wire.chat.stream import ChunkEncoder

PIECES = [
    " word",
    "x",
    "\n",
    "\n\n",
    '"',
    '","',
    "\\",
    '\\","',
    "ü",
    "日本語",
    "🙂",
    "\u2028",
    "\x85",
    "\x7f",
    "a,b",
    ",",
    ",,",
]


def encoder(*, has_ids: bool = False) -> ChunkEncoder:
    return ChunkEncoder(AnswerOptions(id="chatcmpl-1", created=0, model="shop"), has_ids=has_ids)


def one_by_one(entries: list[Entry], *, has_ids: bool = False) -> bytes:
    return b"".join(map(encoder(has_ids=has_ids).encode, entries))


def in_batches(batches: list[list[Event]], *, has_ids: bool = False) -> tuple[bytes, list[Entry]]:
    encoding, frames = encoder(has_ids=has_ids), b""
    entries: list[Entry] = []
    for batch in batches:
        first = len(entries) + 1
        entries += (new := [Entry(position, event) for position, event in enumerate(batch, first)])
        frames += encoding.encode_batch(new)
    return frames, entries


@pytest.mark.parametrize("has_ids", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_batches_have_the_frames_of_their_entries(seed: int, has_ids: bool) -> None:
    draw = random.Random(seed)
    others: list[Event] = [
        TextDelta("x", [{"token": "x"}]),
        Handoff("triage", "sales"),
        ModelCalled("triage", "m", None, 0.1),
    ]
    batches: list[list[Event]] = [[Started("chatcmpl-1", "triage"), TextDelta("Hello")]]
    for _ in range(draw.randint(1, 6)):
        texts: list[Event] = [TextDelta(draw.choice(PIECES)) for _ in range(draw.randint(1, 6))]
        batches.append([*texts, draw.choice(others)] if draw.random() < 0.3 else texts)

    frames, entries = in_batches(batches, has_ids=has_ids)

    assert frames == one_by_one(entries, has_ids=has_ids)


def test_a_comma_may_be_the_first_of_several_texts() -> None:
    texts: list[Event] = [TextDelta(","), TextDelta(" and"), TextDelta(",")]
    frames, entries = in_batches([[Started("chatcmpl-1", "triage"), TextDelta("Hello")], texts])

    assert frames == one_by_one(entries)


@pytest.mark.parametrize("seed", range(20))
def test_texts_are_joined_as_one_by_one(seed: int) -> None:
    draw = random.Random(seed)
    together, alone = TextJoiner(), TextJoiner()
    for _ in range(8):
        texts = [draw.choice(PIECES) for _ in range(draw.randint(1, 4))]

        assert together.join_all(texts) == [alone.join(text) for text in texts]
        if draw.random() < 0.5:
            together.pause()
            alone.pause()


USED = ModelCalled("triage", "gpt", None, 1.0)


@pytest.mark.parametrize(
    ("events", "has_ids", "has_frame"),
    [
        pytest.param([], False, False, id="no text yet"),
        pytest.param([TextDelta("a")], False, True, id="text"),
        pytest.param([TextDelta("a")], True, False, id="with ids"),
        pytest.param([TextDelta("a"), USED], False, False, id="end of a model call"),
        pytest.param([TextDelta("a"), USED, TextDelta("b")], False, True, id="text of the next one"),
        pytest.param([TextDelta("a"), Handoff("triage", "sales", "")], False, False, id="handoff"),
    ],
)
def test_text_is_written_in_a_frame_only_if_its_chunk_has_nothing_else(
    events: list[Event], has_ids: bool, has_frame: bool
) -> None:
    encoding = encoder(has_ids=has_ids)
    for position, event in enumerate([Started("t", "triage"), *events], 1):
        encoding.encode(Entry(position, event))

    frame = encoding.text_frame

    assert (frame is not None) is has_frame
    if frame is not None:
        assert frame[0] + b"c" + frame[1] == encoding.encode(Entry(9, TextDelta("c")))
