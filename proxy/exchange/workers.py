"""Who runs a turn: the name of this worker, and whether one of another name is still alive."""

from __future__ import annotations

import os
import secrets
import socket

_ours: set[str] = set()


def new_worker() -> str:
    """Return a name for a worker of this process: ``host:pid:random``."""
    worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    _ours.add(worker)
    return worker


def retire(worker: str) -> None:
    """The worker of this process has ended."""
    _ours.discard(worker)


def is_dead(worker: str) -> bool:
    """Whether the worker is surely gone; of those on other hosts nothing is known but their leases."""
    host, _, rest = worker.partition(":")
    pid, _, _ = rest.partition(":")
    if host != socket.gethostname() or not pid.isdigit() or worker in _ours:
        return False
    # A container starts again with the same name and number; the random part tells the two apart.
    if int(pid) == os.getpid():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
