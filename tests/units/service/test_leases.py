"""Detection of dead workers, and renewal of leases."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest

from proxy.background_tasks import BackgroundTasks
from proxy.service.leases import Leases, is_dead, new_worker, retire
from proxy.turns.live import LiveTurn
from proxy.turns.live_turns import LiveTurns
from tests.fakes.store.turns import MemoryHistory


def named_like(worker: str, *, place: str = "", pid: int = 0) -> str:
    own_place, own_pid, _ = worker.split(":")
    return f"{place or own_place}:{pid or own_pid}:0123abcd"


def test_worker_of_this_process_is_alive_until_it_is_retired() -> None:
    worker = new_worker()
    assert not is_dead(worker)

    retire(worker)
    assert is_dead(worker)


def test_worker_of_another_process_is_dead_when_the_process_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        worker = named_like(new_worker(), pid=other.pid)
        assert not is_dead(worker)
        other.communicate(b"\n")

    assert is_dead(worker)


def test_worker_of_another_host_is_never_treated_as_dead() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    worker = new_worker()
    host = worker.split(":")[0].split("/")[0]

    assert not is_dead(named_like(worker, place="another-host/1", pid=ended.pid))
    # Another container with the same host name: its process 1 is another process.
    assert not is_dead(named_like(worker, place=f"{host}/1", pid=ended.pid))
    assert not is_dead(named_like(worker, place=f"{host}/1", pid=os.getpid()))
    assert not is_dead("not a worker name")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no namespaces of processes")
def test_containers_with_the_name_of_their_host_are_distinguished() -> None:
    place = new_worker().split(":")[0]

    assert place == f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"


class FailingHistory(MemoryHistory):
    """A store whose first renewals fail with an unexpected error."""

    def __init__(self) -> None:
        super().__init__()
        self.renewals: asyncio.Queue[float] = asyncio.Queue()
        self._failures = 2

    async def renew(self, worker: str, *, lease_until: float) -> Sequence[str]:
        if self._failures:
            self._failures -= 1
            raise RuntimeError("a defect")
        self.renewals.put_nowait(lease_until)
        return await super().renew(worker, lease_until=lease_until)


async def test_leases_are_renewed_after_any_error() -> None:
    history, lives, background = FailingHistory(), LiveTurns(), BackgroundTasks()

    async def nothing(*_: object) -> None:
        pass

    leases = Leases(
        history, lives, lambda: 100.0, lease=15.0, heartbeat=0.001, after_sweep=nothing, take_over=nothing
    )
    lives.add(LiveTurn("chatcmpl-1"))
    await leases.start(background)

    assert await history.renewals.get() == 115.0
    assert await history.renewals.get() == 115.0

    assert background.ended == []
    await leases.close()
    assert background.ended == []
