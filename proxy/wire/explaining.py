"""Why a JSON value is not of its type, in the words of the official API.

msgspec says where decoding stopped; the declarations (``msgspec.inspect``) and the plainly decoded value say the
rest. Nothing here decides whether a value is good: that is decided by decoding alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from msgspec import inspect

from proxy.errors import InvalidRequest

ECHO_LIMIT = 100
"""Characters of a caller's input that an error repeats at most."""

_PLACE = re.compile(r" - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|(\[\.\.\.\])")
_MISSING_FIELD = re.compile(r"^Object missing required field `([^`]+)`")
_MISSING = object()


def clip(text: str) -> str:
    """Return the text, cut to what an error may repeat."""
    return text if len(text) <= ECHO_LIMIT else f"{text[: ECHO_LIMIT - 1]}…"


def missing(param: str) -> InvalidRequest:
    """A required value is not there."""
    return InvalidRequest(
        f"Missing required parameter: '{clip(param)}'.", param=clip(param), code="missing_required_parameter"
    )


def unsupported_value(param: str, message: str) -> InvalidRequest:
    """A known key has a value that is not offered here."""
    return InvalidRequest(f"Unsupported value: {message}", param=clip(param), code="unsupported_value")


def unsupported_parameter(param: str, reason: str) -> InvalidRequest:
    """A known key that is not offered here."""
    return InvalidRequest(
        f"Unsupported parameter: '{clip(param)}' {reason}", param=clip(param), code="unsupported_parameter"
    )


def invalid_value(param: str, message: str) -> InvalidRequest:
    """A value of the right type that cannot be taken."""
    return InvalidRequest(message, param=clip(param), code="invalid_value")


def not_among(param: str, value: object, supported: tuple[Any, ...]) -> InvalidRequest:
    """A value is not one of a closed set."""
    names = [f"'{name}'" for name in supported]
    listed = " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])}, and {names[-1]}"
    return invalid_value(param, f"Invalid value: '{clip(str(value))}'. Supported values are: {listed}.")


# --- the place of a mistake ----------------------------------------------------------------------------------


class Place:
    """A value inside another, its declared type, and the path in the words of ``param``."""

    def __init__(self, declared: inspect.Type, value: Any) -> None:
        self.declared = declared
        self.value = value
        self.path = ""
        self.holder: Any = None
        self.key: Any = None

    def step(self, declared: inspect.Type, key: str | int) -> None:
        """Go one step down; what is not there has the value ``_MISSING``."""
        self.declared = declared
        self.holder, self.key = self.value, key
        if isinstance(key, int):
            self.path += f"[{key}]"
            self.value = self.value[key]
        else:
            self.path += f".{key}" if self.path else key
            self.value = self.value.get(key, _MISSING)


def locate(root: inspect.Type, value: Any, message: str) -> Place | None:
    """Return the place that a message of msgspec means; None when it cannot be followed."""
    found = _PLACE.search(message)
    place = Place(root, value)
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
            key = next((k for k, v in place.value.items() if _mistake(declared.value_type, v, "")), None)
            if key is None:
                return None
            place.step(declared.value_type, key)
        else:
            return None
    return place


def alternatives(declared: inspect.Type) -> tuple[inspect.Type, ...]:
    """The members of a union; the type itself when it is none."""
    return declared.types if isinstance(declared, inspect.UnionType) else (declared,)


def _declared_for(declared: inspect.Type, value: Any) -> inspect.Type | None:
    """The alternative of a union that a value of this JSON kind belongs to."""
    for alternative in alternatives(declared):
        if not _is_kind(alternative, value):
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


# --- what is wrong there -------------------------------------------------------------------------------------


def explain(root: inspect.Type, value: Any, message: str) -> InvalidRequest:
    """Return the error for what msgspec refused, when ``message`` is what it said of the whole ``value``."""
    place = locate(root, value, message)
    if place is None:
        return _unexplained(message)
    if found := _MISSING_FIELD.match(message):
        return missing(f"{place.path}.{found[1]}" if place.path else found[1])
    if "`key` in `" in message:
        return _long_key(place)
    return _mistake(place.declared, place.value, place.path) or _unexplained(message)


def _unexplained(message: str) -> InvalidRequest:
    found = _PLACE.search(message)
    path = found["path"].lstrip(".") if found else ""
    if not path:
        return InvalidRequest("The body of the request does not have the expected form.")
    return invalid_value(path, f"Invalid value for '{clip(path)}'.")


def _long_key(place: Place) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{place.path}': a property name is too long.",
        param=place.path,
        code="string_above_max_length",
    )


def _mistake(declared: inspect.Type, value: Any, path: str) -> InvalidRequest | None:
    """What is wrong with a value itself, not looking into it; None when nothing is."""
    if value is _MISSING:
        return missing(path)
    for alternative in alternatives(declared):
        if _is_kind(alternative, value):
            return next(_broken_rules(alternative, value, path), None)
    wanted = " or ".join(dict.fromkeys(filter(None, map(_kind_name, alternatives(declared)))))
    if wanted.count(" or "):
        wanted = f"one of {wanted}"
    return InvalidRequest(
        f"Invalid type for '{clip(path)}': expected {wanted}, but got {_name_of(value)} instead.",
        param=clip(path),
        code="invalid_type",
    )


def _is_kind(declared: inspect.Type, value: Any) -> bool:
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


def _kind_name(declared: inspect.Type) -> str:
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
            inner = {_kind_name(one).split(" ")[-1] for one in alternatives(declared.item_type)}
            return f"an array of {inner.pop()}s" if len(inner) == 1 else "an array"
        case inspect.DictType() | inspect.StructType():
            return "an object"
        case _:
            return ""


def _name_of(value: Any) -> str:
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


def _broken_rules(declared: inspect.Type, value: Any, path: str) -> Iterator[InvalidRequest]:
    match declared:
        case inspect.LiteralType() if value not in declared.values:
            yield not_among(path, value, declared.values)
        case inspect.IntType() | inspect.FloatType():
            yield from _outside(declared, value, path)
        case inspect.StrType():
            yield from _string_rules(declared, value, path)
        case inspect.ListType():
            yield from _length_rules("array", "array", declared, len(value), path)
        case inspect.DictType():
            yield from _size_rules(declared, len(value), path)
        case _:
            pass


def _outside(
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


def _string_rules(declared: inspect.StrType, value: str, path: str) -> Iterator[InvalidRequest]:
    yield from _length_rules("string", "string", declared, len(value), path)
    if declared.pattern is not None and not re.search(declared.pattern, value):
        shown = declared.pattern.replace(r"\Z", "$")
        yield invalid_value(
            path,
            f"Invalid '{clip(path)}': string does not match pattern. Expected a string that matches the pattern "
            f"'{shown}'.",
        )


def _length_rules(
    word: str, code: str, declared: inspect.StrType | inspect.ListType, length: int, path: str
) -> Iterator[InvalidRequest]:
    article = "an" if word == "array" else "a"
    if declared.min_length and length < declared.min_length:
        yield InvalidRequest(
            f"Invalid '{clip(path)}': empty {word}. Expected {article} {word} with minimum length "
            f"{declared.min_length}, but got an empty {word} instead.",
            param=clip(path),
            code=f"empty_{code}",
        )
    if declared.max_length is not None and length > declared.max_length:
        yield too_long(word, path, declared.max_length, length)


def too_long(word: str, path: str, limit: int, length: int) -> InvalidRequest:
    """An array or a string is longer than it may be."""
    article = "an" if word == "array" else "a"
    return InvalidRequest(
        f"Invalid '{clip(path)}': {word} too long. Expected {article} {word} with maximum length {limit}, but got "
        f"{article} {word} with length {length} instead.",
        param=clip(path),
        code=f"{word}_above_max_length",
    )


def _size_rules(declared: inspect.DictType, size: int, path: str) -> Iterator[InvalidRequest]:
    if declared.max_length is not None and size > declared.max_length:
        yield InvalidRequest(
            f"Invalid '{clip(path)}': too many properties. Expected an object with at most {declared.max_length} "
            f"properties, but got an object with {size} properties instead.",
            param=clip(path),
            code="object_above_max_properties",
        )
