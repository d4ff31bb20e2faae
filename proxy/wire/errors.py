"""Map errors and failed turns to HTTP status, error type, code and headers.

One table by error code, so that an error is the same before the response starts, in a stream, and when it is replayed
from the store. Two conditions prevent a client from repeating the turn:

- The error is permanent (``is_permanent``: credentials or configuration of this server, a limit that the same turn
  reaches again). ``x-should-retry: false`` is sent, because the official SDKs retry a 5xx response twice
  (openai-python, ``BaseClient._should_retry``).
- A tool with side effects has run (``Failed.is_repeatable`` is false for a code that is not permanent). The same header
  is sent.

A stream has no status and no headers for its error. There the type has this function (``stream_error``): three of the
clients tested repeat the turn after an error frame of type ``server_error``, none after ``invalid_request_error``.
Therefore ``server_error`` appears in a stream only if a repeat has no side effects. The code does not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from proxy.errors import (
    BodyTooLarge,
    ConversationBusy,
    IdempotencyConflict,
    InternalTurnError,
    InvalidRequest,
    LogMemoryExhausted,
    NotFound,
    Overloaded,
    ProxyError,
    RateLimitExceeded,
    RequestBodyTimeout,
    ShuttingDown,
    StoreUnavailable,
    TurnFailed,
    Unauthorized,
    UnsupportedContentEncoding,
    UpstreamBadRequest,
    UpstreamFailed,
)
from proxy.events import Cancelled, Failed
from proxy.messages import Usage
from proxy.request_errors import RejectedRequest
from proxy.wire.chat.errors import chat_error
from proxy.wire.chat.response_models import DetailedEnvelope, ErrorBody, ErrorEnvelope, encode

MAX_RETRY_AFTER = 3600
_MAX_BYTES = 2000


class ErrorKind(Struct, frozen=True):
    """Status, type and retry behaviour of the errors with one code."""

    status: int
    type: str
    is_permanent: bool = False
    """A retry has the same result."""
    retry_after: float | None = None
    """Default in seconds for errors without ``retry_after``."""
    param: str | None = None


_INTERNAL = ErrorKind(500, "server_error")
_ERROR_KINDS: dict[str, ErrorKind] = {
    "invalid_api_key": ErrorKind(401, "invalid_request_error"),
    "model_not_found": ErrorKind(404, "invalid_request_error"),
    "conversation_busy": ErrorKind(409, "invalid_request_error", retry_after=1),
    "idempotency_key_reused": ErrorKind(409, "invalid_request_error", is_permanent=True),
    "turn_failed": _INTERNAL,
    "internal_error": _INTERNAL,
    "upstream_error": ErrorKind(502, "upstream_error"),
    "upstream_unreachable": ErrorKind(502, "upstream_error"),
    "upstream_timeout": ErrorKind(504, "upstream_error"),
    "upstream_auth_failed": ErrorKind(502, "upstream_error", is_permanent=True),
    "upstream_model_not_found": ErrorKind(502, "upstream_error", is_permanent=True),
    "upstream_bad_request": ErrorKind(400, "invalid_request_error", is_permanent=True),
    "context_length_exceeded": ErrorKind(400, "invalid_request_error", is_permanent=True, param="messages"),
    "content_filter": ErrorKind(400, "invalid_request_error", is_permanent=True),
    "upstream_rate_limited": ErrorKind(429, "rate_limit_error"),
    "upstream_quota_exceeded": ErrorKind(429, "upstream_error", is_permanent=True),
    "upstream_protocol_error": ErrorKind(502, "upstream_error"),
    "upstream_incomplete": ErrorKind(502, "upstream_error"),
    "upstream_too_much": ErrorKind(502, "upstream_error"),
    "upstream_circuit_open": ErrorKind(503, "upstream_error", retry_after=10),
    # A repeat of the turn would loop, or take as long, again.
    "agent_error": ErrorKind(502, "server_error", is_permanent=True),
    "agent_failed": ErrorKind(502, "server_error"),
    "response_format_not_met": ErrorKind(502, "server_error"),
    "turn_timeout": ErrorKind(504, "server_error", is_permanent=True),
    "answer_not_stored": ErrorKind(409, "invalid_request_error", is_permanent=True),
    "turn_interrupted": ErrorKind(503, "server_error", retry_after=1),
    "turn_taken_over": ErrorKind(409, "server_error", retry_after=1),
    "turn_lease_lost": ErrorKind(503, "server_error", retry_after=1),
    "storage_unavailable": ErrorKind(503, "server_error", retry_after=2),
    "rate_limit_exceeded": ErrorKind(429, "rate_limit_error"),
    "server_is_overloaded": ErrorKind(503, "server_error", retry_after=1),
    "log_memory_exhausted": ErrorKind(503, "server_error", retry_after=2),
    # The turn has ended and can have had side effects; its response is stored.
    "log_discarded": ErrorKind(503, "server_error", is_permanent=True),
    "shutting_down": ErrorKind(503, "server_error", retry_after=2),
    # Rejected after the start of the turn; before it, an InvalidRequest has more details.
    "invalid_request": ErrorKind(400, "invalid_request_error", is_permanent=True),
    # Not 409, which the official SDKs retry.
    "turn_cancelled": ErrorKind(400, "invalid_request_error", is_permanent=True),
}


class ErrorResponse(Struct, frozen=True):
    """An error response: status, body fields and headers."""

    status: int
    type: str
    message: str
    code: str | None = None
    param: str | None = None
    should_retry: bool | None = None
    """Value of ``x-should-retry``; None for no header, so that the rules of the client apply."""
    retry_after: float | None = None
    headers: dict[str, str] = {}
    has_detail: bool = False
    """Repeat the message as ``detail``, where clients of the legacy endpoints read it (FastAPI's error format)."""


def error_response_with_detail(error: BaseException | Failed) -> ErrorResponse:
    """Return the error response of a legacy endpoint."""
    return msgspec.structs.replace(error_response(error), has_detail=True)


def error_response(error: BaseException | Failed) -> ErrorResponse:
    """Return the response for an error; an unexpected exception becomes an internal error without details."""
    match error:
        case Failed():
            return _response_of_failed(error)
        case RejectedRequest():
            return error_response(chat_error(error))
        case InvalidRequest():
            return ErrorResponse(400, "invalid_request_error", error.message, error.code, error.param)
        case BodyTooLarge():
            return ErrorResponse(413, "server_error", error.message)
        case UnsupportedContentEncoding():
            # RFC 9110, 12.5.3: in a 415 the header lists the codings that requests can have.
            accepted = {"Accept-Encoding": "gzip"}
            return ErrorResponse(415, "invalid_request_error", error.message, error.code, headers=accepted)
        case RequestBodyTimeout():
            # The rest of the body can still arrive: close the connection (RFC 9110, 15.5.9).
            closing = {"Connection": "close"}
            return ErrorResponse(408, "invalid_request_error", error.message, error.code, headers=closing)
        case Unauthorized():
            challenge = {"WWW-Authenticate": "Bearer"}
            return ErrorResponse(401, "invalid_request_error", error.message, error.code, headers=challenge)
        case NotFound():
            return ErrorResponse(404, "invalid_request_error", error.message, error.code)
        case (
            ConversationBusy()
            | IdempotencyConflict()
            | LogMemoryExhausted()
            | Overloaded()
            | RateLimitExceeded()
            | StoreUnavailable()
            | ShuttingDown()
            | TurnFailed()
        ):
            return _response_of_failed(failed_event(error, Usage(), ran_effects=False))
        case _:
            return error_response(InternalTurnError())


def _response_of_failed(failed: Failed) -> ErrorResponse:
    kind = _ERROR_KINDS.get(failed.code, _INTERNAL)
    is_final = kind.is_permanent or not failed.is_repeatable
    return ErrorResponse(
        status=kind.status,
        type=kind.type,
        message=failed.message,
        code=failed.code,
        param=failed.param or kind.param,
        # Clients do not retry other 4xx statuses, so these need no header.
        should_retry=False if is_final and (kind.status >= 500 or kind.status in (408, 409, 429)) else None,
        retry_after=None if is_final and kind.status != 429 else failed.retry_after or kind.retry_after,
    )


def stream_error(failed: Failed) -> ErrorResponse:
    """Return the error of a stream that has begun; its type says whether a client may repeat the turn by itself."""
    problem = error_response(failed)
    is_permanent = _ERROR_KINDS.get(failed.code, _INTERNAL).is_permanent
    may_repeat = failed.is_repeatable if not is_permanent else problem.type != "server_error"
    return problem if may_repeat else msgspec.structs.replace(problem, type="invalid_request_error")


def envelope(error: BaseException | Failed | ErrorResponse) -> bytes:
    """Return the JSON body of an error response, at most 2 kB."""
    problem = error if isinstance(error, ErrorResponse) else error_response(error)
    for limit in (1000, 100):
        param = None if problem.param is None else _cut(problem.param, 100)
        body = ErrorBody(_cut(problem.message, limit), problem.type, param, problem.code)
        encoded = encode(DetailedEnvelope(body, body.message) if problem.has_detail else ErrorEnvelope(body))
        if len(encoded) <= _MAX_BYTES:
            break
    return encoded


def error_body(error: BaseException | Failed | ErrorResponse) -> ErrorBody:
    """Return the error object for other JSON bodies; its message has at most 1,000 characters."""
    problem = error if isinstance(error, ErrorResponse) else error_response(error)
    return ErrorBody(_cut(problem.message, 1000), problem.type, problem.param, problem.code)


def headers_of(error: BaseException | Failed | ErrorResponse) -> dict[str, str]:
    """Return the headers of an error: ``Retry-After`` (RFC 9110, 10.2.3), ``retry-after-ms`` and ``x-should-retry``.

    The last two are not standard; the official SDKs read them (openai-python, ``BaseClient._should_retry``).
    """
    problem = error if isinstance(error, ErrorResponse) else error_response(error)
    headers = dict(problem.headers)
    if problem.should_retry is not None:
        headers["x-should-retry"] = "true" if problem.should_retry else "false"
    if problem.retry_after is not None and math.isfinite(problem.retry_after):
        seconds = min(max(problem.retry_after, 0.001), MAX_RETRY_AFTER)
        headers["Retry-After"] = str(math.ceil(seconds))
        headers["retry-after-ms"] = str(math.ceil(seconds * 1000))
    return headers


def failed_event(error: BaseException, usage: Usage, *, ran_effects: bool, request_id: str = "") -> Failed:
    """Return the closing event of a failed turn; ``ran_effects`` is true if a tool with side effects has run.

    If a provider rejected the request without naming a parameter, the message has ``request_id``, by which the
    operator finds the provider's error in the log.
    """
    if isinstance(error, RejectedRequest):
        error = chat_error(error)
    code = "invalid_request" if isinstance(error, InvalidRequest) else getattr(error, "code", None)
    if not isinstance(error, ProxyError) or code not in _ERROR_KINDS:
        error, code = InternalTurnError(), InternalTurnError.code
    # A TLS error is a configuration error; other connection errors are temporary.
    is_permanent = _ERROR_KINDS[code].is_permanent or (
        isinstance(error, UpstreamFailed) and error.label == "tls"
    )
    message = error.message
    if request_id and isinstance(error, UpstreamBadRequest) and error.param is None:
        message = f"{message} (Request ID: {request_id})"
    return Failed(
        code=code,
        message=message,
        usage=usage,
        retry_after=getattr(error, "retry_after", None),
        is_repeatable=not ran_effects and not is_permanent,
        param=getattr(error, "param", None),
    )


def failure_of(event: Cancelled, *, ran: Sequence[str]) -> Failed:
    """Return the failure that readers of a cancelled turn receive.

    ``ran`` are the names of the tools that have run; whether they have side effects is not known here, so they are
    assumed.
    """
    suffix = f" {tools_that_ran(ran)}" if ran else ""
    if event.reason == "shutting_down":
        failed = failed_event(ShuttingDown(), event.usage, ran_effects=bool(ran))
        return msgspec.structs.replace(failed, message=failed.message + suffix)
    return Failed("turn_cancelled", f"The turn was cancelled before it was complete.{suffix}", event.usage)


def tools_that_ran(names: Sequence[str]) -> str:
    """Return the sentences about the tools of a turn that did not complete."""
    listed = ", ".join(dict.fromkeys(names))
    return (
        f"Tools of the turn had been called: {listed}. A repetition of the request does not call them again."
    )


def invalid_url(method: str, path: str) -> ErrorResponse:
    """Return the error for an unknown path."""
    return ErrorResponse(404, "invalid_request_error", f"Invalid URL ({method} {_cut(path, 100)})")


def method_not_allowed(method: str, path: str, *, allow: str) -> ErrorResponse:
    """Return the error for an unsupported method; ``allow`` is the ``Allow`` header (RFC 9110, 15.5.6)."""
    message = f"Not allowed to {method} on {_cut(path, 100)} (allowed: {allow})."
    return ErrorResponse(
        405, "invalid_request_error", message, "method_not_supported", headers={"Allow": allow}
    )


def forbidden_origin(origin: str) -> ErrorResponse:
    """Return the error for a request from an origin that is not allowed."""
    message = f"Origin '{_cut(origin, 100)}' is not allowed. Add it to PROXY_CORS_ORIGINS."
    return ErrorResponse(403, "invalid_request_error", message, "origin_not_allowed")


def forbidden_host(name: str) -> ErrorResponse:
    """Return the error for a ``Host`` that is not allowed, which prevents DNS rebinding."""
    message = f"Host '{_cut(name, 100)}' is not allowed. Add it to PROXY_ALLOWED_HOSTS."
    return ErrorResponse(403, "invalid_request_error", message, "host_not_allowed")


def _cut(text: str, limit: int) -> str:
    text = text.encode(
        "utf-8", "replace"
    ).decode()  # UTF-8 cannot encode unpaired surrogates, which a path can have
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def loopback_only() -> ErrorResponse:
    """Return the error for a connection from another machine to a server without API keys."""
    message = (
        "This server has no API keys and accepts only connections to loopback addresses. "
        "Set PROXY_API_KEYS, or PROXY_ALLOW_OPEN=true."
    )
    return ErrorResponse(403, "invalid_request_error", message, "api_keys_required")
