"""Query parameters of lists: ``limit``, ``order``, ``after``, ``metadata[key]=value`` and ``include[]``.

An empty value counts as absent. If a name is repeated, the last value applies. Unknown names are ignored.
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
Sort = Literal["created_at", "updated_at"]

HIDDEN_ITEMS = "handoff.hidden_items"
"""Value of ``include`` that is specific to this proxy: items visible to agents only."""
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
"""Maximum length in characters."""
_INTEGER = re.compile(r"([+-]?)(\d++)(?:\.0*+)?", re.ASCII)
"""One group matches leading zeros too: two neighbouring repetitions that match zeros take quadratic time."""
_DIGITS = 18
"""Number of digits to read, which is enough to compare with the limits."""
_METADATA = re.compile(r"metadata\[(.*)\]", re.DOTALL)
_METADATA_TYPE = msgspec.inspect.type_info(Metadata)


class ListQuery(Struct, frozen=True):
    """The requested page of a list."""

    after: str | None = None
    limit: int = 20
    order: Order = "asc"


def list_query(pairs: Pairs, *, order: Order) -> ListQuery:
    """Return ``after``, ``limit`` and ``order`` of a query; ``order`` is the default.

    Raises:
        InvalidRequest: A value is invalid.
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


def sort_param(query: Mapping[str, str]) -> Sort:
    """Return the time by which a list of conversations is sorted; the default is ``created_at``.

    Raises:
        InvalidRequest: The value is another one.
    """
    match query.get("sort", ""):
        case "" | "created_at":
            return "created_at"
        case "updated_at":
            return "updated_at"
        case other:
            raise not_among("sort", other, ("created_at", "updated_at"))


def bool_param(query: Mapping[str, str], name: str, *, default: bool = False) -> bool:
    """Return a boolean parameter.

    Raises:
        InvalidRequest: The value is neither ``true`` nor ``false``.
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


def version_param(query: Mapping[str, str]) -> int | None:
    """Return the parameter ``version``; None for the newest version.

    Raises:
        InvalidRequest: The value is not a number.
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


def search_param(query: Mapping[str, str]) -> str:
    """Return the search text; ``""`` if there is none.

    Raises:
        InvalidRequest: The text is too long.
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
    """Return the error for a cursor that is not in the list."""
    return InvalidRequest(
        f"Invalid 'after': no item with id '{(after or '')[:100]}' in this list.",
        param="after",
        code="invalid_value",
    )


def page_by_id(
    data: Sequence[Mapping[str, Any]], query: ListQuery
) -> tuple[Sequence[Mapping[str, Any]], bool]:
    """Return the requested page of a complete list (oldest first), and whether there are more items.

    Raises:
        InvalidRequest: No item has the id ``after``.
    """
    ordered = data if query.order == "asc" else data[::-1]
    start = 0
    if query.after is not None:
        start = next((place for place, one in enumerate(ordered, 1) if one["id"] == query.after), 0)
        if not start:
            raise unknown_after(query.after)
    return ordered[start : start + query.limit], len(ordered) > start + query.limit


def metadata_filter(pairs: Pairs) -> dict[str, str]:
    """Return the metadata to filter by.

    Raises:
        InvalidRequest: The format is not ``metadata[key]=value``, or a limit of metadata is exceeded.
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
    """Return the values of ``include``.

    Raises:
        InvalidRequest: A value is unknown.
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
