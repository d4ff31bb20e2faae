"""Summaries of compaction items: what a request can contain."""

from __future__ import annotations

import pytest

from proxy.errors import InvalidRequest
from proxy.wire.responses.compaction import (
    MAX_SUMMARIES_BYTES,
    MAX_SUMMARY_BYTES,
    SummaryDecoder,
    encode_summary,
)


def test_a_summary_is_decoded_up_to_its_limit() -> None:
    longest = "ä" * (MAX_SUMMARY_BYTES // 2)
    assert SummaryDecoder().decode(encode_summary(longest), param="p") == longest
    with pytest.raises(InvalidRequest) as caught:
        SummaryDecoder().decode(encode_summary(f"{longest}x"), param="p")
    assert caught.value.code == "invalid_encrypted_content"


def test_the_summaries_of_a_request_are_bounded_together() -> None:
    decoder, longest = SummaryDecoder(), encode_summary("x" * MAX_SUMMARY_BYTES)
    for at in range(MAX_SUMMARIES_BYTES // MAX_SUMMARY_BYTES):
        decoder.decode(longest, param=f"input[{at}].encrypted_content")
    with pytest.raises(InvalidRequest) as caught:
        decoder.decode(encode_summary("one more"), param="input[8].encrypted_content")
    assert (caught.value.param, caught.value.code) == (
        "input[8].encrypted_content",
        "string_above_max_length",
    )
    assert "Leave out the items before the last compaction item" in str(caught.value)
    assert decoder.decode(encode_summary(""), param="p") == ""
