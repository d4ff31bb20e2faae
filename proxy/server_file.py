"""The running servers of a data folder: how ``handoff-proxy reload`` finds them and learns the result.

Each server has a file in the folder ``servers``, named after its process id, which it keeps locked while it runs. A
file that is not locked was left by a server that was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from msgspec import Struct

FOLDER = "servers"
POLL_SECONDS = 0.1


class ServerFile:
    """The file of this server."""

    def __init__(self, file: IO[str], path: Path) -> None:
        self._file = file
        self._path = path
        self._reloads = 0

    def report(self, problem: str | None) -> None:
        """Write that a reload has ended; ``problem`` is None if it succeeded."""
        self._reloads += 1
        self._write({"reloads": self._reloads, "problem": problem})

    def _write(self, content: object) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(content))
        self._file.flush()


@contextmanager
def server_file(data_dir: Path) -> Iterator[ServerFile]:
    """Create the file of this server; remove it when the block ends."""
    folder = data_dir / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / str(os.getpid())
    with path.open("w+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        own = ServerFile(file, path)
        own._write({"reloads": 0, "problem": None})
        try:
            yield own
        finally:
            path.unlink(missing_ok=True)


class ReloadResult(Struct, frozen=True):
    """The result of one server; ``problem`` is None if it uses the present team files."""

    pid: int
    problem: str | None


def reload_servers(data_dir: Path, *, time_limit: float) -> list[ReloadResult]:
    """Let all running servers of the data folder read their team files again, and wait for the results.

    ``time_limit`` is in seconds. A folder without servers has no results.
    """
    servers = {path: _read(path)[0] for path in _running(data_dir)}
    for path in servers:
        os.kill(int(path.name), signal.SIGHUP)
    deadline = time.monotonic() + time_limit
    return [_result(path, reloads, deadline) for path, reloads in servers.items()]


def _running(data_dir: Path) -> list[Path]:
    running = []
    for path in sorted((data_dir / FOLDER).glob("[0-9]*")):
        with path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                running.append(path)
                continue
        path.unlink(missing_ok=True)
    return running


def _result(path: Path, reloads: int, deadline: float) -> ReloadResult:
    pid = int(path.name)
    while time.monotonic() < deadline:
        try:
            count, problem = _read(path)
        except FileNotFoundError:
            return ReloadResult(pid, "the server has ended")
        if count > reloads:
            return ReloadResult(pid, problem)
        time.sleep(POLL_SECONDS)
    return ReloadResult(pid, "the server did not answer in time; its log has the result")


def _read(path: Path) -> tuple[int, str | None]:
    """Return the number of reloads and the problem of the last one."""
    try:
        content = json.loads(path.read_text())
    except ValueError:
        # It is being written.
        return 0, None
    return content["reloads"], content["problem"]
