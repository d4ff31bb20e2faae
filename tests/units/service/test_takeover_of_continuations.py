"""Turns after approvals, and with agents that have their own code, that outlive their worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from proxy.agents.agent import Agent
from proxy.events import ApprovalDecided, Completed, Handoff, TextDelta
from proxy.members.port import HandOver, MemberContext
from proxy.messages import Message, UserMessage
from proxy.turns.turn import RUN_UNKNOWN
from tests.fakes.models import ScriptedModel, calls, says
from tests.fakes.teams import FixedTool, agent
from tests.units.service.test_takeover import ASK, HangingTool, Workers, read, until_called

FIRST = replace(ASK, idempotency_key=None, conversation_id="conv_a")
YES = replace(FIRST, messages=[UserMessage("Yes")], idempotency_key="key-2", body_digest=b"y" * 16)
REFUND = calls(("refund", "{}"))


def hang() -> Any:
    """A model reply that does not come."""
    return [asyncio.Event()]


class Program:
    """An agent with its own code: it begins to answer and hangs, or hands over."""

    def __init__(self, *, has_effects: bool, answer: str = "", hands_to: str = "") -> None:
        self.has_effects = has_effects
        self.runs = 0
        self._answer = answer
        self._hands_to = hands_to

    async def run(self, messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | HandOver]:
        self.runs += 1
        if self._hands_to:
            context.state = {"runs": self.runs}
            yield HandOver(self._hands_to)
            return
        yield "It is"
        if not self._answer:
            await asyncio.Event().wait()
        yield self._answer

    async def close(self) -> None:
        pass


def with_code(program: Program) -> Agent:
    return replace(agent("program", ScriptedModel(), hands_to=["triage"]), member=program)


async def test_a_turn_after_an_approval_continues_with_the_result_of_the_call() -> None:
    workers, tool = Workers(), FixedTool("refund", "refunded", has_effects=True)
    here = await workers.start(REFUND, hang(), tools=[tool], approvals=["refund"])
    await read(await here.open(FIRST))
    first = await here.open(YES)
    before = await read(first, 4)
    assert any(isinstance(entry.event, ApprovalDecided) for entry in before)
    async with asyncio.timeout(5):
        while len(workers.models[0].requests) < 2:
            await asyncio.sleep(0)

    there = await workers.next_worker(says("Done"), tools=[tool], approvals=["refund"])
    again = await there.open(YES)
    events = [entry.event for entry in await read(again)]

    assert again.turn_id == first.turn_id
    assert sum(isinstance(event, ApprovalDecided) for event in events) == 1
    assert isinstance(events[-1], Completed)
    assert (len(tool.calls), workers.results()[-1]) == (1, "refunded")


async def test_an_approved_call_that_was_running_is_reported_as_unknown_and_not_run_again() -> None:
    workers, tool = Workers(), HangingTool("refund", has_effects=True)
    here = await workers.start(REFUND, tools=[tool], approvals=["refund"])
    await read(await here.open(FIRST))
    first = await here.open(YES)
    await until_called(tool)

    there = await workers.next_worker(says("I do not know"), tools=[tool], approvals=["refund"])
    again = await there.open(YES)
    events = [entry.event for entry in await read(again)]

    assert again.turn_id == first.turn_id
    assert isinstance(events[-1], Completed)
    assert (len(tool.calls), workers.results()[-1]) == (1, RUN_UNKNOWN)


async def test_code_without_effects_runs_again_from_its_beginning() -> None:
    workers, lost, program = (
        Workers(),
        Program(has_effects=False),
        Program(has_effects=False, answer=" a star."),
    )
    here = await workers.start(before=[with_code(lost)])
    first = await here.open(ASK)
    await read(first, 2)

    there = await workers.next_worker(before=[with_code(program)])
    again = await there.open(ASK)
    events = [entry.event for entry in await read(again)]

    assert again.turn_id == first.turn_id
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["It is", " a star."]
    assert isinstance(events[-1], Completed)
    assert (lost.runs, program.runs) == (1, 1)


@pytest.mark.parametrize("hands_to", ["", "triage"])
async def test_code_with_effects_is_not_run_again(hands_to: str) -> None:
    workers, program = Workers(), Program(has_effects=True, hands_to=hands_to)
    other = Program(has_effects=True, hands_to=hands_to)
    here = await workers.start(hang(), before=[with_code(program)])
    first = await here.open(ASK)
    await read(first, 2)
    async with asyncio.timeout(5):
        while hands_to and not workers.models[0].requests:
            await asyncio.sleep(0)

    there = await workers.next_worker(says("Hello"), before=[with_code(other)])
    record = await workers.history.turn("c", first.turn_id)
    assert record is not None
    assert (program.runs, other.runs) == (1, 0)
    if not hands_to:
        # What the code has done is not known.
        assert record.status == "interrupted"
        return
    events = [entry.event for entry in await read(await there.attach("c", first.turn_id))]
    assert [type(event) for event in events if isinstance(event, Handoff | Completed)] == [Handoff, Completed]
    # The state of the code is part of the continued turn.
    record = await workers.history.turn("c", first.turn_id)
    assert record is not None
    assert [item.state.members for item in record.items if item.state is not None] == [{"state": {"runs": 1}}]
