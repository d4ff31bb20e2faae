"""What is read from a provider's rejection, which change it leads to, and what the change does to a request."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from proxy.messages import (
    AssistantMessage,
    FunctionCall,
    FunctionTool,
    Parameters,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.providers.model import ModelRequest
from proxy.providers.openai.adaptation import Adaptation, Omission, Reshaping
from proxy.providers.openai.adaptation_rules import adaptations_to
from proxy.providers.openai.adapted_body import without_effect
from proxy.providers.openai.call_ids import short_id
from proxy.providers.openai.learned_adaptations import EXPIRY_SECONDS, MAX_LEARNED, LearnedAdaptations
from proxy.providers.openai.rejection import rejection_of
from proxy.providers.openai.request import BodyDefaults, body_of
from proxy.teamfiles.definitions import OpenAIModel

SENT: dict[str, Any] = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "You sell."},
        {"role": "user", "content": "Hello", "name": "Ada"},
        {
            "role": "assistant",
            "content": "I look",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "A rocket."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": ""},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "temperature": 0.2,
    "top_p": 0.5,
    "seed": 7,
    "stop": ["x"],
    "max_tokens": 9,
    "reasoning_effort": "minimal",
    "response_format": {"type": "json_object"},
    "stream_options": {"include_usage": True},
    "tool_choice": "required",
}


def says(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, **more}}


NOT_SUPPORTED = "Unsupported parameter: '{}' is not supported with this model."
ERRORS: list[tuple[str, Any, dict[Adaptation, bool]]] = [
    (
        "OpenAI names the parameter",
        says(NOT_SUPPORTED.format("seed"), param="seed", code="unsupported_parameter"),
        {Omission("seed"): True},
    ),
    (
        "one value of several",
        says(
            "'reasoning_effort' does not support 'minimal'",
            param="reasoning_effort",
            code="unsupported_value",
        ),
        {Omission("reasoning_effort", b'"minimal"'): True},
    ),
    (
        "every value but the default",
        says("Only the default (1) value is supported.", param="temperature", code="unsupported_value"),
        {Omission("temperature"): True},
    ),
    (
        "the other name is in the message",
        says(
            "'max_tokens' is not supported. Use 'max_completion_tokens'.",
            param="max_tokens",
            code="unsupported_parameter",
        ),
        {Omission("max_tokens"): True},
    ),
    (
        "only the message names it",
        says("Unrecognized request argument supplied: stream_options"),
        {Omission("stream_options"): True},
    ),
    (
        "a value in the message",
        says("tool_choice 'required' is not supported"),
        {Omission("tool_choice", b'"required"'): True},
    ),
    (
        "two that exclude each other",
        says("`temperature` and `top_p` cannot both be specified for this model."),
        {Omission("top_p", next_to="temperature"): True},
    ),
    (
        "several details",
        {"detail": [{"type": "extra_forbidden", "loc": ["body", name]} for name in ("seed", "stop")]},
        {Omission("seed"): True, Omission("stop"): True},
    ),
    (
        "the provider's error in OpenRouter's",
        says(
            "Provider returned error",
            metadata={
                "raw": json.dumps(
                    says(NOT_SUPPORTED.format("stop"), param="stop", code="unsupported_parameter")
                )
            },
        ),
        {Omission("stop"): True},
    ),
    (
        "a wrong value",
        says("temperature is above the maximum", param="temperature", code="decimal_above_max_value"),
        {},
    ),
    (
        "a limit that is too large",
        says("max_tokens is too large: this model supports at most 5", param="max_tokens"),
        {},
    ),
    ("an essential field", says("This response_format type is unavailable now", param="response_format"), {}),
    ("nothing that was sent", says(NOT_SUPPORTED.format("logit_bias"), param="logit_bias"), {}),
    ("no field", says("No."), {}),
    (
        "roles",
        says(
            "'messages[0].role' does not support 'system'", param="messages[0].role", code="unsupported_value"
        ),
        {Reshaping.DEVELOPER_ROLE: True},
    ),
    (
        "form next to tools",
        says("Function calling with a response mime type: 'application/json' is unsupported"),
        {Reshaping.FORM_AFTER_TOOLS: True},
    ),
    ("a schema of a form that mentions a tool", says("Invalid schema for response_format 'tool_answer'"), {}),
    (
        "effort with tools",
        says("Function tools with reasoning_effort are not supported", param="reasoning_effort"),
        {Reshaping.NO_EFFORT_WITH_TOOLS: True},
    ),
    (
        "Mistral's call ids",
        {"message": "Tool call id was x", "code": "3280"},
        {Reshaping.SHORT_CALL_IDS: True},
    ),
    (
        "ids that are too long",
        says("string too long", param="messages[2].tool_calls[0].id", code="string_above_max_length"),
        {Reshaping.SHORT_CALL_IDS: True},
    ),
    ("text and calls", {"message": "not both", "code": "3240"}, {Reshaping.SEPARATE_CALLS: True}),
    ("names", {"detail": [{"loc": ["body", "messages", 1, "user", "name"]}]}, {Reshaping.NO_NAMES: True}),
    ("a prefill", says("does not support assistant message prefill"), {Reshaping.USER_LAST: True}),
    (
        "reasoning that is missing",
        says("reasoning_content is missing at 2"),
        {Reshaping.REASONING_PLACEHOLDER: True},
    ),
    (
        "a thought signature that is missing",
        says("Function call is missing a thought_signature in functionCall parts."),
        {Reshaping.SIGNATURE_PLACEHOLDER: True},
    ),
    (
        "schemas",
        says("object schema missing properties", param="tools[0].function.parameters"),
        {Reshaping.SCHEMA_PROPERTIES: True},
    ),
]


@pytest.mark.parametrize(("error", "wanted"), [pytest.param(*rest, id=name) for name, *rest in ERRORS])
def test_adaptations_to_a_rejection(error: Any, wanted: dict[Adaptation, bool]) -> None:
    assert adaptations_to(rejection_of(400, msgspec.json.encode(error)), SENT) == wanted


def test_a_name_that_the_caller_wrote_too_concerns_this_call_only() -> None:
    sent = {**SENT, "messages": [{"role": "user", "content": "What is seed?"}]}
    error = says(f"{NOT_SUPPORTED.format('seed')}")

    assert adaptations_to(rejection_of(400, error), sent) == {Omission("seed"): False}
    assert adaptations_to(rejection_of(400, says("Unsupported", param="seed")), sent) == {
        Omission("seed"): True
    }


def test_long_values_are_not_remembered() -> None:
    sent = {**SENT, "stop": ["x" * 100]}
    error = says("Unsupported value", param="stop", code="unsupported_value")

    (omission,) = adaptations_to(rejection_of(400, error), sent).items()
    assert omission == (Omission("stop", msgspec.json.encode(["x" * 100])), False)


DEFINITION = OpenAIModel.model_validate(
    {
        "model": "m",
        "base_url": "http://127.0.0.1/v1",
        "extra_body": {"top_k": 4},
        "parameters": {"top_p": 0.5},
    }
)
REQUEST = ModelRequest(
    messages=[
        SystemMessage(content="You sell."),
        UserMessage(content="Hello", name="Ada"),
        AssistantMessage(content="I look", tool_calls=[ToolCall("call_1", FunctionCall("f", "{}"))]),
        ToolMessage(tool_call_id="call_1", content="A rocket."),
        UserMessage(content="And?"),
        AssistantMessage(content=""),
    ],
    tools=[FunctionTool("f", parameters={"type": "object", "properties": {"o": {"type": "object"}}})],
    parameters=Parameters(max_tokens=9, reasoning_effort="minimal", seed=7),
)


def sent(*adaptations: Adaptation, request: ModelRequest = REQUEST) -> tuple[Any, frozenset[str]]:
    outgoing = body_of(BodyDefaults.of(DEFINITION), request, adaptations=adaptations)
    return msgspec.json.decode(outgoing.body), outgoing.ignored


def test_limits_are_sent_under_their_other_name_and_omitted_only_if_both_are_rejected() -> None:
    renamed, nothing = sent(Omission("max_tokens"))
    neither, ignored = sent(Omission("max_tokens"), Omission("max_completion_tokens"))

    assert ("max_tokens" in renamed, renamed["max_completion_tokens"], nothing) == (False, 9, frozenset())
    assert not {"max_tokens", "max_completion_tokens"} & neither.keys()
    assert ignored == {"max_tokens", "max_completion_tokens"}


def test_values_and_pairs_are_omitted_only_where_they_are() -> None:
    other = Omission("reasoning_effort", b'"high"')
    this = Omission("reasoning_effort", b'"minimal"')

    assert sent(other)[0]["reasoning_effort"] == "minimal"
    assert sent(this)[1] == {"reasoning_effort"}
    assert sent(Omission("top_p", next_to="temperature"))[0]["top_p"] == 0.5
    assert "top_p" not in sent(Omission("top_p", next_to="seed"))[0]


def test_extra_body_of_the_team_file_is_not_adapted() -> None:
    assert sent(Omission("top_k"))[0]["top_k"] == 4


def test_messages_are_reshaped() -> None:
    body, ignored = sent(
        Reshaping.SHORT_CALL_IDS,
        Reshaping.SEPARATE_CALLS,
        Reshaping.NO_EMPTY_MESSAGES,
        Reshaping.ASSISTANT_BEHIND_TOOL,
        Reshaping.DEVELOPER_ROLE,
        Reshaping.NO_NAMES,
        Reshaping.SCHEMA_PROPERTIES,
    )
    call = {"id": short_id("call_1"), "type": "function", "function": {"name": "f", "arguments": "{}"}}

    assert body["messages"] == [
        {"role": "developer", "content": "You sell."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "I look"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": short_id("call_1"), "content": "A rocket."},
        {"role": "assistant", "content": "(no answer)"},
        {"role": "user", "content": "And?"},
    ]
    assert body["tools"][0]["function"]["parameters"]["properties"]["o"]["properties"] == {}
    assert ignored == {"messages.name"}
    assert "properties" not in REQUEST.tools[0].parameters["properties"]["o"]  # type: ignore[index]


def test_a_model_without_both_roles_for_instructions_gets_a_user_message() -> None:
    body, _ = sent(Reshaping.DEVELOPER_ROLE, Reshaping.SYSTEM_ROLE)

    assert body["messages"][0]["role"] == "user"


def test_a_last_assistant_message_is_followed_by_the_user() -> None:
    body, _ = sent(Reshaping.USER_LAST)

    assert body["messages"][-1] == {"role": "user", "content": "Continue."}


def test_parameters_without_effect_are_those_that_are_omitted_with_any_value() -> None:
    learned: list[Adaptation] = [
        Omission("seed"),
        Omission("reasoning_effort", b'"minimal"'),
        Omission("top_p", next_to="temperature"),
        Omission("max_tokens"),
        Omission("stream_options"),
        Omission("text.verbosity"),
        Reshaping.NO_NAMES,
    ]

    assert without_effect(learned) == {"seed", "verbosity"}


def test_what_was_learned_expires() -> None:
    now = [0.0]
    learned = LearnedAdaptations(lambda: now[0])

    assert learned.learn([Omission("seed")]) == [Omission("seed")]
    assert learned.learn([Omission("seed")]) == []
    now[0] = EXPIRY_SECONDS - 1
    assert learned.current() == {Omission("seed")}
    now[0] = EXPIRY_SECONDS
    assert learned.current() == frozenset()


def test_the_number_of_learned_values_is_bounded() -> None:
    learned = LearnedAdaptations()
    values = [Omission("seed", str(number).encode()) for number in range(MAX_LEARNED + 1)]

    learned.learn(values)

    assert learned.current() == frozenset(values[1:])


@pytest.mark.parametrize("call_id", ["call_1", "", "é" * 9, "a" * 100, "\ud800"])
def test_short_ids_are_nine_letters_and_digits_and_always_the_same(call_id: str) -> None:
    created = short_id(call_id)

    assert len(created) == 9
    assert created.isascii()
    assert created.isalnum()
    assert short_id(call_id) == created
    assert short_id(created) == created
