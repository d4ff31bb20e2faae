"""What a provider's 400 or 422 rejects: status, code, the fields that it names, and the beginning of its message.

``param`` (OpenAI) or ``loc`` (Mistral, vLLM and others that validate with pydantic) name the fields if the error has
one. Otherwise they are searched in the beginning of the error's own message. The rest of the body may echo the request,
and a caller must not be able to name fields there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

import msgspec

MAX_ERROR_SEARCH = 300
"""Characters of an error's message that are searched."""
MAX_CUT_MESSAGE = 2048
"""Bytes of the message of an error that was not read to its end."""
MAX_DETAILS = 100
_LONGEST_NESTED = 16 * 1024

# A name followed by a colon or an equals sign is a key of an echoed request.
_NAME = re.compile(r"""\b[a-z_]++(?:\.[a-z_]++)*+(?!["'`]?\s*[:=])""")

_MESSAGE = re.compile(rb'"(?:message|detail|error)"\s*+:\s*+"((?:[^"\\]++|\\.)*+)', re.DOTALL)

# "invalid temperature: only 1 is allowed": at the beginning a name with a colon is not an echo.
_FIRST_NAME = re.compile(
    r"""(?:invalid|unsupported|unknown)(?: value for| parameter| field)? ["'`]?([a-z_.]+)"""
)

Verdict = Literal["unsupported", "unsupported value", "invalid"]
"""The model does not have the field; it does not accept this value; the value is wrong with any model."""

_UNSUPPORTED_CODES = frozenset(
    {
        "unsupported_parameter",
        "unknown_parameter",
        "unrecognized_parameter",
        "extra_forbidden",
        "unexpected_keyword",
    }
)
_VALUE_CODES = frozenset({"unsupported_value", "literal_error", "enum"})
# OpenAI: "Only the default (1) value is supported". Kimi: "only 1 is allowed for this model".
_ONLY_ONE = re.compile(r"only the default|only \S{1,20} is (?:allowed|supported|accepted)", re.IGNORECASE)
_UNSUPPORTED = re.compile(
    r"unsupported|not (?:currently |yet )?(?:supported|permitted|allowed|available|enabled|compatible)|n[o']t support"
    r"|unrecogni[sz]ed|unknown (?:field|name|parameter|argument|key)|unexpected (?:field|parameter|argument|keyword)"
    r"|extra (?:inputs|fields)|unavailable|deprecated|incompatible|cannot (?:both )?be (?:used|set|specified|combined)",
    re.IGNORECASE,
)
_BAD_VALUE = re.compile(r"unsupported value|(?:value|type) is (?:unavailable|not supported)", re.IGNORECASE)


class FieldPath(msgspec.Struct, frozen=True):
    """A field that an error names, as a dotted path: ``temperature``, ``messages.0.role``."""

    path: str
    verdict: Verdict

    def is_in(self, name: str) -> bool:
        """Whether this is the field ``name`` or a part of it."""
        return self.path == name or self.path.startswith(f"{name}.")


class Rejection(msgspec.Struct, frozen=True):
    """What an error says, from the innermost error object that it holds.

    ``places`` come from ``param`` or ``loc``; ``words`` is the message in lower case, in which names are searched if
    there are no places.
    """

    status: int
    code: str = ""
    param: str = ""
    words: str = ""
    places: tuple[FieldPath, ...] = ()
    verdict: Verdict = "invalid"

    def named(self, fields: Collection[str]) -> dict[str, Verdict]:
        """Return those of the ``fields`` of a request that the error names."""
        if self.places:
            found = ((max(filter(place.is_in, fields), key=len, default=""), place) for place in self.places)
            return {name: place.verdict for name, place in found if name}
        words = {*_NAME.findall(self.words.partition("{")[0])}
        if first := _FIRST_NAME.match(self.words):
            words.add(first[1])
        return {name: self.verdict for name in fields if name in words}

    def is_repetition_of(self, earlier: Rejection) -> bool:
        """Whether this is the same error; what follows an opening brace may be an echo of another request."""
        return (self.status, self.code, self.param, self.words.partition("{")[0]) == (
            earlier.status,
            earlier.code,
            earlier.param,
            earlier.words.partition("{")[0],
        )

    @property
    def is_structured(self) -> bool:
        """Whether ``param`` or ``loc`` name the fields, so that no text of a caller can have caused it."""
        return bool(self.places)


def rejection_of(status: int, body: bytes | object) -> Rejection:
    """Return what the body of an error says; empty if it cannot be read."""
    error = innermost_error(body)
    words = message_of(error)[:MAX_ERROR_SEARCH].lower()
    code = _text(error.get("code")) or _text(error.get("type"))
    param = _text(error.get("param"))
    if param in ("None", "null"):
        param = ""
    verdict = _verdict(code, words)
    if param:
        places: tuple[FieldPath, ...] = (FieldPath(_dotted(param), verdict),)
    else:
        places = tuple(_details(error))
        param = places[0].path if places else ""
    return Rejection(status, code, param, words, places, verdict)


def is_named_once(name: str, body: bytes) -> bool:
    """Whether a name is in the encoded body once at most, so that an error cannot quote it from a caller's text."""
    # Errors are searched in lower case.
    return body.lower().count(name.encode()) <= 1


def innermost_error(body: bytes | object) -> Mapping[str, Any]:
    """Return the error object of the provider itself; gateways wrap it in another error.

    OpenRouter has it as JSON text in ``metadata.raw``, others in ``message``.
    """
    error = error_object(body)
    for _ in range(3):
        metadata = error.get("metadata")
        nested = metadata.get("raw") if isinstance(metadata, dict) else error.get("message")
        if isinstance(nested, str) and nested.lstrip()[:1] in ("{", "[") and len(nested) <= _LONGEST_NESTED:
            nested = nested.encode(errors="replace")
        if not isinstance(nested, bytes | dict):
            break
        inner = error_object(nested)
        if not inner:
            break
        error = inner
    return error


def error_object(body: bytes | object) -> dict[str, Any]:
    """Return the object that describes an error, of a body or of its JSON; empty if there is none."""
    if isinstance(body, bytes):
        encoded = body
        try:
            body = msgspec.json.decode(encoded)
        except (ValueError, RecursionError):
            return _cut_error(encoded)
    if isinstance(body, list) and body:
        # Google wraps the envelope in an array.
        body = body[0]
    if not isinstance(body, dict):
        return {"message": body} if isinstance(body, str) else {}
    inner = body.get("error", body)
    return inner if isinstance(inner, dict) else {"message": inner}


def message_of(error: Mapping[str, Any]) -> str:
    """Return the message of an error object; empty if it has none.

    Gateways built with web frameworks have it in ``detail``, ``msg`` or ``title``, or have a list of errors.
    """
    for name in ("message", "detail", "msg", "errors", "title"):
        value = error.get(name)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, dict):
            value = value.get("message") or value.get("msg")
        if isinstance(value, str) and value:
            return value
    return ""


def _cut_error(body: bytes) -> dict[str, Any]:
    """Return the beginning of the message of an error whose JSON is longer than what was read of it."""
    found = _MESSAGE.search(body) if body[:1] in (b"{", b"[") else None
    if found is None:
        return {}
    text = found[1][:MAX_CUT_MESSAGE]
    # The cut may be within a character or an escape of at most twelve bytes.
    for end in range(len(text), max(len(text) - 12, 0), -1):
        try:
            return {"message": msgspec.json.decode(b'"%b"' % text[:end])}
        except ValueError:
            continue
    return {}


def _details(error: Mapping[str, Any]) -> Iterator[FieldPath]:
    """Yield the path of each validation error, without its first member ``body``."""
    details = error.get("detail")
    # LM Studio reports the issues of zod, whose paths are ``path``; the first of them is ``error``.
    details = details[:MAX_DETAILS] if isinstance(details, list) else [error]
    for detail in details:
        loc = (detail.get("loc") or detail.get("path")) if isinstance(detail, dict) else None
        if isinstance(loc, list) and loc:
            path = ".".join(str(part) for part in loc[loc[0] == "body" :])
            code = _text(detail.get("type") or detail.get("code"))
            yield FieldPath(path, _verdict(code, _text(detail.get("msg") or detail.get("message"))))


def _verdict(code: str, words: str) -> Verdict:
    if code in _UNSUPPORTED_CODES or _ONLY_ONE.search(words):
        return "unsupported"
    if code in _VALUE_CODES or _BAD_VALUE.search(words):
        return "unsupported value"
    return "unsupported" if _UNSUPPORTED.search(words) else "invalid"


def _dotted(path: str) -> str:
    """Return ``messages[0].role`` as ``messages.0.role``."""
    return re.sub(r"\.?\[(\w+)\]", r".\1", path)


def _text(value: object) -> str:
    return (
        value[:MAX_ERROR_SEARCH] if isinstance(value, str) else str(value) if isinstance(value, int) else ""
    )
