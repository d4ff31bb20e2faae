"""Error texts of requests that do not fit their team, conversation or approvals, with the names of chat completions."""

from __future__ import annotations

from msgspec import Struct

from proxy import request_errors as rejected
from proxy.errors import InvalidRequest
from proxy.wire.chat.message_validation import unexpected_tool_result
from proxy.wire.validation.errors import clip, invalid_value, unsupported_parameter, unsupported_value

ID_LIMIT = 64
"""Maximum number of characters of an id in an error text."""


class ParameterNames(Struct, frozen=True):
    """The names that an API has for the parameters in error texts; ``tool`` and ``schema`` are paths."""

    messages: str = "messages"
    tool: str = "tools[{}].function.name"
    response_format: str = "response_format"
    schema: str = "response_format.json_schema.schema"
    decision: str = "decision"


CHAT = ParameterNames()


def chat_error(error: rejected.RejectedRequest, names: ParameterNames = CHAT) -> InvalidRequest:
    """Return the error with its text, by default with the parameter names of chat completions."""
    match error:
        case rejected.ParameterNotSupported(name):
            return unsupported_parameter(name, "is not supported with this model.")
        case rejected.ContentNotSupported(message_index, part_index, kind):
            param = f"{names.messages}[{message_index}].content[{part_index}].type"
            return unsupported_value(param, f"'{param}' does not support '{kind}' with this model.")
        case rejected.ToolNameTaken(index, name, team):
            param = names.tool.format(index)
            return invalid_value(param, f"Invalid '{param}': the team '{team}' has a tool named '{name}'.")
        case rejected.InvalidResponseSchema(max_patterns):
            text = (
                f"Invalid schema for {names.response_format}: it is not a valid JSON Schema, a '$ref' is not '#' or a "
                f"pointer such as '#/$defs/name', or its patterns are too large or more than {max_patterns}."
            )
            return invalid_value(names.schema, text)
        case rejected.BackgroundSideRequest():
            text = "Invalid 'background': the answer to a side request is not stored, so it could not be retrieved."
            return InvalidRequest(text, param="background", code="unsupported_value")
        case rejected.ApprovalNotRequested(approval_id):
            text = f"No approval request found with id '{clip(approval_id)}'."
            return InvalidRequest(text, param=names.decision)
        case rejected.DecisionsMissing(approval_ids):
            text = f"A response is missing for these approval requests: {', '.join(approval_ids)}."
            return InvalidRequest(text, param=names.decision)
        case rejected.ApprovalExpired(approval_id):
            text = f"Approval '{approval_id}' has expired: its conversation has continued."
            return InvalidRequest(text, param=names.decision, code="approval_expired")
        case rejected.ApprovalAlreadyDecided(approval_id, status):
            text = f"Approval '{approval_id}' is already {status}."
            return InvalidRequest(text, param=names.decision, code="approval_already_decided")
        case _:
            return _conversation_error(error)


def _conversation_error(error: rejected.RejectedRequest) -> InvalidRequest:
    match error:
        case rejected.ParentNotFound(reference):
            text = f"Invalid 'X-Parent-Id': there is no turn '{reference[:ID_LIMIT]}' to continue from."
            return invalid_value("X-Parent-Id", text)
        case rejected.ToolCallNotFound(call_id, index):
            # OpenAI's "param" for a result without a call has a dot. Observed in responses, not documented.
            text = f"No pending tool call has the id '{call_id[:ID_LIMIT]}'."
            return InvalidRequest(text, param=f"messages.[{index}].role")
        case rejected.FunctionCallNotFound(index):
            return unexpected_tool_result(index, "function")
        case rejected.ToolResultsMissing(call_ids):
            text = (
                "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
                "'tool_call_id'. The following tool_call_ids did not have response messages: "
            )
            return InvalidRequest(text + ", ".join(call_ids), param="messages")
        case rejected.ToolCallsNotStored():
            text = (
                "The tool calls for these results were not stored ('store' is false). Send the complete message list, "
                "including the assistant message with 'tool_calls'."
            )
            return InvalidRequest(text, param="messages")
        case _:
            return _agent_error(error)


def _agent_error(error: rejected.RejectedRequest) -> InvalidRequest:
    match error:
        case rejected.UnknownName(path, kind, name, similar):
            hint = f" Did you mean '{similar}'?" if similar is not None else ""
            return invalid_value(path, f"Invalid '{path}': there is no {kind} '{name[:100]}'.{hint}")
        case rejected.HandoffToolNameTaken(path, tool):
            text = f"Invalid '{path}': the agent already has a tool that models see as '{tool}'."
            return invalid_value(path, text)
        case rejected.ToolNameTooLong(path, tool):
            text = f"Invalid '{path}': '{tool}' is too long for a tool name; set a shorter one with 'tool'."
            return invalid_value(path, text)
        case rejected.AgentNameTaken(name):
            text = f"Invalid 'name': the name '{name}' is already in use."
            return InvalidRequest(text, param="name", code="name_taken")
        case rejected.AgentInUse(name, used_by):
            text = f"Invalid 'name': the agent '{used_by}' hands off or delegates to '{name}'. Remove that first."
            return InvalidRequest(text, param="name", code="agent_in_use")
        case rejected.AgentOutdated(agent, removed):
            text = f"The agent '{agent}' uses '{removed}', which this server no longer offers."
            return InvalidRequest(text, param="model", code="agent_outdated")
        case rejected.TooManyAgents(limit):
            text = f"The limit of {limit} custom agents and teams is reached. Delete one first."
            return InvalidRequest(text, code="too_many_agents")
        case _:
            raise AssertionError(f"no text for {type(error).__name__}")
