"""Classification of error responses: status, error object and headers become an ``UpstreamFailed``.

The provider's message is only searched for known phrases; it is never part of the exception's message.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from proxy.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    UpstreamAuthFailed,
    UpstreamBadRequest,
    UpstreamFailed,
    UpstreamModelNotFound,
    UpstreamProtocolError,
    UpstreamQuotaExceeded,
    UpstreamRateLimited,
)
from proxy.providers.openai.context_errors import stated_size, stated_window
from proxy.providers.openai.error_report import report
from proxy.providers.openai.rejection import error_object, message_of

MAX_RETRY_AFTER = 3600.0
# Of OpenAI, Azure, vLLM, llama.cpp, Anthropic, OpenRouter and those who follow them. Codes and types first;
# several report an exceeded context length only in their message.
_FILTER_CODES = frozenset(
    {"content_filter", "content_policy_violation", "responsibleaipolicyviolation", "moderation_blocked"}
)
_LENGTH_CODES = frozenset(
    {
        "context_length_exceeded",
        "exceed_context_size_error",
        "model_context_window_exceeded",
        "request_too_large",
        "1261",
    }
)
_LENGTH_WORDS = re.compile(
    r"context (length|window|size)|maximum context|(prompt|input|request) is too long|too many (input )?tokens"
    r"|(input )?token count .{0,40}exceeds|maximum prompt length|model token limit|prompt exceeds max length"
    r"|request too large|inputs`? tokens? \+|when context the overflows",
    re.IGNORECASE,
)
_QUOTA_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"}
)
_RATE_CODES = frozenset({"rate_limit_exceeded", "rate_limit_error", "requests", "tokens"})
_INVALID_OUTPUT_CODES = frozenset({"tool_use_failed", "output_parse_failed", "json_validate_failed"})
"""The model wrote a call or an answer that its provider cannot read (Groq); another attempt usually works."""
_AUTH_CODES = frozenset({"invalid_api_key", "authentication_error", "permission_error"})


def refusal(status: int, body: bytes | object, headers: Mapping[str, str]) -> UpstreamFailed:
    """Return what an answer with this status means; ``body`` is its text, or its JSON if already decoded."""
    failure = _status_failure(status, error_object(body), retry_after(headers))
    # Non-standard header that the official SDKs check before the status (openai-python, ``BaseClient._should_retry``).
    if (should_retry := headers.get("x-should-retry")) in ("true", "false"):
        failure.is_retryable = should_retry == "true"
    return failure


def _status_failure(status: int, error: Mapping[str, Any], wait: float | None) -> UpstreamFailed:
    codes, words = _signs(error)
    if 300 <= status < 400:
        return UpstreamProtocolError("protocol")
    if status in (401, 403):
        return UpstreamAuthFailed("auth")
    if status == 404:
        return UpstreamModelNotFound("not_found")
    if status == 402 or (status == 429 and codes & _QUOTA_CODES):
        return UpstreamQuotaExceeded("quota")
    if status == 429:
        return UpstreamRateLimited("rate_limited", is_retryable=True, retry_after=wait)
    if status in (408, 409, 425) or status >= 500:
        return UpstreamFailed("status_5xx", is_retryable=True, retry_after=wait)
    return _invalid_output(error, codes) or _bad_request(error, codes, words)


def error_event(error: object) -> UpstreamFailed:
    """Return what an error object inside a stream means. There is no status, so its codes have to do."""
    failure = _event_failure(error)
    failure.error = error
    failure.facts = report(None, error)
    return failure


def _event_failure(error: object) -> UpstreamFailed:
    found = error_object(error)
    codes, words = _signs(found)
    status = found.get("code", found.get("status"))
    if isinstance(status, int) and 400 <= status < 600:
        return refusal(status, found, {})
    if codes & _QUOTA_CODES:
        return UpstreamQuotaExceeded("quota")
    if codes & _RATE_CODES:
        return UpstreamRateLimited("rate_limited", is_retryable=True)
    if codes & _AUTH_CODES:
        return UpstreamAuthFailed("auth")
    if invalid := _invalid_output(found, codes):
        return invalid
    bad = _bad_request(found, codes, words)
    if isinstance(bad, UpstreamBadRequest) and "invalid_request_error" not in codes:
        return UpstreamFailed("error_event", is_retryable=True)
    return bad


def error_code(body: bytes) -> str:
    """Return the ``code`` of an error; empty if it has none."""
    value = error_object(body).get("code")
    return value if isinstance(value, str) else ""


def error_message(body: bytes) -> str:
    """Return the message of an error, for a search; it must not be shown."""
    return message_of(error_object(body))


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return for how many seconds the provider wants to be left alone, at most an hour; None for no or nonsense."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if not value:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            seconds = _seconds_until(value, time.time() if now is None else now)
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, MAX_RETRY_AFTER)
    return None


def _seconds_until(date: str, now: float) -> float:
    try:
        when = parsedate_to_datetime(date)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError):
        return math.nan


def _invalid_output(error: Mapping[str, Any], codes: set[str]) -> UpstreamFailed | None:
    is_invalid = bool(codes & _INVALID_OUTPUT_CODES) or isinstance(error.get("failed_generation"), str)
    return UpstreamFailed("invalid_output", is_retryable=True) if is_invalid else None


def _bad_request(error: Mapping[str, Any], codes: set[str], words: str) -> UpstreamFailed:
    if codes & _FILTER_CODES:
        return ContentFiltered("content_filter")
    if codes & _LENGTH_CODES or _LENGTH_WORDS.search(words):
        return ContextLengthExceeded(window=stated_window(error, words), tokens=stated_size(error, words))
    return UpstreamBadRequest("bad_request")


def _signs(error: Mapping[str, Any]) -> tuple[set[str], str]:
    """Return the codes (lower case) and the words of an error object."""
    inner = error.get("innererror")
    found = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    codes = {code.lower() for code in found if isinstance(code, str)}
    return codes, message_of(error)[:2000]
