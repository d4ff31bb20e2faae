"""The few places where SQLite and PostgreSQL want other words."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    ColumnElement,
    FromClause,
    Table,
    Text,
    bindparam,
    func,
    literal_column,
)
from sqlalchemy.dialects import postgresql, sqlite

from proxy.store.tables import turns

# Written out, not bound: a partial index is used only where the database sees its condition.
IS_RUNNING = turns.c.status == literal_column("'running'")


decode_json = msgspec.json.decode


def encode_json(value: object) -> str:
    """Encode a JSON column."""
    return msgspec.json.encode(value).decode()


def insert_into(dialect: str, table: Table) -> Any:
    """Return an insert that knows ``on_conflict_…`` and does not ask for the new row's key."""
    return (sqlite.insert if dialect == "sqlite" else postgresql.insert)(table).inline()


def listed(dialect: str, name: str) -> FromClause:
    """Return the list of texts bound to ``name`` as a table with the column ``value``: one parameter, however long."""
    if dialect == "sqlite":
        return func.json_each(bindparam(name, type_=JSON)).table_valued("value", name=name)
    words = func.unnest(bindparam(name, type_=ARRAY(Text)))
    return words.table_valued("value").render_derived(name=name)


def list_of(dialect: str, column: ColumnElement[int]) -> ColumnElement[Any]:
    """Return the aggregate of the column's values as a list, in no certain order; maybe None when there are none."""
    if dialect == "sqlite":
        return func.json_group_array(column, type_=JSON)
    return func.array_agg(column, type_=ARRAY(BigInteger))
