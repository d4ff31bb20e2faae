"""Summaries that are written piece by piece, and within a time limit."""

from __future__ import annotations

import asyncio

from proxy.agents.compaction.summary import SummaryWriter
from proxy.messages import Item, UserMessage
from proxy.providers.context_windows import ContextWindow
from tests.fakes.models import Reply, ScriptedModel, says


def writer(*replies: Reply) -> SummaryWriter:
    # A window of 500 tokens: a call has about 1,000 bytes of messages.
    return SummaryWriter(ScriptedModel(*replies), ContextWindow(500), team="shop")


def items(count: int) -> list[Item]:
    return [Item(UserMessage(content=f"{number} {'x' * 900}")) for number in range(count)]


async def test_each_piece_continues_the_summary_of_those_before_it() -> None:
    model = ScriptedModel(says("first"), says("second"), says("third"))
    found = await SummaryWriter(model, ContextWindow(500), team="shop").write(
        items(3), "", max_tokens=100, agent="triage"
    )

    assert found.text == "third"
    assert "second" in str(model.requests[2].messages[1].content)


async def test_an_empty_summary_of_one_piece_is_a_failure() -> None:
    """The next piece would be summarised without the earlier ones."""
    found = await writer(says("first"), says(" "), says("third")).write(
        items(3), "", max_tokens=100, agent="triage"
    )

    assert (found.text, len(found.calls)) == ("", 2)


async def test_a_summary_takes_only_a_part_of_the_time_of_the_turn() -> None:
    async with asyncio.timeout(10):
        found = await writer([asyncio.Event()]).write(
            items(1), "", max_tokens=100, agent="triage", turn_seconds=0.1
        )

    assert found.text == ""
