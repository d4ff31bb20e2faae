"""Counts in a request are bounded before the work that they cause, whatever else the request contains."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from proxy.errors import InvalidRequest
from proxy.wire.chat.message_validation import MAX_PARTS
from proxy.wire.chat.parameters import MAX_SCHEMA_VALUES, MAX_TOOLS_SIZE
from proxy.wire.chat.parse import decode_chat
from proxy.wire.responses.parse import decode_response_request
from proxy.wire.validation.body_decoder import MAX_CONTAINERS


def chat(**fields: Any) -> str:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return decode_chat(json.dumps(body).encode(), max_messages=2000).model


def responses(**fields: Any) -> str:
    body = json.dumps({"model": "m", "input": "Hi", **fields}).encode()
    return decode_response_request(body, max_items=2000).model


TOOL = {"type": "function", "function": {"name": "f"}}
RESPONSES_TOOL = {"type": "function", "name": "f"}
PART = {"type": "input_text", "text": "x"}


def tool_with(properties: int, name: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {f"p{n}": {"$ref": "#/$defs/x"} for n in range(properties)}}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


@pytest.mark.parametrize(
    ("send", "fields", "param", "code"),
    [
        pytest.param(chat, {"tools": [TOOL] * 129, "x": 1}, "tools", "array_above_max_length", id="tools"),
        pytest.param(
            chat, {"functions": [{"name": "f"}] * 129}, "functions", "array_above_max_length", id="functions"
        ),
        pytest.param(chat, {"stop": ["x"] * 5}, "stop", "array_above_max_length", id="stop sequences"),
        pytest.param(
            chat,
            {"metadata": {f"k{n}": "v" for n in range(17)}},
            "metadata",
            "object_above_max_properties",
            id="metadata",
        ),
        pytest.param(
            responses,
            {"tools": [RESPONSES_TOOL] * 129},
            "tools",
            "array_above_max_length",
            id="Responses tools",
        ),
        pytest.param(
            responses,
            {"input": [{"role": "user", "content": [PART] * (MAX_PARTS // 2 + 1)}] * 2},
            "input",
            "array_above_max_length",
            id="Responses content parts",
        ),
        pytest.param(
            responses,
            {"input": [{"type": "function_call_output", "call_id": "c", "output": [PART] * (MAX_PARTS + 1)}]},
            "input",
            "array_above_max_length",
            id="parts of results",
        ),
        pytest.param(
            responses,
            {"image": {"a": [[]] * MAX_CONTAINERS}},
            None,
            "array_above_max_length",
            id="ignored fields",
        ),
        pytest.param(
            chat,
            {"tools": [tool_with(MAX_TOOLS_SIZE // 10, f"f{n}") for n in range(10)]},
            "tools",
            "invalid_value",
            id="schemas together",
        ),
        pytest.param(
            chat,
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"enum": [*range(MAX_SCHEMA_VALUES + 2)]}},
                }
            },
            "response_format.json_schema.schema",
            "invalid_value",
            id="values of a schema",
        ),
    ],
)
def test_more_than_the_bound_is_rejected(
    send: Callable[..., str], fields: dict[str, Any], param: str | None, code: str
) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        send(**fields)

    assert (rejected.value.param, rejected.value.code) == (param, code)


@pytest.mark.parametrize(
    ("send", "fields"),
    [
        pytest.param(chat, {"tools": [tool_with(30, f"f{n}") for n in range(128)]}, id="many tools"),
        pytest.param(responses, {"input": [{"role": "user", "content": [PART] * MAX_PARTS}]}, id="parts"),
        pytest.param(
            chat,
            {"messages": [{"role": "user", "content": "[{" * MAX_CONTAINERS + '\\"' * 1000}]},
            id="brackets in text",
        ),
        pytest.param(
            chat,
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"description": "," * (MAX_SCHEMA_VALUES * 2)}},
                }
            },
            id="commas in a description",
        ),
    ],
)
def test_values_at_the_bound_and_bound_characters_in_text_are_accepted(
    send: Callable[..., str], fields: dict[str, Any]
) -> None:
    assert send(**fields) == "m"


def test_brackets_in_an_unclosed_string_are_not_json() -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        decode_chat(b'{"model": "' + b"[" * (MAX_CONTAINERS + 1), max_messages=1)
