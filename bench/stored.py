"""The cost of a request with another database: one with many stored rows, and PostgreSQL."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack, closing
from pathlib import Path

from bench.client import connections, request
from bench.figures import Variant
from bench.measures import COSTS, greeting
from bench.processes import ROOT, Field, Served, free_ports, proxy_process
from bench.scripts import SCRIPTS

TURNS, KEYS, TEAMS = 100_000, 10_000, 100
TURNS_OF_CONVERSATION = 5


async def stored_turns(field: Field) -> list[Variant]:
    """A plain request to a server with 100,000 turns, 10,000 keys and 100 teams, compared with an empty one."""
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as name:
        folder = Path(name)
        keys = {"PROXY_API_KEYS": "bench"}
        empty, full = folder / "empty", folder / "full"
        empty.mkdir()
        full.mkdir()
        ports = free_ports(3)
        upstream = field.upstream.port
        async with (
            proxy_process(full, list(SCRIPTS), upstream, ports[0], keys) as served,
            connections(served.port, 1) as (client,),
        ):
            await client.ask(request("plain", greeting(), stream=False), SCRIPTS["plain"].chunks)
        await asyncio.to_thread(fill, full / "data" / "handoff-proxy.sqlite")
        async with AsyncExitStack() as stack:
            small = await stack.enter_async_context(
                proxy_process(empty, list(SCRIPTS), upstream, ports[1], keys)
            )
            large = await stack.enter_async_context(
                proxy_process(full, list(SCRIPTS), upstream, ports[2], keys, more_teams=TEAMS - len(SCRIPTS))
            )
            return [await _compared("100,000 turns, 10,000 keys, 100 teams", large, small, goal=1.1)]


async def on_postgres(field: Field, url: str) -> list[Variant]:
    """A plain request with PostgreSQL; the CPU of the database server is not included."""
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as name:
        (port,) = free_ports(1)
        given = {"PROXY_DATABASE_URL": url}
        migration = [sys.executable, "-m", "proxy.cli", "migrate"]
        environment = {"PYTHONPATH": str(ROOT), "PROXY_DATA_DIR": name, **given}
        await asyncio.to_thread(
            subprocess.run, migration, env=environment, cwd=name, check=True, capture_output=True
        )
        async with proxy_process(Path(name), list(SCRIPTS), field.upstream.port, port, given) as served:
            return [await _compared("PostgreSQL", served, field.proxy)]


async def _compared(name: str, server: Served, usual: Served, *, goal: float | None = None) -> Variant:
    costs = [(await COSTS["plain"](server), await COSTS["plain"](usual)) for _ in range(4)]
    own, other = (statistics.median(values) for values in zip(*costs, strict=True))
    return Variant(f"{name}: plain request", "µs CPU", own, other, goal)


def fill(database: Path) -> None:
    """Copy the only turn of a database many times, into conversations of five turns, and add API keys."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "CREATE TEMP TABLE numbers AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " SELECT i FROM n",
            (TURNS,),
        )
        last: dict[str, int] = {
            table: connection.execute(f"SELECT max(key) FROM {table}").fetchone()[0]
            for table in ("conversations", "turns")
        }
        key = {"key": f"{last['conversations']} + i"}
        _copy(
            connection,
            "conversations",
            key | {"id": "'copied' || i", "head": f"{last['turns']} + i * {TURNS_OF_CONVERSATION}"},
            f"i <= {TURNS // TURNS_OF_CONVERSATION}",
        )
        digest = "lower(hex(randomblob(16)))"
        conversation = f"{last['conversations']} + 1 + (i - 1) / {TURNS_OF_CONVERSATION}"
        of_turn = {"key": f"{last['turns']} + i", "id": "'copied' || i", "conversation": conversation}
        digests = dict.fromkeys(("fingerprint", "last_answer", "body_digest", "input_fingerprint"), digest)
        _copy(connection, "turns", of_turn | digests, "1")
        _copy(connection, "items", {"turn": f"{last['turns']} + i"}, f"turn = {last['turns']}")
        connection.execute(
            "INSERT INTO api_keys (id, name, digest, created_at) SELECT 'key' || i, 'key' || i, randomblob(32), 0"
            " FROM numbers WHERE i <= ?",
            (KEYS,),
        )
        connection.execute("ANALYZE")


def _copy(connection: sqlite3.Connection, table: str, changes: dict[str, str], where: str) -> None:
    """Insert a copy of the rows for every number ``i``, with some columns replaced."""
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    values = ", ".join(changes.get(column, column) for column in columns)
    connection.execute(
        f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table}, numbers WHERE {where}"
    )
