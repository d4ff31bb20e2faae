"""The error texts that chat completions and the Responses API render for rejected requests."""

from __future__ import annotations

import pytest

from proxy.errors import InvalidRequest
from proxy.messages import Usage
from proxy.request_errors import (
    AgentInUse,
    AgentNameTaken,
    AgentOutdated,
    ApprovalAlreadyDecided,
    ApprovalExpired,
    ApprovalNotRequested,
    BackgroundSideRequest,
    ContentNotSupported,
    DecisionsMissing,
    FunctionCallNotFound,
    HandoffToolNameTaken,
    InvalidResponseSchema,
    ParameterNotSupported,
    ParentNotFound,
    RejectedRequest,
    ToolCallNotFound,
    ToolCallsNotStored,
    ToolNameTaken,
    ToolNameTooLong,
    ToolResultsMissing,
    TooManyAgents,
    UnknownName,
)
from proxy.wire.chat.errors import chat_error
from proxy.wire.errors import ErrorResponse, error_response, failed_event
from proxy.wire.responses.errors import responses_error

Text = tuple[str, str | None, str | None]
"""Message, param and code."""
BOTH: list[tuple[RejectedRequest, Text, Text]] = [
    (
        ParameterNotSupported("response_format"),
        (
            "Unsupported parameter: 'response_format' is not supported with this model.",
            "response_format",
            "unsupported_parameter",
        ),
        (
            "Unsupported parameter: 'text.format' is not supported with this model.",
            "text.format",
            "unsupported_parameter",
        ),
    ),
    (
        ParameterNotSupported("seed"),
        ("Unsupported parameter: 'seed' is not supported with this model.", "seed", "unsupported_parameter"),
        ("Unsupported parameter: 'seed' is not supported with this model.", "seed", "unsupported_parameter"),
    ),
    (
        ContentNotSupported(2, 1, "image_url"),
        (
            "Unsupported value: 'messages[2].content[1].type' does not support 'image_url' with this model.",
            "messages[2].content[1].type",
            "unsupported_value",
        ),
        (
            "Unsupported value: 'input[2].content[1].type' does not support 'image_url' with this model.",
            "input[2].content[1].type",
            "unsupported_value",
        ),
    ),
    (
        ToolNameTaken(3, "refund", "shop"),
        (
            "Invalid 'tools[3].function.name': the team 'shop' has a tool named 'refund'.",
            "tools[3].function.name",
            "invalid_value",
        ),
        (
            "Invalid 'tools[3].name': the team 'shop' has a tool named 'refund'.",
            "tools[3].name",
            "invalid_value",
        ),
    ),
    (
        InvalidResponseSchema(50),
        (
            "Invalid schema for response_format: it is not a valid JSON Schema, a '$ref' is not '#' or a pointer such"
            " as '#/$defs/name', or its patterns are too large or more than 50.",
            "response_format.json_schema.schema",
            "invalid_value",
        ),
        (
            "Invalid schema for text.format: it is not a valid JSON Schema, a '$ref' is not '#' or a pointer such as"
            " '#/$defs/name', or its patterns are too large or more than 50.",
            "text.format.schema",
            "invalid_value",
        ),
    ),
    (
        ParentNotFound("chatcmpl-0123456789abcdef0123456789abcdef"),
        (
            "Invalid 'X-Parent-Id': there is no turn 'chatcmpl-0123456789abcdef0123456789abcdef' to continue from.",
            "X-Parent-Id",
            "invalid_value",
        ),
        (
            "Previous response with id 'resp_0123456789abcdef0123456789abcdef' not found.",
            "previous_response_id",
            "previous_response_not_found",
        ),
    ),
    (
        ToolCallNotFound("call_a", 4),
        ("No pending tool call has the id 'call_a'.", "messages.[4].role", None),
        ("No tool call found for function call output with call_id call_a.", "input", None),
    ),
    (
        ToolResultsMissing(["call_a"]),
        (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each"
            " 'tool_call_id'. The following tool_call_ids did not have response messages: call_a",
            "messages",
            None,
        ),
        ("No tool output found for function call call_a.", "input", None),
    ),
    (
        ToolResultsMissing(["call_a", "call_b"]),
        (
            "An assistant message with 'tool_calls' must be followed by tool messages responding to each"
            " 'tool_call_id'. The following tool_call_ids did not have response messages: call_a, call_b",
            "messages",
            None,
        ),
        ("No tool output found for function calls call_a, call_b.", "input", None),
    ),
    (
        ToolCallsNotStored(),
        (
            "The tool calls for these results were not stored ('store' is false). Send the complete message list,"
            " including the assistant message with 'tool_calls'.",
            "messages",
            None,
        ),
        (
            "The tool calls for these outputs were not stored ('store' is false). Send the complete input, including"
            " the 'function_call' items.",
            "input",
            None,
        ),
    ),
    (
        ApprovalExpired("appr_1"),
        ("Approval 'appr_1' has expired: its conversation has continued.", "decision", "approval_expired"),
        ("Approval 'appr_1' has expired: its conversation has continued.", "input", "approval_expired"),
    ),
    (
        ApprovalAlreadyDecided("appr_1", "refused"),
        ("Approval 'appr_1' is already refused.", "decision", "approval_already_decided"),
        ("Approval 'appr_1' is already refused.", "input", "approval_already_decided"),
    ),
]
IN_ONE: list[tuple[RejectedRequest, Text]] = [
    (
        FunctionCallNotFound(2),
        (
            "Invalid parameter: messages with role 'function' must be a response to a preceding message with"
            " 'function_call'.",
            "messages.[2].role",
            None,
        ),
    ),
    (
        BackgroundSideRequest(),
        (
            "Invalid 'background': the answer to a side request is not stored, so it could not be retrieved.",
            "background",
            "unsupported_value",
        ),
    ),
    (
        ApprovalNotRequested("appr_1"),
        ("No approval request found with id 'appr_1'.", "input", None),
    ),
    (
        DecisionsMissing(["appr_1", "appr_2"]),
        ("A response is missing for these approval requests: appr_1, appr_2.", "input", None),
    ),
    (
        UnknownName("agents.a.model", "model", "tset", "test"),
        (
            "Invalid 'agents.a.model': there is no model 'tset'. Did you mean 'test'?",
            "agents.a.model",
            "invalid_value",
        ),
    ),
    (
        UnknownName("entry", "agent", "x", None),
        ("Invalid 'entry': there is no agent 'x'.", "entry", "invalid_value"),
    ),
    (
        ToolNameTooLong("handoffs[0].to", "transfer_to_b"),
        (
            "Invalid 'handoffs[0].to': 'transfer_to_b' is too long for a tool name; set a shorter one with 'tool'.",
            "handoffs[0].to",
            "invalid_value",
        ),
    ),
    (
        HandoffToolNameTaken("handoffs[0].to", "transfer_to_b"),
        (
            "Invalid 'handoffs[0].to': the agent already has a tool that models see as 'transfer_to_b'.",
            "handoffs[0].to",
            "invalid_value",
        ),
    ),
    (AgentNameTaken("shop"), ("Invalid 'name': the name 'shop' is already in use.", "name", "name_taken")),
    (
        AgentInUse("b", "a"),
        (
            "Invalid 'name': the agent 'a' hands off or delegates to 'b'. Remove that first.",
            "name",
            "agent_in_use",
        ),
    ),
    (
        AgentOutdated("a", "order"),
        ("The agent 'a' uses 'order', which this server no longer offers.", "model", "agent_outdated"),
    ),
    (
        TooManyAgents(20),
        ("The limit of 20 custom agents and teams is reached. Delete one first.", None, "too_many_agents"),
    ),
]


def text_of(error: InvalidRequest) -> Text:
    return error.message, error.param, error.code


@pytest.mark.parametrize(("error", "chat", "responses"), BOTH, ids=lambda value: type(value).__name__)
def test_each_api_uses_its_own_parameter_names(error: RejectedRequest, chat: Text, responses: Text) -> None:
    assert (text_of(chat_error(error)), text_of(responses_error(error))) == (chat, responses)


@pytest.mark.parametrize(("error", "text"), IN_ONE, ids=lambda value: type(value).__name__)
def test_errors_of_one_api_have_one_text(error: RejectedRequest, text: Text) -> None:
    assert text_of(responses_error(error)) == text


def test_every_error_has_a_text() -> None:
    assert {type(error) for error, *_ in (*BOTH, *IN_ONE)} == set(RejectedRequest.__subclasses__())


def test_rejected_requests_have_status_400() -> None:
    error = ToolNameTaken(0, "refund", "shop")
    rendered = chat_error(error)

    assert error_response(error) == ErrorResponse(
        400, "invalid_request_error", rendered.message, rendered.code, rendered.param
    )


def test_a_turn_that_a_rejection_ends_has_its_text() -> None:
    failed = failed_event(ToolCallsNotStored(), Usage(), ran_effects=False)

    assert (failed.code, failed.message) == ("invalid_request", chat_error(ToolCallsNotStored()).message)
