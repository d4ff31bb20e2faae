"""Error messages for JSON values of the wrong type, with OpenAI's wording.

The location comes from msgspec's error message, the details from the declared types (``msgspec.inspect``) and the value
decoded without a type. This module does not decide whether a value is valid: decoding does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from msgspec import inspect

from proxy.errors import InvalidRequest
from proxy.wire.validation.errors import (
    clip,
    empty,
    invalid_value,
    missing,
    not_among,
    too_long,
    too_many_properties,
)

_LOCATION = re.compile(r" - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|(\[\.\.\.\])")
_MISSING_FIELD = re.compile(r"^Object missing required field `([^`]+)`")
_MISSING = object()


# --- location of an error ------------------------------------------------------------------------------------


class _Location:
    """A nested value, its declared type, and its path in the format of ``param``."""

    def __init__(self, declared: inspect.Type, value: Any, path: str) -> None:
        self.declared = declared
        self.value = value
        self.path = path

    def step(self, declared: inspect.Type, key: str | int) -> None:
        """Descend one level; a missing field has the value ``_MISSING``."""
        self.declared = declared
        if isinstance(key, int):
            self.path += f"[{key}]"
            self.value = self.value[key]
        else:
            self.path += f".{key}"
            self.value = self.value.get(key, _MISSING)


def _find_location(root: inspect.Type, value: Any, message: str, at: str) -> _Location | None:
    """Return the location in a message of msgspec; None if it cannot be resolved."""
    found = _LOCATION.search(message)
    place = _Location(root, value, at)
    for field, index, anything in _STEP.findall(found["path"] if found else ""):
        declared = _declared_for(place.declared, place.value)
        if field:
            inner = _field_type(place.declared, declared, field)
            if inner is None or not isinstance(place.value, dict):
                return None
            place.step(inner, field)
        elif index and isinstance(declared, inspect.ListType):
            place.step(declared.item_type, int(index))
        elif anything and isinstance(declared, inspect.DictType):
            key = next((k for k, v in place.value.items() if _find_error(declared.value_type, v, "")), None)
            if key is None:
                return None
            place.step(declared.value_type, key)
        else:
            return None
    return place


def alternatives(declared: inspect.Type) -> tuple[inspect.Type, ...]:
    """Return the members of a union, or the type itself."""
    return declared.types if isinstance(declared, inspect.UnionType) else (declared,)


def _declared_for(declared: inspect.Type, value: Any) -> inspect.Type | None:
    """Return the member of a union that matches the JSON type of the value."""
    for alternative in alternatives(declared):
        if not _has_json_type(alternative, value):
            continue
        if not isinstance(alternative, inspect.StructType) or alternative.tag_field is None:
            return alternative
        if value.get(alternative.tag_field) == alternative.tag:
            return alternative
    return None


def _field_type(declared: inspect.Type, chosen: inspect.Type | None, field: str) -> inspect.Type | None:
    tagged = tuple(
        one.tag
        for one in alternatives(declared)
        if isinstance(one, inspect.StructType) and one.tag_field == field
    )
    if tagged:
        return inspect.LiteralType(tagged)
    if isinstance(chosen, inspect.StructType):
        return next((one.type for one in chosen.fields if one.encode_name == field), None)
    return None


# --- error messages ------------------------------------------------------------------------------------------


def explain(root: inspect.Type, value: Any, message: str, *, at: str) -> InvalidRequest:
    """Return the error for a value rejected by msgspec with ``message``; ``value`` is the value of the key ``at``."""
    place = _find_location(root, value, message, at)
    if place is None:
        return invalid_value(at, f"Invalid value for '{at}'.")
    if found := _MISSING_FIELD.match(message):
        return missing(f"{place.path}.{found[1]}")
    if "`key` in `" in message:
        return _long_key(place)
    return _find_error(place.declared, place.value, place.path) or invalid_value(
        at, f"Invalid value for '{at}'."
    )


def out_of_range(at: str) -> InvalidRequest:
    """Return the error for a number that is out of range for an integer and a float."""
    return invalid_value(at, f"Invalid value for '{at}': a number is out of range.")


def _long_key(place: _Location) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{place.path}': a property name is too long.",
        param=place.path,
        code="string_above_max_length",
    )


def _find_error(declared: inspect.Type, value: Any, path: str) -> InvalidRequest | None:
    """Return the error in a value itself, without nested values; None if there is none."""
    if value is _MISSING:
        return missing(path)
    for alternative in alternatives(declared):
        if _has_json_type(alternative, value):
            return next(_constraint_errors(alternative, value, path), None)
    wanted = " or ".join(dict.fromkeys(filter(None, map(_type_name, alternatives(declared)))))
    if wanted.count(" or "):
        wanted = f"one of {wanted}"
    return InvalidRequest(
        f"Invalid type for '{clip(path)}': expected {wanted}, but got {_type_of_value(value)} instead.",
        param=clip(path),
        code="invalid_type",
    )


def _has_json_type(declared: inspect.Type, value: Any) -> bool:
    match declared:
        case inspect.AnyType():
            return True
        case inspect.NoneType():
            return value is None
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case inspect.FloatType():
            return isinstance(value, int | float) and not isinstance(value, bool)
        case inspect.StrType() | inspect.LiteralType():
            return isinstance(value, str)
        case inspect.ListType():
            return isinstance(value, list)
        case inspect.DictType() | inspect.StructType():
            return isinstance(value, dict)
        case _:
            return False


def _type_name(declared: inspect.Type) -> str:
    match declared:
        case inspect.BoolType():
            return "a boolean"
        case inspect.IntType():
            return "an integer"
        case inspect.FloatType():
            return "a decimal"
        case inspect.StrType() | inspect.LiteralType():
            return "a string"
        case inspect.ListType():
            inner = {_type_name(one).split(" ")[-1] for one in alternatives(declared.item_type)} - {""}
            return f"an array of {inner.pop()}s" if len(inner) == 1 else "an array"
        case inspect.DictType() | inspect.StructType():
            return "an object"
        case _:
            return ""


def _type_of_value(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a decimal"
        case str():
            return "a string"
        case list():
            return "an array"
        case _:
            return "an object"


def _constraint_errors(declared: inspect.Type, value: Any, path: str) -> Iterator[InvalidRequest]:
    match declared:
        case inspect.LiteralType() if value not in declared.values:
            yield not_among(path, value, declared.values)
        case inspect.IntType() | inspect.FloatType():
            yield from _range_errors(declared, value, path)
        case inspect.StrType():
            yield from _string_errors(declared, value, path)
        case inspect.ListType():
            yield from _length_errors("array", declared, len(value), path)
        case inspect.DictType():
            yield from _size_errors(declared, len(value), path)
        case _:
            pass


def _range_errors(
    declared: inspect.IntType | inspect.FloatType, value: float, path: str
) -> Iterator[InvalidRequest]:
    kind = "integer" if isinstance(declared, inspect.IntType) else "decimal"
    for sign, side, bound, is_broken in (
        (">=", "below_min_value", declared.ge, declared.ge is not None and value < declared.ge),
        ("<=", "above_max_value", declared.le, declared.le is not None and value > declared.le),
    ):
        if is_broken:
            words = side.replace("_min_", " minimum ").replace("_max_", " maximum ")
            yield InvalidRequest(
                f"Invalid '{path}': {kind} {words}. Expected a value {sign} {bound:g}, but got {clip(str(value))} "
                "instead."
                if abs(bound or 0) < 1e6
                else f"Invalid '{path}': {kind} {words}.",
                param=clip(path),
                code=f"{kind}_{side}",
            )


def _string_errors(declared: inspect.StrType, value: str, path: str) -> Iterator[InvalidRequest]:
    yield from _length_errors("string", declared, len(value), path)
    if declared.pattern is not None and not re.search(declared.pattern, value):
        shown = declared.pattern.replace(r"\Z", "$")
        yield invalid_value(
            path,
            f"Invalid '{clip(path)}': string does not match pattern. Expected a string that matches the pattern "
            f"'{shown}'.",
        )


def _length_errors(
    word: str, declared: inspect.StrType | inspect.ListType, length: int, path: str
) -> Iterator[InvalidRequest]:
    if declared.min_length and length < declared.min_length:
        yield empty(word, path)
    if declared.max_length is not None and length > declared.max_length:
        yield too_long(word, path, declared.max_length, length)


def _size_errors(declared: inspect.DictType, size: int, path: str) -> Iterator[InvalidRequest]:
    if declared.max_length is not None and size > declared.max_length:
        yield too_many_properties(path, declared.max_length, size)
