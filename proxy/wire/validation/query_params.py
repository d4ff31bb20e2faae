"""What the query of a list asks for: ``limit``, ``order``, ``after``, ``metadata[key]=value`` and ``include[]``.

An empty value counts as absent, and of a name that comes twice the last one counts. Unknown names are skipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct

from proxy.errors import InvalidRequest
from proxy.wire.chat.schema import Metadata
from proxy.wire.validation.error_messages import explain
from proxy.wire.validation.errors import not_among

Pairs = Sequence[tuple[str, str]]
Order = Literal["asc", "desc"]

HIDDEN_ITEMS = "handoff.hidden_items"
"""Our own value of ``include``: items that only the agents see."""
INCLUDABLE = (
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "handoff.approval_requests",
    "handoff.mcp_calls",
    HIDDEN_ITEMS,
)

MAX_LIMIT = 100
MAX_SEARCH = 200
"""Characters."""
_INTEGER = re.compile(r"([+-]?)(\d++)(?:\.0*+)?", re.ASCII)
"""Leading zeros are not a group of their own: two neighbouring repetitions that match zeros take quadratic time."""
_DIGITS = 18
"""How many digits of a number are read: enough to see on which side of a bound it is."""
_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_METADATA_TYPE = msgspec.inspect.type_info(Metadata)


class ListQuery(Struct, frozen=True):
    """Which part of a list is asked for."""

    after: str | None = None
    limit: int = 20
    order: Order = "asc"


def list_query(pairs: Pairs, *, order: Order) -> ListQuery:
    """Return what is asked for; ``order`` is the order when none is.

    Raises:
        InvalidRequest: A value is not of its kind.
    """
    given = {name: value for name, value in pairs if value}
    match given.get("order", order):
        case "asc":
            order = "asc"
        case "desc":
            order = "desc"
        case other:
            raise not_among("order", other, ("asc", "desc"))
    return ListQuery(given.get("after"), _limit(given.get("limit")), order)


def is_true(query: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """Return a switch.

    Raises:
        InvalidRequest: It is neither ``true`` nor ``false``.
    """
    match query.get(name, "").strip().lower():
        case "":
            return default
        case "true":
            return True
        case "false":
            return False
        case _:
            raise InvalidRequest(
                f"Invalid type for '{name}': expected a boolean, but got a string instead.",
                param=name,
                code="invalid_type",
            )


def version_of(query: Mapping[str, str]) -> int | None:
    """Return the version that is asked for, None for the newest.

    Raises:
        InvalidRequest: It is no number.
    """
    value = query.get("version", "").strip()
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) < _DIGITS):
        raise InvalidRequest(
            "Invalid type for 'version': expected an integer, but got a string instead.",
            param="version",
            code="invalid_type",
        )
    return int(value)


def search_words(query: Mapping[str, str]) -> str:
    """Return the words that are looked for, ``""`` for none.

    Raises:
        InvalidRequest: They are too long.
    """
    words = query.get("search", "").strip()
    if len(words) > MAX_SEARCH:
        raise InvalidRequest(
            f"Invalid 'search': string too long. Expected a string with maximum length {MAX_SEARCH}, "
            f"but got a string with length {len(words)} instead.",
            param="search",
            code="string_above_max_length",
        )
    return words


def unknown_after(after: str | None) -> InvalidRequest:
    """The error for a list that is to begin behind something that is not in it."""
    return InvalidRequest(
        f"Invalid 'after': nothing in this list has the id '{(after or '')[:100]}'.",
        param="after",
        code="invalid_value",
    )


def part_by_id(
    data: Sequence[Mapping[str, Any]], query: ListQuery
) -> tuple[Sequence[Mapping[str, Any]], bool]:
    """Return the part of a whole list (oldest first) that is asked for, and whether there is more.

    Raises:
        InvalidRequest: Nothing has the id ``after``.
    """
    ordered = data if query.order == "asc" else data[::-1]
    start = 0
    if query.after is not None:
        start = next((place for place, one in enumerate(ordered, 1) if one["id"] == query.after), 0)
        if not start:
            raise unknown_after(query.after)
    return ordered[start : start + query.limit], len(ordered) > start + query.limit


def metadata_filter(pairs: Pairs) -> dict[str, str]:
    """Return the metadata that has to match.

    Raises:
        InvalidRequest: Not of the form ``metadata[key]=value``, or more than metadata can be.
    """
    wanted = {}
    for name, value in pairs:
        if found := _METADATA.fullmatch(name):
            wanted[found[1]] = value
        elif name == "metadata" and value:
            raise InvalidRequest(
                "Invalid type for 'metadata': expected an object, as in 'metadata[key]=value', but got a string "
                "instead.",
                param="metadata",
                code="invalid_type",
            )
    try:
        return msgspec.convert(wanted, Metadata)
    except msgspec.ValidationError as error:
        raise explain(_METADATA_TYPE, wanted, str(error), at="metadata") from None


def included(pairs: Pairs) -> frozenset[str]:
    """Return what is to be included.

    Raises:
        InvalidRequest: A value that nobody knows.
    """
    wanted = [value for name, value in pairs if name in ("include", "include[]") and value]
    for value in wanted:
        if value not in INCLUDABLE:
            raise not_among("include", value, INCLUDABLE)
    return frozenset(wanted)


def _limit(value: str | None) -> int:
    if value is None:
        return ListQuery().limit
    found = _INTEGER.fullmatch(value.strip())
    if found is None:
        raise InvalidRequest(
            "Invalid type for 'limit': expected an integer, but got a string instead.",
            param="limit",
            code="invalid_type",
        )
    digits = found[2].lstrip("0") or "0"
    limit = int(found[1] + digits[:_DIGITS])
    for is_broken, sign, bound, side in (
        (limit < 1, ">=", 1, "below_min_value"),
        (limit > MAX_LIMIT, "<=", MAX_LIMIT, "above_max_value"),
    ):
        if is_broken:
            words = side.replace("_min_", " minimum ").replace("_max_", " maximum ")
            raise InvalidRequest(
                f"Invalid 'limit': integer {words}. Expected a value {sign} {bound}, but got {limit} instead.",
                param="limit",
                code=f"integer_{side}",
            )
    return limit
