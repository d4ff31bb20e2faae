"""Structured output: whether a schema can be used, and whether an answer is in the form that was asked for.

Schemas come from callers. The validator is one whose regular expressions take linear time, or give up; it fetches
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NoReturn

import jsonschema_rs
import msgspec

from proxy.errors import InvalidRequest
from proxy.wire.schema_expansion import MAX_PATTERNS, bytes_per_pattern, pattern_count

_BACKTRACKS = 10_000


class AnswerForm:
    """The form that ``response_format`` asks for: JSON, perhaps of a schema."""

    def __init__(self, schema: dict[str, Any] | None) -> None:
        patterns = 0 if schema is None else pattern_count(schema)
        if patterns > MAX_PATTERNS:
            raise ValueError("too many patterns")
        self._validator = (
            None
            if schema is None
            else jsonschema_rs.validator_for(
                schema,
                retriever=_fetch_nothing,
                pattern_options=jsonschema_rs.FancyRegexOptions(
                    backtrack_limit=_BACKTRACKS,
                    size_limit=bytes_per_pattern(patterns),
                    dfa_size_limit=bytes_per_pattern(patterns),
                ),
            )
        )

    def is_met_by(self, text: str) -> bool:
        """Whether the text is such JSON and nothing else."""
        try:
            answer = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return False
        try:
            return self._validator is None or bool(self._validator.is_valid(answer))
        except ValueError:  # a pattern that takes too long
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


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError("schemas are not fetched")
