"""The ids of the Responses API, made from the turn's own: ``resp_<hex>`` is the turn ``chatcmpl-<hex>``.

An item's id holds the turn and the item's place in it (output items from 0, items of the input from 0x8000), so that
a reference to an item is found without an index of items.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TURN = "chatcmpl-"
_RESPONSE = "resp_"
_INPUT = 0x8000
_ITEM = re.compile(r"(?:msg|rs|fc|fco|mcp)_([0-9a-f]{32})([0-9a-f]{4})", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{32}", re.ASCII)


class ItemPlace(NamedTuple):
    """Where an item is: ``at`` counts the turn's output items, or with ``is_input`` its input items."""

    turn_id: str
    at: int
    is_input: bool


def response_id(turn_id: str) -> str:
    """Return the id under which the turn is known as a response."""
    return _RESPONSE + turn_id.removeprefix(_TURN)


def turn_id_of(response: str) -> str | None:
    """Return the turn that a response's id names; None for what cannot be one of ours."""
    number = response.removeprefix(_RESPONSE)
    return _TURN + number if number != response and _HEX.fullmatch(number) else None


def item_id(prefix: str, turn_id: str, index: int, *, is_input: bool = False) -> str:
    """Return the id of a turn's item; ``prefix`` is that of its kind (``msg``, ``rs``, ``fc``, ``fco``, ``mcp``)."""
    return f"{prefix}_{turn_id.removeprefix(_TURN)}{index | (_INPUT if is_input else 0):04x}"


def item_place(item: str) -> ItemPlace | None:
    """Return where an item is, by its id; None for what cannot be one of ours."""
    found = _ITEM.fullmatch(item)
    if found is None:
        return None
    index = int(found[2], 16)
    return ItemPlace(_TURN + found[1], index & (_INPUT - 1), bool(index & _INPUT))
