"""The regular expressions of a JSON Schema, and how large they may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

MAX_PATTERNS = 100
"""Maximum number of regular expressions in a schema."""


class PatternLimits(NamedTuple):
    """Limits on the regular expressions of a schema; ``size`` and ``total_size`` are bytes after compilation.

    The parser of expressions has no limit: 1 MB of alternatives took 0.3 s and 128 MB. Compiling takes 4 to
    5 ms per MB. A common pattern (an e-mail address, a date, a UUID) has less than 50,000 bytes.
    """

    patterns: int
    characters: int
    size: int
    total_size: int


ALL_LIMITS = PatternLimits(MAX_PATTERNS, 50_000, 2_000_000, 10_000_000)
"""Schemas beyond these limits are rejected."""
CHEAP_LIMITS = PatternLimits(10, 2_000, 60_000, 600_000)
"""Patterns within these limits compile in about 2 ms: measured, 10 patterns with the Unicode class ``\\d`` 1.3 ms."""


def patterns_of(schema: Mapping[str, Any]) -> Iterator[str]:
    """Yield the regular expressions that a validator compiles for the schema."""
    for node in objects_of(schema):
        if isinstance(pattern := node.get("pattern"), str):
            yield pattern
        if isinstance(named := node.get("patternProperties"), Mapping):
            yield from named


def objects_of(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield every object in the schema, also where it is not a subschema."""
    pending: list[Any] = [schema]
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            yield value
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def check_patterns(schema: Mapping[str, Any], limits: PatternLimits) -> int:
    """Return the size limit of each compiled pattern of the schema.

    Raises:
        ValueError: There are too many patterns, or they are too long.
    """
    patterns = list(islice(patterns_of(schema), limits.patterns + 1))
    if len(patterns) > limits.patterns or sum(map(len, patterns)) > limits.characters:
        raise ValueError("too many patterns")
    return min(limits.size, limits.total_size // max(len(patterns), 1))
