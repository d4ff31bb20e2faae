"""Error texts of the Responses API, whose parameters have other names than those of chat completions."""

from __future__ import annotations

import msgspec

from proxy import request_errors as rejected
from proxy.errors import InvalidRequest
from proxy.events import Failed
from proxy.wire.chat.errors import ID_LIMIT, ParameterNames, chat_error
from proxy.wire.errors import ErrorResponse, error_response
from proxy.wire.responses.ids import response_id

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


NAMES = ParameterNames("input", "tools[{}].name", "text.format", "text.format.schema", "input")


def responses_error(error: rejected.RejectedRequest) -> InvalidRequest:
    """Return the error with the text and the parameter names of the Responses API."""
    match error:
        case rejected.ParentNotFound(reference):
            text = f"Previous response with id '{response_id(reference)[:128]}' not found."
            return InvalidRequest(text, param="previous_response_id", code="previous_response_not_found")
        case rejected.ToolCallNotFound(call_id):
            text = f"No tool call found for function call output with call_id {call_id[:ID_LIMIT]}."
            return InvalidRequest(text, param="input")
        case rejected.ToolResultsMissing(call_ids):
            calls = "call" if len(call_ids) == 1 else "calls"
            text = f"No tool output found for function {calls} {', '.join(call_ids)}."
            return InvalidRequest(text, param="input")
        case rejected.ToolCallsNotStored():
            text = (
                "The tool calls for these outputs were not stored ('store' is false). Send the complete input, "
                "including the 'function_call' items."
            )
            return InvalidRequest(text, param="input")
        case rejected.ParameterNotSupported(name):
            return chat_error(rejected.ParameterNotSupported(PARAMETERS.get(name, name)))
        case _:
            return chat_error(error, NAMES)


def problem_of_response(error: BaseException | Failed) -> ErrorResponse:
    """Return the error response for a request, or for a turn that failed before the first byte of its response."""
    if isinstance(error, rejected.RejectedRequest):
        return error_response(responses_error(error))
    problem = error_response(error)
    name = PARAMETERS.get(problem.param or "")
    if name is None or not isinstance(error, Failed):
        return problem
    message = problem.message.replace(f"'{problem.param}'", f"'{name}'")
    return msgspec.structs.replace(problem, param=name, message=message)
