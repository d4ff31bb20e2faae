"""Requests that are refused: sentence, ``param`` and ``code`` for each."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import InvalidRequest
from proxy.messages import FunctionTool, UserMessage
from proxy.wire.chat.parse import decode_chat
from tests.units.wire.chat.test_parse import CALL, CALLING, RESULT, TOOL, USER, body, decode

UNREADABLE = (
    "We could not parse the JSON body of your request. The API expects a JSON object, but what was sent is not valid "
    "JSON."
)
MISPLACED = "Invalid parameter: messages with role 'tool' must be a response to a preceding message with 'tool_calls'."


def refusal(data: bytes, *, strict: bool = False) -> tuple[str, str | None, str | None]:
    with pytest.raises(InvalidRequest) as caught:
        decode(data, strict=strict)
    assert len(caught.value.message) < 1000
    return caught.value.message, caught.value.param, caught.value.code


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"nul",
        b"null",
        b"[]",
        b'"text"',
        b"5",
        b"{",
        b'{"model":"m"',
        body()[:-1],
        body() + b"x",
        b"\xef\xbb\xbf" + body(),
        body().replace(b"Hi", b"\xff"),
        body().replace(b"Hi", b"\xed\xa0\x80"),
        body().replace(b"Hi", b"\\ud800"),
        body().replace(b"Hi", b"\\udc00\\ud800"),
        body().replace(b"Hi", b"\x00"),
        body().replace(b"Hi", b"a\nb"),
        body().replace(b'"Hi"', b"NaN"),
        body(temperature=float("nan")),
        body(temperature=float("inf")),
        body(odd=float("-inf")),
        body().decode().encode("utf-16"),
        b"model=m&messages=x",
        b"[" * 100_000,
        b'{"messages":' + b"[" * 100_000,
        b'{"odd":' + b"[" * 100_000,
        b'{"odd":' + b'{"a":' * 100_000,
        b'{"model":"m","messages":[{"role":"user","content":"x","odd":' + b"[" * 100_000,
    ],
    ids=lambda data: repr(data[:30]),
)
def test_a_body_that_is_not_a_json_object_is_rejected(data: bytes) -> None:
    assert refusal(data) == (UNREADABLE, None, None)


@pytest.mark.parametrize(
    ("keys", "message", "param", "code"),
    [
        (
            {"model": 5},
            "Invalid type for 'model': expected a string, but got an integer instead.",
            "model",
            "invalid_type",
        ),
        (
            {"model": None},
            "Invalid type for 'model': expected a string, but got null instead.",
            "model",
            "invalid_type",
        ),
        (
            {"model": ""},
            "Invalid 'model': empty string. Expected a string with minimum length 1, but got an empty string instead.",
            "model",
            "empty_string",
        ),
        (
            {"messages": []},
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "messages",
            "empty_array",
        ),
        (
            {"messages": "Hi"},
            "Invalid type for 'messages': expected an array of objects, but got a string instead.",
            "messages",
            "invalid_type",
        ),
        (
            {"messages": ["Hi"]},
            "Invalid type for 'messages[0]': expected an object, but got a string instead.",
            "messages[0]",
            "invalid_type",
        ),
        (
            {"stream": "true"},
            "Invalid type for 'stream': expected a boolean, but got a string instead.",
            "stream",
            "invalid_type",
        ),
        (
            {"stream": 1},
            "Invalid type for 'stream': expected a boolean, but got an integer instead.",
            "stream",
            "invalid_type",
        ),
        (
            {"stream": False, "stream_options": {"include_usage": True}},
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
            None,
        ),
        (
            {"stream": True, "stream_options": {"include_usage": "yes"}},
            "Invalid type for 'stream_options.include_usage': expected a boolean, but got a string instead.",
            "stream_options.include_usage",
            "invalid_type",
        ),
        (
            {"max_tokens": "12"},
            "Invalid type for 'max_tokens': expected an integer, but got a string instead.",
            "max_tokens",
            "invalid_type",
        ),
        (
            {"max_tokens": 1.5},
            "Invalid type for 'max_tokens': expected an integer, but got a decimal instead.",
            "max_tokens",
            "invalid_type",
        ),
        (
            {"max_tokens": True},
            "Invalid type for 'max_tokens': expected an integer, but got a boolean instead.",
            "max_tokens",
            "invalid_type",
        ),
        (
            {"max_completion_tokens": 0},
            "Invalid 'max_completion_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead.",
            "max_completion_tokens",
            "integer_below_min_value",
        ),
        (
            {"max_tokens": 1, "max_completion_tokens": 1},
            "'max_tokens' and 'max_completion_tokens' cannot be set at the same time.",
            "max_tokens",
            "invalid_parameter_combination",
        ),
        (
            {"n": 130},
            "Invalid 'n': integer above maximum value. Expected a value <= 128, but got 130 instead.",
            "n",
            "integer_above_max_value",
        ),
        (
            {"n": 0},
            "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead.",
            "n",
            "integer_below_min_value",
        ),
        (
            {"n": 2},
            "Unsupported value: 'n' does not support 2 with this model. Only the default (1) value is supported.",
            "n",
            "unsupported_value",
        ),
        ({"seed": 2**63}, "Invalid 'seed': integer above maximum value.", "seed", "integer_above_max_value"),
        (
            {"seed": -(10**40)},
            "Invalid 'seed': integer below minimum value.",
            "seed",
            "integer_below_min_value",
        ),
        (
            {"temperature": 2.1},
            "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 2.1 instead.",
            "temperature",
            "decimal_above_max_value",
        ),
        (
            {"temperature": -0.1},
            "Invalid 'temperature': decimal below minimum value. Expected a value >= 0, but got -0.1 instead.",
            "temperature",
            "decimal_below_min_value",
        ),
        (
            {"top_p": "1"},
            "Invalid type for 'top_p': expected a decimal, but got a string instead.",
            "top_p",
            "invalid_type",
        ),
        (
            {"presence_penalty": 3},
            "Invalid 'presence_penalty': decimal above maximum value. Expected a value <= 2, but got 3 instead.",
            "presence_penalty",
            "decimal_above_max_value",
        ),
        (
            {"stop": []},
            "Invalid 'stop': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            "stop",
            "empty_array",
        ),
        (
            {"stop": list("abcde")},
            "Invalid 'stop': array too long. Expected an array with maximum length 4, but got an array with length 5 "
            "instead.",
            "stop",
            "array_above_max_length",
        ),
        (
            {"stop": 5},
            "Invalid type for 'stop': expected one of a string or an array of strings, but got an integer instead.",
            "stop",
            "invalid_type",
        ),
        (
            {"stop": ["a", 5]},
            "Invalid type for 'stop[1]': expected a string, but got an integer instead.",
            "stop[1]",
            "invalid_type",
        ),
        (
            {"logit_bias": {"50256": -100}},
            "Unsupported parameter: 'logit_bias' is not supported with this model: the agents of a team can use "
            "different tokenizers.",
            "logit_bias",
            "unsupported_parameter",
        ),
        (
            {"logit_bias": {"1": 1, "50256": 101}},
            "Invalid 'logit_bias.50256': integer above maximum value. Expected a value <= 100, but got 101 instead.",
            "logit_bias.50256",
            "integer_above_max_value",
        ),
        (
            {"logit_bias": {"1": "x"}},
            "Invalid type for 'logit_bias.1': expected an integer, but got a string instead.",
            "logit_bias.1",
            "invalid_type",
        ),
        (
            {"top_logprobs": 2},
            "'top_logprobs' is only allowed when 'logprobs' is true.",
            "top_logprobs",
            "invalid_parameter_combination",
        ),
        (
            {"logprobs": True, "top_logprobs": 21},
            "Invalid 'top_logprobs': integer above maximum value. Expected a value <= 20, but got 21 instead.",
            "top_logprobs",
            "integer_above_max_value",
        ),
        (
            {"response_format": "json"},
            "Invalid type for 'response_format': expected an object, but got a string instead.",
            "response_format",
            "invalid_type",
        ),
        (
            {"response_format": {}},
            "Missing required parameter: 'response_format.type'.",
            "response_format.type",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "xml"}},
            "Invalid value: 'xml'. Supported values are: 'text', 'json_object', and 'json_schema'.",
            "response_format.type",
            "invalid_value",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": {"anyOf": [{"$ref": "#"}]}},
                }
            },
            "Invalid 'response_format.json_schema.schema': its references expand to too many schemas, or "
            "recursively for the same value (more than 10000 for one value, or 1000000 in total).",
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "Missing required parameter: 'response_format.json_schema'.",
            "response_format.json_schema",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "Missing required parameter: 'response_format.json_schema.name'.",
            "response_format.json_schema.name",
            "missing_required_parameter",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
            "Invalid 'response_format.json_schema.name': string does not match pattern. Expected a string that "
            "matches the pattern '^[a-zA-Z0-9_-]+$'.",
            "response_format.json_schema.name",
            "invalid_value",
        ),
        (
            {"metadata": "x"},
            "Invalid type for 'metadata': expected an object, but got a string instead.",
            "metadata",
            "invalid_type",
        ),
        (
            {"metadata": {"a": 1}},
            "Invalid type for 'metadata.a': expected a string, but got an integer instead.",
            "metadata.a",
            "invalid_type",
        ),
        (
            {"metadata": {"k" * 65: "v"}},
            "Invalid 'metadata': a property name is too long.",
            "metadata",
            "string_above_max_length",
        ),
        (
            {"metadata": {"a": "v" * 513}},
            "Invalid 'metadata.a': string too long. Expected a string with maximum length 512, but got a string with "
            "length 513 instead.",
            "metadata.a",
            "string_above_max_length",
        ),
        (
            {"metadata": {str(i): "" for i in range(17)}},
            "Invalid 'metadata': too many properties. Expected an object with at most 16 properties, but got an "
            "object with 17 properties instead.",
            "metadata",
            "object_above_max_properties",
        ),
        (
            {"modalities": ["text", "audio"]},
            "Unsupported value: 'modalities' does not support 'audio' with this model.",
            "modalities",
            "unsupported_value",
        ),
        (
            {"modalities": ["video"]},
            "Invalid value: 'video'. Supported values are: 'audio' and 'text'.",
            "modalities[0]",
            "invalid_value",
        ),
        (
            {"reasoning_effort": "huge"},
            "Invalid value: 'huge'. Supported values are: 'high', 'low', 'max', 'medium', 'minimal', 'none', and "
            "'xhigh'.",
            "reasoning_effort",
            "invalid_value",
        ),
        (
            {"verbosity": 5},
            "Invalid type for 'verbosity': expected a string, but got an integer instead.",
            "verbosity",
            "invalid_type",
        ),
        (
            {"safety_identifier": "x" * 129},
            "Invalid 'safety_identifier': string too long. Expected a string with maximum length 128, but got a "
            "string with length 129 instead.",
            "safety_identifier",
            "string_above_max_length",
        ),
        (
            {"web_search_options": {}},
            "Unsupported parameter: 'web_search_options' is not supported with this model.",
            "web_search_options",
            "unsupported_parameter",
        ),
        (
            {"moderation": {"model": "x"}},
            "Unsupported parameter: 'moderation' is not supported with this model.",
            "moderation",
            "unsupported_parameter",
        ),
        (
            {"user": 5},
            "Invalid type for 'user': expected a string, but got an integer instead.",
            "user",
            "invalid_type",
        ),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_bad_value_is_named(keys: dict[str, Any], message: str, param: str, code: str | None) -> None:
    assert refusal(json.dumps({"model": "m", "messages": [USER], **keys}).encode()) == (message, param, code)


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_is_named(name: str) -> None:
    sent = {"model": "m", "messages": [USER]}
    del sent[name]

    assert refusal(json.dumps(sent).encode()) == (
        f"Missing required parameter: '{name}'.",
        name,
        "missing_required_parameter",
    )


@pytest.mark.parametrize(
    ("tools", "message", "param", "code"),
    [
        (
            [{"type": "function"}],
            "Missing required parameter: 'tools[0].function'.",
            "tools[0].function",
            "missing_required_parameter",
        ),
        (
            [{"function": {"name": "f"}}],
            "Missing required parameter: 'tools[0].type'.",
            "tools[0].type",
            "missing_required_parameter",
        ),
        (
            [{"type": "retrieval"}],
            "Invalid value: 'retrieval'. Supported values are: 'function' and 'custom'.",
            "tools[0].type",
            "invalid_value",
        ),
        (
            [TOOL, {"type": "function", "function": {"name": "get weather"}}],
            "Invalid 'tools[1].function.name': string does not match pattern. Expected a string that matches the "
            "pattern '^[a-zA-Z0-9_-]+$'.",
            "tools[1].function.name",
            "invalid_value",
        ),
        (
            [{"type": "function", "function": {"name": "f\n"}}],
            "Invalid 'tools[0].function.name': string does not match pattern. Expected a string that matches the "
            "pattern '^[a-zA-Z0-9_-]+$'.",
            "tools[0].function.name",
            "invalid_value",
        ),
        (
            [{"type": "function", "function": {"name": "f" * 65}}],
            "Invalid 'tools[0].function.name': string too long. Expected a string with maximum length 64, but got a "
            "string with length 65 instead.",
            "tools[0].function.name",
            "string_above_max_length",
        ),
        (
            [TOOL] * 129,
            "Invalid 'tools': array too long. Expected an array with maximum length 128, but got an array with "
            "length 129 instead.",
            "tools",
            "array_above_max_length",
        ),
        (
            [{"type": "function", "function": {"name": "f", "parameters": "x"}}],
            "Invalid type for 'tools[0].function.parameters': expected an object, but got a string instead.",
            "tools[0].function.parameters",
            "invalid_type",
        ),
        (
            [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}],
            "Invalid schema for function 'f': schema must be of 'type: \"object\"', got 'type: \"string\"'.",
            "tools[0].function.parameters",
            "invalid_function_parameters",
        ),
        (
            [
                {
                    "type": "function",
                    "function": {"name": "f", "parameters": {"type": "object", "properties": []}},
                }
            ],
            "Invalid schema for function 'f': 'properties' must be an object.",
            "tools[0].function.parameters",
            "invalid_function_parameters",
        ),
        (
            [{"type": "function", "function": {"name": "f", "parameters": {"required": [5]}}}],
            "Invalid schema for function 'f': 'required' must be an array of strings.",
            "tools[0].function.parameters",
            "invalid_function_parameters",
        ),
        (
            [TOOL, {"type": "custom", "custom": {"name": "x"}}],
            "Unsupported value: 'tools[1].type' does not support 'custom' with this model.",
            "tools[1].type",
            "unsupported_value",
        ),
        (
            [TOOL, {"type": "function", "function": {"name": "f", "description": "another"}}],
            "Invalid 'tools[1].function.name': 'f' names two different functions.",
            "tools[1].function.name",
            "invalid_value",
        ),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, list) else "",
)
def test_a_bad_tool_is_named(tools: list[Any], message: str, param: str, code: str) -> None:
    assert refusal(body(tools=tools)) == (message, param, code)


@pytest.mark.parametrize(
    ("keys", "message", "param", "code"),
    [
        (
            {"tool_choice": "auto"},
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            "tool_choice",
            None,
        ),
        (
            {"tools": [], "tool_choice": "required"},
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            "tool_choice",
            None,
        ),
        (
            {"function_call": "auto"},
            "Invalid value for 'function_call': 'function_call' is only allowed when 'functions' are specified.",
            "function_call",
            None,
        ),
        (
            {"tools": [TOOL], "tool_choice": "any"},
            "Invalid value: 'any'. Supported values are: 'auto', 'none', and 'required'.",
            "tool_choice",
            "invalid_value",
        ),
        (
            {"tools": [TOOL], "tool_choice": 5},
            "Invalid type for 'tool_choice': expected one of a string or an object, but got an integer instead.",
            "tool_choice",
            "invalid_type",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function"}},
            "Missing required parameter: 'tool_choice.function'.",
            "tool_choice.function",
            "missing_required_parameter",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g" * 500}}},
            f"Invalid value for 'tool_choice': there is no function '{'g' * 99}…' in the list of tools.",
            "tool_choice",
            "invalid_value",
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "f"}}},
            "Unsupported value: 'tool_choice' does not support custom tools with this model.",
            "tool_choice",
            "unsupported_value",
        ),
        (
            {"functions": [{"name": "f"}], "function_call": {"name": "g"}},
            "Invalid value for 'function_call': there is no function 'g' in the list of tools.",
            "function_call",
            "invalid_value",
        ),
        (
            {"functions": [{"name": "f"}], "tools": [TOOL]},
            "'functions' and 'tools' cannot be set at the same time.",
            "functions",
            "invalid_parameter_combination",
        ),
        (
            {"functions": [{"description": "x"}]},
            "Missing required parameter: 'functions[0].name'.",
            "functions[0].name",
            "missing_required_parameter",
        ),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_a_bad_tool_choice_is_named(keys: dict[str, Any], message: str, param: str, code: str | None) -> None:
    assert refusal(body(**keys)) == (message, param, code)


@pytest.mark.parametrize(
    ("message", "sentence", "place", "code"),
    [
        ({"content": "x"}, "Missing required parameter: '{}'.", ".role", "missing_required_parameter"),
        (
            {"role": 5},
            "Invalid type for '{}': expected a string, but got an integer instead.",
            ".role",
            "invalid_type",
        ),
        (
            {"role": "robot", "content": "x"},
            "Invalid value: 'robot'. Supported values are: 'system', 'developer', 'user', 'assistant', 'tool', and "
            "'function'.",
            ".role",
            "invalid_value",
        ),
        ({"role": "user"}, "Missing required parameter: '{}'.", ".content", "missing_required_parameter"),
        ({"role": "system"}, "Missing required parameter: '{}'.", ".content", "missing_required_parameter"),
        (
            {"role": "user", "content": 5},
            "Invalid type for '{}': expected one of a string or an array of objects, but got an integer instead.",
            ".content",
            "invalid_type",
        ),
        (
            {"role": "user", "content": {"type": "text", "text": "x"}},
            "Invalid type for '{}': expected one of a string or an array of objects, but got an object instead.",
            ".content",
            "invalid_type",
        ),
        (
            {"role": "user", "content": []},
            "Invalid '{}': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            ".content",
            "empty_array",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "video"}]},
            "Invalid value: 'video'. Supported values are: 'text', 'image_url', 'input_audio', 'file', and 'refusal'.",
            ".content[1].type",
            "invalid_value",
        ),
        (
            {"role": "user", "content": [{"text": "x"}]},
            "Missing required parameter: '{}'.",
            ".content[0].type",
            "missing_required_parameter",
        ),
        (
            {"role": "user", "content": [{"type": "text"}]},
            "Missing required parameter: '{}'.",
            ".content[0].text",
            "missing_required_parameter",
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": None}]},
            "Invalid type for '{}': expected a string, but got null instead.",
            ".content[0].text",
            "invalid_type",
        ),
        (
            {"role": "user", "content": ["x"]},
            "Invalid type for '{}': expected an object, but got a string instead.",
            ".content[0]",
            "invalid_type",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": "https://x"}]},
            "Invalid type for '{}': expected an object, but got a string instead.",
            ".content[0].image_url",
            "invalid_type",
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "huge"}}]},
            "Invalid value: 'huge'. Supported values are: 'auto', 'high', 'low', and 'original'.",
            ".content[0].image_url.detail",
            "invalid_value",
        ),
        (
            {
                "role": "user",
                "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "ogg"}}],
            },
            "Invalid value: 'ogg'. Supported values are: 'mp3' and 'wav'.",
            ".content[0].input_audio.format",
            "invalid_value",
        ),
        (
            {"role": "user", "content": [{"type": "refusal", "refusal": "x"}]},
            "Invalid value: 'refusal'. Supported values are: 'text', 'image_url', 'input_audio', and 'file'.",
            ".content[0].type",
            "invalid_value",
        ),
        (
            {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "Invalid value: 'image_url'. Supported values are: 'text'.",
            ".content[0].type",
            "invalid_value",
        ),
        (
            {"role": "assistant", "content": [{"type": "file", "file": {}}]},
            "Invalid value: 'file'. Supported values are: 'text' and 'refusal'.",
            ".content[0].type",
            "invalid_value",
        ),
        (
            {"role": "assistant", "tool_calls": {}},
            "Invalid type for '{}': expected an array of objects, but got an object instead.",
            ".tool_calls",
            "invalid_type",
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": ""}}],
            },
            "Missing required parameter: '{}'.",
            ".tool_calls[0].id",
            "missing_required_parameter",
        ),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]},
            "Invalid type for '{}': expected a string, but got an object instead.",
            ".tool_calls[0].function.arguments",
            "invalid_type",
        ),
        ({"role": "tool", "content": "x"}, "Missing required parameter: '{}'.", ".tool_call_id", None),
        (
            {"role": "user", "content": "a\0b"},
            "Invalid '{}': it contains a NUL character.",
            "",
            "invalid_value",
        ),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_bad_message_is_named(message: dict[str, Any], sentence: str, place: str, code: str | None) -> None:
    param = f"messages[1]{place}"

    expected = (sentence.replace("{}", param), param, code or "missing_required_parameter")
    assert refusal(body(USER, message)) == expected


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ([USER, {"role": "assistant", "content": "x"}, RESULT], 2),
        ([CALLING, {**RESULT, "tool_call_id": "other"}], 1),
        ([CALLING, RESULT, RESULT], 2),
        ([CALLING, USER, RESULT], 2),
        ([CALLING, {"role": "system", "content": "x"}, RESULT], 2),
        ([CALLING, RESULT, {"role": "assistant", "content": "x"}, RESULT], 3),
    ],
    ids=lambda value: ",".join(message["role"] for message in value) if isinstance(value, list) else "",
)
def test_a_result_out_of_place_is_refused(messages: list[dict[str, Any]], place: int) -> None:
    assert refusal(body(*messages)) == (MISPLACED, f"messages.[{place}].role", None)


def test_a_function_result_out_of_place_is_refused() -> None:
    called = {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}
    answer = {"role": "function", "name": "f", "content": "x"}

    assert refusal(body(called, answer, answer))[1] == "messages.[2].role"
    message, param, _ = refusal(body(CALLING, answer))

    assert (message.split(" must")[0], param) == (
        "Invalid parameter: messages with role 'function'",
        "messages.[1].role",
    )


def test_a_strict_reader_refuses_unknown_keys() -> None:
    assert refusal(body(top_k=5), strict=True) == (
        "Unknown parameter: 'top_k'.",
        "top_k",
        "unknown_parameter",
    )


def test_more_messages_than_allowed_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_chat(body(USER, USER, USER), max_messages=2)

    assert (caught.value.param, caught.value.code) == ("messages", "array_above_max_length")


@pytest.mark.parametrize("levels", [65, 300, 900])
@pytest.mark.parametrize("place", ["tools", "response_format"])
def test_a_schema_nested_too_deep_is_refused(levels: int, place: str) -> None:
    schema = '{"a":' * levels + "1" + "}" * levels
    keys = {
        "tools": '"tools":[{"type":"function","function":{"name":"f","parameters":%s}}]',
        "response_format": '"response_format":{"type":"json_schema","json_schema":{"name":"f","schema":%s}}',
    }

    message, param, code = refusal((body()[:-1].decode() + "," + keys[place] % schema + "}").encode())

    assert message.endswith("nested more than 64 levels deep.")
    assert (param or "").startswith(place)
    assert code == "invalid_value"


def test_at_the_edge_of_what_can_be_read_a_schema_is_refused_too() -> None:
    for levels in range(880, 1000):
        schema = '{"a":' * levels + "1" + "}" * levels
        tools = f'"tools":[{{"type":"function","function":{{"name":"f","parameters":{schema}}}}}]'
        assert refusal((body()[:-1].decode() + "," + tools + "}").encode())[0]


def test_a_schema_with_too_many_parts_is_refused() -> None:
    schema = {"type": "object", "properties": {f"p{i}": {} for i in range(5000)}}

    assert refusal(body(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}]))[
        :2
    ] == (
        "Invalid 'tools[0].function.parameters': more than 5000 objects and arrays.",
        "tools[0].function.parameters",
    )


def test_a_schema_may_be_wide_and_a_little_deep() -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {f"p{i}": {"type": "string"} for i in range(500)},
    }
    inner = schema["properties"]["p1"]
    for _ in range(60):
        inner["items"] = {}
        inner = inner["items"]

    assert decode(body(tools=[{"type": "function", "function": {"name": "f", "parameters": schema}}])).tools[
        0
    ] == FunctionTool("f", parameters=schema)


def test_a_number_that_nothing_can_hold_is_refused_where_it_stands() -> None:
    message = "Invalid value for '{}': a number is out of range."

    for key, value in (("temperature", b"1e999"), ("n", b"9" * 5000), ("seed", b"-" + b"9" * 5000)):
        assert refusal(body()[:-1] + b',"%b":%b}' % (key.encode(), value)) == (
            message.format(key),
            key,
            "invalid_value",
        )


def test_a_nul_character_is_refused_wherever_it_stands_but_not_its_spelling() -> None:
    for data, param in (
        (body(metadata={"a": "\0"}), "metadata"),
        (body(metadata={"\0": "a"}), "metadata"),
        (body({"role": "user", "content": "x"}, {"role": "user", "content": "\0"}), "messages[1]"),
        (body(stop=["a", "b\0"]), "stop[1]"),
        (body(top_k=" \0"), "top_k"),
    ):
        assert refusal(data) == (f"Invalid '{param}': it contains a NUL character.", param, "invalid_value")
    assert refusal(body(**{"a\0": 1})) == (
        "The request body contains a NUL character.",
        None,
        "invalid_value",
    )
    assert decode(body({"role": "user", "content": "\\u0000 \\\\u0000"})).messages == [
        UserMessage("\\u0000 \\\\u0000")
    ]
    assert refusal(body({"role": "user", "content": "\\\0"}))[1] == "messages[0]"


def test_large_input_is_not_repeated() -> None:
    long = "x" * 100_000
    for data in (
        body({"role": long, "content": ""}),
        body(reasoning_effort=long),
        body(metadata={long: "x"}),
        body(logit_bias={long: "x"}),
        body(tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": long}}}]),
    ):
        message, param, _ = refusal(data)
        assert len(message) < 500
        assert len(param or "") <= 120
    assert len(refusal(body(**{long: 1}), strict=True)[0]) < 500


def test_content_parts_are_bounded_over_all_messages() -> None:
    text = {"type": "text", "text": "x"}
    message = {"role": "user", "content": [text] * 5000}

    assert len(decode(body(messages=[message, message])).messages) == 2
    assert refusal(body(messages=[message, message, {"role": "user", "content": [text]}])) == (
        "Invalid 'messages': too many content parts. Expected at most 10000 in all messages together, but got 10001.",
        "messages",
        "array_above_max_length",
    )
