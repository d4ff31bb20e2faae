from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import pytest

from proxy.errors import StoreUnavailable
from proxy.events import Completed, Started
from proxy.messages import Usage
from proxy.service.disconnect_rules import SDK_RETRY_GRACE, DisconnectRules
from proxy.service.disconnected_turns import DisconnectedTurns, TurnWatch
from proxy.turns.live import LiveTurn
from proxy.turns.live_turns import LiveTurns
from proxy.turns.records import Attendance
from proxy.turns.turn import Turn
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.turn_records import new_turn, the_end
from tests.polling import until


class CountingHistory(MemoryHistory):
    """``next_check`` waits until the attendance is read once more."""

    def __init__(self) -> None:
        super().__init__()
        self._checked = asyncio.Event()

    async def attendance(self, turns: Sequence[int]) -> Mapping[int, Attendance]:
        self._checked.set()
        return await super().attendance(turns)

    async def next_check(self) -> None:
        self._checked.clear()
        async with asyncio.timeout(5):
            await self._checked.wait()


class SlowHistory(CountingHistory):
    """Departures are stored when there are as many as ``expected`` at the same time, and not if ``is_down``."""

    def __init__(self) -> None:
        super().__init__()
        self.expected = 0
        self.all_left = asyncio.Event()
        self.is_down = False
        self.failed = 0

    async def leave(self, turn: int, *, left_at: float | None, cancel_at: float | None) -> None:
        if self.is_down:
            self.failed += 1
            raise StoreUnavailable
        self.expected -= 1
        if self.expected <= 0:
            self.all_left.set()
        await self.all_left.wait()
        await super().leave(turn, left_at=left_at, cancel_at=cancel_at)


@pytest.fixture
async def history() -> SlowHistory:
    return SlowHistory()


@pytest.fixture
async def lives() -> LiveTurns:
    return LiveTurns()


@pytest.fixture
async def left(history: MemoryHistory, lives: LiveTurns) -> AsyncIterator[DisconnectedTurns]:
    created = DisconnectedTurns(history, lives, time.time, interval=0.01)
    yield created
    await created.close()


@pytest.fixture
async def start(
    history: MemoryHistory, lives: LiveTurns, left: DisconnectedTurns
) -> AsyncIterator[Callable[..., Any]]:
    """Start a running turn of this worker with the rules; its task ends when it is cancelled."""
    tasks: list[asyncio.Task[Any]] = []

    async def begin(**rules: Any) -> tuple[LiveTurn, Turn, int]:
        new = new_turn(conversation=f"conv_{len(tasks)}")
        begun = await history.begin(new)
        live, turn = LiveTurn(new.id), Turn(new.id, "", "alice", "triage", [])
        live.task = asyncio.create_task(asyncio.Event().wait())
        tasks.append(live.task)
        live.emit(Started(new.id, "triage"))
        lives.add(live)
        live.watcher = TurnWatch(left, live, turn, begun.turn, DisconnectRules(**rules))
        return live, turn, begun.turn

    yield begin
    for task in tasks:
        task.cancel()


def is_stopped(live: LiveTurn) -> bool:
    return live.stop_reason == "client_left"


@pytest.mark.parametrize(
    ("rules", "ran_effects", "grace", "finishes"),
    [
        ({"grace": 30.0}, False, 30.0, False),
        ({"grace": 30.0}, True, 30.0, False),
        ({"grace": 1.0, "is_repeatable": True}, False, 1.0, False),
        ({"grace": 1.0, "is_repeatable": True}, True, SDK_RETRY_GRACE, False),
        ({"grace": 30.0, "is_repeatable": True}, True, 30.0, False),
        ({"grace": 1.0, "has_key": True}, False, 1.0, False),
        ({"grace": 1.0, "has_key": True}, True, SDK_RETRY_GRACE, True),
        ({"grace": 0.0, "is_immediate": True, "has_key": True}, True, 0.0, False),
        ({"grace": None}, False, 0.0, True),
    ],
)
def test_rules(rules: dict[str, Any], ran_effects: bool, grace: float, finishes: bool) -> None:
    turn = Turn("t", "", "alice", "triage", [], ran_effects=ran_effects)

    found = DisconnectRules(**rules)

    assert (found.grace_of(turn), found.finishes(turn)) == (grace, finishes)


async def test_a_turn_is_paused_and_then_cancelled(start: Callable[..., Any]) -> None:
    live, _, _ = await start(grace=0.05)

    live.on_client_disconnect()

    assert live.is_paused
    await until(lambda: is_stopped(live))


async def test_a_running_tool_with_effects_ends_first(
    start: Callable[..., Any], left: DisconnectedTurns
) -> None:
    live, turn, _ = await start(grace=0.0)
    other, _, _ = await start(grace=0.0)
    turn.ran_effects, turn.running_effects = True, 1

    live.on_client_disconnect()
    other.on_client_disconnect()

    await until(lambda: is_stopped(other))
    assert (live.stop_reason, len(left)) == (None, 1)
    turn.running_effects = 0
    await until(lambda: is_stopped(live))


async def test_a_turn_with_a_key_finishes_after_effects(
    start: Callable[..., Any], left: DisconnectedTurns
) -> None:
    live, turn, _ = await start(grace=0.0, has_key=True)
    other, _, _ = await start(grace=0.0)
    turn.ran_effects = True

    live.on_client_disconnect()
    other.on_client_disconnect()

    await until(lambda: is_stopped(other))
    assert (live.is_paused, live.stop_reason) == (False, None)


async def test_a_paused_turn_continues_with_a_reader_of_another_worker(
    start: Callable[..., Any], history: MemoryHistory
) -> None:
    live, _, key = await start(grace=3600.0)
    live.on_client_disconnect()

    await history.announce_reader(key, until=time.time() + 60)
    await until(lambda: not live.is_paused)
    assert not await history.end_unattended(key, now=time.time())

    await history.announce_reader(key, until=0.0)
    await until(lambda: live.is_paused)


async def test_a_reader_of_another_worker_that_is_not_renewed_has_left(
    start: Callable[..., Any], history: CountingHistory, left: DisconnectedTurns
) -> None:
    live, _, key = await start(grace=3600.0)
    now = 1_000.0
    left.clock = lambda: now
    live.on_client_disconnect()
    await history.next_check()
    await history.next_check()
    await history.announce_reader(key, until=now + 5.0)
    await until(lambda: not live.is_paused)

    # Nothing is stored.
    now += 6.0

    await until(lambda: live.is_paused)


async def test_a_failed_check_is_repeated_for_all_turns(
    start: Callable[..., Any], history: CountingHistory, left: DisconnectedTurns
) -> None:
    turns = [await start(grace=3600.0) for _ in range(2)]
    for live, _, _ in turns:
        live.on_client_disconnect()
    await history.next_check()
    await history.next_check()
    failures = [ZeroDivisionError()]

    def clock() -> float:
        if failures:
            raise failures.pop()
        return 1_000.0

    left.clock = clock
    for _, _, key in turns:
        await history.announce_reader(key, until=1_005.0)

    await until(lambda: not any(live.is_paused for live, _, _ in turns))
    assert not failures


async def test_a_turn_that_runs_effects_while_it_waits_finishes_with_its_key(
    start: Callable[..., Any], history: CountingHistory, left: DisconnectedTurns
) -> None:
    live, turn, _ = await start(grace=3600.0, has_key=True)
    live.on_client_disconnect()
    await history.next_check()
    await history.next_check()
    assert live.is_paused

    turn.ran_effects = True

    await until(lambda: not live.is_paused)


async def test_a_turn_that_ends_while_it_waits_is_not_watched_any_more(
    start: Callable[..., Any], history: CountingHistory, left: DisconnectedTurns
) -> None:
    live, _, key = await start(grace=3600.0)
    live.on_client_disconnect()
    await history.next_check()
    await history.next_check()
    assert len(left) == 1

    live.emit(Completed("triage", "stop", Usage()))
    await history.finish(the_end(key))

    await until(lambda: len(left) == 0)


async def test_another_worker_ends_a_turn_that_waits(
    start: Callable[..., Any], history: MemoryHistory
) -> None:
    live, _, key = await start(grace=3600.0)
    live.on_client_disconnect()

    async with asyncio.timeout(5):
        while not await history.end_unattended(key, now=time.time()):
            await asyncio.sleep(0.01)

    await until(lambda: is_stopped(live))


async def test_a_requested_cancellation_has_its_own_reason(
    start: Callable[..., Any], history: MemoryHistory
) -> None:
    live, _, _ = await start(grace=3600.0)
    live.on_client_disconnect()

    await history.request_cancel("alice", live.turn_id)

    await until(lambda: live.stop_reason == "requested")


async def test_a_client_that_cannot_return_ends_its_turn_at_once(start: Callable[..., Any]) -> None:
    live, _, _ = await start(grace=3600.0)

    live.on_client_disconnect(can_return=False)

    assert is_stopped(live)


async def test_departures_from_several_turns_are_stored_together(
    start: Callable[..., Any], history: SlowHistory
) -> None:
    history.expected = 3
    lives = [(await start(grace=30.0))[0] for _ in range(3)]

    for live in lives:
        live.on_client_disconnect()

    async with asyncio.timeout(5):
        await history.all_left.wait()


@pytest.mark.parametrize("rules", [{"grace": 3600.0}, {"grace": None}], ids=["waits", "detached"])
async def test_departures_are_stored_when_the_store_answers_again(
    start: Callable[..., Any], history: SlowHistory, rules: dict[str, Any]
) -> None:
    history.is_down = True
    (first, _, key), (second, _, other_key) = await start(**rules), await start(**rules)

    first.on_client_disconnect()
    second.on_client_disconnect()
    await until(lambda: history.failed >= 2)
    history.is_down = False

    await until(lambda: all(history.turns[one].record.left_at is not None for one in (key, other_key)))


async def test_a_departure_that_failed_before_the_end_of_a_turn_is_stored_later(
    start: Callable[..., Any], history: SlowHistory
) -> None:
    live, turn, key = await start(grace=None)
    turn.ran_effects, history.is_down = True, True

    live.on_client_disconnect()
    await live.watcher.store_departure()
    history.is_down = False

    await until(lambda: history.turns[key].record.left_at is not None)


@pytest.mark.parametrize("ran_effects", [True, False])
async def test_a_departure_is_stored_before_the_end_of_a_turn_that_ran_effects(
    start: Callable[..., Any], history: MemoryHistory, ran_effects: bool
) -> None:
    live, turn, key = await start(grace=30.0)
    turn.ran_effects = ran_effects

    live.on_client_disconnect()
    # No other task has run since the client left.
    await live.watcher.store_departure()

    assert (history.turns[key].record.left_at is not None) is ran_effects


@pytest.mark.parametrize("ran_effects", [True, False])
async def test_a_client_that_left_while_the_end_was_sent_has_not_read_the_answer(
    start: Callable[..., Any], history: MemoryHistory, ran_effects: bool
) -> None:
    live, turn, key = await start(grace=30.0)
    turn.ran_effects = ran_effects
    await history.finish(the_end(key))
    live.emit(Completed("triage", "stop", Usage()))

    live.on_client_disconnect()

    if ran_effects:
        await until(lambda: history.turns[key].record.left_at is not None)
    assert (history.turns[key].record.left_at is not None) is ran_effects
    assert live.stop_reason is None
