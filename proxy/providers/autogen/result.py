"""What the result at the end of an AutoGen client's stream adds to what was streamed."""

from __future__ import annotations

from typing import Literal

import msgspec
from autogen_core import FunctionCall
from autogen_core.models import CreateResult

from proxy.errors import UpstreamIncomplete, UpstreamProtocolError
from proxy.events import ReasoningDelta, TextDelta
from proxy.messages import FinishReason, Usage
from proxy.providers.model import Finished, ModelDelta, ToolCallPiece
from proxy.providers.openai.chat_usage import clean_usage
from proxy.providers.sanitize import clean

_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "function_calls": "tool_calls",
    "unknown": "stop",
}


ResultSource = Literal["reports usage", "ollama", "other"]
"""The client behind a result: one that was asked to have the usage sent, which comes last; Ollama's, whose API sends
the usage with the finish reason; another.
"""


def rest_of(result: CreateResult, *, has_said: bool, source: ResultSource = "other") -> list[ModelDelta]:
    """Return the deltas that were not streamed, ``Finished`` last.

    ``has_said``: something was streamed, so the text of the result is known already.

    Raises:
        UpstreamIncomplete: The stream was cut, as far as a result can show it: a call is half, or an answer has no
            reason, and neither text nor the usage that belongs to it.
        UpstreamProtocolError: A call has no name.
    """
    calls = result.content if isinstance(result.content, list) else []
    text = result.content if isinstance(result.content, str) else ""
    usage = _usage(result)
    deltas: list[ModelDelta] = []
    if not has_said:
        if result.thought:
            deltas.append(ReasoningDelta(clean(result.thought)))
        if text:
            deltas.append(TextDelta(clean(text)))
    is_empty = not (has_said or deltas or calls)
    if result.finish_reason == "unknown" and (is_empty or (source != "other" and usage is None)):
        raise UpstreamIncomplete("incomplete", is_retryable=True)
    reason: str = result.finish_reason
    if source == "ollama" and reason == "unknown" and not calls:
        # The client knows the reason "stop" only (``normalize_stop_reason``); Ollama's other one of an answer is
        # "length" (https://github.com/ollama/ollama/blob/main/llm/server.go).
        reason = "length"
    for index, call in enumerate(calls):
        if not call.name:
            raise UpstreamProtocolError("protocol")
        if _is_cut(call, result.finish_reason):
            raise UpstreamIncomplete("incomplete", is_retryable=True)
        deltas.append(ToolCallPiece(index, clean(call.arguments), call.name, call.id or None))
    return [*deltas, Finished(_reason(reason, has_calls=bool(calls)), usage)]


def _reason(given: str, *, has_calls: bool) -> FinishReason:
    reason = _REASONS.get(given, "stop")
    if reason in ("length", "content_filter"):
        return reason
    return "tool_calls" if has_calls else "stop"


def _usage(result: CreateResult) -> Usage | None:
    given = result.usage
    usage = clean_usage({"prompt_tokens": given.prompt_tokens, "completion_tokens": given.completion_tokens})
    # Clients that received no usage report zeros.
    return usage if usage is not None and usage.total else None


def _is_cut(call: FunctionCall, reason: str) -> bool:
    if reason not in ("unknown", "length", "content_filter"):
        return False
    if not call.arguments:
        return reason != "unknown"
    try:
        msgspec.json.decode(call.arguments)
    except (ValueError, RecursionError):
        return True
    return False
