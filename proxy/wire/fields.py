"""The keys of the body one by one: for bodies that could not be decoded whole.

Each key is decoded from its own text, so that whatever else the body holds costs nothing, however large it is.
"""

from __future__ import annotations

import typing
from typing import Any

import msgspec
from msgspec import inspect

from proxy.wire.body import ChatBody
from proxy.wire.explaining import alternatives, explain, out_of_range


class Field:
    """One key: its name, its type, and how its value is decoded."""

    def __init__(self, name: str, annotation: Any, declared: inspect.Field) -> None:
        self.name = name
        self.is_required = declared.required
        self._annotation = annotation
        self._type = declared.type
        self._decode = msgspec.json.Decoder(annotation).decode

    def decode(self, text: msgspec.Raw) -> Any:
        """Return the value.

        Raises:
            InvalidRequest: It is not of its type.
            msgspec.DecodeError: It is no JSON.
        """
        try:
            return self._decode(text)
        except msgspec.ValidationError:
            pass
        try:
            value = _with_integers(self._type, msgspec.json.decode(text))
        except msgspec.ValidationError:  # the one thing that untyped decoding refuses
            raise out_of_range(self.name) from None
        try:
            return msgspec.convert(value, self._annotation)
        except msgspec.ValidationError as error:
            raise explain(self._type, value, str(error), at=self.name) from None


def _with_integers(declared: inspect.Type, value: Any) -> Any:
    """Integers that came as ``1.0`` are written as such: JSON Schema calls them integers."""
    for one in alternatives(declared):
        if isinstance(one, inspect.IntType) and isinstance(value, float) and value.is_integer():
            return int(value)
        if (
            isinstance(one, inspect.DictType)
            and isinstance(value, dict)
            and len(value) <= (one.max_length or 0)
        ):
            return {key: _with_integers(one.value_type, inner) for key, inner in value.items()}
    return value


def _fields() -> dict[str, Field]:
    annotations = typing.get_type_hints(ChatBody, include_extras=True)
    declared = inspect.type_info(ChatBody)
    assert isinstance(declared, inspect.StructType)
    return {one.name: Field(one.name, annotations[one.name], one) for one in declared.fields}


FIELDS = _fields()
"""Every known key, in the order of their declaration."""
