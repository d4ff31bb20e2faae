"""Errors for invalid requests, with OpenAI's wording.

Messages repeat values of the request shortened by ``clip``.
"""

from __future__ import annotations

from typing import Any

from proxy.errors import InvalidRequest

ECHO_LIMIT = 100
"""Maximum length of a request value in an error message, in characters."""


def clip(text: str) -> str:
    """Shorten a text to ``ECHO_LIMIT`` characters."""
    return text if len(text) <= ECHO_LIMIT else f"{text[: ECHO_LIMIT - 1]}…"


def missing(param: str) -> InvalidRequest:
    """Return the error for a missing required parameter."""
    return InvalidRequest(
        f"Missing required parameter: '{clip(param)}'.", param=clip(param), code="missing_required_parameter"
    )


def unsupported_value(param: str, message: str) -> InvalidRequest:
    """Return the error for a valid value that this server does not support."""
    return InvalidRequest(f"Unsupported value: {message}", param=clip(param), code="unsupported_value")


def unsupported_parameter(param: str, reason: str) -> InvalidRequest:
    """Return the error for a known parameter that this server does not support."""
    return InvalidRequest(
        f"Unsupported parameter: '{clip(param)}' {reason}", param=clip(param), code="unsupported_parameter"
    )


def invalid_value(param: str, message: str) -> InvalidRequest:
    """Return the error for an invalid value of the right type."""
    return InvalidRequest(message, param=clip(param), code="invalid_value")


def not_among(param: str, value: object, supported: tuple[Any, ...]) -> InvalidRequest:
    """Return the error for a value that is not one of the supported values."""
    names = [f"'{name}'" for name in supported]
    listed = " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])}, and {names[-1]}"
    return invalid_value(param, f"Invalid value: '{clip(str(value))}'. Supported values are: {listed}.")


def empty(word: str, path: str) -> InvalidRequest:
    """Return the error for an empty array or string; ``word`` is ``array`` or ``string``."""
    article = "an" if word == "array" else "a"
    return InvalidRequest(
        f"Invalid '{clip(path)}': empty {word}. Expected {article} {word} with minimum length 1, but got an empty "
        f"{word} instead.",
        param=clip(path),
        code=f"empty_{word}",
    )


def too_long(word: str, path: str, limit: int, length: int) -> InvalidRequest:
    """Return the error for an array or string over its maximum length."""
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
