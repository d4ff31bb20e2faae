"""Validate the arguments of a call against the JSON Schema of an MCP tool, with errors that a model can act on.

The schema comes from the server, so the validator fetches no references and limits backtracking in patterns. If the
schema is invalid or expands too far, the arguments are not validated here: the server has to do it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NoReturn

import jsonschema_rs

from proxy.errors import ToolError
from proxy.wire.schema_expansion import (
    MAX_PATTERNS,
    ExpansionTooLarge,
    bytes_per_pattern,
    check_expansion,
    pattern_count,
)

_BACKTRACKS = 10_000
_MAX_PROBLEMS = 5
_MAX_PROBLEM_LENGTH = 300
_NO_PROBLEMS = (
    jsonschema_rs.ValidationErrorKind.BacktrackLimitExceeded,
    jsonschema_rs.ValidationErrorKind.RegexEngineFailure,
    jsonschema_rs.ValidationErrorKind.Referencing,
)
"""Errors in applying the schema; they are not errors of the arguments."""


class ArgumentSchema:
    """Compiled JSON Schema of the arguments of a tool."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._validator: Any = None
        self._is_recursive = False
        try:
            self._is_recursive = check_expansion(schema)
            patterns = pattern_count(schema)
            if patterns > MAX_PATTERNS:
                return
            self._validator = jsonschema_rs.validator_for(
                dict(schema),
                retriever=_fetch_nothing,
                pattern_options=jsonschema_rs.FancyRegexOptions(
                    backtrack_limit=_BACKTRACKS,
                    size_limit=bytes_per_pattern(patterns),
                    dfa_size_limit=bytes_per_pattern(patterns),
                ),
            )
        except (ValueError, ExpansionTooLarge):
            pass

    def check(self, arguments: Mapping[str, object]) -> None:
        """Validate the arguments of a call.

        Raises:
            ToolError: The message has at most ``_MAX_PROBLEMS`` validation errors.
        """
        if self._validator is None:
            return
        try:
            if self._validator.is_valid(arguments):
                return
            if self._is_recursive:
                # To describe errors, the validator evaluates each branch again at each level: 18 levels of an
                # ``anyOf`` with two branches took 24 s.
                raise ToolError("the arguments do not match the schema of the tool")
            problems = [
                _message(error.instance_path, error.message)
                for error in islice(self._validator.iter_errors(arguments), _MAX_PROBLEMS)
                if not isinstance(error.kind, _NO_PROBLEMS)
            ]
        except ValueError:  # numbers outside the validator's range
            return
        if problems:
            raise ToolError("; ".join(problems))


def _message(path: Iterable[str | int], message: str) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    short = message if len(message) <= _MAX_PROBLEM_LENGTH else f"{message[:_MAX_PROBLEM_LENGTH]}…"
    return f"argument '{place[:100]}': {short}" if place else f"invalid arguments: {short}"


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError("schemas are not fetched")
