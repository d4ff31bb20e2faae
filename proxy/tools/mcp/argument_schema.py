"""Validate the arguments of a call against the JSON Schema of an MCP tool, with errors that a model can act on.

The schema comes from the server, so the validator fetches no references and limits backtracking in patterns. If the
schema is invalid or expands too far, or validation could take too long, the arguments are not validated here: the
server has to do it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import jsonschema_rs
import msgspec

from proxy.errors import ToolError
from proxy.wire.schema_expansion import ExpansionTooLarge, check_expansion
from proxy.wire.schema_validator import SchemaValidator

_MAX_SECONDS = 0.05
_MAX_BACKTRACKING_LENGTH = 4_000
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
        self._validator: SchemaValidator | None = None
        self._is_recursive = False
        try:
            self._is_recursive = check_expansion(schema)
            self._validator = SchemaValidator(schema)
        except (ValueError, ExpansionTooLarge):
            pass

    def check(self, arguments: Mapping[str, object]) -> None:
        """Validate the arguments of a call.

        Raises:
            ToolError: The message has at most ``_MAX_PROBLEMS`` validation errors.
        """
        if self._validator is None or self._takes_too_long(self._validator, arguments):
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
                for error in islice(self._validator.errors(arguments), _MAX_PROBLEMS)
                if not isinstance(error.kind, _NO_PROBLEMS)
            ]
        except ValueError:  # numbers outside the validator's range
            return
        if problems:
            raise ToolError("; ".join(problems))

    @staticmethod
    def _takes_too_long(validator: SchemaValidator, arguments: Mapping[str, object]) -> bool:
        """Return whether validation could block the event loop; the server then has to do it."""
        text = msgspec.json.encode(arguments).decode()
        if validator.may_backtrack:
            return len(text) > _MAX_BACKTRACKING_LENGTH
        return validator.seconds(text) > _MAX_SECONDS


def _message(path: Iterable[str | int], message: str) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    short = message if len(message) <= _MAX_PROBLEM_LENGTH else f"{message[:_MAX_PROBLEM_LENGTH]}…"
    return f"argument '{place[:100]}': {short}" if place else f"invalid arguments: {short}"
