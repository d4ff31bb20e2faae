"""A compiled JSON Schema, and an estimate of what it costs to apply it.

``jsonschema-rs`` holds the interpreter lock while it compiles and validates, so a thread would not keep the event loop
free. Patterns without look-around and back references run on an engine whose time is linear in the text. The others
need backtracking; measured, one such pattern takes 0.5 s for a text of 800 characters within 1,000 backtracks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple, NoReturn

from proxy.wire.schema_expansion import Applied, applied_to_one_value, check_references
from proxy.wire.schema_patterns import ALL_LIMITS, PatternLimits, check_patterns

_BACKTRACKS = 1_000
# Measured with 10,000 strings and 4,000 alternatives, and with patterns of several ``.*`` on 1 MB.
_SECONDS_PER_SUBSCHEMA = 7e-9
_SECONDS_PER_CHARACTER = 3e-9
# Computed with integers of up to 2,000 bits: [1e308] and {"multipleOf": 1e-308}.
_SECONDS_PER_FRACTION = 4e-5
_SMALL_LENGTH = 16_000
_SMALL_OBJECTS = 150
_MAX_PROBLEMS = 5
_MAX_PROBLEM_LENGTH = 300


class SchemaCost(NamedTuple):
    """What is known of a schema that has been compiled."""

    seconds: float
    """CPU time to compile it."""
    applied: Applied
    may_backtrack: bool
    """Whether a pattern needs backtracking."""


class SchemaValidator:
    """Validates values against one schema; it fetches nothing.

    A schema whose ``cost`` is known has been checked, and is only compiled.

    Raises:
        ValueError: The schema is not valid, has references other than JSON pointers within it, or its patterns are too
            large or too many.
    """

    def __init__(
        self, schema: Mapping[str, Any], *, limits: PatternLimits = ALL_LIMITS, cost: SchemaCost | None = None
    ) -> None:
        if cost is None:
            check_references(schema)
        began = time.thread_time()
        self._validator, may_backtrack = _compiled(schema, check_patterns(schema, limits))
        seconds = time.thread_time() - began
        self.cost = cost or SchemaCost(seconds, applied_to_one_value(schema), may_backtrack)

    def seconds(self, text: str) -> float:
        """Return the estimated CPU time for a value with this JSON text, in the worst case; infinite with
        backtracking.
        """
        if self.cost.may_backtrack:
            return math.inf
        applied = self.cost.applied
        values = 1 + text.count(",") + text.count("[") + text.count("{")
        return (
            values * applied.subschemas * _SECONDS_PER_SUBSCHEMA
            + values * applied.fractions * _SECONDS_PER_FRACTION
            + len(text) * applied.patterns * _SECONDS_PER_CHARACTER
        )

    def is_valid(self, value: object) -> bool:
        """Return whether the schema accepts the value.

        Raises:
            ValueError: A pattern took too long, or the value has numbers that the validator does not support.
        """
        return bool(self._validator.is_valid(value))

    def problems(self, value: object) -> list[str]:
        """Return the first validation errors of the arguments of a call; raises the same."""
        kinds = _library().ValidationErrorKind
        # Errors in applying the schema are not errors of the value.
        others = (kinds.BacktrackLimitExceeded, kinds.RegexEngineFailure, kinds.Referencing)
        return [
            _message(error.instance_path, error.message)
            for error in islice(self._validator.iter_errors(value), _MAX_PROBLEMS)
            if not isinstance(error.kind, others)
        ]


def is_small(encoded: bytes) -> bool:
    """Return whether the schema with this JSON compiles within a few milliseconds, except for its patterns."""
    return len(encoded) <= _SMALL_LENGTH and encoded.count(b"{") <= _SMALL_OBJECTS


def _library() -> Any:
    """Return the library, which takes 3 MB of memory that a server without schemas does not need."""
    import jsonschema_rs as library

    return library


def _compiled(schema: Mapping[str, Any], pattern_size: int) -> tuple[Any, bool]:
    """Return the validator, and whether a pattern needs backtracking."""
    limits = {"size_limit": pattern_size, "dfa_size_limit": pattern_size}
    library = _library()
    linear = library.RegexOptions(**limits)
    backtracking = library.FancyRegexOptions(backtrack_limit=_BACKTRACKS, **limits)
    try:
        return _validator(schema, linear), False
    except ValueError:
        return _validator(schema, backtracking), True


def _validator(schema: Mapping[str, Any], options: Any) -> Any:
    return _library().validator_for(dict(schema), retriever=_fetch_nothing, pattern_options=options)


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError("schemas are not fetched")


def _message(path: Iterable[str | int], message: str) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    short = message if len(message) <= _MAX_PROBLEM_LENGTH else f"{message[:_MAX_PROBLEM_LENGTH]}…"
    return f"argument '{place[:100]}': {short}" if place else f"invalid arguments: {short}"
