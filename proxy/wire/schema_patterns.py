"""The regular expressions of a JSON Schema, and how large they may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MAX_PATTERNS = 100
"""Maximum number of regular expressions in a schema."""
MAX_PATTERN_CHARACTERS = 50_000
"""Maximum length of all regular expressions of a schema together."""
_MAX_PATTERN_BYTES = 2_000_000
_MAX_PATTERNS_BYTES = 10_000_000


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


def bytes_per_pattern(count: int) -> int:
    """Return the size limit of each of ``count`` compiled patterns that limits their total size.

    Compiling takes 4 to 5 ms per MB. A common pattern (an e-mail address, a date, a UUID) has less than 50,000 bytes.
    """
    return min(_MAX_PATTERN_BYTES, _MAX_PATTERNS_BYTES // max(count, 1))
