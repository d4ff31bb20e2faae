"""Errors that were worded for chat completions, in the words of the Responses API: the same mistake, another path."""

from __future__ import annotations

import re

import msgspec

from proxy.errors import InvalidRequest
from proxy.events import Failed
from proxy.wire.errors import Problem, problem_of

PARAMETERS = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages.name": "input.name",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}
"""Parameters of chat completions that have another name in the Responses API."""
_PATHS = (
    (re.compile(r"\b(tools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"\bresponse_format\.json_schema\b"), "text.format"),
    (re.compile(r"\bresponse_format\b"), "text.format"),
    (re.compile(r"\blogprobs\b"), "top_logprobs"),
)


def reworded(error: InvalidRequest) -> InvalidRequest:
    """Return the refusal with the paths that the caller knows."""
    message, param = error.message, error.param
    for pattern, path in _PATHS:
        message = pattern.sub(path, message)
        param = pattern.sub(path, param) if param is not None else None
    return InvalidRequest(message, param=param, code=error.code)


def problem_of_response(failure: Failed) -> Problem:
    """Return how a failed response leaves before its first byte."""
    problem = problem_of(failure)
    if problem.param == "messages":
        return msgspec.structs.replace(problem, param="input")
    if (name := PARAMETERS.get(problem.param or "")) is not None:
        message = problem.message.replace(f"'{problem.param}'", f"'{name}'")
        return msgspec.structs.replace(problem, param=name, message=message)
    return problem
