"""Ids are in the order of time, and no two are equal."""

from __future__ import annotations

import time

from proxy.turns.ids import new_id


def test_an_id_begins_with_its_time() -> None:
    before = time.time_ns() // 1_000_000
    made = new_id("conv_")
    after = time.time_ns() // 1_000_000

    digits = made.removeprefix("conv_")
    assert len(digits) == 32
    assert before <= int(digits[:12], 16) <= after


def test_ids_of_one_time_differ() -> None:
    assert len({new_id("chatcmpl-") for _ in range(1000)}) == 1000
