"""What leaves, in the shapes of the OpenAI wire: fields in the order of the official API."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from proxy.messages import FinishReason, FunctionCall, ToolCall, Usage
from proxy.wire.chat.handoff_extension import Summary, TeamBody

encode = msgspec.json.Encoder().encode

# --- usage ---------------------------------------------------------------------------------------------------


class PromptDetails(Struct, frozen=True):
    """Parts of the prompt's tokens."""

    cached_tokens: int
    audio_tokens: int


class CompletionDetails(Struct, frozen=True):
    """Parts of the completion's tokens."""

    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class UsageBody(Struct, frozen=True):
    """Tokens of the whole turn."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage_body(usage: Usage) -> UsageBody:
    """Return the usage as it leaves."""
    return UsageBody(
        prompt_tokens=usage.prompt,
        completion_tokens=usage.completion,
        total_tokens=usage.total,
        prompt_tokens_details=PromptDetails(usage.cached, usage.audio_prompt),
        completion_tokens_details=CompletionDetails(
            usage.reasoning, usage.audio_completion, usage.accepted_prediction, usage.rejected_prediction
        ),
    )


# --- a completion --------------------------------------------------------------------------------------------


class Logprobs(Struct, frozen=True):
    """Log probabilities of the answer's tokens, or of those of a refusal."""

    content: list[Any] | None
    refusal: list[Any] | None = None


class AnswerMessage(Struct, frozen=True, kw_only=True):
    """The answer. ``tool_calls`` is left out when there are none: clients take an empty list for calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    reasoning_content: str | UnsetType = UNSET
    """Not of the official API; servers of reasoning models and frontends agree on it."""
    annotations: list[Any] = []
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class Choice(Struct, frozen=True):
    """The one choice."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class Completion(Struct, frozen=True, kw_only=True):
    """The answer to a request that was not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: UsageBody
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str | UnsetType = UNSET
    handoff: Summary | UnsetType = UNSET
    """Ours; see ``wire.extension``."""


# --- pieces of a stream --------------------------------------------------------------------------------------


class CallStart(Struct, frozen=True):
    """The function of a call's first piece."""

    name: str
    arguments: str = ""


class CallMore(Struct, frozen=True):
    """The function of a call's further pieces."""

    arguments: str


class FirstCallPiece(Struct, frozen=True, kw_only=True):
    """The first piece of a call, and the only one with id, type and name."""

    index: int
    id: str
    type: Literal["function"] = "function"
    function: CallStart


class CallPiece(Struct, frozen=True):
    """A further piece of a call."""

    index: int
    function: CallMore


class Delta(Struct, frozen=True, omit_defaults=True):
    """What one chunk adds; only what is set is sent."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[FirstCallPiece | CallPiece] | UnsetType = UNSET
    function_call: CallStart | CallMore | UnsetType = UNSET


# --- models --------------------------------------------------------------------------------------------------


class ModelBody(Struct, frozen=True, kw_only=True):
    """A model as it is listed; ``created`` has to be the same at each request. What follows it is not official."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    name: str | UnsetType = UNSET
    context_length: int | UnsetType = UNSET
    max_model_len: int | UnsetType = UNSET
    """The same in the words of another server; clients look for either."""
    handoff: TeamBody | UnsetType = UNSET


class ModelList(Struct, frozen=True, kw_only=True):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


# --- errors --------------------------------------------------------------------------------------------------


class ErrorBody(Struct, frozen=True):
    """An error; all four keys are always there."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(Struct, frozen=True):
    """The body of every answer with a status of 400 or more, and of an error in a stream."""

    error: ErrorBody


class DetailedEnvelope(Struct, frozen=True):
    """The same with the sentence beside it, for clients of older systems."""

    error: ErrorBody
    detail: str
