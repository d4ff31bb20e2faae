"""The commands of the guides for backup, restore, upgrade and rollback, taken from their text."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from openai import NotFoundError
from openai.types.chat import ChatCompletion

from proxy.store.engine.migrations import migrate, migrations_folder, schema_state
from tests.behaviour.chat_client import user
from tests.command import ROOT
from tests.conftest import new_database
from tests.server import DATABASE, Served, serve, serve_process

# Several starts and programs of PostgreSQL in each test.
pytestmark = pytest.mark.timeout(240)

DOCS = ROOT / "docs"
GUIDE_URL = "postgresql://handoff:password@db.internal:5432/handoff"
PROGRAMS = all(map(shutil.which, ("pg_dump", "pg_restore", "psql")))


def blocks(page: str, section: str) -> list[str]:
    """Return the commands in a section of a page, one text per block."""
    text = (DOCS / page).read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


BACKUP_SQLITE, RESTORE_SQLITE, BACKUP_POSTGRES, RESTORE_POSTGRES = blocks(
    "deployment/README.md", "Backup and restore"
)


async def run(commands: str, folder: Path, changes: Mapping[str, str], **environment: str) -> str:
    """Run commands of a guide, with other places, in a folder; return what they print."""
    for old, new in changes.items():
        commands = commands.replace(old, new)
    # The server is stopped and started by the test.
    commands = "\n".join(line for line in commands.splitlines() if not line.startswith("systemctl"))
    process = await asyncio.create_subprocess_exec(
        "bash", "-euc", commands,
        cwd=folder,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PROXY_DATA_DIR": str(folder / "data"),
            **environment,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


async def ask(served: Served) -> ChatCompletion:
    return await served.client().chat.completions.create(
        model="assistant", messages=[user("What time is it?")], store=True
    )


@asynccontextmanager
async def restored(served: Served, stored: ChatCompletion, lost: ChatCompletion) -> AsyncIterator[None]:
    """Check that one completion is stored and the other, which is newer than the backup, is not."""
    client = served.client()
    found = await client.chat.completions.retrieve(stored.id)
    assert found.choices[0].message.content == stored.choices[0].message.content
    with pytest.raises(NotFoundError):
        await client.chat.completions.retrieve(lost.id)
    yield


async def test_sqlite_is_backed_up_while_the_server_runs_and_restored(tmp_path: Path) -> None:
    places = {"/var/lib/handoff-proxy": str(tmp_path / "data"), "/var/backups": str(tmp_path)}
    async with serve(tmp_path) as served:
        stored = await ask(served)
        await run(BACKUP_SQLITE, tmp_path, places)
        lost = await ask(served)

    await run(RESTORE_SQLITE, tmp_path, places)

    assert (tmp_path / DATABASE).stat().st_mode & 0o077 == 0, "only its owner can read the backup"
    with sqlite3.connect(tmp_path / DATABASE) as copied:
        assert copied.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copied.close()
    async with serve(tmp_path) as served, restored(served, stored, lost):
        await ask(served)


@pytest.mark.postgres
@pytest.mark.usefixtures("postgres_server")
@pytest.mark.skipif(not PROGRAMS, reason="pg_dump, pg_restore and psql are not installed")
async def test_postgresql_is_backed_up_while_the_server_runs_and_restored(tmp_path: Path) -> None:
    with new_database() as url:
        places = {GUIDE_URL: url, "/var/backups": str(tmp_path)}
        await migrate(url)
        async with serve(tmp_path, database_url=url) as served:
            stored = await ask(served)
            await run(BACKUP_POSTGRES, tmp_path, places)
            lost = await ask(served)

        await run(RESTORE_POSTGRES, tmp_path, places)

        async with serve(tmp_path, database_url=url) as served, restored(served, stored, lost):
            await ask(served)


@pytest.mark.postgres
@pytest.mark.usefixtures("postgres_server")
@pytest.mark.skipif(not PROGRAMS, reason="pg_dump, pg_restore and psql are not installed")
async def test_an_upgrade_is_rolled_back_with_the_backup_and_repeated(tmp_path: Path) -> None:
    former = tmp_path / "former"
    shutil.copytree(migrations_folder(), former)
    max((former / "versions").glob("0*.py")).unlink()
    (check,) = [
        line
        for block in blocks("upgrade.md", "Before")
        for line in block.splitlines()
        if line.endswith(" check")
    ]
    (upgrade,) = blocks("upgrade.md", "Install")
    with new_database() as url:
        places = {GUIDE_URL: url, "/var/backups": str(tmp_path)}
        await migrate(url, folder=former)

        checked = await run(check, tmp_path, {"/opt/handoff-proxy-new/bin/": ""}, PROXY_DATABASE_URL=url)
        await run(BACKUP_POSTGRES, tmp_path, places)
        for _ in range(2):
            assert await schema_state(url) == "behind"
            assert await run(upgrade, tmp_path, {}, PROXY_DATABASE_URL=url) == "The database is up to date.\n"
            async with serve(tmp_path, database_url=url) as served:
                await ask(served)
            await run(RESTORE_POSTGRES, tmp_path, places)

        assert checked.startswith("the database is older than this program: run `handoff-proxy migrate`")


async def test_the_requests_after_an_upgrade_are_answered(tmp_path: Path) -> None:
    (requests,) = blocks("upgrade.md", "Afterwards")
    async with serve_process(tmp_path) as (served, _):
        printed = await run(requests, tmp_path, {"localhost:8000": served.url.removeprefix("http://")})

    assert '"status"' in printed
    assert '"acme-support"' in printed
