"""Structured answers of the demonstration."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.providers.demo.structured_answer import structured_answer
from proxy.wire.schema_validator import SchemaValidator

TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name"],
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "empty": {},
    "string": {"type": "string", "minLength": 20, "maxLength": 22},
    "short string": {"type": "string", "maxLength": 2},
    "const": {"const": {"a": 1}},
    "enum": {"enum": [3, "x"]},
    "integer": {"type": "integer", "minimum": 3, "maximum": 9, "multipleOf": 4},
    "number": {"type": "number", "exclusiveMinimum": 0.5, "exclusiveMaximum": 3},
    "negative number": {"type": "integer", "exclusiveMaximum": -3},
    "nullable": {"type": ["null", "boolean"]},
    "choice": {"anyOf": [{"type": "null"}, {"type": "array", "minItems": 2, "items": {"type": "number"}}]},
    "no items": {"type": "array", "maxItems": 0, "items": {"type": "number"}},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
            {"properties": {"b": {"type": "integer"}}, "required": ["b"]},
        ]
    },
    "required without properties": {"type": "object", "required": ["a"]},
    "tree": TREE,
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_an_answer_matches_its_schema(schema: dict[str, Any]) -> None:
    answer = structured_answer(
        "Hello", {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}}
    )

    assert len(answer) < 2000
    assert SchemaValidator(schema).problems(json.loads(answer)) == []


def test_members_of_a_text_that_is_json_are_used() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}, "tag": {"type": "string"}}}
    text = '{"title": "Rockets", "other": 1}'

    titled = structured_answer(text, {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}})

    assert json.loads(titled) == {"title": "Rockets", "tag": text}
    assert structured_answer(text, {"type": "json_object"}) == text
    assert structured_answer("Hello", {"type": "json_object"}) == '{"answer": "Hello"}'


def test_an_answer_to_a_schema_that_branches_into_itself_is_bounded() -> None:
    node = {"type": "object", "properties": {f"p{index}": {"$ref": "#"} for index in range(20)}}

    answer = structured_answer(
        "Hello", {"type": "json_schema", "json_schema": {"name": "it", "schema": node}}
    )

    assert len(answer) < 100_000
