"""The body of a request as a type: decoded whole, or key by key where that fails.

Each key is then decoded from its own text, so that whatever else the body holds costs nothing, however large it is.
"""

from __future__ import annotations

import itertools
import re
import typing
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Struct, inspect

from proxy.errors import InvalidRequest
from proxy.wire.validation.error_messages import alternatives, explain, out_of_range
from proxy.wire.validation.errors import clip, invalid_value, missing, too_long, too_many_properties

Body = TypeVar("Body", bound=Struct)

_HEADER_WORD = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_IGNORED = 32
MAX_CONTAINERS = 250_000
"""Objects and arrays that a body may have: decoding creates each of them, which takes about 0.3 µs for an empty one."""
# The closing quotation mark is optional and the repetitions never go back, so that a string without end is one match.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode


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
        self._check_length(text)
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

    def _check_length(self, text: msgspec.Raw) -> None:
        """Refuse an array or object above its length before any of its elements is decoded."""
        start = bytes(text)[:1]
        for one in alternatives(self._type):
            if isinstance(one, inspect.ListType) and one.max_length is not None and start == b"[":
                length = len(_decode_elements(text))
                if length > one.max_length:
                    raise too_long("array", self.name, one.max_length, length)
            elif isinstance(one, inspect.DictType) and one.max_length is not None and start == b"{":
                length = len(_decode_keys(text))
                if length > one.max_length:
                    raise too_many_properties(self.name, one.max_length, length)


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


class BodyDecoder(Generic[Body]):
    """Decodes bodies of one type, which has to forbid unknown keys."""

    def __init__(self, body: type[Body]) -> None:
        annotations = typing.get_type_hints(body, include_extras=True)
        declared = inspect.type_info(body)
        assert isinstance(declared, inspect.StructType)
        self.fields = {one.name: Field(one.name, annotations[one.name], one) for one in declared.fields}
        """Every known key, in the order of their declaration."""
        self._body = body
        self._decode_whole = msgspec.json.Decoder(body).decode

    def decode(self, text: bytes, *, strict: bool) -> tuple[Body, tuple[str, ...]]:
        """Return the body, and the unknown keys in it, fit for a header; with ``strict``, those are mistakes.

        Raises:
            InvalidRequest: A key is missing or not of its type.
            msgspec.DecodeError: It is no JSON object.
        """
        refuse_oversized(text)
        try:
            return self._decode_whole(text), ()
        except msgspec.ValidationError:
            return self._decode_slowly(text, strict=strict)

    def _decode_slowly(self, text: bytes, *, strict: bool) -> tuple[Body, tuple[str, ...]]:
        """Decode a body that has unknown keys, something to mend, or something wrong: key by key, each on its own."""
        keys = _decode_keys(text)
        unknown = list(itertools.islice((key for key in keys if key not in self.fields), _MAX_IGNORED))
        if strict and unknown:
            name = clip(unknown[0])
            raise InvalidRequest(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
        values = {}
        for name, field in self.fields.items():
            if name in keys:
                values[name] = field.decode(keys[name])
            elif field.is_required:
                raise missing(name)
        return self._body(**values), tuple(_HEADER_WORD.sub("_", key[:64]) or "_" for key in unknown)


def refuse_oversized(text: bytes) -> None:
    """Refuse JSON text with more than ``MAX_CONTAINERS`` objects and arrays, without decoding it.

    Raises:
        InvalidRequest: It has more.
    """
    if _containers(text) <= MAX_CONTAINERS:
        return
    # Most of them may be in strings, such as source code.
    count = _containers(_STRING.sub(b"", text))
    if count > MAX_CONTAINERS:
        raise InvalidRequest(
            f"The body of the request has too many objects and arrays. Expected at most {MAX_CONTAINERS}, but got"
            f" {count}.",
            code="array_above_max_length",
        )


def _containers(text: bytes) -> int:
    return text.count(b"{") + text.count(b"[")


def refuse_nul(text: bytes) -> None:
    """Refuse the text of a JSON object with an escaped NUL character in it.

    Raises:
        InvalidRequest: Naming the key, and in a list the element, that holds the first.
    """
    if not _holds_nul(text):
        return
    keys = _decode_keys(text)
    named = next((name for name, inner in keys.items() if _holds_nul(inner)), None)
    if named is None or "\0" in named:
        raise InvalidRequest("The body of the request holds a NUL character.", code="invalid_value")
    path = clip(named)
    inner = bytes(keys[named])
    if inner.lstrip().startswith(b"["):
        path += f"[{next(i for i, one in enumerate(_decode_elements(inner)) if _holds_nul(one))}]"
    raise invalid_value(path, f"Invalid '{path}': it holds a NUL character.")


def _holds_nul(text: bytes | msgspec.Raw) -> bool:
    """Whether JSON text has an escaped NUL character; what follows an escaped backslash is none."""
    text = bytes(text)
    return b"\\u0000" in text and b"\\u0000" in text.replace(b"\\\\", b"")
