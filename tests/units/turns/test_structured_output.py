"""Schemas come from callers, so they are judged without trust."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest

from proxy.request_errors import InvalidResponseSchema
from proxy.turns.structured_output import compile_response_format
from proxy.wire.schema_expansion import ExpansionTooLarge, applied_to_one_value, check_expansion
from proxy.wire.schema_process import matches


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize("requested", [None, {"type": "text"}], ids=["no format", "text"])
async def test_any_text_is_valid_without_a_response_format(requested: Any) -> None:
    assert await compile_response_format(requested) is None


@pytest.mark.parametrize(
    ("requested", "text", "is_met"),
    [
        pytest.param({"type": "json_object"}, '{"a": 1}', True, id="an object"),
        pytest.param({"type": "json_object"}, "a: 1", False, id="no JSON"),
        pytest.param(form({"type": "integer"}), "1", True, id="of the schema"),
        pytest.param(form({"type": "integer"}), '"1"', False, id="of another type"),
        pytest.param(
            form({"$defs": {"n": {"type": "null"}}, "$ref": "#/$defs/n"}), "null", True, id="a reference"
        ),
        pytest.param({"type": "json_schema", "json_schema": {"name": "x"}}, "[]", True, id="no schema given"),
        pytest.param(form({}), "[" * 100_000, False, id="deep nesting"),
    ],
)
async def test_an_answer_is_met_or_not(requested: Any, text: str, is_met: bool) -> None:
    created = await compile_response_format(requested)

    assert created is not None
    assert await created.is_met_by(text) is is_met


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"type": "strin"}, id="an unknown type"),
        pytest.param({"$ref": "http://127.0.0.1:9/schema"}, id="a remote schema"),
        pytest.param({"pattern": "("}, id="a broken pattern"),
        pytest.param({"pattern": r"\pL{1,200}1"}, id="a large pattern"),
        pytest.param({"anyOf": [{"pattern": f"a{n}"} for n in range(101)]}, id="many patterns"),
        pytest.param({"patternProperties": {f"a{n}": {} for n in range(101)}}, id="many named patterns"),
        pytest.param({"pattern": "|".join(f"w{n}" for n in range(10_000))}, id="a long pattern"),
        pytest.param({"$ref": "#/$defs/none"}, id="a reference to nothing"),
        pytest.param({"$ref": "#/allOf/+0", "allOf": [{}]}, id="an index with a sign"),
        pytest.param({"$ref": "#/%2561", "%61": {}, "a": {}}, id="a pointer that is encoded twice"),
        pytest.param({"$ref": "#n", "$defs": {"n": {"$anchor": "n"}}}, id="an anchor"),
        pytest.param(
            {
                "$schema": "http://json-schema.org/draft-04/schema#",
                "allOf": [{"$ref": "#/definitions/n"}],
                "definitions": {"n": {"id": "#n"}},
            },
            id="an id of draft 4",
        ),
        pytest.param({"$ref": "https://json-schema.org/draft/2020-12/schema"}, id="the meta-schema"),
    ],
)
async def test_a_schema_that_cannot_be_used_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidResponseSchema):
        await compile_response_format(form(schema))


async def test_names_of_older_drafts_do_not_avoid_the_limit_of_expansion() -> None:
    schemas: dict[str, Any] = {"a0": {"$id": "#a0", "type": "integer"}}
    for level in range(1, 40):
        schemas[f"a{level}"] = {"$id": f"#a{level}", "allOf": [{"$ref": f"#a{level - 1}"}] * 2}
    draft = "http://json-schema.org/draft-07/schema#"

    with pytest.raises(InvalidResponseSchema):
        await compile_response_format(
            form({"$schema": draft, "definitions": schemas, "allOf": [{"$ref": "#a39"}]})
        )


@pytest.mark.parametrize(
    "schema",
    [
        {"$id": "http://a.example/s", "$ref": "#/$defs/n", "$defs": {"n": {"examples": [{"id": "x"}]}}},
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"$ref": "#/definitions/a~1b"}],
         "definitions": {"a/b": {"type": "integer"}}},
        {"properties": {"id": {"$ref": "#/%24defs/t"}, "$id": {"type": "string"}}, "$defs": {"t": True}},
    ],
)  # fmt: skip
async def test_references_by_pointer_are_allowed(schema: dict[str, Any]) -> None:
    assert await compile_response_format(form(schema)) is not None


LOOKAHEADS = "(?:(?=(?:(?=(a+))a)*)a)*b"


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        pytest.param({"pattern": "^(a+)+$"}, "a" * 50_000 + "!", id="nested repetition"),
        pytest.param({"pattern": r"^(a+)+\1$"}, "a" * 50_000 + "!", id="back reference"),
        pytest.param({"pattern": "(?=(a+))b"}, "a" * 50_000, id="look-ahead at every position"),
        pytest.param({"pattern": LOOKAHEADS}, "a" * 700, id="nested look-aheads"),
        pytest.param(
            {"items": {"anyOf": [{"maxLength": 0}] * 4_000}},
            ["a"] * 50_000,
            id="many alternatives for many values",
        ),
        pytest.param(
            {"items": {"allOf": [{"pattern": f"a.*b.*c.*{n}|a$"} for n in range(100)]}},
            ["a" * 40_000] * 10 + ["b"],
            id="many patterns for much text",
        ),
        pytest.param(
            {"items": {"type": "number", "multipleOf": 1e-308}},
            [1e308] * 15_000 + ["a"],
            id="fractions of large numbers",
        ),
    ],
)
async def test_no_answer_and_schema_block_the_event_loop(schema: dict[str, Any], answer: Any) -> None:
    created = await compile_response_format(form(schema))
    assert created is not None

    began = time.thread_time()
    assert await created.is_met_by(json.dumps(answer)) is False
    # CPU of this thread: a separate process does the rest.
    assert time.thread_time() - began < 0.2


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(
            {"properties": {f"p{n}": {"type": "object", "required": ["a"]} for n in range(1_600)}},
            id="many subschemas",
        ),
        pytest.param({"properties": {f"p{n}": {"$ref": "#"} for n in range(2_400)}}, id="many references"),
        pytest.param(
            {"properties": {f"p{n}": {"multipleOf": 1e-300} for n in range(2_400)}}, id="many small fractions"
        ),
        pytest.param(
            {"allOf": [{"pattern": "|".join(f"w{n}{m}" for m in range(70))} for n in range(100)]},
            id="many alternatives",
        ),
        pytest.param({"allOf": [{"pattern": r"^\d+$"}] * 100}, id="Unicode classes"),
        pytest.param({"pattern": r"^\pL{1,8}$"}, id="a large pattern"),
        pytest.param({"pattern": r"(?=a)(\pL{1,100})\1"}, id="a large pattern with a back reference"),
    ],
)
async def test_no_schema_blocks_the_event_loop_while_it_is_compiled(schema: dict[str, Any]) -> None:
    value = form(schema)

    began = time.thread_time()
    compiled = await compile_response_format(value)
    # CPU of this thread; the bound is 5 ms, and this machine may be slow.
    assert time.thread_time() - began < 0.05
    assert compiled is not None
    assert await compiled.is_met_by("{}") is True


async def test_an_expensive_schema_is_enforced() -> None:
    names = {f"p{n}": {"pattern": "|".join(f"w{n}{m}" for m in range(70))} for n in range(100)}
    compiled = await compile_response_format(form({"properties": names}))

    assert compiled is not None
    assert await compiled.is_met_by('{"p3": "w31"}')
    assert not await compiled.is_met_by('{"p3": "other"}')


async def test_a_large_answer_that_matches_is_accepted() -> None:
    created = await compile_response_format(
        form({"type": "array", "items": {"type": "string", "pattern": "^(?!b)a+$"}})
    )

    assert created is not None
    assert await created.is_met_by(json.dumps(["a" * 100] * 500))
    assert not await created.is_met_by(json.dumps(["a" * 100] * 500 + ["b"]))
    assert not await created.is_met_by("no JSON")


def test_a_process_that_takes_too_much_cpu_time_is_ended() -> None:
    schema = json.dumps({"pattern": LOOKAHEADS}).encode()

    assert matches(schema, json.dumps("a" * 20_000), cpu_seconds=1) is None


@pytest.mark.parametrize(
    ("schema", "applied"),
    [
        pytest.param({"allOf": [{"multipleOf": 0.5}, {"multipleOf": 2}]}, (3, 0, 1), id="fractions"),
        pytest.param({"type": "string"}, (1, 0, 0), id="one"),
        pytest.param({"anyOf": [{"pattern": "a"}, {"pattern": "b"}]}, (3, 2, 0), id="alternatives"),
        pytest.param({"patternProperties": {"a": {}, "b": {"pattern": "c"}}}, (1, 2, 0), id="named patterns"),
        pytest.param(
            {"items": {"allOf": [{"$ref": "#/$defs/a"}] * 3}, "$defs": {"a": {"pattern": "x"}}},
            (7, 3, 0),
            id="references",
        ),
    ],
)
def test_what_applies_to_one_value_is_counted(schema: dict[str, Any], applied: tuple[int, int, int]) -> None:
    assert applied_to_one_value(schema) == applied


async def test_a_schema_is_compiled_once() -> None:
    requested = form({"type": "string", "pattern": "^compiled once$"})

    assert await compile_response_format(requested) is await compile_response_format(
        msgspec.json.decode(msgspec.json.encode(requested))
    )
    assert await compile_response_format(requested) is not await compile_response_format(
        form({"type": "string"})
    )


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"^[\w.+-]+@[\w-]+\.[\w.-]+$", "somebody@a.example"),
        (r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z$", "2026-11-29T06:20:00Z"),
        (r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$", "01234567-89ab-cdef-0123-456789abcdef"),
        (r"^(?!.*\.\.)\w{1,10}$", "a_name"),
    ],
)
async def test_ordinary_patterns_are_within_the_bounds(pattern: str, text: str) -> None:
    created = await compile_response_format(form({"type": "string", "pattern": pattern}))

    assert created is not None
    assert await created.is_met_by(f'"{text}"')


def doubling(levels: int) -> dict[str, Any]:
    """A schema that is twice as large with each level when its references are followed."""
    schemas: dict[str, Any] = {"a0": {"type": "integer"}}
    for level in range(1, levels):
        schemas[f"a{level}"] = {"allOf": [{"$ref": f"#/$defs/a{level - 1}"}] * 2}
    return {"$defs": schemas, "$ref": f"#/$defs/a{levels - 1}"}


def nested(levels: int, keyword: str) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {keyword: [schema], "unevaluatedProperties": {"type": "integer"}}
    return schema


def deeper(levels: int) -> dict[str, Any]:
    """Twice as large with each level, and each level is about a part of the value."""
    schemas: dict[str, Any] = {"a0": {"type": "integer"}}
    for level in range(1, levels):
        inner = {"properties": {"x": {"$ref": f"#/$defs/a{level - 1}"}}}
        schemas[f"a{level}"] = {"allOf": [inner, inner]}
    return {"$defs": schemas, "$ref": f"#/$defs/a{levels - 1}"}


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(doubling(28), id="28 levels"),
        pytest.param(doubling(4000), id="4000 levels"),
        pytest.param(deeper(40), id="through properties"),
        pytest.param(nested(30, "allOf"), id="unevaluated properties"),
        pytest.param({"allOf": [{"$ref": "#"}]}, id="itself"),
        pytest.param(
            {
                "$id": "http://a.example/s",
                "$defs": {
                    "x": {"$id": "x", "anyOf": [{"$ref": "s#n"}]},
                    "n": {"$anchor": "n", "not": {"$ref": "x"}},
                },
                "$ref": "#n",
            },
            id="itself by names",
        ),
        pytest.param(
            {"$dynamicAnchor": "n", "oneOf": [{"$dynamicRef": "#n"}]}, id="itself by a dynamic anchor"
        ),
    ],
)
def test_a_schema_that_expands_too_far_is_refused_at_once(schema: dict[str, Any]) -> None:
    began = time.process_time()
    with pytest.raises(ExpansionTooLarge):
        check_expansion(schema)
    assert time.process_time() - began < 1


EXPRESSION = {
    "anyOf": [
        {"type": "integer"},
        {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}},
    ]
}


@pytest.mark.parametrize(
    ("schema", "is_recursive"),
    [
        pytest.param(doubling(12), False, id="some doubling"),
        pytest.param(EXPRESSION, True, id="recursion that goes deeper"),
        pytest.param({"properties": {"$ref": {"type": "string"}}}, False, id="a property of that name"),
        pytest.param({"$ref": "#/$defs/none"}, False, id="a reference to nothing"),
        pytest.param({"$ref": "https://json-schema.org/draft/2020-12/schema"}, False, id="the meta-schema"),
    ],
)
def test_a_schema_that_expands_a_little_is_not_refused(schema: dict[str, Any], is_recursive: bool) -> None:
    assert check_expansion(schema) is is_recursive
