"""PostgreSQL plans a prepared statement once, possibly for empty tables, and uses this plan when they are full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, text

from proxy.store.engine.database import Database, open_database
from proxy.store.engine.group_commit import WriteStatements
from proxy.store.engine.migrations import migrate
from proxy.store.sql import rows, stored_items
from proxy.store.sql.attendance import AttendanceStatements
from proxy.store.sql.begin_turn import begin_of
from proxy.store.sql.conversation_list import Outlines
from proxy.store.sql.conversation_queries import ConversationQueries
from proxy.store.sql.finish_turn import Finish
from proxy.store.sql.turn_polling import TurnPolling
from proxy.store.sql.turn_queries import TurnQueries
from proxy.turns.records import Begun, LongestMatch, NewTurn
from tests.fakes.turn_records import new_turn, the_end

COPIES = 2_000

writing, reading = WriteStatements("postgresql"), TurnQueries("postgresql")


def begin(on: Connection, turns: Sequence[NewTurn]) -> list[Begun]:
    begins = [begin_of(turn) for turn in turns]
    begun = writing.together(on, begins)
    return [begun[one] for one in begins]


def finish(on: Connection, begun: Sequence[Begun]) -> None:
    ends = [the_end(one.turn, fingerprint=b"f%d" % one.turn, last_answer=b"a%d" % one.turn) for one in begun]
    said = [stored_items.item_rows(end.items, is_input=False) for end in ends]
    finishes = [Finish(end, items, rows.pack(end.journal)) for end, items in zip(ends, said, strict=True)]
    assert all(writing.together(on, finishes).values())


def longest(on: Connection, fingerprints: Sequence[bytes], conversation: int | None) -> LongestMatch:
    boundaries = list(enumerate(fingerprints))
    return reading.longest(on, boundaries, None, conversation, with_branch=False)


def statements(on: Connection, number: int) -> dict[str, Callable[[], object]]:
    """Return the statements, which belong to two conversations and run in this order."""
    names = [f"conv_{number}_{index}" for index in range(2)]
    turns: list[int] = []
    keys: list[int] = []

    def first() -> None:
        begun = begin(on, [new_turn(name, body_digest=name.encode()) for name in names])
        finish(on, begun)
        turns[:], keys[:] = [one.turn for one in begun], [one.conversation for one in begun]

    def later() -> None:
        follow = zip(names, turns, strict=True)
        begun = begin(on, [new_turn(name, parent=turn, is_at_head=True) for name, turn in follow])
        finish(on, begun)
        # The statements below get turns with a parent: those of a chain find nothing more for one without.
        turns[:] = [one.turn for one in begun]

    polling, attendance = TurnPolling("postgresql"), AttendanceStatements("postgresql")
    conversations = ConversationQueries("postgresql")
    return {
        "first turns": first,
        "later turns": later,
        "conversation": lambda: reading.conversation(on, "alice", names[0]),
        "chain": lambda: reading.chain(on, turns[0]),
        "branch": lambda: reading.branch(on, turns[0]),
        "places": lambda: longest(on, [b"f%d" % turn for turn in turns], None),
        "places in a conversation": lambda: longest(on, [b"f%d" % turns[0]], keys[0]),
        "last answer": lambda: reading.last_answer(on, b"a%d" % turns[0], None),
        "pending": lambda: reading.pending(on, "alice", ["call_1", "call_2"], None),
        "input": lambda: reading.by_input(on, [b"i1", b"i2"], None),
        "body": lambda: reading.by_body(on, "alice", names[0].encode(), 0.0),
        "poll": lambda: polling.poll(on, turns, keys),
        "attendance": lambda: attendance.attendance(on, turns),
        "outlines": lambda: Outlines("postgresql").outlines(on, keys),
        "items of a conversation": lambda: conversations.items(on, "alice", names[0]),
        "turns of a conversation": lambda: conversations.turn_ids(on, "alice", names[0]),
        "running workers": lambda: reading.running_workers(on),
    }


def rows_read_in_order(on: Connection) -> int:
    """Return how many rows this session has read in sequential scans; a transaction does not report in between."""
    read = "SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_xact_user_tables"
    return int(on.execute(text(read)).scalar_one())


def copy(on: Connection) -> None:
    """Fill the tables, without the plans being made again: that is what ANALYZE would do."""

    def insert(table: str, columns: Sequence[str], **changes: str) -> None:
        numbers = f"generate_series(1, {COPIES}) AS n (i)"
        values = ", ".join(changes.get(name, name) for name in columns)
        last = f"(SELECT max(key) FROM {table})"
        on.execute(
            text(
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table}, {numbers}"
                f" WHERE key = {last}"
            )
        )

    def columns_of(table: str) -> list[Any]:
        return [column["name"] for column in on.dialect.get_columns(on, table) if column["name"] != "key"]

    insert("conversations", columns_of("conversations"), id="'copy' || i")
    digests = {name: f"md5('{name}' || i)" for name in ("fingerprint", "last_answer", "body_digest")}
    insert("turns", columns_of("turns"), id="'copy' || i", **digests)
    copied = "FROM turns WHERE id LIKE 'copy%'"
    on.execute(text(f"INSERT INTO items SELECT key, 0, true, NULL, true, '{{}}' {copied}"))
    on.execute(text(f"INSERT INTO foreign_items SELECT key, 1, '{{}}' {copied}"))
    on.execute(text(f"INSERT INTO pending_calls SELECT caller, id, key, conversation {copied}"))


async def rows_read(database: Database, number: int) -> dict[str, int]:
    def work(on: Connection) -> dict[str, int]:
        on.execute(text("SET LOCAL plan_cache_mode = force_generic_plan"))
        read = {}
        for name, run in statements(on, number).items():
            before = rows_read_in_order(on)
            run()
            read[name] = rows_read_in_order(on) - before
        return read

    return await database.write(work)


async def test_plans_of_empty_tables_do_not_read_whole_tables_later(emptied_postgres: str) -> None:
    await migrate(emptied_postgres)
    database = open_database(emptied_postgres, time_limit=30.0)
    await rows_read(database, 1)
    await database.write(copy)

    read = await rows_read(database, 2)
    await database.close()

    assert {name: count for name, count in read.items() if count > COPIES / 10} == {}
