"""How an error leaves: status, type and headers, for what is raised and for turns that ended badly.

One table, keyed by code, so that a failure reads the same when it is raised before the first byte, written into a
stream, or replayed from the store. Two questions decide whether a client runs the turn again:

- *Can a repeat mend it?* Where it cannot (``is_hopeless``: our credentials, our set-up, a limit that the same turn
  will reach again), ``x-should-retry: false`` is sent, because the official SDKs would repeat a 5xx twice.
- *Would a repeat do harm?* Once a tool with effects has run (``Failed.is_repeatable`` is false although the code is
  not hopeless), the same header is sent, and the type becomes ``invalid_request_error``: three of the clients that
  were tried run the whole turn again on an error frame of type ``server_error``, none of them on this one.

So ``server_error`` stands in a stream only while a repeat is harmless, and clients that read neither header nor type
are left with the code, which never changes.
"""

from __future__ import annotations

import math

import msgspec
from msgspec import Struct

from proxy.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ConversationBusy,
    IdempotencyConflict,
    InternalTurnError,
    InvalidRequest,
    LogMemoryExhausted,
    NotFound,
    Overloaded,
    ProxyError,
    RateLimitExceeded,
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


class Kind(Struct, frozen=True):
    """How errors of one code leave."""

    status: int
    type: str
    is_hopeless: bool = False
    """Asking again changes nothing."""
    retry_after: float | None = None
    """Seconds, for errors that do not say it themselves."""
    param: str | None = None


_INTERNAL = Kind(500, "server_error")
_KINDS: dict[str, Kind] = {
    "invalid_api_key": Kind(401, "invalid_request_error"),
    "model_not_found": Kind(404, "invalid_request_error"),
    "conversation_busy": Kind(409, "invalid_request_error", retry_after=1),
    "idempotency_key_reused": Kind(409, "invalid_request_error", is_hopeless=True),
    "turn_failed": _INTERNAL,
    "internal_error": _INTERNAL,
    "upstream_error": Kind(502, "upstream_error"),
    "upstream_unreachable": Kind(502, "upstream_error"),
    "upstream_timeout": Kind(504, "upstream_error"),
    "upstream_auth_failed": Kind(502, "upstream_error", is_hopeless=True),
    "upstream_model_not_found": Kind(502, "upstream_error", is_hopeless=True),
    "upstream_bad_request": Kind(400, "invalid_request_error", is_hopeless=True),
    "context_length_exceeded": Kind(400, "invalid_request_error", is_hopeless=True, param="messages"),
    "content_filter": Kind(400, "invalid_request_error", is_hopeless=True),
    "upstream_rate_limited": Kind(429, "rate_limit_error"),
    "upstream_quota_exceeded": Kind(429, "upstream_error", is_hopeless=True),
    "upstream_protocol_error": Kind(502, "upstream_error"),
    "upstream_incomplete": Kind(502, "upstream_error"),
    "upstream_too_much": Kind(502, "upstream_error"),
    "upstream_circuit_open": Kind(503, "upstream_error", retry_after=10),
    # The same turn would loop, or take as long, again.
    "agent_error": Kind(502, "agent_error", is_hopeless=True),
    "tool_loop_limit": Kind(502, "agent_error", is_hopeless=True),
    "response_format_not_met": Kind(502, "agent_error"),
    "turn_timeout": Kind(504, "agent_error", is_hopeless=True),
    "turn_lease_lost": Kind(503, "server_error", retry_after=1),
    "storage_unavailable": Kind(503, "server_error", retry_after=2),
    "rate_limit_exceeded": Kind(429, "rate_limit_error"),
    "server_is_overloaded": Kind(503, "server_error", retry_after=1),
    "log_memory_exhausted": Kind(503, "server_error", retry_after=2),
    # The turn has ended and may have had effects; its answer is stored.
    "log_discarded": Kind(503, "server_error", is_hopeless=True),
    "shutting_down": Kind(503, "server_error", retry_after=2),
    # Refused when the turn had begun; before it, an InvalidRequest says more.
    "invalid_request": Kind(400, "invalid_request_error", is_hopeless=True),
    # 409 would tell every SDK to repeat it.
    "turn_cancelled": Kind(400, "invalid_request_error", is_hopeless=True),
}


class Problem(Struct, frozen=True):
    """An error as it leaves."""

    status: int
    type: str
    message: str
    code: str | None = None
    param: str | None = None
    should_retry: bool | None = None
    """None leaves it to the client's own rules."""
    retry_after: float | None = None
    headers: dict[str, str] = {}
    has_detail: bool = False
    """The sentence stands under ``detail``, too, where clients of older systems look for it."""


def detailed(error: BaseException | Failed) -> Problem:
    """Return how an error leaves for a client of an older system."""
    return msgspec.structs.replace(problem_of(error), has_detail=True)


def problem_of(error: BaseException | Failed) -> Problem:
    """Return how an error leaves. What was not raised on purpose is told without its internals."""
    match error:
        case Failed():
            return _problem_of_failed(error)
        case RejectedRequest():
            return problem_of(chat_error(error))
        case InvalidRequest():
            return Problem(400, "invalid_request_error", error.message, error.code, error.param)
        case BodyTooLarge():
            return Problem(413, "server_error", error.message)
        case UnsupportedContentEncoding():
            # RFC 9110, 12.5.3: in a 415 the header lists the codings that requests can have.
            accepted = {"Accept-Encoding": "gzip"}
            return Problem(415, "invalid_request_error", error.message, error.code, headers=accepted)
        case BodyTooSlow():
            # What is left of the body may still come; nobody waits for it.
            closing = {"Connection": "close"}
            return Problem(408, "invalid_request_error", error.message, error.code, headers=closing)
        case Unauthorized():
            challenge = {"WWW-Authenticate": "Bearer"}
            return Problem(401, "invalid_request_error", error.message, error.code, headers=challenge)
        case NotFound():
            return Problem(404, "invalid_request_error", error.message, error.code)
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
            return _problem_of_failed(failed_event(error, Usage(), ran_effects=False))
        case _:
            return problem_of(InternalTurnError())


def _problem_of_failed(failed: Failed) -> Problem:
    kind = _KINDS.get(failed.code, _INTERNAL)
    did_harm = not failed.is_repeatable and not kind.is_hopeless
    is_final = did_harm or kind.is_hopeless
    return Problem(
        status=kind.status,
        type="invalid_request_error" if did_harm else kind.type,
        message=failed.message,
        code=failed.code,
        param=failed.param or kind.param,
        # 4xx other than these are repeated by nobody, so that nothing need be said.
        should_retry=False if is_final and (kind.status >= 500 or kind.status in (408, 409, 429)) else None,
        retry_after=None if is_final and kind.status != 429 else failed.retry_after or kind.retry_after,
    )


def status_of(error: BaseException | Failed) -> int:
    """Return the HTTP status."""
    return problem_of(error).status


def envelope(error: BaseException | Failed | Problem) -> bytes:
    """Return the JSON body, at most 2 kB."""
    problem = error if isinstance(error, Problem) else problem_of(error)
    for limit in (1000, 100):
        param = None if problem.param is None else _cut(problem.param, 100)
        body = ErrorBody(_cut(problem.message, limit), problem.type, param, problem.code)
        encoded = encode(DetailedEnvelope(body, body.message) if problem.has_detail else ErrorEnvelope(body))
        if len(encoded) <= _MAX_BYTES:
            break
    return encoded


def error_body(error: BaseException | Failed | Problem) -> ErrorBody:
    """Return the error as a value of other JSON bodies, with at most 1,000 characters of its message."""
    problem = error if isinstance(error, Problem) else problem_of(error)
    return ErrorBody(_cut(problem.message, 1000), problem.type, problem.param, problem.code)


def headers_of(error: BaseException | Failed | Problem) -> dict[str, str]:
    """Return the headers that belong to the error: when to come back, and whether to."""
    problem = error if isinstance(error, Problem) else problem_of(error)
    headers = dict(problem.headers)
    if problem.should_retry is not None:
        headers["x-should-retry"] = "true" if problem.should_retry else "false"
    if problem.retry_after is not None and math.isfinite(problem.retry_after):
        seconds = min(max(problem.retry_after, 0.001), MAX_RETRY_AFTER)
        headers["Retry-After"] = str(math.ceil(seconds))
        headers["retry-after-ms"] = str(math.ceil(seconds * 1000))
    return headers


def failed_event(error: BaseException, usage: Usage, *, ran_effects: bool, request_id: str = "") -> Failed:
    """Return the event that ends a turn which an error stopped; ``ran_effects``: a tool with effects has run.

    With ``request_id`` a caller who cannot know what a provider rejected can name the request to the operator, whose
    log has the provider's error.
    """
    if isinstance(error, RejectedRequest):
        error = chat_error(error)
    code = "invalid_request" if isinstance(error, InvalidRequest) else getattr(error, "code", None)
    if not isinstance(error, ProxyError) or code not in _KINDS:
        error, code = InternalTurnError(), InternalTurnError.code
    # A TLS error is a matter of set-up; other ways of being unreachable pass.
    is_hopeless = _KINDS[code].is_hopeless or (isinstance(error, UpstreamFailed) and error.label == "tls")
    message = error.message
    if request_id and isinstance(error, UpstreamBadRequest) and error.param is None:
        message = f"{message} (Request ID: {request_id})"
    return Failed(
        code=code,
        message=message,
        usage=usage,
        retry_after=getattr(error, "retry_after", None),
        is_repeatable=not ran_effects and not is_hopeless,
        param=getattr(error, "param", None),
    )


def failure_of(event: Cancelled, *, ran_tools: bool) -> Failed:
    """Return a cancelled turn as the failure that those see who still ask for its answer.

    ``ran_tools``: a tool has run; whether it had effects is not known here, so it counts as one that has.
    """
    if event.reason == "shutting_down":
        return failed_event(ShuttingDown(), event.usage, ran_effects=ran_tools)
    return Failed("turn_cancelled", "The turn was cancelled before it came to an answer.", event.usage)


def invalid_url(method: str, path: str) -> Problem:
    """There is nothing at this path."""
    return Problem(404, "invalid_request_error", f"Invalid URL ({method} {_cut(path, 100)})")


def method_not_allowed(method: str, path: str, *, allow: str) -> Problem:
    """The path does not know this method; ``allow`` is the header with those that it knows."""
    message = f"Not allowed to {method} on {_cut(path, 100)} (allowed: {allow})."
    return Problem(405, "invalid_request_error", message, "method_not_supported", headers={"Allow": allow})


def forbidden_origin(origin: str) -> Problem:
    """A page of this origin asks, and it may not."""
    message = f"Pages of '{_cut(origin, 100)}' may not call this server; PROXY_CORS_ORIGINS lets them in."
    return Problem(403, "invalid_request_error", message, "origin_not_allowed")


def forbidden_host(name: str) -> Problem:
    """The server is called by a name that may be anybody's."""
    message = f"This server is not called '{_cut(name, 100)}'; PROXY_ALLOWED_HOSTS gives it names."
    return Problem(403, "invalid_request_error", message, "host_not_allowed")


def _cut(text: str, limit: int) -> str:
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair, as from a path, cannot leave
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def loopback_only() -> Problem:
    """Return the error for a connection from another machine to a server without API keys."""
    message = (
        "This server has no API keys and accepts only connections to loopback addresses. "
        "Set PROXY_API_KEYS, or PROXY_ALLOW_OPEN=true."
    )
    return Problem(403, "invalid_request_error", message, "api_keys_required")
