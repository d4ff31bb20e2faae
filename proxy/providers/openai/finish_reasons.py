"""Finish reasons of the families of providers, and what each of them means. All are in lower case."""

from __future__ import annotations

from typing import Final

from proxy.messages import FinishReason
from proxy.providers.openai.tool_call_assembler import Ending

_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    # Names of other families, in lower case.
    "max_tokens": "length",
    "max_output_tokens": "length",
    "max_length": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "sensitive": "content_filter",
    "safety": "content_filter",
    "prohibited_content": "content_filter",
    "blocklist": "content_filter",
    "recitation": "content_filter",
    "spii": "content_filter",
}
FAILURES: Final = frozenset(
    {
        "abort",
        "aborted",
        "error",
        "insufficient_system_resource",
        "malformed_function_call",
        "network_error",
        "server_error",
    }
)
"""Finish reasons of an answer that failed at the provider (Zhipu, OpenRouter, vLLM, DeepSeek, Gemini)."""
NO_REASONS: Final = frozenset({"", "null", "none", "finish_reason_unspecified"})
"""Values that mean that there is no reason yet."""


def ending_of(reason: str | None) -> Ending:
    """Return whether the calls of an answer that ended so are whole."""
    known = _REASONS.get(reason or "")
    if known is None:
        return "unknown"
    return "cut_short" if known in ("length", "content_filter") else "whole"


def finish_reason(reason: str | None, *, has_calls: bool) -> FinishReason:
    """Return the finish reason of an answer; an unknown one is ``stop``."""
    if has_calls and ending_of(reason) != "cut_short":
        # OpenAI sends "stop" when ``tool_choice`` names a function; some providers send it for all calls.
        return "tool_calls"
    known = _REASONS.get(reason or "", "stop")
    return "stop" if known == "tool_calls" and not has_calls else known
