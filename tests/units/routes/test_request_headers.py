"""Headers that a request to a team can have."""

from __future__ import annotations

import pytest

from proxy.routes.request_headers import HeaderOptions, header_options
from proxy.settings import Settings

USUAL = header_options({}, Settings())
# Of each kind of header that few requests have, the member that it sets.
RARE = {
    "x-parent-id": ("root", "parent"),
    "idempotency-key": ("k", "idempotency_key"),
    "x-stainless-retry-count": ("1", "is_retry"),
    "x-task": ("title_generation", "is_side"),
    "x-on-disconnect": ("detach", "on_disconnect"),
    "x-busy": ("queue", "busy"),
}
FREQUENT = {"conversation_id", "id_source", "end_user", "is_repeatable", "events", "has_status"}


def test_each_member_is_of_a_frequent_or_of_a_rare_header() -> None:
    assert {name for _, name in RARE.values()} | FREQUENT | {"are_usual"} == {
        *HeaderOptions.__struct_fields__
    }


@pytest.mark.parametrize("header", RARE)
def test_one_rare_header_is_enough_to_be_looked_at(header: str) -> None:
    value, name = RARE[header]
    given = header_options({header: value}, Settings())

    assert getattr(given, name) != getattr(USUAL, name)
    assert USUAL.are_usual
    assert not given.are_usual
