"""Structured output: compile the schema of ``response_format``, and validate responses against it.

Schemas come from callers, and answers from models: neither may block the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from proxy.request_errors import InvalidResponseSchema
from proxy.wire.schema_patterns import MAX_PATTERNS
from proxy.wire.schema_process import executor, is_valid_text
from proxy.wire.schema_validator import SchemaValidator

_MAX_SECONDS = 0.02


class ResponseFormat:
    """A compiled ``response_format``: any JSON, or JSON that matches a schema."""

    def __init__(self, schema: dict[str, Any] | None) -> None:
        self._schema = schema
        self._validator = None if schema is None else SchemaValidator(schema)

    async def is_met_by(self, text: str) -> bool:
        """Return whether the whole text is JSON that matches.

        A validation that could block the event loop runs in a separate process. One that exceeds the CPU time limit of
        that process returns False.
        """
        if self._validator is not None and self._validator.seconds(text) > _MAX_SECONDS:
            schema = msgspec.json.encode(self._schema)
            return await asyncio.get_running_loop().run_in_executor(executor, is_valid_text, schema, text)
        try:
            answer = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return False
        try:
            return self._validator is None or self._validator.is_valid(answer)
        except ValueError:  # numbers that the validator does not support
            return False


def compile_response_format(response_format: Mapping[str, Any] | None) -> ResponseFormat | None:
    """Return the compiled format; None if any text is allowed.

    Raises:
        InvalidResponseSchema: The schema is invalid, or its patterns are too large or too many.
    """
    match response_format:
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            try:
                return _compiled(schema)
            except ValueError:
                raise InvalidResponseSchema(MAX_PATTERNS) from None
        case {"type": "json_schema" | "json_object"}:
            return ResponseFormat(None)
        case _:
            return None


# By the digest of the schema: callers send the same schema with many requests.
_formats: dict[bytes, ResponseFormat] = {}
_MAX_FORMATS = 32


def _compiled(schema: dict[str, Any]) -> ResponseFormat:
    digest = blake2b(msgspec.json.encode(schema)).digest()
    compiled = _formats.pop(digest, None) or ResponseFormat(schema)
    while len(_formats) >= _MAX_FORMATS:
        del _formats[next(iter(_formats))]
    _formats[digest] = compiled  # the last entry is the most recently used one
    return compiled
