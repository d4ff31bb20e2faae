"""Structured output: whether a schema can be used, and whether an answer is in the form that was asked for.

Schemas come from callers. The validator is one whose regular expressions take linear time, or give up; it fetches
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

import jsonschema_rs
import msgspec

from proxy.errors import InvalidRequest

_BACKTRACKS = 10_000


class AnswerForm:
    """The form that ``response_format`` asks for: JSON, perhaps of a schema."""

    def __init__(self, schema: dict[str, Any] | None) -> None:
        self._validator = (
            None
            if schema is None
            else jsonschema_rs.validator_for(
                schema,
                retriever=_fetch_nothing,
                pattern_options=jsonschema_rs.FancyRegexOptions(backtrack_limit=_BACKTRACKS),
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
                return AnswerForm(schema)
            except ValueError:
                raise InvalidRequest(
                    "Invalid schema for response_format: it is not a valid JSON Schema.",
                    param="response_format.json_schema.schema",
                    code="invalid_value",
                ) from None
        case {"type": "json_schema" | "json_object"}:
            return AnswerForm(None)
        case _:
            return None


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError("schemas are not fetched")
