"""Response objects of the OpenAI API, with fields in the order of the API reference."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from proxy.messages import FinishReason, FunctionCall, ToolCall, Usage
from proxy.wire.chat.extension_objects import Summary, TeamBody

encode = msgspec.json.Encoder().encode

# --- usage ---------------------------------------------------------------------------------------------------


class PromptDetails(Struct, frozen=True):
    """Breakdown of the prompt tokens."""

    cached_tokens: int
    audio_tokens: int


class CompletionDetails(Struct, frozen=True):
    """Breakdown of the completion tokens."""

    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class UsageBody(Struct, frozen=True):
    """Token usage of the whole turn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage_body(usage: Usage) -> UsageBody:
    """Return the usage object."""
    return UsageBody(
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        total_tokens=usage.prompt + usage.completion,
        prompt_tokens_details=PromptDetails(usage.cached, usage.audio_prompt),
        completion_tokens_details=CompletionDetails(
            usage.reasoning, usage.audio_completion, usage.accepted_prediction, usage.rejected_prediction
        ),
    )


# --- a completion --------------------------------------------------------------------------------------------


class Logprobs(Struct, frozen=True):
    """Log probabilities of the tokens of the text or the refusal."""

    content: list[Any] | None
    refusal: list[Any] | None = None


class AnswerMessage(Struct, frozen=True, kw_only=True):
    """The assistant message. ``tool_calls`` is omitted if there are none: clients treat an empty list as tool calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET
    """Not in the OpenAI API; introduced by DeepSeek, supported by vLLM and many frontends."""
    annotations: list[Any] = []
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class Choice(Struct, frozen=True):
    """The only choice."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class Completion(Struct, frozen=True, kw_only=True):
    """The response to a request without streaming."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: UsageBody
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str | UnsetType = UNSET
    handoff: Summary | UnsetType = UNSET
    """Extension of this proxy (``extension_objects``)."""


# --- chunks of a stream --------------------------------------------------------------------------------------


class CallStart(Struct, frozen=True):
    """``function`` of the first delta of a tool call."""

    name: str
    arguments: str = ""


class CallMore(Struct, frozen=True):
    """``function`` of further deltas of a tool call."""

    arguments: str


class FirstCallPiece(Struct, frozen=True, kw_only=True):
    """First delta of a tool call, the only one with id, type and name."""

    index: int
    id: str
    type: Literal["function"] = "function"
    function: CallStart


class CallPiece(Struct, frozen=True):
    """Further delta of a tool call."""

    index: int
    function: CallMore


class Delta(Struct, frozen=True, omit_defaults=True):
    """The delta of a chunk; unset fields are omitted."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[FirstCallPiece | CallPiece] | UnsetType = UNSET
    function_call: CallStart | CallMore | UnsetType = UNSET


# --- models --------------------------------------------------------------------------------------------------


class ModelBody(Struct, frozen=True, kw_only=True):
    """A model in ``/v1/models``. Fields after ``owned_by`` are not in the OpenAI API."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    name: str | UnsetType = UNSET
    context_length: int | UnsetType = UNSET
    max_model_len: int | UnsetType = UNSET
    """The context length under vLLM's name; clients read either field."""
    handoff: TeamBody | UnsetType = UNSET


class ModelList(Struct, frozen=True, kw_only=True):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


# --- errors --------------------------------------------------------------------------------------------------


class ErrorBody(Struct, frozen=True):
    """The error object; all four keys are always present."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(Struct, frozen=True):
    """The body of every error response, and the data of an error event in a stream."""

    error: ErrorBody


class DetailedEnvelope(Struct, frozen=True):
    """The error envelope with the message repeated as ``detail``, for clients of legacy endpoints."""

    error: ErrorBody
    detail: str
