"""The run of a member: its limits, and what it waits for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from msgspec.structs import replace

from proxy.events import TextDelta
from proxy.members.port import MemberContext, MemberEvent, ModelUsed, ToolBegan, ToolEnded
from proxy.members.python import FunctionMember
from proxy.messages import AssistantMessage, Message, Usage, UserMessage
from proxy.teamfiles.definitions import Limits
from proxy.tools.threads import ToolThreads
from proxy.turns.contract import TeamOutcome
from tests.fakes.models import ScriptedModel
from tests.fakes.teams import RememberingSink, agent, team_of, turn_of

HELLO = UserMessage("hello")


class LeftSink(RememberingSink):
    """The client leaves after the first events; ``back`` lets the turn continue."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = asyncio.Event()
        self.back = asyncio.Event()

    async def attended(self) -> None:
        if self.events:
            self.waits.set()
            await self.back.wait()


async def steps(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    yield "One. "
    yield ToolBegan("1", "look_up")
    yield ToolEnded("1", "found")
    yield ModelUsed("own", Usage(prompt=1, completion=5))
    yield "Two."


async def test_a_member_waits_between_its_steps_while_no_client_is_there() -> None:
    member = replace(agent("worker", ScriptedModel()), member=FunctionMember(steps, ToolThreads()))
    team, turn, sink = await team_of(member), turn_of(HELLO, agent="worker"), LeftSink()

    running = asyncio.create_task(team.answer(turn, sink))
    await sink.waits.wait()
    seen = [event.text for event in sink.events if isinstance(event, TextDelta)]
    sink.back.set()

    assert await running == TeamOutcome("stop")
    assert seen == ["One. "]
    assert [item.message for item in turn.items] == [AssistantMessage("One. Two.")]


async def test_a_member_ends_at_a_limit_if_it_continues_behind_it() -> None:
    member = replace(agent("worker", ScriptedModel()), member=FunctionMember(steps, ToolThreads()))
    limits = Limits(max_output_tokens=5)
    team, turn, sink = await team_of(member, limits=limits), turn_of(HELLO, agent="worker"), RememberingSink()

    assert await team.answer(turn, sink) == TeamOutcome("length")
    assert [item.message for item in turn.items] == [AssistantMessage("One. ")]
