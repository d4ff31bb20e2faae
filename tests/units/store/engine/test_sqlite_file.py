"""An SQLite file that is deleted or replaced under a running server, and a start on a full disk."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.errors import StoreUnavailable
from proxy.store.engine.database import open_database
from proxy.store.turns import open_history
from tests.fakes.turn_records import new_turn, the_end

ROOT = Path(__file__).parents[4]


def file_of(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


async def test_the_state_of_a_database_changes_with_each_commit(sqlite_database: str) -> None:
    history, database = open_history(sqlite_database), open_database(sqlite_database, time_limit=5)
    log = file_of(sqlite_database).with_name(f"{file_of(sqlite_database).name}-wal")
    states: set[object] = set()
    for number in range(3):
        await history.begin(new_turn(f"conv_{number}"))
        # Soon after a commit another one could have the same time. A later time than now: this test can be slow.
        age(log, -10.5)
        assert database.state() is None
        age(log, 10.5 + number)
        assert database.state() == database.state() is not None
        states.add(database.state())
    assert len(states) == 3
    # A file system that stores whole seconds.
    os.utime(log, (1_000_000, 1_000_000))
    assert database.state() is None
    await history.close()
    await database.close()
    assert database.state() is None


def age(file: Path, seconds: float) -> None:
    """Set the time of the file back."""
    nanoseconds = (file.stat().st_mtime_ns // 10**9) * 10**9 + 1 - int(seconds * 1e9)
    os.utime(file, ns=(nanoseconds, nanoseconds))


def delete(file: Path) -> None:
    for part in file.parent.glob(f"{file.name}*"):
        part.unlink()


def replace(file: Path) -> None:
    shutil.copy(file, copy := file.with_name("copy.sqlite"))
    os.replace(copy, file)


def delete_log(file: Path) -> None:
    file.with_name(f"{file.name}-wal").unlink()


def checkpoint(file: Path) -> None:
    """Copy the log into the file and truncate it, as a backup tool does."""
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


@pytest.mark.parametrize(
    ("change", "part"), [(delete, "file"), (replace, "file"), (delete_log, "write-ahead log")]
)
async def test_nothing_is_acknowledged_after_the_file_was_replaced(
    sqlite_database: str,
    change: Callable[[Path], None],
    part: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    history = open_history(sqlite_database)
    begun = await history.begin(new_turn("conv_a"))
    assert await history.is_ready()

    change(file_of(sqlite_database))

    with pytest.raises(StoreUnavailable):
        await history.finish(the_end(begun.turn))
    with pytest.raises(StoreUnavailable):
        await history.begin(new_turn("conv_b"))
    with pytest.raises(StoreUnavailable):
        await history.find_conversation("public", "conv_a")
    assert not await history.is_ready()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [(record.message, record.replaced) for record in errors] == [  # type: ignore[attr-defined]
        (
            "the database was deleted or replaced while the server runs; "
            "no turn is stored until it is restarted",
            part,
        )
    ]
    await history.close()


async def test_no_empty_database_is_created_where_the_file_was_deleted(sqlite_database: str) -> None:
    history = open_history(sqlite_database)
    file = file_of(sqlite_database)
    delete(file)

    with pytest.raises(StoreUnavailable):
        await history.find_conversation("public", "conv_a")

    assert not file.exists()
    await history.close()


async def test_checkpoints_and_other_connections_do_not_count_as_replacement(
    sqlite_database: str,
) -> None:
    history = open_history(sqlite_database)
    other = open_history(sqlite_database)
    for number in range(5):
        begun = await history.begin(new_turn(f"conv_{number}"))
        assert await history.finish(the_end(begun.turn))
        await asyncio.to_thread(checkpoint, file_of(sqlite_database))

    await other.close()
    assert await history.is_ready()
    await history.close()


SIZES = ("64k", "128k", "256k", "512k")
FULL_DISKS = """
import json, os, subprocess, sys
from tests.fork_server import PRELOADED, run

for module in PRELOADED:
    __import__(module)
codes = {}
for size in sys.argv[1:]:
    data = os.path.abspath(size)
    os.mkdir(data)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", data], check=True)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(f"{size}.log", os.O_WRONLY | os.O_CREAT), 2)
        arguments = ["serve", "--port", "0", "--data-dir", data]
        sys.argv = sys.argv[:1]
        run({"module": "proxy.cli", "arguments": arguments, "folder": ".", "environment": dict(os.environ)})
        os._exit(0)
    codes[size] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps(codes))
"""
"""Starts a server on a new disk of each size; a program for each would take a second of CPU time more."""


@pytest.fixture(scope="module")
def full_disks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Return the folder with the data directories and logs of the servers by size, and their exit codes."""
    folder = tmp_path_factory.mktemp("disks")
    namespace = ["unshare", "--map-root-user", "--mount"]
    is_possible = subprocess.run([*namespace, "mount", "-t", "tmpfs", "none", folder], capture_output=True)
    if is_possible.returncode:
        pytest.skip("this user may not mount a file system in a namespace")
    ended = subprocess.run(
        [*namespace, sys.executable, "-c", FULL_DISKS, *SIZES],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ended.returncode == 0, ended.stderr
    codes: dict[str, int] = json.loads(ended.stdout)
    return folder, codes


@pytest.mark.skipif(sys.platform != "linux", reason="needs a mount namespace")
@pytest.mark.parametrize("size", SIZES)
def test_a_start_on_a_full_disk_ends_with_a_sentence_and_status_2(
    full_disks: tuple[Path, dict[str, int]], size: str
) -> None:
    folder, codes = full_disks
    lines = (folder / f"{size}.log").read_text().splitlines()

    assert (codes[size], lines[-1]) == (
        2,
        f"the disk of the database {folder / size / 'handoff-proxy.sqlite'} is full: "
        "free at least 1024 KiB and start again",
    )
    assert "Traceback" not in "\n".join(lines)
