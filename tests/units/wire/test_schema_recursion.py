"""Recursive schemas are applied in linear time, which depends on ``jsonschema-rs`` and has no other bound.

``check_expansion`` cannot count what depends on the depth of a value: a schema that applies itself twice to each
property takes exponential time unless the validator caches the result of each pair of schema and value. It does in
``is_valid``, and does not in ``iter_errors``. Without the cache, one request would block the event loop.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DEPTH = 40
CPU_SECONDS = 5
"""Without the cache, a value of this depth takes hours."""

SCRIPT = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS}, {CPU_SECONDS}))
from proxy.wire.schema_validator import SchemaValidator
for name, (schema, value) in json.load(sys.stdin).items():
    print(name, flush=True)
    print(SchemaValidator(schema).is_valid(value), flush=True)
"""

SELF = {"$ref": "#"}
TWICE = {"allOf": [SELF, SELF]}


def nested(end: Any = 1) -> Any:
    value = end
    for _ in range(DEPTH):
        value = {"a": value}
    return value


def lists() -> Any:
    value: Any = 1
    for _ in range(DEPTH):
        value = [value]
    return value


def properties(choice: Any, **others: Any) -> dict[str, Any]:
    return {"type": ["object", "integer"], "properties": {"a": choice}, **others}


SCHEMAS: dict[str, tuple[Any, Any, bool]] = {
    "allOf": (properties(TWICE), nested(), True),
    "allOf, wrong value": (properties(TWICE), nested("x"), False),
    "anyOf, wrong value": (properties({"anyOf": [SELF, SELF]}), nested("x"), False),
    "oneOf": (properties({"oneOf": [SELF, SELF]}), nested(), False),
    "oneOf, wrong value": (properties({"oneOf": [SELF, SELF]}), nested("x"), False),
    "not": (properties({"not": {"not": SELF}, "allOf": [SELF]}), nested(), True),
    "if": (properties({"if": SELF, "then": SELF, "else": SELF}), nested(), True),
    "dependentSchemas": (
        properties({"dependentSchemas": {"a": SELF}, "allOf": [SELF]}),
        nested(),
        True,
    ),
    "unevaluatedProperties": (properties({**TWICE, "unevaluatedProperties": False}), nested(), True),
    "patternProperties": (
        {"type": ["object", "integer"], "patternProperties": {"a": SELF, "^a": SELF}},
        nested(),
        True,
    ),
    "properties and additionalProperties": (
        {"allOf": [{"properties": {"a": SELF}}, {"additionalProperties": SELF}]},
        nested(),
        True,
    ),
    "items": ({"type": ["array", "integer"], "items": TWICE}, lists(), True),
    "contains": ({"if": {"type": "array"}, "then": {"items": SELF, "contains": SELF}}, lists(), True),
    "two definitions": (
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": properties({"allOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/b"}]}),
                "b": properties({"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}),
            },
        },
        nested(),
        True,
    ),
    "recursive anchor": (
        {
            "$schema": "https://json-schema.org/draft/2019-09/schema",
            "$recursiveAnchor": True,
            **properties({"allOf": [{"$recursiveRef": "#"}, {"$recursiveRef": "#"}]}),
        },
        nested(),
        True,
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="the limit of CPU time is of POSIX")
def test_a_schema_that_applies_itself_twice_takes_linear_time() -> None:
    given = json.dumps({name: row[:2] for name, row in SCHEMAS.items()})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=given,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )

    expected = [line for name, row in SCHEMAS.items() for line in (name, str(row[2]))]
    lines = done.stdout.splitlines()
    assert lines == expected, f"jsonschema-rs takes too long for {lines[-1:]}, {done.stderr}"
