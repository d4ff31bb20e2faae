"""The values that the driver of SQLite gets."""

from __future__ import annotations

import sqlite3

import pytest

import proxy.store.engine.sqlite  # noqa: F401 - registers the adapters


@pytest.mark.parametrize("value", [None, b"", b"bytes", True, False])
def test_the_driver_finds_an_adapter_of_each_kind_of_value_and_stores_the_value(
    value: bytes | bool | None,
) -> None:
    assert type(value) in {kind for kind, _ in sqlite3.adapters}
    connection = sqlite3.connect(":memory:")
    try:
        (stored,) = connection.execute("SELECT ?", (value,)).fetchone()
        (kind,) = connection.execute("SELECT typeof(?)", (value,)).fetchone()
    finally:
        connection.close()
    assert stored == value
    assert kind == {type(None): "null", bytes: "blob", bool: "integer"}[type(value)]
