"""Opening, attaching and cancelling turns; turns of dead workers, and ends that cannot be stored."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from proxy.agents.team import AgentTeam
from proxy.errors import ModelNotFound, StoreUnavailable
from proxy.events import Cancelled, ClosingEvent, Completed, Failed, Started, TextDelta
from proxy.messages import Item, Usage, UserMessage
from proxy.service.team_lookup import TeamLookup
from proxy.service.turns import Policy, TurnHandle, TurnService
from proxy.tracing import Attribute, Tracing
from proxy.turns.contract import ServedTeam, Sink, TeamOutcome
from proxy.turns.live import LiveTurn, StopReason
from proxy.turns.records import Begun, CompletedTurn, ModelUse, NewTurn, Progress, TurnEnd
from proxy.turns.request import TurnRequest
from proxy.turns.structured_output import compile_response_format
from proxy.turns.turn import Turn
from proxy.wire.chat.completion import AnswerOptions, encode_options
from proxy.wire.chat.stream import ChunkEncoder
from tests.cycles import found_cycles
from tests.fakes.models import ScriptedModel, calls, says
from tests.fakes.store.approvals import MemoryApprovals
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.teams import FixedTool, agent, team_of
from tests.fakes.turn_records import new_turn, the_end


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class OneTeam:
    def __init__(self, team: Any) -> None:
        self._team = team

    def find(self, model: str) -> tuple[Any, bool]:
        if model != self._team.name:
            raise ModelNotFound(model)
        return self._team, False


class RecordingTeam:
    """A team that records its turns."""

    def __init__(self, team: AgentTeam) -> None:
        self._team = team
        self.turns: list[Turn] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._team, name)

    async def answer(self, turn: Turn, sink: Sink) -> TeamOutcome:
        self.turns.append(turn)
        return await self._team.answer(turn, sink)


async def service_of(
    *replies: Any,
    history: Any = None,
    clock: Clock | None = None,
    listen: float = 0.01,
    tracing: Tracing | None = None,
) -> TurnService:
    team = await team_of(agent("triage", ScriptedModel(*replies)))
    policy = Policy(heartbeat=0.01, follow=0.01, listen=listen)
    store = history or MemoryHistory()
    return TurnService(
        OneTeam(team),
        store,
        approvals=MemoryApprovals(store),
        policy=policy,
        clock=clock or Clock(),
        tracing=tracing,
    )


def tracing_to(exporter: InMemorySpanExporter) -> Tracing:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider.get_tracer("tests"))


async def end_of(opened: TurnHandle) -> Any:
    with opened.live.reader() as follower:
        async with asyncio.timeout(5):
            while not opened.live.is_finished:
                await follower.next()
    return opened.live.entries[-1].event


ASK = TurnRequest(caller="c", model="shop", messages=[UserMessage("Hi")])


async def test_completed_is_logged_only_after_the_answer_was_stored() -> None:
    service = await service_of(says("Hello"))

    opened = await service.open(ASK)

    assert isinstance(await end_of(opened), Completed)
    again = await service.attach("c", opened.turn_id)
    assert again.live.entries == opened.live.entries


async def test_a_request_is_resolved_with_one_other_version_of_its_team_only() -> None:
    """Another version can find another conversation, which began with a third one."""

    class Versions(TeamLookup):
        asked = 0

        async def as_begun(self, caller: str, conversation_id: str, team: ServedTeam) -> ServedTeam:
            self.asked += 1
            assert self.asked < 5
            return await team_of(agent("triage", ScriptedModel(says("From another version"))))

    history = MemoryHistory()
    teams = Versions(OneTeam(await team_of(agent("triage", ScriptedModel()))))
    service = TurnService(teams, history, approvals=MemoryApprovals(history), policy=Policy(), clock=Clock())

    opened = await service.open(replace(ASK, conversation_id="conversation"))

    assert isinstance(await end_of(opened), Completed)
    assert teams.asked == 1


async def test_response_format_is_compiled_once_and_options_are_encoded_once() -> None:
    history = MemoryHistory()
    team = RecordingTeam(await team_of(agent("triage", ScriptedModel(says("{}")))))
    service = TurnService(
        OneTeam(team), history, approvals=MemoryApprovals(history), policy=Policy(), clock=Clock()
    )
    options = AnswerOptions(id="", created=0, model="shop", include_usage=True)
    request = replace(
        ASK,
        response_format=await compile_response_format(
            {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}
        ),
        options=options,
        idempotency_key="k",
    )

    begun = await service.open(request)
    await end_of(begun)
    replayed = await service.open(request)

    assert [turn.response_format for turn in team.turns] == [request.response_format]
    assert (begun.stored_options, begun.is_replayed) == (None, False)
    assert replayed.stored_options == encode_options(options)


@pytest.mark.parametrize(("age", "is_attached"), [(0, True), (600, True), (600.5, False)])
async def test_sdk_retry_attaches_unless_the_turn_is_older_than_the_turn_time_limit(
    age: float, is_attached: bool
) -> None:
    clock = Clock()
    service = await service_of(says("First"), says("Second"), clock=clock)
    assert Policy().turn_time_limit == 600
    request = replace(ASK, body_digest=b"d" * 16)
    first = await service.open(request)
    await end_of(first)
    clock.now += age

    retry = await service.open(replace(request, is_retry=True))

    assert isinstance(await end_of(retry), Completed)
    assert (retry.turn_id == first.turn_id, retry.match == "same-turn") == (is_attached, is_attached)


async def test_same_body_without_the_retry_header_starts_a_new_turn() -> None:
    service = await service_of(says("First"), says("Second"))
    request = replace(ASK, body_digest=b"d" * 16)
    first = await service.open(request)
    await end_of(first)

    second = await service.open(request)

    assert isinstance(await end_of(second), Completed)
    assert second.turn_id != first.turn_id


async def test_turn_fails_if_its_end_cannot_be_stored() -> None:
    class Full(MemoryHistory):
        async def finish(self, end: TurnEnd) -> bool:
            raise StoreUnavailable

    service = await service_of(says("Hello"), history=Full())

    opened = await service.open(ASK)

    end = await end_of(opened)
    assert isinstance(end, Failed)
    assert (end.code, end.is_repeatable) == ("storage_unavailable", True)
    assert any(isinstance(entry.event, TextDelta) for entry in opened.live.entries)


async def test_turn_fails_if_its_lease_expired_before_finish() -> None:
    finishing, taken = asyncio.Event(), asyncio.Event()

    class Slow(MemoryHistory):
        async def finish(self, end: TurnEnd) -> bool:
            finishing.set()
            await taken.wait()
            return await super().finish(end)

    history, clock = Slow(), Clock()
    request = replace(ASK, conversation_id="chat")
    service = await service_of(says("Hello"), history=history, clock=clock)
    other = await service_of(says("Hello again"), history=history, clock=clock)
    lost = await service.open(request)
    await finishing.wait()
    clock.now += 16
    following = await other.open(request)
    taken.set()

    end = await end_of(lost)
    assert isinstance(end, Failed)
    assert (end.code, end.is_repeatable) == ("turn_lease_lost", True)
    assert isinstance(await end_of(following), Completed)
    record = await history.turn("c", lost.turn_id)
    assert record is not None
    assert (record.status, record.error_code, record.items) == ("interrupted", "turn_lease_lost", [])
    for is_observer in (True, False):
        stored = (await other.attach("c", lost.turn_id, is_observer=is_observer)).live.entries[-1].event
        assert isinstance(stored, Failed)
        assert stored.code == "turn_lease_lost"


async def test_a_tool_with_effects_does_not_start_if_the_client_left_while_that_was_stored() -> None:
    storing, stored = asyncio.Event(), asyncio.Event()

    class Slow(MemoryHistory):
        async def store_progress(self, turn: int, progress: Progress) -> None:
            storing.set()
            await stored.wait()
            await super().store_progress(turn, progress)

    history, refund = Slow(), FixedTool("refund", has_effects=True)
    model = ScriptedModel(calls(("refund", "{}")), says("Refunded."))
    team = await team_of(agent("triage", model, tools=[refund]))
    approvals, policy = MemoryApprovals(history), Policy(disconnect_grace=30.0)
    service = TurnService(OneTeam(team), history, approvals=approvals, policy=policy, clock=Clock())
    opened = await service.open(ASK)
    await storing.wait()

    opened.live.on_client_disconnect()
    stored.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert refund.calls == []

    assert isinstance(await end_of(opened), Completed)
    assert len(refund.calls) == 1


@pytest.mark.parametrize("is_first", [True, False], ids=["new conversation", "known conversation"])
async def test_a_turn_follows_one_that_another_worker_ran_while_it_was_about_to_begin(is_first: bool) -> None:
    resolved, proceed = asyncio.Event(), asyncio.Event()

    class Slow(MemoryHistory):
        holds = False

        async def begin(self, turn: NewTurn, *, parent: CompletedTurn | None = None) -> Begun:
            if self.holds and turn.input == [Item(UserMessage("Late"))]:
                self.holds = False
                resolved.set()
                await proceed.wait()
            return await super().begin(turn, parent=parent)

    history = Slow()
    request = replace(ASK, conversation_id="chat")
    service = await service_of(*[says("Hello")] * 4, history=history)
    other = await service_of(*[says("Hello")] * 4, history=history)
    if not is_first:
        await end_of(await other.open(request))
    history.holds = True

    late = asyncio.create_task(service.open(replace(request, messages=[UserMessage("Late")])))
    await resolved.wait()
    meanwhile = await other.open(request)
    await end_of(meanwhile)
    proceed.set()

    assert isinstance(await end_of(await late), Completed)
    record = await history.turn("c", (await late).turn_id)
    before = await history.turn("c", meanwhile.turn_id)
    assert record is not None
    assert before is not None
    assert record.parent == before.turn


async def test_turn_that_is_cancelled_before_its_first_step_is_stored_as_cancelled() -> None:
    history = MemoryHistory()
    service = await service_of(says("Hello"), history=history)

    opened = await service.open(ASK)
    assert opened.live.stop("requested")

    end = await end_of(opened)
    assert isinstance(end, Cancelled)
    assert isinstance(opened.live.entries[0].event, Started)
    assert service.running == 0
    record = await history.turn("c", opened.turn_id)
    assert record is not None
    assert record.status == "cancelled"


async def test_turn_that_is_opened_during_shutdown_is_cancelled() -> None:
    begins, released = asyncio.Event(), asyncio.Event()

    class Slow(MemoryHistory):
        async def begin(self, turn: NewTurn, *, parent: CompletedTurn | None = None) -> Begun:
            begins.set()
            await released.wait()
            return await super().begin(turn, parent=parent)

    service = await service_of([asyncio.Event()], history=Slow())

    opening = asyncio.create_task(service.open(ASK))
    await begins.wait()
    closing = asyncio.create_task(service.close(grace=0))
    await asyncio.sleep(0)
    released.set()

    end = await end_of(await opening)
    await closing
    assert isinstance(end, Cancelled)
    assert end.reason == "shutting_down"


async def test_shutdown_ends_the_log_of_a_remote_turn_and_not_the_turn() -> None:
    history, clock = MemoryHistory(), Clock()
    remote = new_turn(caller="c", worker="other:1:x", created_at=clock.now, lease_until=clock.now + 15)
    await history.begin(remote)
    service = await service_of(history=history, clock=clock)

    opened = await service.attach("c", remote.id)
    await asyncio.sleep(0)
    await service.close(grace=0)

    end = await end_of(opened)
    assert isinstance(end, Cancelled)
    assert end.reason == "shutting_down"
    record = await history.turn("c", remote.id)
    assert record is not None
    assert record.status == "running"


async def test_remote_turn_of_a_dead_worker_fails_when_its_lease_expires() -> None:
    history, clock = MemoryHistory(), Clock()
    lost = new_turn(caller="c", worker="other:1:x", created_at=clock.now, lease_until=clock.now + 15)
    await history.begin(lost)
    service = await service_of(history=history, clock=clock)

    opened = await service.attach("c", lost.id)
    assert not opened.live.is_finished
    clock.now += 16

    assert isinstance(await end_of(opened), Failed)
    record = await history.turn("c", lost.id)
    assert record is not None
    assert record.status == "interrupted"


async def test_observer_of_a_remote_turn_gets_started_and_no_event_of_the_shutdown() -> None:
    history, clock = MemoryHistory(), Clock()
    remote = new_turn(caller="c", worker="other:1:x", created_at=clock.now, lease_until=clock.now + 15)
    await history.begin(remote)
    service = await service_of(history=history, clock=clock)

    opened = await service.attach("c", remote.id, is_observer=True)
    with opened.live.reader(is_observer=True) as follower:
        started = await follower.next()
        await service.close(grace=0)
        rest = await follower.next()

    assert [entry.event for entry in started] == [Started(remote.id, "triage")]
    assert (rest, opened.live.is_over, opened.live.is_finished) == ([], True, False)


async def test_reader_with_a_late_position_gets_the_end_of_an_interrupted_turn() -> None:
    history, clock = MemoryHistory(), Clock()
    lost = new_turn(caller="c", worker="other:1:x", created_at=clock.now, lease_until=clock.now + 15)
    await history.begin(lost)
    await history.interrupt(now=clock.now + 16)
    service = await service_of(history=history, clock=clock)

    opened = await service.attach("c", lost.id)
    encoder = ChunkEncoder(AnswerOptions(id=lost.id, created=0, model="shop"), after=(40, 1))
    expected = b"".join(map(encoder.encode, opened.live.entries))

    assert b'"turn_interrupted"' in expected
    assert expected.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ({}, Completed("sales", "stop", Usage(3, 4))),
        (
            {"status": "failed", "is_history": False, "error_code": "upstream_timeout"},
            Failed("upstream_timeout", "The turn failed. Its events were not stored.", Usage(3, 4)),
        ),
        (
            {"status": "cancelled", "is_history": False, "error_code": "client_left"},
            Cancelled("client_left", "sales", Usage(3, 4)),
        ),
        ({"status": "cancelled", "error_code": "requested"}, Cancelled("requested", "sales", Usage(3, 4))),
    ],
    ids=["completed", "failed", "left", "cancelled"],
)
async def test_observer_gets_the_stored_status_of_a_turn_without_stored_events(
    end: dict[str, Any], expected: ClosingEvent
) -> None:
    history = MemoryHistory()
    begun = await history.begin(new_turn(caller="c", id="t", is_stored=False))
    uses = [ModelUse("triage", "m", 1, Usage(1, 2)), ModelUse("sales", "m", 1, Usage(2, 2))]
    await history.finish(the_end(begun.turn, uses=uses, **end))
    service = await service_of(history=history)

    opened = await service.attach("c", "t", is_observer=True)

    assert [entry.event for entry in opened.live.entries] == [Started("t", "triage"), expected]
    assert isinstance((await service.attach("c", "t")).live.entries[-1].event, Failed)


@pytest.mark.parametrize("reason", ["requested", "client_left"])
async def test_cancel_reason_is_stored(reason: StopReason) -> None:
    history = MemoryHistory()
    service = await service_of(says("Hello"), history=history)

    opened = await service.open(ASK)
    opened.live.stop(reason)
    await end_of(opened)

    record = await history.turn("c", opened.turn_id)
    assert record is not None
    assert (record.status, record.error_code) == ("cancelled", reason)


async def test_turn_fails_at_its_time_limit() -> None:
    history = MemoryHistory()
    team = await team_of(agent("triage", ScriptedModel([TextDelta("Hel"), asyncio.Event()])))
    service = TurnService(
        OneTeam(team),
        history,
        approvals=MemoryApprovals(history),
        policy=Policy(turn_time_limit=0.01),
        clock=Clock(),
    )

    opened = await service.open(ASK)
    failed = await end_of(opened)

    assert (failed.code, opened.live.stop_reason) == ("turn_timeout", "timed_out")
    record = await history.turn("c", opened.turn_id)
    assert record is not None
    assert (record.status, record.error_code) == ("failed", "turn_timeout")
    assert not opened.live.stop("requested")


async def test_listener_wakes_immediately_when_a_turn_begins_in_this_worker() -> None:
    history = MemoryHistory()
    begun = await history.begin(new_turn(caller="c", id="t1"))
    await history.finish(the_end(begun.turn))
    conversation = await history.find_conversation("c", "conv_a")
    assert conversation is not None
    service = await service_of(says("Hello"), history=history, listen=3600)

    with service.listener(conversation) as listener:
        listener.after = begun.turn
        await service.open(replace(ASK, conversation_id="conv_a"))
        async with asyncio.timeout(5):
            await listener.wait()
    await service.close(grace=5)


async def test_listener_gets_turns_of_other_workers_and_the_deletion() -> None:
    history = MemoryHistory()
    begun = await history.begin(new_turn(caller="c", id="t1"))
    conversation = await history.find_conversation("c", "conv_a")
    assert conversation is not None
    service = await service_of(history=history)

    async with asyncio.timeout(5):
        with service.listener(conversation) as listener:
            await listener.wait()
            listener.after = begun.turn
            history.conversations.clear()
            await listener.wait()
    assert listener.is_gone
    await service.close(grace=0)


async def assert_failed_internally(opened: TurnHandle, history: MemoryHistory) -> None:
    """Check that a turn ended with an internal error, for its client and in the store."""
    end = await end_of(opened)
    assert isinstance(end, Failed)
    assert end.code == "internal_error"
    record = await history.turn("c", opened.turn_id)
    assert record is not None
    assert (record.status, record.error_code) == ("failed", "internal_error")


async def test_turn_whose_result_cannot_be_encoded_fails_and_releases_its_conversation() -> None:
    history = MemoryHistory()
    service = await service_of(says("half a pair: \ud800"), history=history)

    opened = await service.open(ASK)

    await assert_failed_internally(opened, history)


@pytest.mark.parametrize("is_traced", [False, True])
async def test_turn_whose_failure_cannot_be_stored_either_is_not_reported_as_completed(
    *, is_traced: bool
) -> None:
    class Broken(MemoryHistory):
        async def finish(self, end: TurnEnd) -> bool:
            raise ValueError

    exporter = InMemorySpanExporter()
    service = await service_of(
        says("Hello"), history=Broken(), tracing=tracing_to(exporter) if is_traced else None
    )

    opened = await service.open(ASK)
    end = await end_of(opened)
    await service.close(grace=1)

    assert isinstance(end, Failed)
    assert end.code == "internal_error"
    outcomes = [
        (span.attributes or {}).get(Attribute.OUTCOME.value) for span in exporter.get_finished_spans()
    ]
    assert outcomes[-1:] == (["failed"] if is_traced else [])


async def test_turn_that_is_cancelled_while_its_end_is_stored_is_not_reported_as_completed() -> None:
    storing = asyncio.Event()

    class Hanging(MemoryHistory):
        async def finish(self, end: TurnEnd) -> bool:
            storing.set()
            await asyncio.Event().wait()
            raise AssertionError

    exporter = InMemorySpanExporter()
    service = await service_of(says("Hello"), history=Hanging(), tracing=tracing_to(exporter))

    opened = await service.open(ASK)
    await storing.wait()
    task = opened.live.task
    assert task is not None
    task.cancel()
    await asyncio.wait([task])

    assert isinstance(opened.live.entries[-1].event, Failed)
    (*_, turn) = exporter.get_finished_spans()
    assert (turn.attributes or {})[Attribute.OUTCOME.value] == "failed"


async def test_turn_that_something_it_called_has_cancelled_fails(caplog: pytest.LogCaptureFixture) -> None:
    history = MemoryHistory()
    service = await service_of([TextDelta("Hel"), asyncio.CancelledError()], history=history)

    opened = await service.open(ASK)

    await assert_failed_internally(opened, history)
    assert "turn was cancelled by something it called" in caplog.messages


class AttendanceHistory(MemoryHistory):
    """Records in which order departures and ends are written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    async def leave(self, turn: int, *, left_at: float | None, cancel_at: float | None) -> None:
        self.written.append("departure")
        await super().leave(turn, left_at=left_at, cancel_at=cancel_at)

    async def finish(self, end: TurnEnd) -> bool:
        self.written.append("end")
        return await super().finish(end)


class LeftTeam(RecordingTeam):
    """A team whose tool has run and whose client leaves just before the answer is complete."""

    def __init__(self, team: AgentTeam) -> None:
        super().__init__(team)
        self.live: asyncio.Future[LiveTurn] = asyncio.get_running_loop().create_future()

    async def answer(self, turn: Turn, sink: Sink) -> TeamOutcome:
        outcome = await super().answer(turn, sink)
        turn.ran_effects = True
        (await self.live).on_client_disconnect()
        return outcome


async def test_the_departure_of_a_client_is_written_before_the_end_that_it_did_not_get() -> None:
    history, team = (
        AttendanceHistory(),
        LeftTeam(await team_of(agent("triage", ScriptedModel(says("Hello"))))),
    )
    service = TurnService(
        OneTeam(team),
        history,
        approvals=MemoryApprovals(history),
        policy=Policy(heartbeat=0.01, follow=0.01, listen=0.01),
        clock=Clock(),
    )

    opened = await service.open(ASK)
    team.live.set_result(opened.live)
    assert opened.live.task is not None
    await opened.live.task

    assert history.written[:2] == ["departure", "end"]
    record = await history.turn("c", opened.turn_id)
    assert record is not None
    assert (record.status, record.left_at is not None) == ("completed", True)
    await service.close(grace=0)


async def test_turn_that_is_not_retained_any_more_leaves_no_cycles() -> None:
    service = await service_of(*(says("Hello") for _ in range(300)))

    with found_cycles() as found:
        for number in range(300):
            opened = await service.open(replace(ASK, messages=[UserMessage(f"Hi {number}")]))
            await end_of(opened)
        del opened

    assert found == {}
