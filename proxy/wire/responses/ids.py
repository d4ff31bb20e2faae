"""Ids of the Responses API, derived from turn ids: ``resp_<hex>`` is the turn ``chatcmpl-<hex>``.

The id of an output item contains the turn and the index of the item, so that a reference is resolved without a lookup
table.
"""

from __future__ import annotations

import re

_TURN = "chatcmpl-"
_RESPONSE = "resp_"
_ITEM = re.compile(r"(?:msg|rs|fc|mcp|cmp)_([0-9a-f]{32})([0-9a-f]{4,})", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{32}", re.ASCII)


def response_id(turn_id: str) -> str:
    """Return the response id of a turn; other ids are returned unchanged."""
    number = turn_id.removeprefix(_TURN)
    return turn_id if number == turn_id else _RESPONSE + number


def turn_id_of(response: str) -> str | None:
    """Return the turn id of a response id; None if it is not an id of this server."""
    number = response.removeprefix(_RESPONSE)
    return _TURN + number if number != response and _HEX.fullmatch(number) else None


def item_id(prefix: str, turn_id: str, index: int) -> str:
    """Return the id of an output item; ``prefix`` depends on its type (``msg``, ``rs``, ``fc``, ``mcp``, ``cmp``)."""
    return f"{prefix}_{turn_id.removeprefix(_TURN)}{index:04x}"


def parse_item_id(item: str) -> tuple[str, int] | None:
    """Return the turn id and the index of an item id; None if it is not an id of this server."""
    found = _ITEM.fullmatch(item)
    return None if found is None else (_TURN + found[1], int(found[2], 16))
