from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.providers.http.sse import EventReader, Events

Event = tuple[bytes, bytes]


def paired(events: Events) -> list[Event]:
    """Return the name and the data of each event."""
    names, payloads = events
    return [*zip(names or [b""] * len(payloads), payloads, strict=True)]


def read(*pieces: bytes, max_line_bytes: int = 1024) -> list[Event]:
    reader = EventReader(max_line_bytes=max_line_bytes)
    return [event for piece in pieces for event in paired(reader.feed(piece))] + paired(reader.end())


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        pytest.param(b"data: a\n\ndata: b\n\n", [(b"", b"a"), (b"", b"b")], id="two events"),
        pytest.param(b"data: a\r\n\r\ndata: b\r\n\r\n", [(b"", b"a"), (b"", b"b")], id="CR LF"),
        pytest.param(b"event: e\r\ndata: a\r\ndata: b\r\n\r\n", [(b"e", b"a\nb")], id="lines with CR LF"),
        pytest.param(b"data: a\r\rdata: b\r\r", [(b"", b"a"), (b"", b"b")], id="CR alone"),
        pytest.param(b"data: a\r\n\ndata: b\n\r\n", [(b"", b"a"), (b"", b"b")], id="line ends mixed"),
        pytest.param(b"data:a\n\n", [(b"", b"a")], id="no space after data:"),
        pytest.param(b"data:  a\n\n", [(b"", b" a")], id="only one space is taken off"),
        pytest.param(b"data: a\ndata: b\n\n", [(b"", b"a\nb")], id="data of two lines"),
        pytest.param(b"data\n\n", [(b"", b"")], id="data without a colon"),
        pytest.param(b": ping\n\ndata: a\n\n: ping\ndata: b\n\n", [(b"", b"a"), (b"", b"b")], id="comments"),
        pytest.param(b"event: error\ndata: a\n\ndata: b\n\n", [(b"error", b"a"), (b"", b"b")], id="a name"),
        pytest.param(
            b"event: e\ndata: a\n\nevent: f\ndata: b\n\n",
            [(b"e", b"a"), (b"f", b"b")],
            id="only named events",
        ),
        pytest.param(
            b"event: e\ndata: a\n\nevent: f\ndata: b\ndata: c\n\n",
            [(b"e", b"a"), (b"f", b"b\nc")],
            id="two lines",
        ),
        pytest.param(
            b"event: e\ndata: a\n\nevent: f\nid: 1\ndata: b\n\n",
            [(b"e", b"a"), (b"f", b"b")],
            id="name and id",
        ),
        pytest.param(b"event: e\ndata: a\n\nevent: f\n\n", [(b"e", b"a")], id="a name without data behind"),
        pytest.param(b"event:  e\ndata:  a\n\n", [(b" e", b" a")], id="named, only one space is taken off"),
        pytest.param(b"event: ping\n\ndata: a\n\n", [(b"", b"a")], id="a name without data is forgotten"),
        pytest.param(b"id: 7\nretry: 10\nx: y\ndata: a\n\n", [(b"", b"a")], id="other fields"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")], id="byte order mark"),
        pytest.param(b"\n\n\ndata: a\n\n\n\n", [(b"", b"a")], id="more blank lines"),
        pytest.param(b"data: a\n\ndata: b", [(b"", b"a"), (b"", b"b")], id="end without a line end"),
        pytest.param(b"data: a\n", [(b"", b"a")], id="end without a blank line"),
        pytest.param(b"", [], id="nothing"),
        pytest.param("data: 🦤\n\n".encode(), [(b"", "🦤".encode())], id="long characters"),
    ],
)
def test_events_are_read_however_the_bytes_are_split(stream: bytes, events: list[Event]) -> None:
    whole = read(stream)
    byte_by_byte = read(*(stream[i : i + 1] for i in range(len(stream))))

    assert whole == events
    assert byte_by_byte == events


@given(
    st.lists(
        st.sampled_from(
            [
                b"data: ",
                b"data:",
                b"event: e",
                b":",
                b"\r",
                b"\n",
                b"\r\n",
                b"\xef\xbb\xbf",
                b"x",
                b"\xf0\x9f\xa6\xa4",
            ]
        ),
        max_size=30,
    ),
    st.data(),
)
def test_no_split_changes_what_is_read(tokens: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(tokens)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))

    pieces = [stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)]

    assert read(*pieces) == read(stream)


def test_an_event_is_given_as_soon_as_its_blank_line_is_there() -> None:
    reader = EventReader()

    assert paired(reader.feed(b"data: a\n")) == []
    assert paired(reader.feed(b"\ndata: b\r\n\r")) == [(b"", b"a"), (b"", b"b")]


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"data: " + b"x" * 1024 + b"\n\n"], id="a line in one piece"),
        pytest.param([b"data: ", b"x" * 600, b"x" * 600], id="a line that does not end"),
        pytest.param([b"data: " + b"x" * 400 + b"\n"] * 4, id="an event of many lines"),
    ],
)
def test_nothing_is_read_behind_what_is_over_the_limit(pieces: list[bytes]) -> None:
    reader = EventReader(max_line_bytes=1024)

    events = [
        event for piece in (b"data: a\n\n", *pieces, b"data: b\n\n") for event in paired(reader.feed(piece))
    ]

    assert events == [(b"", b"a")]
    assert reader.is_over_limit


def test_a_line_up_to_the_limit_is_read() -> None:
    assert read(b"data: " + b"x" * 1018 + b"\n\n") == [(b"", b"x" * 1018)]


@pytest.mark.parametrize(
    ("stream", "is_over"),
    [
        pytest.param(b"data: " + b"x" * 4 + b"\n\n", False, id="line of the limit"),
        pytest.param(b"data: " + b"x" * 5 + b"\n\n", True, id="line over the limit"),
        pytest.param(b"data:a\ndata:bcdefghij\n\n", True, id="line of an event over the limit"),
        pytest.param(b"data:a\ndata:bcde\ndata:fghi\n\n", False, id="further lines of the limit"),
        pytest.param(b"data:a\ndata:bcde\ndata:fghij\n\n", True, id="further lines over the limit"),
        pytest.param(b"data:a\ndata:bcde\n\ndata:a\ndata:bcde\ndata:fghi\n\n", False, id="counted by event"),
        pytest.param(b"data:12345", False, id="unfinished line of the limit"),
        pytest.param(b"data:123456", True, id="unfinished line over the limit"),
        pytest.param(b"data: a\n\ndata: b\n\n", False, id="many events"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000], ids=["byte by byte", "whole"])
def test_lines_and_events_are_limited_in_bytes(stream: bytes, is_over: bool, size: int) -> None:
    reader = EventReader(max_line_bytes=10)

    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size])

    assert reader.is_over_limit == is_over


def test_the_end_returns_what_no_blank_line_closed_once() -> None:
    reader = EventReader()
    assert paired(reader.feed(b"event: e\ndata: a\r")) == []

    assert paired(reader.end()) == [(b"e", b"a")]
    assert paired(reader.end()) == []
    assert paired(reader.feed(b"\ndata: b\n\n")) == [(b"", b"b")]


def test_a_name_without_data_does_not_name_the_next_event() -> None:
    assert read(b"event: e\n\n", b"data: a\n\n") == [(b"", b"a")]
    assert read(b"data: a\nevent: e\n\ndata: b\n\n") == [(b"e", b"a"), (b"", b"b")]
    assert read(b"event: e\n", b"data: a\n\ndata: b\n\n") == [(b"e", b"a"), (b"", b"b")]
    assert read(b"data: a\n", b"data: b\n\ndata: c\n\n") == [(b"", b"a\nb"), (b"", b"c")]


@pytest.mark.parametrize("stream", [b"\xef\xbbdata: a\n\n", b"\xefdata: a\n\n", b"x\xef\xbb\xbf\n\n"])
def test_bytes_that_are_not_a_whole_mark_at_the_start_belong_to_the_line(stream: bytes) -> None:
    assert read(stream) == read(*(stream[i : i + 1] for i in range(len(stream)))) == []
    assert read(b"data: a\n\n\xef\xbb\xbfdata: b\n\n") == [(b"", b"a")], "a mark is only at the start"
