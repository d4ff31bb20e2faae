"""Error texts of chat completions for requests that do not fit their team, conversation or approvals."""

from __future__ import annotations

from proxy.errors import InvalidRequest
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
    ToolResultsMissing,
    TooManyAgents,
    UnknownName,
)
from proxy.wire.chat.message_validation import unexpected_tool_result
from proxy.wire.validation.errors import clip, invalid_value, unsupported_parameter, unsupported_value

ID_LIMIT = 64
"""Maximum number of characters of an id in an error text."""


def chat_error(error: RejectedRequest) -> InvalidRequest:
    """Return the error with the text and the parameter names of chat completions."""
    match error:
        case (
            UnknownName()
            | HandoffToolNameTaken()
            | AgentNameTaken()
            | AgentInUse()
            | AgentOutdated()
            | TooManyAgents()
        ):
            return _agent_error(error)
        case ApprovalNotRequested() | DecisionsMissing() | ApprovalExpired() | ApprovalAlreadyDecided():
            return approval_error(error, "decision")
        case ParameterNotSupported(name):
            return unsupported_parameter(name, "is not supported with this model.")
        case ContentNotSupported(message_index, part_index, kind):
            return unsupported_content(f"messages[{message_index}].content[{part_index}].type", kind)
        case ToolNameTaken(index, name, team):
            return tool_name_taken(f"tools[{index}].function.name", name, team)
        case InvalidResponseSchema(max_patterns):
            return invalid_schema("response_format", "response_format.json_schema.schema", max_patterns)
        case BackgroundSideRequest():
            return InvalidRequest(
                "Invalid 'background': the answer to a side request is not stored, so it could not be retrieved.",
                param="background",
                code="unsupported_value",
            )
        case _:
            return _conversation_error(error)


def _conversation_error(error: RejectedRequest) -> InvalidRequest:
    match error:
        case ParentNotFound(reference):
            text = f"Invalid 'X-Parent-Id': there is no turn '{reference[:ID_LIMIT]}' to continue from."
            return invalid_value("X-Parent-Id", text)
        case ToolCallNotFound(call_id, index):
            # OpenAI's "param" for a result without a call has a dot. Observed in responses, not documented.
            text = f"No pending tool call has the id '{call_id[:ID_LIMIT]}'."
            return InvalidRequest(text, param=f"messages.[{index}].role")
        case FunctionCallNotFound(index):
            return unexpected_tool_result(index, "function")
        case ToolResultsMissing(call_ids):
            return InvalidRequest(
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
                "'tool_call_id'. The following tool_call_ids did not have response messages: "
                f"{', '.join(call_ids)}",
                param="messages",
            )
        case ToolCallsNotStored():
            return InvalidRequest(
                "The tool calls for these results were not stored ('store' is false). Send the complete message list, "
                "including the assistant message with 'tool_calls'.",
                param="messages",
            )
        case _:
            raise AssertionError(f"no text for {type(error).__name__}")


def approval_error(error: RejectedRequest, param: str) -> InvalidRequest:
    """Return the error for a decision; ``param`` is the parameter that contains decisions."""
    match error:
        case ApprovalNotRequested(approval_id):
            text = f"No approval request found with id '{clip(approval_id)}'."
            return InvalidRequest(text, param=param)
        case DecisionsMissing(approval_ids):
            text = f"A response is missing for these approval requests: {', '.join(approval_ids)}."
            return InvalidRequest(text, param=param)
        case ApprovalExpired(approval_id):
            text = f"Approval '{approval_id}' has expired: its conversation has continued."
            return InvalidRequest(text, param=param, code="approval_expired")
        case ApprovalAlreadyDecided(approval_id, status):
            text = f"Approval '{approval_id}' is already {status}."
            return InvalidRequest(text, param=param, code="approval_already_decided")
        case _:
            raise AssertionError(f"no text for {type(error).__name__}")


def _agent_error(error: RejectedRequest) -> InvalidRequest:
    match error:
        case UnknownName(path, kind, name, similar):
            hint = f" Did you mean '{similar}'?" if similar is not None else ""
            return invalid_value(path, f"Invalid '{path}': there is no {kind} '{name[:100]}'.{hint}")
        case HandoffToolNameTaken(path, tool):
            text = f"Invalid '{path}': the agent already has a tool that models see as '{tool}'."
            return invalid_value(path, text)
        case AgentNameTaken(name):
            return InvalidRequest(
                f"Invalid 'name': the name '{name}' is already in use.", param="name", code="name_taken"
            )
        case AgentInUse(name, used_by):
            text = f"Invalid 'name': the agent '{used_by}' hands off to '{name}'. Remove that handoff first."
            return InvalidRequest(text, param="name", code="agent_in_use")
        case AgentOutdated(agent, removed):
            text = f"The agent '{agent}' uses '{removed}', which this server no longer offers."
            return InvalidRequest(text, param="model", code="agent_outdated")
        case TooManyAgents(limit):
            text = f"The limit of {limit} custom agents and teams is reached. Delete one first."
            return InvalidRequest(text, code="too_many_agents")
        case _:
            raise AssertionError(f"no text for {type(error).__name__}")


def unsupported_content(param: str, kind: str) -> InvalidRequest:
    """Return the error for a content part that no model of the team reads."""
    return unsupported_value(param, f"'{param}' does not support '{kind}' with this model.")


def tool_name_taken(param: str, name: str, team: str) -> InvalidRequest:
    """Return the error for a client tool with the name of a tool of the team."""
    return invalid_value(param, f"Invalid '{param}': the team '{team}' has a tool named '{name}'.")


def invalid_schema(name: str, param: str, max_patterns: int) -> InvalidRequest:
    """Return the error for a schema that cannot be used; ``name`` is the parameter of the response format."""
    return invalid_value(
        param,
        f"Invalid schema for {name}: it is not a valid JSON Schema, or its patterns are too large or more than"
        f" {max_patterns}.",
    )
