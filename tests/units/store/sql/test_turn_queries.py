"""What finding costs: it does not grow with the number of turns that look alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, event, text

from proxy.store.engine.database import open_database
from proxy.store.sql.leases import LeaseStatements
from proxy.store.sql.turn_queries import TurnQueries
from proxy.store.sql.turn_statements import MAX_EQUAL, PENDING_PER_ID
from proxy.store.turns import open_history
from proxy.turns.records import TurnMatch
from tests.fakes.turn_records import new_turn, the_end

ALIKE = 5_000


def longest(reading: TurnQueries, on: Connection, conversation: int | None) -> TurnMatch | None:
    """The turn with one of two fingerprints."""
    boundaries = [(1, b"f"), (3, b"other")]
    return reading.longest(on, boundaries, None, conversation, with_branch=False).place


Find = Callable[[TurnQueries, Connection, int], Any]
WAYS: dict[str, Find] = {
    "fingerprints": lambda reading, on, _: longest(reading, on, None),
    "fingerprints of a conversation": lambda reading, on, conversation: longest(reading, on, conversation),
    "last answer": lambda reading, on, _: reading.last_answer(on, b"a", None),
    "last answer of a conversation": lambda reading, on, conversation: reading.last_answer(
        on, b"a", conversation
    ),
    "body": lambda reading, on, _: reading.by_body(on, "alice", b"once", 0.0),
    "body of many": lambda reading, on, _: [reading.by_body(on, "alice", b"d", 0.0)],
}


async def fill(url: str, *, conversations: int = 1) -> int:
    """Put thousands of turns that look alike into conversations and return the key of one of them."""
    history = open_history(url)
    for number in range(1, conversations):
        begun = await history.begin(new_turn(f"conv_{number}"))
        await history.finish(the_end(begun.turn))
    begun = await history.begin(new_turn("conv_a", body_digest=b"d"))
    await history.finish(the_end(begun.turn, fingerprint=b"f", last_answer=b"a", pending=["call_0"]))
    await history.close()

    def copy(on: Connection) -> None:
        stored = [
            column["name"]
            for column in on.dialect.get_columns(on, "turns")
            if column["name"] not in ("key", "id")
        ]
        names = ", ".join(stored)
        numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ALIKE - 1})"
        on.execute(
            text(
                f"INSERT INTO turns (id, {names}) {numbers} SELECT 'copy' || i, {names} FROM turns, n"
                " WHERE turns.key = :copied"
            ),
            {"copied": begun.turn},
        )
        on.execute(
            text("UPDATE turns SET conversation = :last - key % :count WHERE id LIKE 'copy%'"),
            {"last": begun.conversation, "count": conversations},
        )
        on.execute(
            text(
                "INSERT INTO pending_calls SELECT caller, 'call_0', key, conversation FROM turns WHERE id LIKE 'copy%'"
            )
        )
        on.execute(text("ANALYZE"))

    database = open_database(url, time_limit=30.0)
    await database.write(copy)
    await database.close()
    history = open_history(url)
    last = await history.begin(new_turn("conv_a", body_digest=b"once"))
    await history.finish(the_end(last.turn))
    await history.close()
    return begun.conversation


def work_on_sqlite(on: Connection, find: Callable[[], object]) -> int:
    """How many instructions of its machine SQLite needs."""
    driver = on.connection.driver_connection
    assert driver is not None
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    driver.set_progress_handler(count, 1)
    find()
    driver.set_progress_handler(None, 1)
    return steps


def work_on_postgres(on: Connection, find: Callable[[], object]) -> int:
    """How many rows PostgreSQL reads in tables and indexes."""
    requested: list[tuple[str, Any]] = []
    listener = lambda *given: requested.append((given[2], given[3]))  # noqa: E731
    event.listen(on, "before_cursor_execute", listener)
    find()
    event.remove(on, "before_cursor_execute", listener)
    total = 0
    for statement, parameters in requested:
        plan = on.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
        total += rows_read((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])
    return total


def rows_read(node: dict[str, Any]) -> int:
    own = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    return int(own if "Scan" in node["Node Type"] else 0) + sum(map(rows_read, node.get("Plans", [])))


async def cost(url: str, find: Find, conversation: int) -> int:
    database = open_database(url, time_limit=30.0)
    measure = work_on_sqlite if database.dialect == "sqlite" else work_on_postgres
    reading = TurnQueries(database.dialect)

    def work(on: Connection) -> int:
        assert find(reading, on, conversation)
        return measure(on, lambda: find(reading, on, conversation))

    try:
        return await database.read(work)
    finally:
        await database.close()


async def test_finding_among_five_thousand_that_look_alike_reads_a_handful(database: str) -> None:
    conversation = await fill(database)
    # One turn, and the older ones that are compared with it.
    most = 2_000 if database.startswith("sqlite") else MAX_EQUAL + 20

    costs = {way: await cost(database, find, conversation) for way, find in WAYS.items()}

    assert {way: cost for way, cost in costs.items() if cost > most} == {}


async def test_finding_among_five_thousand_of_many_conversations_reads_a_hundred(database: str) -> None:
    conversation = await fill(database, conversations=500)
    most = 2_000 if database.startswith("sqlite") else MAX_EQUAL + 20
    ways = {way: find for way, find in WAYS.items() if not way.startswith("body")}

    costs = {way: await cost(database, find, conversation) for way, find in ways.items()}

    assert {way: cost for way, cost in costs.items() if cost > most} == {}


async def test_the_leases_of_a_worker_are_renewed_without_reading_ended_turns(database: str) -> None:
    await fill(database)
    history = open_history(database)
    await history.begin(new_turn("conv_b", id="chatcmpl-running"))
    opened = open_database(database, time_limit=30.0)
    leases = LeaseStatements(opened.dialect)
    measure = work_on_sqlite if opened.dialect == "sqlite" else work_on_postgres

    def renew(on: Connection) -> int:
        leases.renew(on, "w1", 2e9)
        return measure(on, lambda: leases.renew(on, "w1", 3e9))

    read = await opened.write(renew)
    await opened.close()
    renewed = await history.turn("alice", "chatcmpl-running")
    await history.close()

    assert read < (200 if database.startswith("sqlite") else 10)
    assert renewed is not None
    assert renewed.lease_until == 3e9


async def test_the_newest_turns_of_a_reused_call_id_are_returned(database: str) -> None:
    conversation = await fill(database)
    history = open_history(database)

    everywhere = await history.find_pending("alice", ["call_0"])
    within = await history.find_pending("alice", ["call_0"], conversation=conversation)
    await history.close()

    assert len(everywhere) == PENDING_PER_ID
    assert everywhere == within == sorted(everywhere, key=lambda found: -found[1])
    most = 4_000 if database.startswith("sqlite") else 3 * PENDING_PER_ID + 20
    assert (
        await cost(database, lambda reading, on, _: reading.pending(on, "alice", ["call_0"], None), 0) < most
    )
