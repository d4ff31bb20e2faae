"""Whether arguments are what a tool's schema asks for, told so that a model can mend its call.

The schema was written by the server. The validator fetches nothing that it refers to, and gives up on patterns that
take too long; a schema that is none, or that expands too far, is left for the server to enforce.
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
"""What says that the schema could not be applied, and nothing of the arguments."""


class ArgumentForm:
    """The schema of a tool's arguments."""

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
        """Check the arguments of a call.

        Raises:
            ToolError: With a sentence for each of the first problems.
        """
        if self._validator is None:
            return
        try:
            if self._validator.is_valid(arguments):
                return
            if self._is_recursive:
                # To describe what is wrong, the validator tries each branch again at each level: 18 levels of a
                # choice of two took 24 s.
                raise ToolError("the arguments do not match the schema of the tool")
            problems = [
                _told(error.instance_path, error.message)
                for error in islice(self._validator.iter_errors(arguments), _MAX_PROBLEMS)
                if not isinstance(error.kind, _NO_PROBLEMS)
            ]
        except ValueError:  # numbers that it cannot hold
            return
        if problems:
            raise ToolError("; ".join(problems))


def _told(path: Iterable[str | int], message: str) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    short = message if len(message) <= _MAX_PROBLEM_LENGTH else f"{message[:_MAX_PROBLEM_LENGTH]}…"
    return f"argument '{place[:100]}': {short}" if place else f"the arguments are wrong: {short}"


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError("schemas are not fetched")
