"""Query parameters of lists: the value of ``limit``, however it is written."""

from __future__ import annotations

import pytest

from proxy.errors import InvalidRequest
from proxy.wire.validation.query_params import list_query


@pytest.mark.parametrize(
    ("text", "limit"), [("7", 7), ("007", 7), ("+7", 7), ("7.", 7), ("7.000", 7), ("0" * 8000 + "100", 100)]
)
def test_limit_accepts_every_form_of_an_integer(text: str, limit: int) -> None:
    assert list_query([("limit", text)], order="asc").limit == limit


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("0", "integer_below_min_value"),
        ("000", "integer_below_min_value"),
        ("-1", "integer_below_min_value"),
        ("00101", "integer_above_max_value"),
        ("9" * 8000, "integer_above_max_value"),
        ("7.5", "invalid_type"),
        ("0" * 8000 + "x", "invalid_type"),
    ],
)
def test_limit_out_of_range_or_not_an_integer_is_rejected(text: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        list_query([("limit", text)], order="asc")

    assert (caught.value.param, caught.value.code) == ("limit", code)
