"""Time limits of model calls: one timer for all alarms of a clock."""

from __future__ import annotations

import asyncio
import weakref

from proxy.providers.timeouts import Alarm, AlarmClock


class Rung:
    """The names of the alarms that rang, and when."""

    def __init__(self, clock: AlarmClock) -> None:
        self.names: list[str] = []
        self.times: dict[str, float] = {}
        self._clock = clock
        self._rings = asyncio.Event()

    def alarm(self, name: str) -> Alarm:
        """Return an alarm with a name."""
        return Alarm(self._clock, lambda: self.add(name))

    def add(self, name: str) -> None:
        """Record that an alarm rang."""
        self.names.append(name)
        self.times[name] = asyncio.get_running_loop().time()
        self._rings.set()

    async def until(self, name: str) -> None:
        """Wait until an alarm has rung."""
        async with asyncio.timeout(20):
            while name not in self.names:
                self._rings.clear()
                await self._rings.wait()


def after(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_each_alarm_rings_once_and_not_before_its_deadline() -> None:
    rung = Rung(AlarmClock())
    deadlines = {"second": after(0.03), "third": after(0.06), "first": after(0)}
    for name, deadline in deadlines.items():
        rung.alarm(name).set(deadline)

    await rung.until("third")

    assert sorted(rung.names) == ["first", "second", "third"]
    assert all(rung.times[name] >= deadline for name, deadline in deadlines.items())


async def test_an_alarm_that_rang_can_be_set_again() -> None:
    rung = Rung(AlarmClock())
    alarm, last = rung.alarm("alarm"), rung.alarm("last")
    alarm.set(after(0))
    await rung.until("alarm")
    last.set(after(0.01))
    await rung.until("last")
    assert (rung.names, alarm.deadline) == (["alarm", "last"], None)

    rung.names.clear()
    alarm.set(after(0))
    await rung.until("alarm")


async def test_an_alarm_that_was_paused_or_stopped_does_not_ring() -> None:
    rung = Rung(AlarmClock())
    paused, stopped, set_again = rung.alarm("paused"), rung.alarm("stopped"), rung.alarm("set again")
    for alarm in (paused, stopped, set_again):
        alarm.set(after(0))
    paused.pause()
    stopped.stop()
    set_again.pause()
    set_again.set(after(0.02))

    await rung.until("set again")

    assert rung.names == ["set again"]


async def test_a_later_deadline_can_be_stored_without_a_call() -> None:
    rung = Rung(AlarmClock())
    moved = rung.alarm("moved")
    moved.set(after(0))
    moved.deadline = deadline = after(0.03)

    await rung.until("moved")

    assert rung.times["moved"] >= deadline


async def test_an_alarm_that_another_one_stops_does_not_ring() -> None:
    rung = Rung(AlarmClock())
    alarms = [Alarm(rung._clock, lambda: stop_all()) for _ in range(3)]

    def stop_all() -> None:
        rung.add("one")
        for alarm in alarms:
            alarm.stop()

    for alarm in alarms:
        alarm.set(after(0))
    rung.alarm("last").set(after(0.02))
    await rung.until("last")

    assert rung.names == ["one", "last"]


async def test_an_alarm_that_is_set_while_another_one_rings_rings_too() -> None:
    clock = AlarmClock()
    rung = Rung(clock)
    second = rung.alarm("second")
    Alarm(clock, lambda: second.set(after(0.01))).set(after(0))

    await rung.until("second")


async def test_an_alarm_that_was_not_stopped_is_removed_after_its_deadline() -> None:
    rung = Rung(AlarmClock())
    alarm = rung.alarm("alarm")
    alarm.set(after(0))
    forgotten = weakref.ref(alarm)
    del alarm

    await rung.until("alarm")
    await asyncio.sleep(0)

    assert forgotten() is None
