"""Error texts of the Responses API, whose parameters have other names than those of chat completions."""

from __future__ import annotations

import msgspec

from proxy.errors import InvalidRequest
from proxy.events import Failed
from proxy.request_errors import (
    ApprovalAlreadyDecided,
    ApprovalExpired,
    ApprovalNotRequested,
    ContentNotSupported,
    DecisionsMissing,
    InvalidResponseSchema,
    ParameterNotSupported,
    ParentNotFound,
    RejectedRequest,
    ToolCallNotFound,
    ToolCallsNotStored,
    ToolNameTaken,
    ToolResultsMissing,
)
from proxy.wire.chat.errors import (
    ID_LIMIT,
    approval_error,
    chat_error,
    invalid_schema,
    tool_name_taken,
    unsupported_content,
)
from proxy.wire.errors import ErrorResponse, error_response
from proxy.wire.responses.ids import response_id
from proxy.wire.validation.errors import unsupported_parameter

PARAMETERS = {
    "logprobs": "top_logprobs",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "messages.name": "input.name",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}
"""Parameters of chat completions that have another name in the Responses API."""


def responses_error(error: RejectedRequest) -> InvalidRequest:
    """Return the error with the text and the parameter names of the Responses API."""
    match error:
        case ParentNotFound(reference):
            return InvalidRequest(
                f"Previous response with id '{response_id(reference)[:128]}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        case ToolCallNotFound(call_id):
            text = f"No tool call found for function call output with call_id {call_id[:ID_LIMIT]}."
            return InvalidRequest(text, param="input")
        case ToolResultsMissing(call_ids):
            calls = "call" if len(call_ids) == 1 else "calls"
            text = f"No tool output found for function {calls} {', '.join(call_ids)}."
            return InvalidRequest(text, param="input")
        case ToolCallsNotStored():
            return InvalidRequest(
                "The tool calls for these outputs were not stored ('store' is false). Send the complete input, "
                "including the 'function_call' items.",
                param="input",
            )
        case ParameterNotSupported(name):
            return unsupported_parameter(PARAMETERS.get(name, name), "is not supported with this model.")
        case ContentNotSupported(message_index, part_index, kind):
            return unsupported_content(f"input[{message_index}].content[{part_index}].type", kind)
        case ToolNameTaken(index, name, team):
            return tool_name_taken(f"tools[{index}].name", name, team)
        case InvalidResponseSchema(max_patterns):
            return invalid_schema("text.format", "text.format.schema", max_patterns)
        case ApprovalNotRequested() | DecisionsMissing() | ApprovalExpired() | ApprovalAlreadyDecided():
            return approval_error(error, "input")
        case _:
            return chat_error(error)


def problem_of_response(error: BaseException | Failed) -> ErrorResponse:
    """Return the error response for a request, or for a turn that failed before the first byte of its response."""
    if isinstance(error, RejectedRequest):
        return error_response(responses_error(error))
    problem = error_response(error)
    name = PARAMETERS.get(problem.param or "")
    if name is None or not isinstance(error, Failed):
        return problem
    message = problem.message.replace(f"'{problem.param}'", f"'{name}'")
    return msgspec.structs.replace(problem, param=name, message=message)
