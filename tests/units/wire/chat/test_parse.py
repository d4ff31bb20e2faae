"""Requests: what is accepted, what it becomes, and with which words the rest is refused."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxy.errors import InvalidRequest
from proxy.message_lists import TextMessages
from proxy.messages import (
    AssistantMessage,
    CustomCall,
    CustomToolCall,
    DeveloperMessage,
    FileData,
    FilePart,
    FunctionCall,
    FunctionMessage,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedToolChoice,
    Parameters,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.wire.chat.parse import (
    ChatRequest,
    conversation_id,
    decode_chat,
    decode_chat_without_schemas,
)
from proxy.wire.chat.schema import ChatBody
from proxy.wire.validation.body_decoder import BodyDecoder

USER = {"role": "user", "content": "Hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "done"}
TOOL = {"type": "function", "function": {"name": "f"}}
FIELDS = BodyDecoder(ChatBody).fields


def body(*messages: Any, **keys: Any) -> bytes:
    return json.dumps({"model": "m", "messages": list(messages or [USER]), **keys}).encode()


def decode(data: bytes, *, strict: bool = False) -> ChatRequest:
    return decode_chat(data, max_messages=2000, strict=strict)


# --- accepted ------------------------------------------------------------------------------------------------


def test_the_smallest_request_asks_for_nothing_special() -> None:
    assert decode(body()) == ChatRequest(model="m", messages=[UserMessage(content="Hi")], has_options=False)


def test_every_honoured_field_arrives() -> None:
    request = decode(
        body(
            stream=True,
            stream_options={"include_usage": True, "include_obfuscation": False},
            max_completion_tokens=100,
            stop=["a", "b"],
            n=1,
            temperature=0.5,
            top_p=1,
            frequency_penalty=-2,
            presence_penalty=2,
            seed=-5,
            logit_bias={},
            logprobs=True,
            top_logprobs=3,
            response_format={"type": "json_object"},
            tools=[TOOL],
            tool_choice="required",
            parallel_tool_calls=False,
            store=True,
            metadata={"a": "b"},
            modalities=["text"],
            reasoning_effort="minimal",
            verbosity="low",
            service_tier="flex",
            prediction={"type": "content", "content": "x"},
            user="u",
            safety_identifier="s",
            prompt_cache_key="k",
        )
    )

    assert request == ChatRequest(
        model="m",
        messages=[UserMessage(content="Hi")],
        stream=True,
        include_usage=True,
        parameters=Parameters(
            max_completion_tokens=100,
            stop=["a", "b"],
            temperature=0.5,
            top_p=1.0,
            frequency_penalty=-2.0,
            presence_penalty=2.0,
            seed=-5,
            logprobs=True,
            top_logprobs=3,
            response_format={"type": "json_object"},
            reasoning_effort="minimal",
            verbosity="low",
            service_tier="flex",
            prediction={"type": "content", "content": "x"},
        ),
        tools=(FunctionTool("f"),),
        tool_choice="required",
        parallel_tool_calls=False,
        store=True,
        metadata={"a": "b"},
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_completion_tokens", 1),
        ("max_tokens", 1),
        ("stop", "a"),
        ("n", 2),
        ("temperature", 0),
        ("top_p", 0),
        ("frequency_penalty", 0),
        ("presence_penalty", 0),
        ("seed", 0),
        ("logit_bias", {"1": 1}),
        ("logprobs", False),
        ("top_logprobs", 0),
        ("response_format", {"type": "text"}),
        ("tools", [TOOL]),
        ("tool_choice", "auto"),
        ("parallel_tool_calls", False),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("store", False),
        ("metadata", {"a": "b"}),
        ("modalities", ["audio"]),
        ("audio", {"format": "mp3", "voice": "alloy"}),
        ("reasoning_effort", "none"),
        ("verbosity", "low"),
        ("service_tier", "auto"),
        ("prediction", {"type": "content", "content": ""}),
        ("user", ""),
        ("safety_identifier", ""),
        ("prompt_cache_key", ""),
        ("prompt_cache_options", {}),
        ("prompt_cache_retention", "24h"),
        ("web_search_options", {}),
        ("moderation", {}),
        ("stream", True),
        ("stream_options", {"include_usage": False}),
    ],
)
def test_no_field_is_treated_as_absent(name: str, value: object) -> None:
    def outcome(**fields: object) -> object:
        try:
            return decode(body(**fields))
        except InvalidRequest as error:
            return error.param

    assert outcome(**{name: value}) != outcome()


def test_table_of_fields_has_all_of_them() -> None:
    (mark,) = test_no_field_is_treated_as_absent.pytestmark  # type: ignore[attr-defined]
    assert {name for name, _ in mark.args[1]} == FIELDS.keys() - {"model", "messages"}


@pytest.mark.parametrize(
    ("stream", "stream_options"),
    [
        (None, None),
        (False, None),
        (True, None),
        (True, {}),
        (True, {"include_usage": False}),
        (True, {"include_usage": True}),
    ],
)
def test_options_of_the_stream_do_not_depend_on_other_fields(stream: object, stream_options: object) -> None:
    plain = decode(body(stream=stream, stream_options=stream_options))
    with_user = decode(body(stream=stream, stream_options=stream_options, user="u"))
    assert with_user == msgspec.structs.replace(plain, user="u", has_options=True)


def test_null_means_not_set() -> None:
    nulls = {name: None for name in FIELDS if name not in ("model", "messages")}

    assert decode(body(**nulls)) == decode(body())


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        ({"max_tokens": 5.0}, Parameters(max_tokens=5)),
        ({"seed": 1e3}, Parameters(seed=1000)),
        ({"max_completion_tokens": 7.0, "seed": 2.0, "n": 1.0}, Parameters(max_completion_tokens=7, seed=2)),
        ({"temperature": 1}, Parameters(temperature=1.0)),
    ],
    ids=str,
)
def test_an_integer_may_arrive_as_a_float_and_the_other_way_round(
    sent: dict[str, Any], value: Parameters
) -> None:
    assert decode(body(**sent)).parameters == value


def test_keys_without_effect_are_taken_and_named() -> None:
    request = decode(
        body(
            top_k=5,
            audio={"voice": "alloy", "format": "wav"},
            prompt_cache_retention="24h",
            prompt_cache_options={"mode": "x"},
            chat_template_kwargs={"a": [1]},
            **{"odd\r\nX-Evil: 1, ä": 1, "": 2, "long" * 50: 3},
        )
    )

    assert request.ignored == (
        "audio",
        "prompt_cache_options",
        "prompt_cache_retention",
        "top_k",
        "chat_template_kwargs",
        "odd__X-Evil__1___",
        "_",
        "long" * 16,
    )


def test_at_most_32_unknown_keys_are_named() -> None:
    assert len(decode(body(**{f"k{i}": i for i in range(1000)})).ignored) == 32


def test_a_strict_reader_takes_unknown_keys_inside_of_messages() -> None:
    known = body({**USER, "id": "x", "metadata": None}, user="u")

    assert decode(known, strict=True) == decode(known)


@pytest.mark.parametrize(
    ("message", "decoded"),
    [
        ({"role": "system", "content": "s"}, SystemMessage(content="s")),
        (
            {"role": "developer", "content": [{"type": "text", "text": "s"}]},
            DeveloperMessage([TextPart("s")]),
        ),
        ({"role": "user", "content": ""}, UserMessage(content="")),
        ({"role": "user", "content": None}, UserMessage(content="")),
        ({"role": "user", "content": "x", "name": "Ann", "options": None}, UserMessage("x", name="Ann")),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "x"}}],
            },
            UserMessage([TextPart("x")]),
        ),
        (
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "data:x", "detail": None}}],
            },
            UserMessage([ImagePart(ImageUrl("data:x"))]),
        ),
        (
            {
                "role": "user",
                "content": [{"type": "file", "file": {"file_data": "data:x", "filename": "a.pdf"}}],
            },
            UserMessage([FilePart(FileData(file_data="data:x", filename="a.pdf"))]),
        ),
        ({"role": "assistant"}, AssistantMessage("")),
        ({"role": "assistant", "content": None}, AssistantMessage("")),
        ({"role": "assistant", "content": []}, AssistantMessage("")),
        ({"role": "assistant", "content": "x", "tool_calls": []}, AssistantMessage("x")),
        ({"role": "assistant", "refusal": "no"}, AssistantMessage(None, refusal="no")),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            AssistantMessage([RefusalPart("no")]),
        ),
        (
            {
                "role": "assistant",
                "content": "x",
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
                "tool_calls": None,
                "reasoning_content": "hm",
                "provider_specific_fields": {"a": 1},
            },
            AssistantMessage("x"),
        ),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "index": 0}]},
            AssistantMessage(None, tool_calls=[ToolCall("call_1", FunctionCall("f", "{}"))]),
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            AssistantMessage("", tool_calls=[ToolCall("call_1", FunctionCall("f", "{}"))]),
        ),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "n", "input": "i"}}],
            },
            AssistantMessage(None, tool_calls=[CustomToolCall("c", CustomCall("n", "i"))]),
        ),
        ({**RESULT, "name": "f"}, ToolMessage("call_1", "done")),
        ({**RESULT, "content": None}, ToolMessage("call_1", "")),
        ({**RESULT, "content": [{"type": "text", "text": "x"}]}, ToolMessage("call_1", [TextPart("x")])),
        (
            {**RESULT, "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
            ToolMessage("call_1", [ImagePart(ImageUrl("data:x"))]),
        ),
        ({"role": "function", "name": "f", "content": None}, FunctionMessage("f", "")),
    ],
    ids=str,
)
def test_messages_are_accepted_as_real_clients_send_them(message: dict[str, Any], decoded: object) -> None:
    assert decode(body(message)).messages == [decoded]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "Hello"}, USER],
        [USER, {"role": "assistant", "content": "prefill"}],
        [USER, USER, {"role": "system", "content": "last"}],
        [USER, CALLING, RESULT],
        [USER, CALLING, RESULT, {"role": "assistant", "content": "ok"}, USER, CALLING, RESULT],
        [USER, CALLING],
        [USER, CALLING, USER],
        [RESULT],
        [RESULT, {**RESULT, "tool_call_id": "other"}],
        [USER, RESULT],
        [{"role": "assistant", "tool_calls": [CALL, CALL]}, RESULT, RESULT],
        [
            {"role": "assistant", "tool_calls": [CALL, {**CALL, "id": "b"}]},
            {**RESULT, "tool_call_id": "b"},
            RESULT,
        ],
    ],
    ids=lambda messages: ",".join(message["role"] for message in messages),
)
def test_orders_of_messages_that_are_legal(messages: list[dict[str, Any]]) -> None:
    assert len(decode(body(*messages)).messages) == len(messages)


@pytest.mark.parametrize(
    ("messages", "has_only_text"),
    [
        ([USER, {"role": "assistant", "content": "", "refusal": "No."}, USER], True),
        ([{"role": "system", "content": "x"}, {"role": "user", "content": "x", "name": "erin"}], True),
        ([USER, {"role": "assistant", "content": None}], False),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": []}], False),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], False),
        ([CALLING, RESULT, USER], False),
    ],
)
def test_messages_that_have_only_text_are_text_messages(
    messages: list[dict[str, Any]], has_only_text: bool
) -> None:
    request = decode(body(*messages))

    assert isinstance(request.messages, TextMessages) == has_only_text
    assert len(request.messages) == len(messages)


SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    ("data", "is_decoded"),
    [
        (body(), True),
        (body(CALLING, RESULT, USER, temperature=0.5, stream=True, response_format={"type": "text"}), True),
        (body({"role": "assistant", "content": "x", "reasoning_content": "y"}, USER), True),
        (body(tools=[TOOL]), False),
        (body(functions=[{"name": "f"}]), False),
        (body(response_format=SCHEMA), False),
        (body().replace(b'"model"', b'"t\\u006fols": [%b], "model"' % json.dumps(TOOL).encode()), False),
        (body(chat_id="x"), False),
        (body(n=1.0), False),
        (body()[:-1], False),
        (b'"\xff"', False),
        (b"[" * 100_000, False),
    ],
)
def test_a_body_is_decoded_at_once_unless_it_may_take_long(data: bytes, is_decoded: bool) -> None:
    request = decode_chat_without_schemas(data, max_messages=2000)

    assert request == (decode(data) if is_decoded else None)


def test_errors_of_a_body_that_is_decoded_at_once_are_those_of_any_body() -> None:
    data = body(RESULT, USER, {"role": "user", "content": None}, RESULT, stream_options={})

    with pytest.raises(InvalidRequest) as expected:
        decode(data)
    with pytest.raises(InvalidRequest, match=re.escape(str(expected.value))):
        decode_chat_without_schemas(data, max_messages=2000)


def test_a_list_of_plain_messages_is_not_copied_out_of_order() -> None:
    request = decode(body(USER, {"role": "assistant"}, CALLING, RESULT, USER))

    assert [type(message).__name__ for message in request.messages] == [
        "UserMessage",
        "AssistantMessage",
        "AssistantMessage",
        "ToolMessage",
        "UserMessage",
    ]


@pytest.mark.parametrize(
    ("sent", "choice", "names"),
    [
        ({}, None, ["f", "g"]),
        ({"tool_choice": None}, None, ["f", "g"]),
        ({"tool_choice": "none"}, "none", ["f", "g"]),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, NamedToolChoice("g"), ["f", "g"]),
        (
            {
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {
                        "mode": "required",
                        "tools": [{"type": "function", "function": {"name": "g"}}],
                    },
                }
            },
            "required",
            ["g"],
        ),
    ],
    ids=str,
)
def test_a_tool_choice_says_how_and_which(sent: dict[str, Any], choice: object, names: list[str]) -> None:
    request = decode(body(tools=[TOOL, {"type": "function", "function": {"name": "g"}}], **sent))

    assert request.tool_choice == choice
    assert [tool.name for tool in request.tools] == names


@pytest.mark.parametrize(
    "keys", [{"tools": []}, {"tools": [], "tool_choice": "auto"}, {"functions": []}], ids=str
)
def test_an_empty_tool_list_means_no_tools(keys: dict[str, Any]) -> None:
    assert decode(body(**keys)) == msgspec.structs.replace(decode(body()), has_options=True)


def test_a_tool_given_twice_is_one_tool() -> None:
    assert decode(body(tools=[TOOL, TOOL])).tools == (FunctionTool("f"),)


def test_functions_become_tools_and_their_history_becomes_calls() -> None:
    request = decode(
        body(
            USER,
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            {"role": "function", "name": "f", "content": "done"},
            functions=[{"name": "f", "parameters": {"type": "object", "properties": {}}}],
            function_call={"name": "f"},
        )
    )

    assert request.messages[1:] == [
        AssistantMessage(None, tool_calls=[ToolCall("call_function_1", FunctionCall("f", "{}"))]),
        ToolMessage("call_function_1", "done"),
    ]
    assert request.tools == (FunctionTool("f", parameters={"type": "object", "properties": {}}),)
    assert request.tool_choice == NamedToolChoice("f")
    assert request.uses_functions
    assert request.parallel_tool_calls is False


def test_a_schema_for_the_answer_keeps_what_is_known_of_it() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "x-odd": 1}}}
    sent = {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": schema, "strict": True, "odd": 1},
        "odd": 2,
    }

    assert decode(body(response_format=sent)).parameters.response_format == {
        "type": "json_schema",
        "json_schema": {"name": "n", "schema": schema, "strict": True},
    }


# --- any bytes at all ----------------------------------------------------------------------------------------

# Deadlines measure the machine, and so does the pace of generating.
SLOWLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = ATOMS | st.lists(ATOMS, max_size=3) | st.dictionaries(st.text(max_size=8), ATOMS, max_size=3)
KEYS = st.sampled_from([*FIELDS, "odd"])
TEXT = st.sampled_from(
    ["user", "assistant", "tool", "function", "text", "image_url", "json_schema", "auto", "f", ""]
)
PARTS = st.dictionaries(
    st.sampled_from(["type", "text", "image_url", "refusal", "file"]), JSON | TEXT, max_size=4
)
MESSAGES = st.dictionaries(
    st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal"]),
    JSON | TEXT | st.lists(PARTS, max_size=3),
    max_size=5,
)
TOOLS = st.dictionaries(
    st.sampled_from(["type", "function", "custom", "name"]), JSON | TEXT | PARTS, max_size=3
)


def decoded_or_refused(data: bytes, *, strict: bool) -> ChatRequest | InvalidRequest:
    try:
        return decode(data, strict=strict)
    except InvalidRequest as error:
        return error


def is_well_handled(data: bytes, *, strict: bool) -> bool:
    """Whether the body is rejected with a short message, or accepted and can be encoded for a model and the store."""
    result = decoded_or_refused(data, strict=strict)
    if isinstance(result, InvalidRequest):
        return 0 < len(result.message.encode()) < 1500
    encoded = msgspec.json.encode([result.messages, result.tools, result.parameters])
    return bool(result.model and encoded)


@SLOWLY
@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    assert is_well_handled(data, strict=False)
    assert is_well_handled(data, strict=True)


@SLOWLY
@given(
    st.dictionaries(
        KEYS, JSON | TEXT | st.lists(MESSAGES, max_size=4) | st.lists(TOOLS, max_size=3), max_size=6
    )
)
@example({"model": "m", "messages": [{"role": "user", "content": "x"}], "metadata": {"": ""}})
def test_any_json_is_decoded_or_refused(value: dict[str, Any]) -> None:
    assert is_well_handled(json.dumps({"model": "m", "messages": [USER], **value}).encode(), strict=False)
    assert is_well_handled(json.dumps({"model": "m", "messages": [USER], **value}).encode(), strict=True)
    assert is_well_handled(
        json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), strict=False
    )
    assert is_well_handled(
        json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), strict=True
    )


@SLOWLY
@given(st.data())
def test_any_change_to_a_good_body_is_decoded_or_refused(data: st.DataObject) -> None:
    good = body(
        {
            "role": "user",
            "content": [{"type": "text", "text": "é\n"}, {"type": "image_url", "image_url": {"url": "x"}}],
        },
        CALLING,
        RESULT,
        tools=[TOOL],
        metadata={"a": "b"},
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    )
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(start + 20, len(good))))
    filler = data.draw(
        st.sampled_from([b"", b"null", b"5", b'"x"', b"[]", b"{}", b"1e5", b'"\\u0000"', b"\xff", b","])
    )

    assert is_well_handled(good[:start] + filler + good[end:], strict=False)
    assert is_well_handled(good[:start] + filler + good[end:], strict=True)


@pytest.mark.parametrize(
    ("head", "unit", "tail"),
    [
        (b'{"model":"m","messages":[', b"{},", b"{}]}"),
        (b'{"model":"m","messages":[{"role":"user","content":[', b'{"type":"text","text":""},', b"5]}]}"),
        (body()[:-1] + b',"odd":[', b"{},", b'1],"n":1.0}'),
        (body()[:-1] + b',"metadata":{"a":"b"', b',"kkkkkk":1', b"}}"),
        (
            body()[:-1] + b',"tools":[{"type":"function","function":{"name":"f","parameters":{"a":[',
            b"{},",
            b"1]}}}]}",
        ),
        (b'{"model":"m","messages":[{"role":"user","content":"', b"\\\\", b'\\u0000"}]}'),
        (body()[:-1] + b',"n":', b"9", b"}"),
    ],
    ids=["messages", "parts", "ignored", "metadata", "schema", "backslashes", "digits"],
)
def test_the_worst_bodies_of_the_largest_size_take_bounded_time(
    head: bytes, unit: bytes, tail: bytes
) -> None:
    data = head + unit * ((4 * 1024 * 1024 - len(head) - len(tail)) // len(unit)) + tail

    began = time.process_time()
    assert is_well_handled(data, strict=False)
    assert is_well_handled(data, strict=True)

    # Quadratic work would take minutes; twice decoded, these take a few tenths of a second.
    assert time.process_time() - began < 10


# --- the conversation's id -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["a", "conv_1", "A.b:c-d_9", "x" * 128])
def test_ids_that_a_caller_may_choose(value: str) -> None:
    assert conversation_id(value) == value


@pytest.mark.parametrize("value", ["", " ", "a b", "a/b", "ä", "a\n", "x" * 129, "a\0", "'; --"])
def test_ids_that_a_caller_may_not_choose(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        conversation_id(value)

    assert (caught.value.message, caught.value.param, caught.value.code) == (
        "Invalid 'X-Conversation-Id': expected 1 to 128 of the characters A-Z, a-z, 0-9, '.', '_', ':' and '-'.",
        "X-Conversation-Id",
        "invalid_value",
    )
