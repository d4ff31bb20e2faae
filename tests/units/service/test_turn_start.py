"""Turns that call their model while they are written as running."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from proxy.errors import ConversationBusy, StoreUnavailable
from proxy.events import Completed
from proxy.messages import UserMessage
from proxy.providers.model import Finished
from proxy.service.turns import Policy, TurnService
from proxy.turns.records import Begun, CompletedTurn, NewTurn
from proxy.turns.request import TurnRequest
from tests.fakes.models import ScriptedModel, calls, says
from tests.fakes.store.approvals import MemoryApprovals
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.teams import FixedTool, agent, team_of
from tests.units.service.test_turns import Clock, OneTeam, end_of

ASK = TurnRequest(caller="c", model="shop", messages=[UserMessage("Hi")])


class HeldHistory(MemoryHistory):
    """Begins turns when ``released`` is set, or raises ``error`` then."""

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()
        self.begins = asyncio.Event()
        self.error: Exception | None = None

    async def begin(self, turn: NewTurn, *, parent: CompletedTurn | None = None) -> Begun:
        self.begins.set()
        await self.released.wait()
        if self.error is not None:
            raise self.error
        return await super().begin(turn, parent=parent)


class WatchedModel(ScriptedModel):
    """Sets ``called`` when it is called, and ``has_answered`` with its last batch, after which nothing is read."""

    def __init__(self, *script: Any) -> None:
        super().__init__(*script)
        self.called, self.has_answered = asyncio.Event(), asyncio.Event()

    async def _batches(self, reply: Any) -> Any:
        self.called.set()
        async for batch in super()._batches(reply):
            if isinstance(batch[-1], Finished):
                self.has_answered.set()
            yield batch


class SlowlyClosedModel(WatchedModel):
    """Sets ``closes`` when its call is cancelled, which ends when ``may_close`` is set."""

    def __init__(self, *script: Any) -> None:
        super().__init__(*script)
        self.closes, self.may_close = asyncio.Event(), asyncio.Event()

    async def _batches(self, reply: Any) -> Any:
        try:
            async for batch in super()._batches(reply):
                yield batch
        finally:
            self.closes.set()
            await self.may_close.wait()


async def service_of(model: ScriptedModel, history: MemoryHistory, *tools: FixedTool) -> TurnService:
    team = await team_of(agent("triage", model, tools=tools))
    return TurnService(
        OneTeam(team), history, approvals=MemoryApprovals(history), policy=Policy(), clock=Clock()
    )


async def test_model_is_called_before_the_turn_is_stored_and_the_answer_waits_for_that() -> None:
    history, model = HeldHistory(), WatchedModel(says("Hello"))
    service = await service_of(model, history)

    opening = asyncio.create_task(service.open(ASK))
    async with asyncio.timeout(5):
        await model.has_answered.wait()
    await asyncio.sleep(0)
    assert not opening.done()
    assert history.turns == {}
    history.released.set()
    opened = await opening

    assert isinstance(await end_of(opened), Completed)
    record = await history.turn("c", opened.turn_id)
    assert record is not None
    assert record.status == "completed"


@pytest.mark.parametrize("error", [ConversationBusy(), StoreUnavailable()])
async def test_turn_that_cannot_begin_ends_its_model_call_and_leaves_nothing(error: Exception) -> None:
    history, model = HeldHistory(), WatchedModel([asyncio.Event()])
    service = await service_of(model, history)
    history.error = error

    opening = asyncio.create_task(service.open(ASK))
    async with asyncio.timeout(5):
        await model.called.wait()
    assert model.open == 1
    history.released.set()
    with pytest.raises(type(error)):
        await opening

    assert model.open == 0
    assert service.running == 0
    assert history.turns == {}


async def test_model_call_of_a_request_that_is_cancelled_before_the_turn_is_stored_ends() -> None:
    history, model = HeldHistory(), WatchedModel([asyncio.Event()])
    service = await service_of(model, history)

    opening = asyncio.create_task(service.open(ASK))
    async with asyncio.timeout(5):
        await model.called.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening

    assert model.open == 0
    assert service.running == 0


async def test_turn_that_could_not_begin_runs_until_its_model_call_ends_whatever_happens_to_the_request() -> (
    None
):
    history, model = HeldHistory(), SlowlyClosedModel([asyncio.Event()])
    service = await service_of(model, history)

    opening = asyncio.create_task(service.open(ASK))
    async with asyncio.timeout(5):
        await model.called.wait()
        opening.cancel()
        await model.closes.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert service.running == 1

    closing = asyncio.create_task(service.close(grace=5))
    model.may_close.set()
    async with asyncio.timeout(5):
        await closing
    assert model.open == 0
    assert service.running == 0


async def test_no_tool_runs_before_the_turn_is_stored() -> None:
    history, tool = HeldHistory(), FixedTool("pay", has_effects=True)
    model = WatchedModel(calls(("pay", "{}")), says("Paid"))
    service = await service_of(model, history, tool)

    opening = asyncio.create_task(service.open(ASK))
    async with asyncio.timeout(5):
        await model.has_answered.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert tool.calls == []
    assert len(model.requests) == 1
    history.released.set()

    assert isinstance(await end_of(await opening), Completed)
    assert tool.calls == [{}]


async def test_model_is_not_called_early_for_a_request_with_an_idempotency_key() -> None:
    history, model = HeldHistory(), WatchedModel(says("Hello"))
    service = await service_of(model, history)

    opening = asyncio.create_task(service.open(replace(ASK, idempotency_key="k")))
    async with asyncio.timeout(5):
        await history.begins.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert model.requests == []
    history.released.set()

    assert isinstance(await end_of(await opening), Completed)


async def test_model_is_not_called_for_a_second_turn_of_a_conversation_that_is_running_here() -> None:
    history, released = MemoryHistory(), asyncio.Event()
    model = WatchedModel([released, *says("Hello")], says("Again"))
    service = await service_of(model, history)
    request = replace(ASK, conversation_id="chat-1")

    opened = await service.open(request)
    with pytest.raises(ConversationBusy):
        await service.open(replace(request, messages=[UserMessage("Me too")]))
    released.set()

    assert isinstance(await end_of(opened), Completed)
    assert len(model.requests) == 1


async def test_after_a_failure_of_the_store_models_are_called_early_again_once_a_turn_was_stored() -> None:
    history, model = HeldHistory(), WatchedModel(says("One"), says("Two"))
    service = await service_of(model, history)
    history.error = StoreUnavailable()
    history.released.set()
    with pytest.raises(StoreUnavailable):
        await service.open(ASK)
    history.error = None
    history.released.clear()
    history.begins.clear()

    called = []
    for _ in range(2):
        before = len(model.requests)
        opening = asyncio.create_task(service.open(ASK))
        async with asyncio.timeout(5):
            await history.begins.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        called.append(len(model.requests) > before)
        history.released.set()
        await end_of(await opening)
        history.released.clear()
        history.begins.clear()

    assert called == [False, True]


async def test_cancelled_request_does_not_end_the_caution_after_a_failure_of_the_store() -> None:
    history, model = HeldHistory(), WatchedModel(says("Hello"))
    service = await service_of(model, history)
    history.error = StoreUnavailable()
    history.released.set()
    with pytest.raises(StoreUnavailable):
        await service.open(ASK)
    history.released.clear()

    for _ in range(2):
        history.begins.clear()
        opening = asyncio.create_task(service.open(ASK))
        async with asyncio.timeout(5):
            await history.begins.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    assert model.requests == []
