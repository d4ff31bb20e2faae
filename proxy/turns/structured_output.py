"""Structured output: compile the schema of ``response_format``, and validate responses against it.

Schemas come from callers, and answers from models: neither may block the event loop. Whatever takes more than a few
milliseconds runs in a separate process.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from proxy.request_errors import InvalidResponseSchema
from proxy.wire.schema_patterns import CHEAP_LIMITS, MAX_PATTERNS, patterns_of
from proxy.wire.schema_process import cost_of, in_process, matches
from proxy.wire.schema_validator import SchemaValidator, is_small

_MAX_SECONDS = 0.02
_MAX_COMPILE_SECONDS = 0.005


class ResponseFormat:
    """A compiled ``response_format``: any JSON, or JSON that matches a schema.

    A schema (JSON) without a validator is compiled in a separate process for each answer.
    """

    def __init__(self, schema: bytes | None = None, validator: SchemaValidator | None = None) -> None:
        self._schema = schema
        self._validator = validator

    async def is_met_by(self, text: str) -> bool:
        """Return whether the whole text is JSON that matches.

        A validation that could block the event loop runs in a separate process. One that exceeds the CPU time limit of
        that process returns False.
        """
        if self._schema is not None and (
            self._validator is None or self._validator.seconds(text) > _MAX_SECONDS
        ):
            return await in_process(matches, self._schema, text) is True
        try:
            answer = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return False
        try:
            return self._validator is None or self._validator.is_valid(answer)
        except ValueError:  # numbers that the validator does not support
            return False


async def compile_response_format(response_format: Mapping[str, Any] | None) -> ResponseFormat | None:
    """Return the compiled format; None if any text is allowed.

    Raises:
        InvalidResponseSchema: The schema is invalid, or its patterns are too large or too many.
    """
    match response_format:
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return await _cached(schema)
        case {"type": "json_schema" | "json_object"}:
            return ResponseFormat()
        case _:
            return None


# By the digest of the schema: callers send the same schema with many requests.
_formats: dict[bytes, ResponseFormat] = {}
_MAX_FORMATS = 64
_MAX_CACHED_LENGTH = 256_000


async def _cached(schema: dict[str, Any]) -> ResponseFormat:
    encoded = msgspec.json.encode(schema)
    digest = blake2b(encoded).digest()
    compiled = _formats.pop(digest, None) or await _compiled(schema, encoded)
    while len(_formats) >= _MAX_FORMATS:
        del _formats[next(iter(_formats))]
    if len(encoded) <= _MAX_CACHED_LENGTH:
        _formats[digest] = compiled  # the last entry is the most recently used one
    return compiled


async def _compiled(schema: dict[str, Any], encoded: bytes) -> ResponseFormat:
    if is_small(encoded):
        try:
            return ResponseFormat(encoded, SchemaValidator(schema, limits=CHEAP_LIMITS))
        except ValueError:
            if next(patterns_of(schema), None) is None:
                raise InvalidResponseSchema(MAX_PATTERNS) from None
    cost = await in_process(cost_of, encoded)
    if cost is None:
        raise InvalidResponseSchema(MAX_PATTERNS)
    # Most large schemas compile quickly: what takes long is checking them, which the process did.
    validator = SchemaValidator(schema, cost=cost) if cost.seconds <= _MAX_COMPILE_SECONDS else None
    return ResponseFormat(encoded, validator)
