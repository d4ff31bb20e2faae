"""A compiled JSON Schema, and an estimate of what it costs to apply it.

``jsonschema-rs`` holds the interpreter lock while it compiles and validates, so a thread would not keep the event loop
free. Patterns without look-around and back references run on an engine whose time is linear in the text. The others
need backtracking; measured, one such pattern takes 0.5 s for a text of 800 characters within 1,000 backtracks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn

import jsonschema_rs

from proxy.wire.schema_expansion import Applied, applied_to_one_value, check_references
from proxy.wire.schema_patterns import (
    MAX_PATTERN_CHARACTERS,
    MAX_PATTERNS,
    bytes_per_pattern,
    patterns_of,
)

_BACKTRACKS = 1_000
# Measured with 10,000 strings and 4,000 alternatives, and with patterns of several ``.*`` on 1 MB.
_SECONDS_PER_SUBSCHEMA = 7e-9
_SECONDS_PER_CHARACTER = 3e-9
# Computed with integers of up to 2,000 bits: [1e308] and {"multipleOf": 1e-308}.
_SECONDS_PER_FRACTION = 4e-5


class SchemaValidator:
    """Validates values against one schema; it fetches nothing.

    Raises:
        ValueError: The schema is not valid, has references other than JSON pointers within it, or its patterns are too
            large or too many.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        check_references(schema)
        patterns = list(islice(patterns_of(schema), MAX_PATTERNS + 1))
        # The parser has no limit of its own: 1 MB of alternatives took 0.3 s and 128 MB.
        if len(patterns) > MAX_PATTERNS or sum(map(len, patterns)) > MAX_PATTERN_CHARACTERS:
            raise ValueError("too many patterns")
        size = bytes_per_pattern(len(patterns))
        self.may_backtrack = False
        """Whether a pattern needs backtracking."""
        try:
            linear = jsonschema_rs.RegexOptions(size_limit=size, dfa_size_limit=size)
            self._validator: Any = _compiled(schema, linear)
        except ValueError:
            backtracking = jsonschema_rs.FancyRegexOptions(
                backtrack_limit=_BACKTRACKS, size_limit=size, dfa_size_limit=size
            )
            self._validator = _compiled(schema, backtracking)
            self.may_backtrack = True
        self._subschemas: Applied = applied_to_one_value(schema)

    def seconds(self, text: str) -> float:
        """Return the estimated CPU time for a value with this JSON text, in the worst case; infinite with
        backtracking.
        """
        if self.may_backtrack:
            return math.inf
        values = 1 + text.count(",") + text.count("[") + text.count("{")
        return (
            values * self._subschemas.subschemas * _SECONDS_PER_SUBSCHEMA
            + values * self._subschemas.fractions * _SECONDS_PER_FRACTION
            + len(text) * self._subschemas.patterns * _SECONDS_PER_CHARACTER
        )

    def is_valid(self, value: object) -> bool:
        """Return whether the schema accepts the value.

        Raises:
            ValueError: A pattern took too long, or the value has numbers that the validator does not support.
        """
        return bool(self._validator.is_valid(value))

    def errors(self, value: object) -> Iterator[Any]:
        """Yield ``jsonschema_rs.ValidationError`` values; raises the same."""
        return iter(self._validator.iter_errors(value))


def _compiled(schema: Mapping[str, Any], options: Any) -> Any:
    return jsonschema_rs.validator_for(dict(schema), retriever=_fetch_nothing, pattern_options=options)


def _fetch_nothing(uri: str) -> NoReturn:
    raise ValueError("schemas are not fetched")
