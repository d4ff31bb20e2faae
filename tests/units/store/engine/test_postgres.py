"""PostgreSQL after a failover, and behind a pooler."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy import Connection, Engine, event, text

from proxy.errors import ConfigurationError, StoreUnavailable
from proxy.messages import AssistantMessage, Item
from proxy.store.engine.database import database_url
from proxy.store.engine.errors import Unavailable
from proxy.store.engine.migrations import migrate, schema_state
from proxy.store.engine.postgres import PostgresDatabase
from proxy.store.turns import open_history
from tests.conftest import SERVER, new_database
from tests.fakes.turn_records import new_turn, the_end
from tests.server import free_port

pytestmark = pytest.mark.postgres


def backend(connection: Connection) -> int:
    """The id of the server process of a connection."""
    return int(connection.scalar(text("SELECT pg_backend_pid()")) or 0)


async def test_a_server_that_became_a_standby_loses_all_connections(postgresql_database: str) -> None:
    database = PostgresDatabase(database_url(postgresql_database), time_limit=5)
    try:
        writer = await database.write(backend)
        reader = await database.read(backend)
        assert await database.read(backend) == reader

        def write_on_standby(connection: Connection) -> None:
            connection.execute(text("SET TRANSACTION READ ONLY"))
            connection.execute(text("DELETE FROM conversations"))

        with pytest.raises(Unavailable) as refused:
            await database.write(write_on_standby)

        assert refused.value.is_standby
        assert await database.read(backend) not in (reader, writer)
        assert await database.write(backend) not in (reader, writer)
    finally:
        await database.close()


async def test_the_end_of_a_turn_is_one_statement(postgresql_database: str) -> None:
    history = open_history(postgresql_database)
    begun = await history.begin(new_turn("conv_a"))
    answers = [
        Item(AssistantMessage(f"Part {number}."), agent) for number, agent in enumerate(("sales", "triage"))
    ]
    statements: list[str] = []
    listener = lambda *given: statements.append(given[2])  # noqa: E731
    event.listen(Engine, "before_cursor_execute", listener)
    try:
        assert await history.finish(the_end(begun.turn, items=answers))
    finally:
        event.remove(Engine, "before_cursor_execute", listener)
    [turn] = await history.chain(begun.turn)
    conversation = await history.find_conversation("alice", "conv_a")
    await history.close()

    assert len(statements) == 1
    assert turn.items[1:] == answers
    assert conversation is not None
    assert conversation.head == begun.turn


POOLER = """\
[databases]
* = host=127.0.0.1 port=5432 user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
auth_type = any
pool_mode = transaction
default_pool_size = 3
unix_socket_dir =
"""


@pytest.fixture
async def pooler_port(postgres_server: None) -> AsyncIterator[int]:
    """The port of a PgBouncer in transaction mode."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("PgBouncer is not installed")
    port = free_port()
    # It does not run as root, and the parent folders of the test's folder are not readable by others.
    folder = Path(tempfile.mkdtemp())
    configuration = folder / "pgbouncer.ini"
    _write_for_all(configuration, POOLER.format(port=port))
    command = [program, "-q", *(["-u", "daemon"] if os.getuid() == 0 else []), str(configuration)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except ConnectionRefusedError:
                    if process.returncode is not None:
                        pytest.skip("PgBouncer does not start here")
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                break
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        shutil.rmtree(folder)


def _write_for_all(file: Path, content: str) -> None:
    file.parent.chmod(0o755)
    file.write_text(content)
    file.chmod(0o644)


async def test_turns_are_stored_behind_a_pooler_in_transaction_mode(pooler_port: int) -> None:
    with new_database() as direct:
        name = direct.rpartition("/")[2]
        url = f"postgresql://postgres@127.0.0.1:{pooler_port}/{name}?pool_mode=transaction"
        await migrate(url)
        assert await schema_state(url) == "current"
        histories = [open_history(url) for _ in range(2)]

        async def store(number: int) -> None:
            history = histories[number % 2]
            conversation = f"conv_{number}"
            begun = await history.begin(new_turn(conversation, id=f"chatcmpl-{secrets.token_hex(8)}"))
            assert await history.finish(the_end(begun.turn))
            found = await history.find_conversation("alice", conversation)
            assert found is not None
            assert found.head == begun.turn

        await asyncio.gather(*map(store, range(40)))
        for history in histories:
            await history.close()


def test_an_unknown_pool_mode_is_rejected() -> None:
    with pytest.raises(ConfigurationError, match="use session or transaction"):
        database_url("postgresql://postgres@127.0.0.1/name?pool_mode=statement")


async def test_no_reader_stays_on_a_server_that_accepts_no_writes(postgresql_database: str) -> None:
    url = database_url(postgresql_database)
    database = PostgresDatabase(url, time_limit=2)
    admin = await asyncpg.connect(SERVER)

    def make_read_only(connection: Connection) -> None:
        # The server reports the change to this session, as a server that is demoted does.
        connection.commit()
        connection.execute(text("SET default_transaction_read_only = on"))
        connection.commit()

    try:
        reader = await database.read(backend)
        # New sessions are read-only from here on, and the open one of the reader too.
        await admin.execute(f'ALTER DATABASE "{url.database}" SET default_transaction_read_only = on')
        await database.read(make_read_only)
        with pytest.raises(StoreUnavailable):
            await database.read(backend)

        await admin.execute(f'ALTER DATABASE "{url.database}" RESET default_transaction_read_only')
        assert await database.read(backend) != reader
        assert await database.write(backend)
    finally:
        await admin.close()
        await database.close()
