"""The few places where SQLite and PostgreSQL want other words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Table,
    Text,
    bindparam,
    func,
    literal_column,
)
from sqlalchemy.dialects import postgresql, sqlite

from proxy.store.sql.tables import turns

# Written out, not bound: a partial index is used only where the database sees its condition.
IS_RUNNING = turns.c.status == literal_column("'running'")


decode_json = msgspec.json.decode


def encode_json(value: object) -> str:
    """Encode a JSON column."""
    return msgspec.json.encode(value).decode()


def insert_into(dialect: str, table: Table) -> Any:
    """Return an insert that knows ``on_conflict_…`` and does not ask for the new row's key."""
    return (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table).inline()


class Insertion:
    """Inserts many rows, each given as a tuple of all columns in the order of the table, as the database takes them.

    SQLAlchemy would look at every value of every row: 5 µs for a row, which a history of a thousand messages feels.
    """

    def __init__(self, statement: Any, table: Table) -> None:
        self._statement = statement
        self._columns = [column.name for column in table.columns]
        self._text: str | None = None

    def run(self, connection: Connection, rows: Iterable[tuple[Any, ...]]) -> None:
        """Insert the rows, if there are any."""
        if self._text is None:
            compiled = self._statement.compile(dialect=connection.dialect, column_keys=self._columns)
            self._text = str(compiled)
        if given := list(rows):
            connection.exec_driver_sql(self._text, given)


def listed(dialect: str, name: str, kind: Any = Text) -> FromClause:
    """Return the list bound to ``name`` as a table with the column ``value``: one parameter, however long.

    ``kind`` is the SQL type of its values.
    """
    if dialect == "sqlite":
        return func.json_each(bindparam(name, type_=JSON)).table_valued("value", name=name)
    words = func.unnest(bindparam(name, type_=ARRAY(kind)))
    return words.table_valued("value").render_derived(name=name)


def list_of(dialect: str, column: ColumnElement[int]) -> ColumnElement[Any]:
    """Return the aggregate of the column's values as a list, in no certain order; maybe None when there are none."""
    if dialect == "sqlite":
        return func.json_group_array(column, type_=JSON)
    return func.array_agg(column, type_=ARRAY(BigInteger))
