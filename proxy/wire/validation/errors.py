"""The sentences with which a request is refused, in the words of the official API.

They repeat what the caller wrote only as far as ``clip`` lets it through.
"""

from __future__ import annotations

from typing import Any

from proxy.errors import InvalidRequest

ECHO_LIMIT = 100
"""Characters of a caller's input that an error repeats at most."""


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


def empty(word: str, path: str) -> InvalidRequest:
    """An array or a string has nothing in it."""
    article = "an" if word == "array" else "a"
    return InvalidRequest(
        f"Invalid '{clip(path)}': empty {word}. Expected {article} {word} with minimum length 1, but got an empty "
        f"{word} instead.",
        param=clip(path),
        code=f"empty_{word}",
    )


def too_long(word: str, path: str, limit: int, length: int) -> InvalidRequest:
    """An array or a string is longer than it may be."""
    article = "an" if word == "array" else "a"
    return InvalidRequest(
        f"Invalid '{clip(path)}': {word} too long. Expected {article} {word} with maximum length {limit}, but got "
        f"{article} {word} with length {length} instead.",
        param=clip(path),
        code=f"{word}_above_max_length",
    )


def too_many_properties(path: str, limit: int, count: int) -> InvalidRequest:
    """An object has more properties than it may have."""
    return InvalidRequest(
        f"Invalid '{clip(path)}': too many properties. Expected an object with at most {limit} properties, but got an "
        f"object with {count} properties instead.",
        param=clip(path),
        code="object_above_max_properties",
    )
