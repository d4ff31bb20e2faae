"""Statements that are compiled once, and run on SQLite without SQLAlchemy's execution layer.

That layer costs 30 to 50 µs of CPU for every statement, more than SQLite itself. A plain turn needs eight, all in the
writer's thread, which holds the interpreter lock meanwhile. PostgreSQL gets the compiled text through SQLAlchemy, which
adapts asyncpg, and does not look up and convert the statement each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from sqlalchemy import Boolean, Connection, Double, LargeBinary, Table

from proxy.store.sql.tables import MAX_NAME, Name, Words

Values = Mapping[str, Any] | Sequence[Any]
_Processor = Callable[[Any], Any]


_NATIVE = (Boolean, Double, LargeBinary)
"""Types whose Python values SQLite's driver accepts as they are."""


class PreparedStatement:
    """A statement whose parameters are given by name, always with the same names, or in the order of ``names``.

    The values of a SELECT are those that SQLAlchemy returns; those of RETURNING are the driver's. An instance
    is for one dialect.
    """

    def __init__(self, statement: Any, names: Sequence[str] = ()) -> None:
        self._statement = statement
        self._names = names
        self._text = ""
        self._in_order: Callable[[Any], Sequence[Any]] | None = None
        """Returns the values in the order of the parameters of the text; None if they are given so."""
        self._constants: dict[str, Any] = {}
        """The parameters whose values are part of the statement; none with ``names``."""
        self._converters: list[tuple[int, _Processor]] = []
        """The positions of parameters whose values are converted for the driver, and how."""
        self._words: list[tuple[int, _Processor]] = []
        """The same for texts from outside, which nearly always need no conversion."""
        self._words_of: Callable[[Sequence[Any]], Iterable[str | None]] = tuple
        """Returns those texts of a row."""
        self._names_of: Callable[[Sequence[Any]], Iterable[str | None]] = tuple
        """Returns those of them that are looked up."""
        self._results: list[tuple[int, _Processor]] = []
        """The columns of the result whose values are converted, and how."""

    def run(self, connection: Connection, values: Sequence[Values]) -> Sequence[Sequence[Any]]:
        """Run the statement for each of the values, if there are any; return the rows of the only run of a query."""
        if len(values) == 1:
            return self.run_once(connection, values[0])
        if values:
            if not self._text:
                self._compile(connection, values[0])
            run_text(connection, self._text, self._rows(values))
        return []

    def run_once(self, connection: Connection, values: Values) -> Sequence[Sequence[Any]]:
        """Run the statement, and return its rows."""
        if not self._text:
            self._compile(connection, values)
        (row,) = self._rows([values])
        driver: Any = connection.get_execution_options().get("driver")
        if driver is not None:
            # What ``run_text`` does there, without another call.
            rows = driver.execute(self._text, row).fetchall()
        else:
            rows = run_text(connection, self._text, [row])
        return _converted(rows, self._results) if rows and self._results else rows

    def _rows(self, values: Sequence[Any]) -> Sequence[Sequence[Any]]:
        """Return the rows of parameters for the driver."""
        if self._constants:
            values = [{**self._constants, **given} for given in values]
        rows = list(map(self._in_order, values)) if self._in_order is not None else values
        if self._converters:
            rows = _converted(rows, self._converters)
        if self._words and not self._are_plain(rows):
            rows = _converted(rows, self._words)
        return rows

    def _are_plain(self, rows: Sequence[Sequence[Any]]) -> bool:
        """Whether no text is changed: neither by ``storable`` nor, if it is looked up, by ``indexable``."""
        # All texts together, instead of a call for each of them.
        joined = "".join(filter(None, chain.from_iterable(map(self._words_of, rows))))
        if not joined.isascii() or "\0" in joined:
            return False
        if len(joined) <= MAX_NAME:
            return True
        names = filter(None, chain.from_iterable(map(self._names_of, rows)))
        return max(map(len, names), default=0) <= MAX_NAME

    def _compile(self, connection: Connection, values: Values) -> None:
        dialect = connection.dialect
        if (statement := self._statement) is None:
            # Another thread has just compiled it.
            return
        names = self._names or list(values)
        compiled = statement.compile(dialect=dialect, column_keys=names)
        parameters = [compiled.binds[name] for name in compiled.positiontup]
        converters: list[tuple[int, _Processor]] = []
        words: list[tuple[int, _Processor]] = []
        for at, bind in enumerate(parameters):
            convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
            if convert is not None and not isinstance(bind.type, _NATIVE):
                (words if isinstance(bind.type, Words) else converters).append((at, convert))
        results = []
        for at, column in enumerate(getattr(statement, "selected_columns", ())):
            if isinstance(column.type, Double):
                # Both drivers return numbers; SQLAlchemy would ask the cursor for the type in the database.
                continue
            convert = column.type.dialect_impl(dialect).result_processor(dialect, None)
            if convert is not None:
                results.append((at, convert))
        self._constants = {bind.key: bind.effective_value for bind in parameters if bind.key not in names}
        keys = [bind.key for bind in parameters]
        if not self._names:
            self._in_order = _by_name(keys)
        elif keys != list(self._names):
            self._in_order = _at([self._names.index(key) for key in keys])
        self._words_of = _at([at for at, _ in words])
        self._names_of = _at([at for at, _ in words if isinstance(parameters[at].type, Name)])
        self._converters, self._words, self._results = converters, words, results
        # Last: another thread may be here at the same time.
        self._text = str(compiled)
        # All of them take 250 KB, and are not used again.
        self._statement = None


def _converted(
    rows: Sequence[Sequence[Any]], converters: Iterable[tuple[int, _Processor]]
) -> Sequence[Sequence[Any]]:
    # By column: a long conversation has hundreds of rows, and few of their columns are converted.
    columns: list[Iterable[Any]] = list(zip(*rows, strict=True))
    for at, convert in converters:
        columns[at] = map(convert, columns[at])
    return list(zip(*columns, strict=True))


def _by_name(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """Return a function that returns the values with these names."""
    # Of one name, itemgetter returns the value itself.
    return itemgetter(*names) if len(names) > 1 else lambda values: [values[name] for name in names]


def _at(positions: Sequence[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Return a function that returns the values at these positions of a row."""
    if len(positions) > 1:
        return itemgetter(*positions)
    # Of one position, itemgetter returns the value itself.
    return itemgetter(slice(positions[0], positions[0] + 1) if positions else slice(0))


class Insertion:
    """Inserts many rows, given as tuples of database values for all columns in table order.

    It bypasses SQLAlchemy's bind processing, which costs 5 µs per row; histories can have a thousand messages.
    """

    def __init__(self, statement: Any, table: Table) -> None:
        self._statement = statement
        self._columns = [column.name for column in table.columns]
        self._text: str | None = None

    def run(self, connection: Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert the rows, if there are any."""
        if not rows:
            return
        if self._text is None:
            compiled = self._statement.compile(dialect=connection.dialect, column_keys=self._columns)
            self._text = str(compiled)
        run_text(connection, self._text, rows)


def run_text(connection: Connection, text: str, rows: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
    """Run a compiled statement for each of the rows of parameters; return the rows of the only run of a query.

    On SQLite it runs on the driver, in the transaction of the connection: errors are those of ``sqlite3``.
    """
    # Set by the threads of SQLite: to ask the connection for it takes three calls.
    driver: Any = connection.get_execution_options().get("driver")
    if driver is None:
        if connection.dialect.name != "sqlite":
            result = connection.exec_driver_sql(text, list(map(tuple, rows)))
            return result.all() if result.returns_rows else []
        driver = connection.connection.driver_connection
    if len(rows) == 1:
        found: Sequence[Sequence[Any]] = driver.execute(text, rows[0]).fetchall()
        return found
    driver.executemany(text, rows)
    return []
