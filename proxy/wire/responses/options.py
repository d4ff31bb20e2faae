"""Options of the response encoder, and the Response object."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from proxy.events import Failed
from proxy.messages import EventsMode, Usage
from proxy.wire.errors import error_response
from proxy.wire.responses.ids import response_id

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
Body = dict[str, Any]


class Echo(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Request parameters that the Response object repeats. The defaults are those of the OpenAI API."""

    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | None = None
    tools: list[Body] = []
    tool_choice: str | Body = "auto"
    parallel_tool_calls: bool = True
    text: Body = msgspec.field(default_factory=lambda: {"format": {"type": "text"}, "verbosity": "medium"})
    reasoning: Body = msgspec.field(default_factory=lambda: {"effort": None, "summary": None})
    temperature: float = 1.0
    top_p: float = 1.0
    top_logprobs: int = 0
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    truncation: str = "disabled"
    metadata: dict[str, str] = {}
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    background: bool = False
    store: bool = True


class ResponseOptions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Encoder options, stored with the turn so that its response can be encoded again.

    The first fields are those of ``chat.completion.AnswerOptions``: a turn can be encoded for either API.
    """

    id: str
    """Turn id."""
    created: int
    model: str
    logprobs: bool = False
    events: EventsMode = "none"
    hides_details: bool = False
    response: Echo = Echo()
    sums_up_reasoning: bool = False
    """Encode reasoning as a summary, where most clients read it."""
    asks_for_approval: bool = False
    """Encode approval requests as items."""
    shows_server_calls: bool = False
    """Whether handoffs and calls of server tools are ``mcp_call`` items."""
    shows_compactions: bool = False
    """Whether summaries of the earlier conversation are ``compaction`` items."""


encode_options = msgspec.json.Encoder().encode
decode_options = msgspec.json.Decoder(ResponseOptions).decode


def response_body(
    options: ResponseOptions,
    status: Status,
    *,
    output: list[Body],
    usage: Usage | None = None,
    error: Body | None = None,
    incomplete: str | None = None,
    completed_at: float | None = None,
    summary: Struct | None = None,
) -> Body:
    """Return the Response object with all fields of the OpenAI API; unset and unknown fields are null."""
    echo = options.response
    body: Body = {
        "id": response_id(options.id),
        "object": "response",
        "created_at": options.created,
        "status": status,
        "background": echo.background,
        "completed_at": None if completed_at is None else int(round(completed_at, 3)),
        "conversation": None if echo.conversation is None else {"id": echo.conversation},
        "error": error,
        "frequency_penalty": 0.0,
        "incomplete_details": None if incomplete is None else {"reason": incomplete},
        "instructions": echo.instructions,
        "max_output_tokens": echo.max_output_tokens,
        "max_tool_calls": echo.max_tool_calls,
        "model": options.model,
        "output": output,
        "parallel_tool_calls": echo.parallel_tool_calls,
        "presence_penalty": 0.0,
        "previous_response_id": echo.previous_response_id,
        "prompt_cache_key": echo.prompt_cache_key,
        "prompt_cache_retention": echo.prompt_cache_retention,
        "reasoning": echo.reasoning,
        "safety_identifier": echo.safety_identifier,
        "service_tier": "default",
        "store": echo.store,
        "temperature": echo.temperature,
        "text": echo.text,
        "tool_choice": echo.tool_choice,
        "tools": echo.tools,
        "top_logprobs": echo.top_logprobs,
        "top_p": echo.top_p,
        "truncation": echo.truncation,
        "usage": None if usage is None else usage_body(usage),
        "user": echo.user,
        "metadata": echo.metadata,
        **_UNSET,
    }
    if summary is not None:
        body["handoff"] = summary
    return body


_UNSET: Body = dict.fromkeys(
    (
        "access_programs",
        "image",
        "input_transformations",
        "moderation",
        "prompt",
        "prompt_cache_diagnostics",
        "prompt_cache_options",
        "tool_usage",
    )
)
"""Fields of the OpenAI API that this server does not set."""


def usage_body(usage: Usage) -> Body:
    """Return the usage object of the Responses API."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total,
    }


def error_body(failed: Failed) -> Body:
    """Return the error of a failed response; ``type`` is the error code of this server.

    The codes of the OpenAI API are a closed set (API reference, "The response object", ``error.code``). Clients repeat
    a response unless the code is ``invalid_prompt``, so this code is used if a repeat has side effects or cannot
    succeed.
    """
    problem = error_response(failed)
    if not failed.is_repeatable:
        code = "invalid_prompt"
    elif problem.status == 429:
        code = "rate_limit_exceeded"
    else:
        code = "server_error"
    return {"code": code, "message": failed.message, "param": problem.param, "type": failed.code}
