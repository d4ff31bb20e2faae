"""The text deltas of a model reply as events of the turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from proxy.events import TextDelta
from proxy.messages import Usage, UserMessage
from proxy.providers.model import Finished, ModelDelta, ModelRequest
from tests.fakes.models import ScriptedModel
from tests.fakes.teams import RememberingSink, agent, team_of, turn_of


class OneRead(ScriptedModel):
    """Gives its reply in one batch."""

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncIterator[AsyncIterator[Sequence[ModelDelta]]]:
        async def batches() -> AsyncIterator[Sequence[ModelDelta]]:
            yield [TextDelta("Hel"), TextDelta("lo"), Finished("stop", Usage(prompt=1, completion=2))]

        yield batches()


@pytest.mark.parametrize(("is_streamed", "texts"), [(True, ["Hel", "lo"]), (False, ["Hello"])])
async def test_text_of_one_read_is_one_event_if_the_answer_is_not_streamed(
    is_streamed: bool, texts: list[str]
) -> None:
    team, sink = await team_of(agent("triage", OneRead())), RememberingSink()
    turn = turn_of(UserMessage("Hi"), agent="triage")
    turn.is_streamed = is_streamed

    await team.answer(turn, sink)

    assert [event.text for event in sink.events if isinstance(event, TextDelta)] == texts
    assert [item.message.content for item in turn.items] == ["Hello"]


async def test_a_finished_answer_is_not_read_any_further() -> None:
    model = ScriptedModel([TextDelta("Hello"), Finished("stop"), AssertionError("read behind the end")])
    team, sink = await team_of(agent("triage", model)), RememberingSink()
    turn = turn_of(UserMessage("Hi"), agent="triage")

    await team.answer(turn, sink)

    assert [item.message.content for item in turn.items] == ["Hello"]
    assert model.open == 0
