"""Decode request bodies into msgspec types: the whole body at once, or field by field if that fails.

Field by field, only the text of known fields is decoded, so that other content costs nothing, whatever its size.
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

INVALID_JSON = (
    "We could not parse the JSON body of your request. The API expects a JSON object, but what was sent is not valid "
    "JSON."
)
"""OpenAI's message for a body that is not JSON."""

_HEADER_WORD = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_IGNORED = 32
_ESCAPED_NUL = b"\\u0000"
_BACKSLASH = ord("\\")
MAX_CONTAINERS = 250_000
"""Objects and arrays that a body may have: decoding creates each of them, which takes about 0.3 µs for an empty one."""
# The closing quotation mark is optional and the repetitions never go back, so that a string without end is one match.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_decode_keys = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Field:
    """A field of a body: name, type and decoder."""

    def __init__(self, name: str, annotation: Any, declared: inspect.Field) -> None:
        self.name = name
        self.is_required = declared.required
        self._annotation = annotation
        self._type = declared.type
        self._decode = msgspec.json.Decoder(annotation).decode

    def decode(self, text: msgspec.Raw) -> Any:
        """Return the value.

        Raises:
            InvalidRequest: The value has the wrong type.
            msgspec.DecodeError: The text is not valid JSON.
        """
        self._check_length(text)
        try:
            return self._decode(text)
        except msgspec.ValidationError:
            pass
        try:
            value = _convert_integers(self._type, msgspec.json.decode(text))
        except msgspec.ValidationError:  # without a type, msgspec rejects only numbers out of range
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


def _convert_integers(declared: inspect.Type, value: Any) -> Any:
    """Convert numbers such as ``1.0`` to integers, as JSON Schema defines them (Validation, 6.1.1 "type")."""
    for one in alternatives(declared):
        if isinstance(one, inspect.IntType) and isinstance(value, float) and value.is_integer():
            return int(value)
        if (
            isinstance(one, inspect.DictType)
            and isinstance(value, dict)
            and len(value) <= (one.max_length or 0)
        ):
            return {key: _convert_integers(one.value_type, inner) for key, inner in value.items()}
    return value


class BodyDecoder(Generic[Body]):
    """Decodes bodies of one type, which must forbid unknown fields."""

    def __init__(self, body: type[Body]) -> None:
        annotations = typing.get_type_hints(body, include_extras=True)
        declared = inspect.type_info(body)
        assert isinstance(declared, inspect.StructType)
        self.fields = {one.name: Field(one.name, annotations[one.name], one) for one in declared.fields}
        """All known fields, in the order of their declaration."""
        self._body = body
        self._decode_whole = msgspec.json.Decoder(body).decode

    def decode(self, text: bytes, *, strict: bool) -> tuple[Body, tuple[str, ...]]:
        """Return the body and its unknown keys, sanitised for a header; with ``strict``, unknown keys are errors.

        Raises:
            InvalidRequest: A key is missing, of the wrong type, or unknown in strict mode.
            msgspec.DecodeError: The text is not a JSON object.
        """
        # Each object and array takes at least one byte.
        if len(text) > MAX_CONTAINERS:
            refuse_oversized(text)
        try:
            return self._decode_whole(text), ()
        except msgspec.ValidationError:
            return self._decode_by_field(text, strict=strict)

    def decode_known(self, text: bytes) -> Body:
        """Return a body that has only known keys and no value to convert.

        Raises:
            msgspec.DecodeError: The text is anything else.
            UnicodeDecodeError: The text is not UTF-8.
            RecursionError: It is nested too deeply.
        """
        return self._decode_whole(text)

    def _decode_by_field(self, text: bytes, *, strict: bool) -> tuple[Body, tuple[str, ...]]:
        """Decode field by field, for a body with unknown keys, values to convert, or errors."""
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
    if len(text) <= MAX_CONTAINERS or _containers(text) <= MAX_CONTAINERS:
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


def read_object(decoder: BodyDecoder[Body], body: bytes, *, strict: bool = False) -> Body:
    """Decode a JSON object. Without ``strict``, unknown keys are ignored and a blank body is an empty object.

    Raises:
        InvalidRequest: The body is not a JSON object, or a key is missing, of the wrong type or (strict) unknown.
    """
    if not (strict or body.strip()):
        body = b"{}"
    try:
        decoded, _ = decoder.decode(body, strict=strict)
        reject_nul(body)
        return decoded
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(INVALID_JSON) from None


def reject_nul(text: bytes) -> None:
    """Reject the text of a JSON object that contains an escaped NUL character.

    PostgreSQL cannot store NUL in text (PostgreSQL documentation, "Character Types").

    Raises:
        InvalidRequest: ``param`` is the key, and in an array the element, with the first NUL.
    """
    # Many texts have no escapes, and one byte is found fifty times faster than six. As a number, because ``in`` tries
    # bytes as a number first, and raises and drops an error (CPython, bytes_methods.c).
    if _BACKSLASH not in text or not _contains_nul(text):
        return
    keys = _decode_keys(text)
    named = next((name for name, inner in keys.items() if _contains_nul(inner)), None)
    if named is None or "\0" in named:
        raise InvalidRequest("The request body contains a NUL character.", code="invalid_value")
    path = clip(named)
    inner = bytes(keys[named])
    if inner.lstrip().startswith(b"["):
        path += f"[{next(i for i, one in enumerate(_decode_elements(inner)) if _contains_nul(one))}]"
    raise invalid_value(path, f"Invalid '{path}': it contains a NUL character.")


def _contains_nul(text: bytes | msgspec.Raw) -> bool:
    """Return whether JSON text has an escaped NUL character; after an escaped backslash it is not one."""
    text = bytes(text)
    return text.find(_ESCAPED_NUL) >= 0 and text.replace(b"\\\\", b"").find(_ESCAPED_NUL) >= 0
