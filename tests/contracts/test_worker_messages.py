"""What every ``WorkerMessages`` promises: in memory, over PostgreSQL or Redis, and through a table."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import redis

from proxy.store.engine.database import database_url
from proxy.store.engine.sqlite_file import DatabaseFile
from proxy.store.messages.postgres import PostgresMessages
from proxy.store.messages.redis_streams import RedisMessages
from proxy.store.turns import SqlHistory, open_history
from proxy.turns.worker_messages import MAX_MESSAGE_BYTES, WorkerMessages
from tests.conftest import on_server
from tests.fakes.worker_messages import MemoryBus, MemoryMessages
from tests.polling import until

REDIS = os.environ.get("HANDOFF_TEST_REDIS") or "redis://127.0.0.1:6379/0"
WITHIN = 10.0
KINDS = [
    "sqlite-table",
    pytest.param("postgresql-table", marks=pytest.mark.postgres),
    pytest.param("postgresql", marks=pytest.mark.postgres),
    "redis",
    "memory",
]


class Inbox:
    """A worker that receives."""

    def __init__(self, messages: WorkerMessages, name: str) -> None:
        self.messages = messages
        self.name = name
        self.received: asyncio.Queue[bytes] = asyncio.Queue()

    async def start(self) -> None:
        await self.messages.start(self.name, self.received.put_nowait, is_expecting=lambda: True)

    async def next(self) -> bytes:
        async with asyncio.timeout(WITHIN):
            return await self.received.get()


@pytest.fixture
async def new_worker(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[str], Inbox]]:
    """A function that makes a worker; the workers of a test share a database or a prefix."""
    make: Callable[[], WorkerMessages]
    prefix = f"handoff-test-{secrets.token_hex(6)}"
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            bus = MemoryBus()
            make = lambda: MemoryMessages(bus)  # noqa: E731
        elif request.param == "redis":
            require_redis()
            make = lambda: RedisMessages(REDIS, prefix=prefix)  # noqa: E731
        elif request.param == "postgresql":
            url = database_url(request.getfixturevalue("postgresql_database"))
            make = lambda: PostgresMessages(url)  # noqa: E731
        else:
            database = request.getfixturevalue(f"{request.param.partition('-')[0]}_database")

            def make() -> WorkerMessages:
                history: SqlHistory = open_history(database)
                stack.push_async_callback(history.close)
                return history.table_messages(interval=0.01)

        def new(name: str) -> Inbox:
            inbox = Inbox(make(), f"{name}:{prefix}")
            stack.push_async_callback(inbox.messages.close)
            return inbox

        yield new


def require_redis() -> None:
    try:
        with redis.Redis.from_url(REDIS, socket_timeout=2) as server:
            server.ping()
    except redis.RedisError as error:
        reason = f"no Redis for tests ({type(error).__name__}): start one, or set HANDOFF_TEST_REDIS"
        if os.environ.get("HANDOFF_TEST_REQUIRE_ALL"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.mark.parametrize("new_worker", KINDS, indirect=True)
async def test_messages_arrive_in_order_at_the_named_worker_only(new_worker: Callable[[str], Inbox]) -> None:
    one, two, three = new_worker("one"), new_worker("two"), new_worker("three")
    for worker in (one, two, three):
        await worker.start()

    for number in range(20):
        one.messages.send(two.name, f'{{"number":{number},"text":"größer"}}'.encode())
    one.messages.send(three.name, b"the only one")

    assert [await two.next() for _ in range(20)] == [
        f'{{"number":{number},"text":"größer"}}'.encode() for number in range(20)
    ]
    assert await three.next() == b"the only one"
    assert two.received.empty()
    assert one.received.empty()


@pytest.mark.parametrize("new_worker", KINDS, indirect=True)
async def test_a_broadcast_reaches_all_workers_except_its_sender(new_worker: Callable[[str], Inbox]) -> None:
    one, two, three = new_worker("one"), new_worker("two"), new_worker("three")
    for worker in (one, two, three):
        await worker.start()

    one.messages.broadcast(b"to all")
    two.messages.send(one.name, b"to one")

    assert await two.next() == b"to all"
    assert await three.next() == b"to all"
    assert await one.next() == b"to one"


@pytest.mark.parametrize("new_worker", KINDS, indirect=True)
async def test_equal_and_large_messages_arrive_unchanged(new_worker: Callable[[str], Inbox]) -> None:
    one, two = new_worker("one"), new_worker("two")
    await one.start()
    await two.start()
    large = ("0123456789:€" * 30_000).encode()

    for message in (b"same", b"same", large, b"x" * (MAX_MESSAGE_BYTES + 1), b"last"):
        one.messages.send(two.name, message)

    assert [await two.next() for _ in range(4)] == [b"same", b"same", large, b"last"]


@pytest.mark.parametrize("new_worker", KINDS, indirect=True)
async def test_messages_sent_before_close_are_delivered(new_worker: Callable[[str], Inbox]) -> None:
    one, two = new_worker("one"), new_worker("two")
    await one.start()
    await two.start()

    one.messages.send(two.name, b"bye")
    await one.messages.close()

    assert await two.next() == b"bye"


@pytest.mark.postgres
async def test_postgres_messages_continue_after_the_connection_was_lost(postgresql_database: str) -> None:
    url = database_url(postgresql_database)
    one, two = Inbox(PostgresMessages(url), "one"), Inbox(PostgresMessages(url), "two")
    await one.start()
    await two.start()
    try:
        on_server(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
            url=postgresql_database,
        )
        # What is sent while a connection is down is lost: send until one arrives.
        async with asyncio.timeout(WITHIN):
            while two.received.empty():
                one.messages.send("two", b"again")
                await asyncio.sleep(0.02)
        assert await two.next() == b"again"
    finally:
        await one.messages.close()
        await two.messages.close()


@pytest.mark.parametrize("new_worker", ["sqlite-table"], indirect=True)
async def test_a_table_is_polled_only_while_messages_are_expected(new_worker: Callable[[str], Inbox]) -> None:
    one, two = new_worker("one"), new_worker("two")
    is_expecting = False
    polled = asyncio.Event()

    def expects() -> bool:
        polled.set()
        return is_expecting

    await one.start()
    await two.messages.start(two.name, two.received.put_nowait, is_expecting=expects)
    one.messages.send(two.name, b"waits")
    for _ in range(3):
        polled.clear()
        await polled.wait()
    assert two.received.empty()

    is_expecting = True

    assert await two.next() == b"waits"


async def test_more_messages_than_one_query_returns_arrive_without_another_commit(
    sqlite_database: str,
) -> None:
    history, other = open_history(sqlite_database), open_history(sqlite_database)
    sender, messages = other.table_messages(interval=0.01), history.table_messages(interval=0.01)
    two = Inbox(messages, "two")
    log = DatabaseFile(Path(sqlite_database.removeprefix("sqlite:///")))
    is_expecting = False
    try:
        await messages.start("two", two.received.put_nowait, is_expecting=lambda: is_expecting)
        await sender.start("one", lambda _: None, is_expecting=lambda: False)
        for number in range(1_200):
            sender.send("two", b"%d" % number)
        # It sends what is queued.
        await sender.close()
        await until(lambda: log.log_state() is not None)

        is_expecting = True

        assert [await two.next() for _ in range(1_200)] == [b"%d" % number for number in range(1_200)]
    finally:
        await messages.close()
        await history.close()
        await other.close()
