"""JSON for ``response_format`` with the text of a script in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

_MAX_DEPTH = 16
"""Levels of objects and arrays that are written; schemas can refer to themselves."""
_MAX_ITEMS = 100
_MAX_VALUES = 2000
"""Values of an answer; those after them are null."""


def structured_answer(text: str, response_format: Mapping[str, Any]) -> str:
    """Return JSON of the format.

    A text that is a JSON object gives the members of the same names; otherwise the text is the value of each string.
    ``pattern`` and ``format`` of strings are not considered, so that an answer with them may not match the schema.
    """
    members = _members(text)
    match response_format:
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            value = _Writer(schema, text).value(schema, given=members)
        case _:
            value = members or {"answer": text}
    return json.dumps(value, ensure_ascii=False)


def _members(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class _Writer:
    """Writes a value for each part of a schema."""

    def __init__(self, root: Mapping[str, Any], text: str) -> None:
        self._root = root
        self._text = text
        self._count = 0

    def value(self, schema: object, *, given: Mapping[str, Any], depth: int = 0) -> Any:
        """Return a value; ``given`` has members of the object."""
        self._count += 1
        if not isinstance(schema, dict) or depth > _MAX_DEPTH or self._count > _MAX_VALUES:
            return None
        parts = self._resolved(schema)
        if "const" in parts:
            return parts["const"]
        if parts.get("enum"):
            return parts["enum"][0]
        match _type_of(parts):
            case "object":
                return self._object(parts, given, depth)
            case "array":
                least, most = parts.get("minItems", 0), parts.get("maxItems", _MAX_ITEMS)
                count = min(max(least, 1), most, _MAX_ITEMS)
                return [self.value(parts.get("items", {}), given={}, depth=depth + 1) for _ in range(count)]
            case "string":
                text = self._text.ljust(min(parts.get("minLength", 0), 10_000), ".")
                return text[: parts.get("maxLength", len(text))]
            case "number" | "integer" as kind:
                return _number(parts, is_whole=kind == "integer")
            case "boolean":
                return True
            case "null":
                return None
            case _:
                return self._text

    def _object(self, schema: Mapping[str, Any], given: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        # In a schema that refers to itself, optional members would never end.
        names = properties if depth < _MAX_DEPTH // 2 else required
        members = {
            name: given[name]
            if name in given
            else self.value(properties.get(name, {}), given={}, depth=depth + 1)
            for name in dict.fromkeys((*names, *required))
        }
        return members or (dict(given) if schema.get("additionalProperties", True) is True else {})

    def _resolved(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Return the schema with ``$ref``, ``allOf`` and the first choice of ``anyOf`` and ``oneOf`` merged into it."""
        merged: dict[str, Any] = {}
        for part in self._parts(schema, 0):
            properties = {**merged.get("properties", {}), **part.get("properties", {})}
            required = [*merged.get("required", []), *part.get("required", [])]
            merged |= part
            merged |= {"properties": properties} if properties else {}
            merged |= {"required": required} if required else {}
        return merged

    def _parts(self, schema: object, depth: int) -> Iterator[Mapping[str, Any]]:
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return
        yield schema
        if isinstance(reference := schema.get("$ref"), str):
            yield from self._parts(self._target(reference), depth + 1)
        for part in schema.get("allOf", []):
            yield from self._parts(part, depth + 1)
        for choices in (schema.get("anyOf"), schema.get("oneOf")):
            if choices:
                # Null stands for "nothing", so any other choice says more.
                first = next((one for one in choices if _type_of(one) != "null"), choices[0])
                yield from self._parts(first, depth + 1)

    def _target(self, reference: str) -> object:
        """Return the schema at ``#`` or ``#/$defs/name``; the check of requests admits no other references."""
        target: Any = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            target = (
                target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
            )
        return target


def _type_of(schema: object) -> str | None:
    if not isinstance(schema, dict):
        return None
    given = schema.get("type")
    if isinstance(given, list):
        return next((one for one in given if one != "null"), "null")
    if given is None and "properties" in schema:
        return "object"
    return given if isinstance(given, str) else None


def _number(schema: Mapping[str, Any], *, is_whole: bool) -> int | float:
    """Return the number next to 0 in the range."""
    step = schema.get("multipleOf", 1)
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    most = schema.get("maximum", schema.get("exclusiveMaximum"))
    number = 0
    if least is not None and least >= 0:
        number = -(-least // step) * step
        number += step if number == schema.get("exclusiveMinimum") else 0
    elif most is not None and most <= 0:
        number = most // step * step
        number -= step if number == schema.get("exclusiveMaximum") else 0
    return int(number) if is_whole else number
