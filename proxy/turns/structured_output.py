"""Structured output: whether a schema can be used, and whether an answer is in the form that was asked for.

Schemas come from callers, and answers from models: neither may block the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from proxy.errors import InvalidRequest
from proxy.wire.schema_expansion import MAX_PATTERNS
from proxy.wire.schema_process import executor, is_valid_text
from proxy.wire.schema_validator import SchemaValidator

_MAX_SECONDS = 0.02


class AnswerForm:
    """The form that ``response_format`` asks for: JSON, perhaps of a schema."""

    def __init__(self, schema: dict[str, Any] | None) -> None:
        self._schema = schema
        self._validator = None if schema is None else SchemaValidator(schema)

    async def is_met_by(self, text: str) -> bool:
        """Return whether the text is such JSON and nothing else.

        A validation that could block the event loop runs in a process of its own. If it takes longer than the process
        may take, the answer is none.
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


def answer_form(response_format: Mapping[str, Any] | None) -> AnswerForm | None:
    """Return the form, or None when any text will do.

    Raises:
        InvalidRequest: The schema is none.
    """
    match response_format:
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            try:
                return _compiled(schema)
            except ValueError:
                raise InvalidRequest(
                    "Invalid schema for response_format: it is not a valid JSON Schema, or its patterns"
                    f" are too large or more than {MAX_PATTERNS}.",
                    param="response_format.json_schema.schema",
                    code="invalid_value",
                ) from None
        case {"type": "json_schema" | "json_object"}:
            return AnswerForm(None)
        case _:
            return None


# By the digest of the schema: a request asks for its form when it is opened and again when it is answered, and callers
# send the same schema many times.
_forms: dict[bytes, AnswerForm] = {}
_MAX_FORMS = 32


def _compiled(schema: dict[str, Any]) -> AnswerForm:
    digest = blake2b(msgspec.json.encode(schema)).digest()
    form = _forms.pop(digest, None) or AnswerForm(schema)
    while len(_forms) >= _MAX_FORMS:
        del _forms[next(iter(_forms))]
    _forms[digest] = form  # the last entry is the one used last
    return form
