"""An SQLite file that is deleted or replaced under a running server, and a start on a full disk."""

from __future__ import annotations

import asyncio
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
        # Soon after a commit another one could have the same time.
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


@pytest.mark.skipif(sys.platform != "linux", reason="needs a mount namespace")
@pytest.mark.parametrize("size", ["64k", "128k", "256k", "512k"])
def test_a_start_on_a_full_disk_ends_with_a_sentence_and_status_2(tmp_path: Path, size: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*mount, f"mount -t tmpfs none '{data}'"], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system in a namespace")

    serve = f"mount -t tmpfs -o size={size} none '{data}' && exec '{sys.executable}' -m proxy.cli serve"
    ended = subprocess.run(
        [*mount, f"{serve} --port 0 --data-dir '{data}'"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert (ended.returncode, ended.stderr.splitlines()[-1]) == (
        2,
        f"the disk of the database {data / 'handoff-proxy.sqlite'} is full: free at least 1024 KiB and start again",
    )
    assert "Traceback" not in ended.stderr
