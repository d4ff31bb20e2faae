"""The ids of the Responses API, made from the turn's own: ``resp_<hex>`` is the turn ``chatcmpl-<hex>``.

An output item's id holds the turn and the item's place in its output, so that a reference to it is found without an
index of items.
"""

from __future__ import annotations

import re

_TURN = "chatcmpl-"
_RESPONSE = "resp_"
_ITEM = re.compile(r"(?:msg|rs|fc|mcp)_([0-9a-f]{32})([0-9a-f]{4,})", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{32}", re.ASCII)


def response_id(turn_id: str) -> str:
    """Return the id under which the turn is known as a response; what is no turn's id stays as it is."""
    number = turn_id.removeprefix(_TURN)
    return turn_id if number == turn_id else _RESPONSE + number


def turn_id_of(response: str) -> str | None:
    """Return the turn that a response's id names; None for what cannot be one of ours."""
    number = response.removeprefix(_RESPONSE)
    return _TURN + number if number != response and _HEX.fullmatch(number) else None


def item_id(prefix: str, turn_id: str, index: int) -> str:
    """Return the id of an output item; ``prefix`` is that of its kind (``msg``, ``rs``, ``fc``, ``mcp``)."""
    return f"{prefix}_{turn_id.removeprefix(_TURN)}{index:04x}"


def item_place(item: str) -> tuple[str, int] | None:
    """Return the turn and the place in its output that an item's id names; None for what cannot be one of ours."""
    found = _ITEM.fullmatch(item)
    return None if found is None else (_TURN + found[1], int(found[2], 16))
