"""Who runs a turn: the name of this worker, and whether one of another name is still alive."""

from __future__ import annotations

import os
import secrets
import socket

_ours: set[str] = set()


def new_worker() -> str:
    """Return a name for a worker of this process: ``place:pid:random``."""
    worker = f"{_place()}:{os.getpid()}:{secrets.token_hex(4)}"
    _ours.add(worker)
    return worker


def retire(worker: str) -> None:
    """The worker of this process has ended."""
    _ours.discard(worker)


def is_dead(worker: str) -> bool:
    """Whether the worker is surely gone; of those in other places nothing is known but their leases."""
    place, _, rest = worker.partition(":")
    pid, _, _ = rest.partition(":")
    if place != _place() or not pid.isdigit() or worker in _ours:
        return False
    # A number is given again; the random part tells the two apart.
    if int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _place() -> str:
    """Return where process numbers mean the same: a host, and on Linux the namespace of its processes.

    Containers may share the name of a host, and in each of them the server is process 1.
    """
    try:
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()
