"""What a provider's refusal means: status, error object and headers become an ``UpstreamFailed``.

The provider's words are only searched for well-known signs; they are never part of what is raised.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

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

MAX_RETRY_AFTER = 3600.0
MAX_ERROR_SEARCH = 300
"""Characters of an error's message in which the name of a rejected field is searched."""
MAX_DETAILS = 100
# A name followed by a colon or an equals sign is a key of an echoed request.
_NAME = re.compile(r"""\b[a-z_]++(?:\.[a-z_]++)*+(?!["'`]?\s*[:=])""")

# Of OpenAI, Azure, vLLM, llama.cpp, Anthropic, OpenRouter and those who follow them. Codes and types first;
# several tell the length of the context only in their message.
_FILTER_CODES = frozenset(
    {"content_filter", "content_policy_violation", "responsibleaipolicyviolation", "moderation_blocked"}
)
_LENGTH_CODES = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "model_context_window_exceeded"}
)
_LENGTH_WORDS = re.compile(
    r"context (length|window|size)|maximum context|prompt is too long|input is too long|too many (input )?tokens",
    re.IGNORECASE,
)
_QUOTA_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"}
)
_RATE_CODES = frozenset({"rate_limit_exceeded", "rate_limit_error", "requests", "tokens"})
_AUTH_CODES = frozenset({"invalid_api_key", "authentication_error", "permission_error"})


def refusal(status: int, body: bytes | object, headers: Mapping[str, str]) -> UpstreamFailed:
    """Return what an answer with this status means; ``body`` is its text, or its JSON if already decoded."""
    codes, words = _signs(_error_object(body))
    wait = retry_after(headers)
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
        # Their SDKs obey this header as well.
        may_retry = headers.get("x-should-retry") != "false"
        return UpstreamFailed("status_5xx", is_retryable=may_retry, retry_after=wait)
    return _bad_request(codes, words)


def error_event(error: object) -> UpstreamFailed:
    """Return what an error object inside a stream means; nobody told a status, so its codes have to do."""
    found = _error_object(error)
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
    bad = _bad_request(codes, words)
    if isinstance(bad, UpstreamBadRequest) and "invalid_request_error" not in codes:
        return UpstreamFailed("error_event", is_retryable=True)
    return bad


def rejected_fields(body: bytes, known: Collection[str]) -> frozenset[str]:
    """Return those of the ``known`` request fields that an error rejects.

    ``param`` (OpenAI) or ``loc`` (Mistral, vLLM and others that validate with pydantic) decides if the error has one.
    Otherwise the beginning of the error's own message is searched. The rest of the body may echo the request, and a
    caller must not be able to name fields there.
    """
    error = _error_object(body)
    param = error.get("param")
    message = error.get("message")
    places = [param] if isinstance(param, str) and param else [*_locations(error), *_locations(message)]
    if places:
        return frozenset(
            name for name in known for place in places if place == name or place.startswith(f"{name}.")
        )
    if not isinstance(message, str):
        return frozenset()
    words = _NAME.findall(message[:MAX_ERROR_SEARCH].partition("{")[0])
    return frozenset(known).intersection(words)


def _locations(error: object) -> list[str]:
    """Return the ``loc`` of each validation error as a dotted name, without its first member ``body``."""
    details = error.get("detail") if isinstance(error, dict) else None
    if not isinstance(details, list):
        return []
    places = []
    for detail in details[:MAX_DETAILS]:
        place = detail.get("loc") if isinstance(detail, dict) else None
        if isinstance(place, list) and place:
            places.append(".".join(str(part) for part in place[place[0] == "body" :]))
    return places


def error_code(body: bytes) -> str:
    """Return the ``code`` of an error; empty if it has none."""
    return _member(body, "code")


def error_message(body: bytes) -> str:
    """Return the message of an error, for a search; it is not to be shown."""
    return _member(body, "message")


def _member(body: bytes, name: str) -> str:
    value = _error_object(body).get(name)
    return value if isinstance(value, str) else ""


def retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Return for how many seconds the provider wants to be left alone, at most an hour; None for no or nonsense."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        told = headers.get(name, "").strip()
        if not told:
            continue
        try:
            seconds = float(told) / unit
        except ValueError:
            seconds = _seconds_until(told, time.time() if now is None else now)
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, MAX_RETRY_AFTER)
    return None


def _seconds_until(date: str, now: float) -> float:
    try:
        when = parsedate_to_datetime(date)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, OverflowError):
        return math.nan


def _bad_request(codes: set[str], words: str) -> UpstreamFailed:
    if codes & _FILTER_CODES:
        return ContentFiltered("content_filter")
    if codes & _LENGTH_CODES or _LENGTH_WORDS.search(words):
        return ContextLengthExceeded("context_length")
    return UpstreamBadRequest("bad_request")


def _error_object(body: bytes | object) -> dict[str, Any]:
    if isinstance(body, bytes):
        try:
            body = msgspec.json.decode(body)
        except (ValueError, RecursionError):
            return {}
    if isinstance(body, list) and body:
        # Google wraps the envelope in an array.
        body = body[0]
    if not isinstance(body, dict):
        return {"message": body} if isinstance(body, str) else {}
    inner = body.get("error", body)
    return inner if isinstance(inner, dict) else {"message": inner}


def _signs(error: Mapping[str, Any]) -> tuple[set[str], str]:
    """Return the codes (lower case) and the words of an error object."""
    inner = error.get("innererror")
    told = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    words = error.get("message")
    codes = {code.lower() for code in told if isinstance(code, str)}
    return codes, words[:2000] if isinstance(words, str) else ""
