"""Statements that run on SQLite's driver give what SQLAlchemy gives."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    bindparam,
    case,
    create_engine,
    insert,
    select,
    update,
)

from proxy.store.sql.prepared_statement import PreparedStatement
from proxy.store.sql.tables import Digest, Name, Words

things = Table(
    "things",
    MetaData(),
    Column("key", Integer, primary_key=True),
    Column("name", Words),
    Column("label", Name),
    Column("digest", Digest),
    Column("more", JSON),
    Column("is_new", Boolean),
)
ROWS: list[dict[str, Any]] = [
    {"key": 1, "name": "a\0b", "label": "x" * 300, "digest": b"\x01\xff", "more": {"a": [1]}, "is_new": True},
    {"key": 2, "name": None, "label": "b", "digest": None, "more": [], "is_new": False},
]


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    with engine.begin() as opened:
        things.create(opened)
        yield opened
    engine.dispose()


def rows(connection: Connection) -> list[tuple[object, ...]]:
    return [tuple(row) for row in connection.execute(select(things).order_by(things.c.key))]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_values_are_converted_as_by_sqlalchemy(connection: Connection, count: int) -> None:
    PreparedStatement(insert(things)).run(connection, ROWS[:count])
    stored = rows(connection)
    connection.execute(things.delete())
    if count:
        connection.execute(insert(things), ROWS[:count])

    assert stored == rows(connection)
    assert len(stored) == count


@pytest.mark.parametrize("names", [sorted(ROWS[0]), [column.name for column in things.columns]])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_values_can_be_given_in_an_order(connection: Connection, names: list[str], count: int) -> None:
    by_name, in_order = PreparedStatement(insert(things)), PreparedStatement(insert(things), names)
    by_name.run(connection, ROWS[:count])
    expected = rows(connection)
    connection.execute(things.delete())

    in_order.run(connection, [tuple(row[name] for name in names) for row in ROWS[:count]])

    assert rows(connection) == expected


@pytest.mark.parametrize("name", [None, "", "plain", "x" * 200, "x" * 300, "a\0b", "é", "\ud800"])
@pytest.mark.parametrize("label", [None, "plain", "x" * 200, "x" * 300, "a\0b", "\ud800"])
def test_texts_are_converted_whatever_the_others_of_their_row_are(
    connection: Connection, name: str | None, label: str | None
) -> None:
    row = {**ROWS[1], "name": name, "label": label}
    others = [{**ROWS[1], "key": key} for key in range(3, 6)]
    statement = PreparedStatement(insert(things))
    statement.run(connection, [row])
    alone = rows(connection)
    connection.execute(things.delete())
    statement.run(connection, [*others, row])
    grouped = rows(connection)
    connection.execute(things.delete())
    connection.execute(insert(things), [row, *others])

    assert alone + grouped[1:] == rows(connection)
    assert grouped[:1] == alone


def test_a_statement_can_have_constants_and_use_a_parameter_twice(connection: Connection) -> None:
    connection.execute(insert(things), ROWS)
    statement = PreparedStatement(
        update(things)
        .where(things.c.key == bindparam("of"), things.c.key < 5)
        .values(name=case((things.c.key == bindparam("of"), "changed")))
    )

    statement.run(connection, [{"of": 1, "is_new": False}])
    statement.run(connection, [{"of": 2, "is_new": True}])

    assert [(row[1], row[5]) for row in rows(connection)] == [("changed", False), ("changed", True)]


def test_values_in_an_order_can_be_used_twice(connection: Connection) -> None:
    connection.execute(insert(things), ROWS)
    statement = PreparedStatement(
        update(things)
        .where(things.c.key == bindparam("of"))
        .values(name=case((things.c.key == bindparam("of"), bindparam("new")))),
        ["new", "of"],
    )

    statement.run(connection, [("one", 1), ("two", 2)])
    statement.run(connection, [("again", 2)])

    assert [row[1] for row in rows(connection)] == ["one", "again"]


def test_a_query_returns_the_rows_of_the_driver(connection: Connection) -> None:
    connection.execute(insert(things), ROWS)
    query = PreparedStatement(select(things.c.key, things.c.is_new).where(things.c.key >= bindparam("least")))

    assert query.run(connection, [{"least": 1}]) == [(1, 1), (2, 0)]
    assert query.run(connection, [{"least": 3}]) == []


def test_a_rejected_row_is_an_error_of_the_driver(connection: Connection) -> None:
    statement = PreparedStatement(insert(things))
    statement.run(connection, ROWS[:1])

    with pytest.raises(sqlite3.IntegrityError):
        statement.run(connection, ROWS[:1])
