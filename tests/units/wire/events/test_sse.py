"""Frames of server-sent events, and the ids that clients send back."""

from __future__ import annotations

import pytest

from proxy.errors import InvalidRequest
from proxy.wire.events import sse

SEPARATORS = '"a\u2028b\u2029c\u0085d\u2028é"'.encode()
ESCAPED = '"a\\u2028b\\u2029c\\u0085d\\u2028é"'.encode()


def test_comment_and_end_have_the_bytes_that_sdks_read() -> None:
    assert (sse.PING, sse.PING_BETWEEN_IDS) == (b": ping\n\n", b": ping\n")
    assert (sse.DONE, sse.START) == (b"data: [DONE]\n\n", (0, 0))


def test_a_frame_has_its_position_as_id() -> None:
    assert sse.frame(b"{}", 7) == b"id: 7\ndata: {}\n\n"
    assert sse.frame(b"{}", 7, 0) == b"id: 7\ndata: {}\n\n"
    assert sse.frame(b"{}", 7, 1) == b"id: 7.1\ndata: {}\n\n"


def test_a_named_event_has_no_id() -> None:
    assert sse.named("turn.failed", b"{}") == b"event: turn.failed\ndata: {}\n\n"


def test_line_separators_of_unicode_are_escaped_everywhere() -> None:
    assert sse.one_line(SEPARATORS) == ESCAPED
    assert sse.one_line(b'"\\u2028"') == b'"\\u2028"'
    assert sse.frame(SEPARATORS, 1) == b"id: 1\ndata: %b\n\n" % ESCAPED
    assert sse.named("x", SEPARATORS) == b"event: x\ndata: %b\n\n" % ESCAPED
    assert sse.data_frames([SEPARATORS]) == b"data: %b\n\n" % ESCAPED


def test_events_without_ids_have_their_data_only() -> None:
    assert sse.data_frames([b"{}"]) == b"data: {}\n\n"
    assert sse.data_frames([b"{}", b"[]"]) == b"data: {}\n\ndata: []\n\n"


def test_a_text_comes_in_pieces_of_a_size() -> None:
    assert [*sse.pieces("abcde", 2)] == ["ab", "cd", "e"]
    assert [len(piece) for piece in sse.pieces("x" * 9000)] == [4000, 4000, 1000]
    assert [*sse.pieces("")] == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", (0, 0)),
        ("12", (12, 0)),
        (" 12.3\n", (12, 3)),
        ("999999999999.9999", (999_999_999_999, 9999)),
        ("1.0", (1, 0)),
    ],
)
def test_a_position_is_parsed(value: str, expected: sse.Position) -> None:
    assert sse.position(value) == expected


@pytest.mark.parametrize("value", ["", "a", "-1", "1.", ".1", "1.1.1", "1 1", "٣", "1" * 13, "1.12345"])
def test_another_id_is_rejected(value: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        sse.position(value)
    assert (error.value.message, error.value.param, error.value.code) == (
        "Invalid 'Last-Event-ID': expected the id of a frame, as in '12' or '12.1'.",
        "Last-Event-ID",
        "invalid_value",
    )


def test_the_error_names_the_parameter() -> None:
    with pytest.raises(InvalidRequest, match="Invalid 'starting_after'") as error:
        sse.position("x", param="starting_after")
    assert error.value.param == "starting_after"
