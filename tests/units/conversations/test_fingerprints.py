"""Fingerprints exclude reasoning in the text, in time linear in its length."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.conversations.fingerprints import without_thinking

NAMES = ("think", "thinking", "reasoning")
PIECES = [f"<{name}>" for name in NAMES] + [f"</{name}>" for name in NAMES] + ["<", ">", "a", "\n", "think"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_closed_think_tags_are_left_out_as_the_expression_says(text: str) -> None:
    expression = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL)

    assert without_thinking(text) == expression.sub("", text)


@pytest.mark.parametrize(
    "piece", ["<think>", "<think><reasoning>", "<think></think>", "<thinking></think>", "<", "<think"]
)
def test_four_megabytes_of_tags_take_no_time(piece: str) -> None:
    text = piece * (4 * 2**20 // len(piece))

    began = time.process_time()
    without_thinking(text)
    assert time.process_time() - began < 2
