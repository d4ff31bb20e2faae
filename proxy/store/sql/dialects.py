"""SQL constructs that queries share, those that differ between SQLite and PostgreSQL, and the cache of statements."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, TypeVar, cast

import msgspec
from sqlalchemy import (
    ARRAY,
    JSON,
    ColumnElement,
    FromClause,
    Select,
    Table,
    Text,
    bindparam,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy import cast as sql_cast

from proxy.store.sql.tables import Json, turns

S = TypeVar("S")

# A literal, not a parameter: a partial index is used only where the database sees its condition.
IS_RUNNING = turns.c.status == literal_column("'running'")


def is_given(column: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that a column has the value of the parameter ``of_`` and its name."""
    return column == bindparam(f"of_{column.key}", type_=column.type)


decode_json = msgspec.json.decode


def insert_into(dialect: str, table: Table) -> Any:
    """Return an insert with ``on_conflict_…`` methods that does not fetch the key of the new row."""
    # The dialect of PostgreSQL is imported only where it is used.
    return cast(Any, import_module(f"sqlalchemy.dialects.{dialect}")).insert(table).inline()


def listed(dialect: str, name: str, kind: Any = Text) -> FromClause:
    """Return the list bound to ``name`` as a table with the column ``value``: one parameter, however long.

    ``kind`` is the SQL type of its values.
    """
    if dialect == "sqlite":
        return func.json_each(bindparam(name, type_=Json)).table_valued("value", name=name)
    words = func.unnest(bindparam(name, type_=ARRAY(kind)))
    return words.table_valued("value").render_derived(name=name)


def for_each(
    dialect: str, wanted: ColumnElement[Any], key: ColumnElement[Any], query: Select[Any]
) -> Select[Any]:
    """Return the query for the rows whose key is in a column of another table, such as that of ``listed``.

    The columns keep their names. PostgreSQL runs the query for each value in the order of that table.
    """
    if dialect == "sqlite":
        return query.where(key.in_(select(wanted)))
    return lateral(cast(Any, wanted).table, query.where(key == wanted))


def lateral(table: FromClause, query: Select[Any]) -> Select[Any]:
    """Return the query of PostgreSQL that runs another one, which refers to the table, for each row of the table.

    A prepared statement keeps the plan of the time when its tables were nearly empty, until they are analysed: a join,
    or IN, would read all of their rows.
    """
    # OFFSET prevents that the subselect becomes a join.
    found = query.offset(literal_column("0")).lateral("found")
    return select(*found.c).select_from(table.join(found, true()))


def elements(dialect: str, name: str) -> tuple[ColumnElement[int], ColumnElement[str], FromClause]:
    """Return the position from 0 and the JSON of each element of a list of objects, and their table.

    ``name`` is bound to the JSON of the list. The text of an element is that in the list.
    """
    if dialect == "sqlite":
        of_list = func.json_each(bindparam(name, type_=Text)).table_valued("key", "value", name=name)
        return of_list.c.key, of_list.c.value, of_list
    objects = func.json_array_elements(sql_cast(bindparam(name, type_=Text), JSON))
    table = objects.table_valued("value", with_ordinality="number").render_derived(name=name)
    return cast(ColumnElement[int], table.c.number) - 1, sql_cast(table.c.value, Text), table


def joined(dialect: str, column: ColumnElement[str]) -> ColumnElement[str | None]:
    """Return the aggregate of the column's texts, joined with commas; None when there are none."""
    join = func.group_concat if dialect == "sqlite" else func.string_agg
    return join(column, literal_column("','"), type_=Text)


def list_of(dialect: str, column: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the aggregate of the column's values as a list; maybe None when there are none."""
    if dialect == "sqlite":
        return func.json_group_array(column, type_=JSON)
    return func.array_agg(column, type_=ARRAY(column.type))


def statements(kind: Callable[[str], S], dialect: str) -> S:
    """Return the cached instance of a statement class for a dialect; the class must have no other state.

    Building the statements of the whole store takes 40 ms.
    """
    return cast(S, build_statements(kind, dialect))


@cache
def build_statements(kind: Callable[[str], Any], dialect: str) -> Any:
    """Return a new instance, once for each class and dialect; tests clear the cache."""
    return kind(dialect)
