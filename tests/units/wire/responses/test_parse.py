"""Requests for a response: what is understood, and with which words the rest is refused."""

from __future__ import annotations

import json
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import (
    ResponseInputItemParam,
    ToolParam,
    response_create_params,
    response_includable,
    response_input_item_param,
    tool_param,
)

from proxy.errors import InvalidRequest
from proxy.messages import (
    AssistantMessage,
    DeveloperMessage,
    FileData,
    FilePart,
    FunctionCall,
    FunctionTool,
    ImagePart,
    ImageUrl,
    Message,
    NamedToolChoice,
    Parameters,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.wire.responses.input import Reference, joined
from proxy.wire.responses.parse import (
    ResponsesRequest,
    decode_response_request,
    decode_response_without_schemas,
)
from proxy.wire.responses.schema import (
    IGNORED_ITEMS,
    SUPPORTED_ITEMS,
    UNSUPPORTED_ITEMS,
    UNSUPPORTED_TOOLS,
    Include,
    ResponsesBody,
)

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
SCHEMA = {"type": "json_schema", "name": "city", "schema": {"type": "object"}, "strict": True}


def decode(body: Any = None, /, **keys: Any) -> ResponsesRequest:
    whole = {"model": "shop", "input": "Hi", **keys} if body is None else body
    return decode_response_request(json.dumps(whole).encode(), max_items=1000)


def messages(*items: Any) -> list[Message]:
    said = decode(input=list(items)).said
    return joined(piece for piece in said if not isinstance(piece, Reference))[0]


def call(call_id: str, name: str = "f", arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def output(call_id: str, text: Any = "done") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def calling(*ids: str, content: str | None = None) -> AssistantMessage:
    return AssistantMessage(content, tool_calls=[ToolCall(one, FunctionCall("f", "{}")) for one in ids])


# --- the input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"role": "user", "content": "Hi"}, UserMessage("Hi")),
        ({"type": "message", "role": "system", "content": "Be brief"}, SystemMessage("Be brief")),
        ({"role": "developer", "content": "Be brief"}, DeveloperMessage("Be brief")),
        ({"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}, UserMessage("Hi")),
        ({"role": "user", "content": ""}, UserMessage("")),
        ({"role": "assistant", "content": None}, AssistantMessage("")),
        (
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "phase": "final_answer",
                "content": [
                    {"type": "output_text", "text": "One. ", "annotations": [], "logprobs": []},
                    {"type": "output_text", "text": "Two."},
                ],
            },
            AssistantMessage("One. Two."),
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            AssistantMessage(None, refusal="No."),
        ),
        (
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "What is this?"},
                    {"type": "input_image", "image_url": "data:image/png;base64,aa", "detail": "low"},
                    {"type": "input_file", "file_data": "data:text/plain;base64,aa", "filename": "a.txt"},
                ],
            },
            UserMessage(
                [
                    TextPart("What is this?"),
                    ImagePart(ImageUrl("data:image/png;base64,aa", "low")),
                    FilePart(FileData("data:text/plain;base64,aa", None, "a.txt")),
                ]
            ),
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else type(value).__name__,
)
def test_messages_come_in_every_form(item: dict[str, Any], message: Message) -> None:
    assert messages(item) == [message]


def test_consecutive_assistant_items_are_one_message() -> None:
    assert messages(
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "assistant", "content": "One moment."},
        {"type": "mcp_call", "id": "mcp_1", "name": "look_up", "arguments": "{}", "server_label": "x"},
        {"role": "assistant", "content": "\n\nLet me see."},
        call("c1"),
        call("c2"),
        output("c1"),
        output("c2", [{"type": "input_text", "text": "wet"}]),
        {"role": "assistant", "content": "Rain."},
    ) == [
        UserMessage("Weather?"),
        calling("c1", "c2", content="One moment.\n\nLet me see."),
        ToolMessage("c1", "done"),
        ToolMessage("c2", "wet"),
        AssistantMessage("Rain."),
    ]


@pytest.mark.parametrize(
    "items",
    [
        [call("c1"), {"role": "assistant", "content": "Hm."}, output("c1")],
        [call("c1"), output("c1"), {"role": "assistant", "content": "Hm."}],
        [call("c1"), {"role": "user", "content": "Well?"}, output("c1")],
        [output("c1"), call("c1")],
    ],
    ids=["behind a word", "at once", "behind a question", "before it"],
)
def test_results_follow_their_calls(items: list[Any]) -> None:
    found = messages(*items)

    at = next(i for i, one in enumerate(found) if isinstance(one, AssistantMessage) and one.tool_calls)
    assert found[at + 1] == ToolMessage("c1", "done")
    assert sum(isinstance(one, ToolMessage) for one in found) == 1


def test_results_of_stored_calls_keep_their_position() -> None:
    assert messages(output("c9")) == [ToolMessage("c9", "done")]


def test_a_call_of_the_list_needs_its_result() -> None:
    with pytest.raises(InvalidRequest) as refused:
        messages({"role": "user", "content": "Hi"}, call("c1"), {"role": "user", "content": "Well?"})

    assert (refused.value.message, refused.value.param) == (
        "No tool output found for function call c1.",
        "input",
    )


def test_references_keep_their_places() -> None:
    said = decode(
        input=[{"type": "item_reference", "id": "msg_1"}, {"id": "fc_1"}, {"role": "user", "content": "Hi"}]
    ).said

    assert said == [Reference("msg_1", "input[0].id"), Reference("fc_1", "input[1].id"), UserMessage("Hi")]


def test_every_official_item_is_known() -> None:
    official = {
        kind
        for one in get_args(ResponseInputItemParam)
        if (hint := get_type_hints(one, vars(response_input_item_param)).get("type")) is not None
        for kind in _literals(hint)
    }

    assert official == {*SUPPORTED_ITEMS, *IGNORED_ITEMS, *UNSUPPORTED_ITEMS}


def test_every_official_tool_is_known() -> None:
    official = {
        kind
        for one in get_args(ToolParam)
        for kind in _literals(get_type_hints(one, vars(tool_param))["type"])
    }

    assert official - {"function"} <= set(UNSUPPORTED_TOOLS)


def test_every_official_parameter_is_known() -> None:
    official = get_type_hints(response_create_params.ResponseCreateParamsStreaming)

    assert set(official) == set(ResponsesBody.__struct_fields__)
    own = {"handoff.approval_requests", "handoff.mcp_calls"}
    assert set(get_args(response_includable.ResponseIncludable)) == set(get_args(Include)) - own


def _literals(hint: Any) -> set[str]:
    """The strings that a type hint allows."""
    found: set[str] = set()
    for one in get_args(hint) or ():
        found |= {one} if isinstance(one, str) else _literals(one)
    return found


# --- parameters ----------------------------------------------------------------------------------------------


def test_the_smallest_request_asks_for_nothing_special() -> None:
    request = decode()

    assert request.said == [UserMessage("Hi")]
    assert (request.stream, request.background, request.store) == (False, False, True)
    assert (request.parameters, request.tools, request.tool_choice) == (Parameters(), (), None)
    assert request.ignored == ()


def test_parameters_are_converted_for_the_model() -> None:
    request = decode(
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=100,
        text={"format": SCHEMA, "verbosity": "low"},
        reasoning={"effort": "low", "summary": "auto"},
        top_logprobs=2,
        service_tier="flex",
    )

    assert request.parameters == Parameters(
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=100,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "schema": {"type": "object"}, "strict": True},
        },
        verbosity="low",
        reasoning_effort="low",
        logprobs=True,
        top_logprobs=2,
        service_tier="flex",
    )
    assert (request.logprobs, request.sums_up_reasoning) == (True, True)


@pytest.mark.parametrize("kind", ["text", "json_object"])
def test_simple_response_formats_are_forwarded(kind: str) -> None:
    assert decode(text={"format": {"type": kind}}).parameters.response_format == {"type": kind}


@pytest.mark.parametrize(
    ("choice", "expected", "offered"),
    [
        (None, None, ["weather", "clock"]),
        ("required", "required", ["weather", "clock"]),
        ({"type": "function", "name": "clock"}, NamedToolChoice("clock"), ["weather", "clock"]),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "clock"}]},
            "auto",
            ["clock"],
        ),
    ],
    ids=["none", "a word", "a function", "some"],
)
def test_tools_are_offered_as_the_caller_chose(choice: Any, expected: Any, offered: list[str]) -> None:
    request = decode(tools=[TOOL, {"type": "function", "name": "clock"}], tool_choice=choice)

    assert (request.tool_choice, [tool.name for tool in request.tools]) == (expected, offered)
    assert request.tools[0] in (
        FunctionTool("weather", None, {"type": "object"}, True),
        FunctionTool("clock"),
    )


def test_a_response_repeats_the_parameters() -> None:
    echo = decode(
        instructions="Be brief",
        tools=[TOOL],
        tool_choice={"type": "function", "name": "weather"},
        text={"format": SCHEMA},
        reasoning={"effort": "low", "generate_summary": "auto"},
        metadata={"a": "b"},
        parallel_tool_calls=False,
        max_tool_calls=3,
        truncation="auto",
        conversation={"id": "chat-1"},
        prompt_cache_key="k",
        user="u",
    ).echo

    assert echo.tools == [{**TOOL, "description": None}]
    assert echo.tool_choice == {"type": "function", "name": "weather"}
    assert echo.text == {"format": {**SCHEMA, "description": None}, "verbosity": "medium"}
    assert echo.reasoning == {"effort": "low", "summary": "auto"}
    assert (echo.instructions, echo.metadata, echo.parallel_tool_calls) == ("Be brief", {"a": "b"}, False)
    assert (echo.max_tool_calls, echo.truncation, echo.conversation) == (3, "auto", "chat-1")
    assert (echo.prompt_cache_key, echo.user) == ("k", "u")


def test_what_has_no_effect_is_named() -> None:
    request = decode(
        truncation="auto",
        reasoning={"mode": "pro"},
        background_options={"completion_window": "2h"},
        prompt_cache_options={"ttl": "30m"},
        context_management=[{"type": "compaction"}],
        top_k=3,
    )

    assert request.ignored == (
        "background_options",
        "prompt_cache_options",
        "reasoning.mode",
        "top_k",
    )


def test_nulls_are_as_good_as_nothing() -> None:
    nulls = {name: None for name in ResponsesBody.__struct_fields__ if name not in ("model", "input")}

    assert decode(**nulls) == decode()


def test_an_integer_may_come_as_a_decimal() -> None:
    assert decode(max_output_tokens=100.0).parameters.max_completion_tokens == 100


@pytest.mark.parametrize("key", ["previous_response_id", "conversation"])
def test_input_is_optional_in_a_continued_conversation(key: str) -> None:
    assert decode({"model": "shop", key: "resp_1"}).said == []


# --- refusals ------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"model": None}, "model", "invalid_type"),
    ({"model": ""}, "model", "empty_string"),
    ({"input": None}, "input", "missing_required_parameter"),
    ({"input": []}, "input", "empty_array"),
    ({"input": 3}, "input", "invalid_type"),
    ({"input": [3]}, "input[0]", "invalid_type"),
    ({"input": [{}]}, "input[0].type", "missing_required_parameter"),
    ({"input": [{"type": 3}]}, "input[0].type", "invalid_type"),
    ({"input": [{"type": "nope"}]}, "input[0].type", "invalid_value"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0].type", "unsupported_value"),
    ({"input": [{"role": "robot", "content": "Hi"}]}, "input[0].role", "invalid_value"),
    ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
    ({"input": [{"role": "user", "content": 3}]}, "input[0].content", "invalid_type"),
    ({"input": [{"role": "user", "content": []}]}, "input[0].content", "empty_array"),
    (
        {"input": [{"role": "user", "content": [{"type": "nope"}]}]},
        "input[0].content[0].type",
        "invalid_value",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "output_text", "text": "Hi"}]}]},
        "input[0].content[0].type",
        "invalid_value",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input[0].content[0].file_id",
        "unsupported_parameter",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]}]},
        "input[0].content[0].file_url",
        "unsupported_parameter",
    ),
    (
        {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
        "input[0].call_id",
        "missing_required_parameter",
    ),
    (
        {"input": [{"type": "function_call_output", "call_id": "c"}]},
        "input[0].output",
        "missing_required_parameter",
    ),
    ({"input": [{"type": "item_reference"}]}, "input[0].id", "missing_required_parameter"),
    ({"input": [{"role": "user", "content": "\0"}]}, "input[0]", "invalid_value"),
    ({"input": "\0"}, "input", "invalid_value"),
    ({"input": [{"role": "user", "content": "Hi"}] * 1001}, "input", "array_above_max_length"),
    ({"stream": "yes"}, "stream", "invalid_type"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options", ""),
    ({"background": True, "store": False}, "background", "invalid_parameter_combination"),
    (
        {"previous_response_id": "resp_1", "conversation": "chat-1"},
        "previous_response_id",
        "mutually_exclusive_parameters",
    ),
    ({"conversation": "a b"}, "conversation", "invalid_value"),
    ({"conversation": {"id": ""}}, "conversation", "invalid_value"),
    ({"conversation": {}}, "conversation.id", "missing_required_parameter"),
    ({"max_output_tokens": 0}, "max_output_tokens", "integer_below_min_value"),
    ({"max_output_tokens": "9"}, "max_output_tokens", "invalid_type"),
    ({"temperature": 3}, "temperature", "decimal_above_max_value"),
    ({"top_logprobs": 21}, "top_logprobs", "integer_above_max_value"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_value"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type", "unsupported_value"),
    ({"tools": [{"type": "nope"}]}, "tools[0].type", "invalid_value"),
    ({"tools": [{"name": "f"}]}, "tools[0].type", "missing_required_parameter"),
    (
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        "tools[0].name",
        "missing_required_parameter",
    ),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "invalid_value"),
    (
        {"tools": [{"type": "function", "name": "f", "parameters": {"type": "string"}}]},
        "tools[0].parameters",
        "invalid_function_parameters",
    ),
    ({"tools": [TOOL, {**TOOL, "strict": False}]}, "tools[1].name", "invalid_value"),
    ({"tool_choice": "required"}, "tool_choice", ""),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice", "invalid_value"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function"}},
        "tool_choice.name",
        "missing_required_parameter",
    ),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "invalid_value"),
    ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, "tool_choice.type", "unsupported_value"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x"}}},
        "text.format.schema",
        "missing_required_parameter",
    ),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "invalid_value"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity", "invalid_value"),
    ({"reasoning": {"effort": "some"}}, "reasoning.effort", "invalid_value"),
    ({"include": ["everything"]}, "include[0]", "invalid_value"),
    ({"truncation": "all"}, "truncation", "invalid_value"),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_type"),
    ({"service_tier": "best"}, "service_tier", "invalid_value"),
    ({"safety_identifier": "x" * 129}, "safety_identifier", "string_above_max_length"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
    ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
]


@pytest.mark.parametrize(
    ("keys", "param", "code"),
    REFUSED,
    ids=[f"{next(iter(keys))}: {param} {code}" for keys, param, code in REFUSED],
)
def test_what_cannot_be_taken_is_refused_by_its_name(keys: dict[str, Any], param: str, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(**keys)

    assert (refused.value.param, refused.value.code or "") == (param, code)
    assert len(refused.value.message) < 600


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"model":"m","input":' + b"[" * 5000], ids=repr
)
def test_a_request_that_is_not_a_json_object_is_rejected(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="could not parse") as refused:
        decode_response_request(body, max_items=10)

    assert (refused.value.param, refused.value.code) == (None, None)


def test_unknown_keys_are_errors_in_strict_mode_only() -> None:
    body = b'{"model": "m", "input": "Hi", "top_k": 3}'

    with pytest.raises(InvalidRequest) as refused:
        decode_response_request(body, max_items=10, strict=True)

    assert (refused.value.param, refused.value.code) == ("top_k", "unknown_parameter")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from([*ResponsesBody.__struct_fields__, "odd"])
_ITEMS = st.lists(
    st.dictionaries(
        st.sampled_from(["type", "role", "content", "id", "call_id", "output", "name", "arguments"]),
        _JSON | st.sampled_from([*SUPPORTED_ITEMS, *IGNORED_ITEMS, "user", "assistant"]),
        max_size=4,
    ),
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(_KEYS, _JSON, max_size=4), st.none() | _ITEMS)
def test_any_body_is_parsed_or_rejected_with_a_short_message(keys: dict[str, Any], items: Any) -> None:
    body = {"model": "m", "input": "Hi", **keys, **({"input": items} if items is not None else {})}

    result = parsed_or_rejected(body)

    if isinstance(result, InvalidRequest):
        assert 0 < len(result.message.encode()) < 1500
    else:
        request, messages = result
        assert request.model == body["model"]
        assert len(messages) <= len(request.said)


def parsed_or_rejected(body: dict[str, Any]) -> tuple[ResponsesRequest, list[Message]] | InvalidRequest:
    try:
        request = decode_response_request(json.dumps(body).encode(), max_items=100)
        messages, *_ = joined(piece for piece in request.said if not isinstance(piece, Reference))
        return request, messages
    except InvalidRequest as error:
        return error


@pytest.mark.parametrize(
    ("keys", "is_decoded"),
    [
        ({}, True),
        ({"input": [{"role": "user", "content": "Hi"}], "text": {"format": {"type": "text"}}}, True),
        ({"tools": [TOOL]}, False),
        ({"text": {"format": SCHEMA}}, False),
        ({"chat_id": "x"}, False),
        ({"max_output_tokens": 20.0}, False),
    ],
)
def test_a_body_is_decoded_at_once_unless_it_may_take_long(keys: dict[str, Any], is_decoded: bool) -> None:
    data = json.dumps({"model": "shop", "input": "Hi", **keys}).encode()

    request = decode_response_without_schemas(data, max_items=1000)

    assert request == (decode(**keys) if is_decoded else None)
