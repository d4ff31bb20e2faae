"""Errors that were worded for chat completions, in the words of the Responses API: the same mistake, another path."""

from __future__ import annotations

import re

import msgspec

from proxy.errors import InvalidRequest
from proxy.events import Failed
from proxy.wire.errors import Problem, problem_of

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
    return msgspec.structs.replace(problem, param="input") if problem.param == "messages" else problem
