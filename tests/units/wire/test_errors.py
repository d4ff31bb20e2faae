"""Error responses: status, type, code, headers, and whether a client should repeat the turn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from proxy import errors
from proxy.errors import (
    AgentNotFound,
    AnswerNotStored,
    ApiKeyMissing,
    ApprovalNotFound,
    BodyTooLarge,
    CompletionNotFound,
    ConfigurationError,
    ContentFiltered,
    ContextLengthExceeded,
    ConversationBusy,
    ConversationNotFound,
    CustomAgentsDisabled,
    IdempotencyConflict,
    InternalTurnError,
    InvalidRequest,
    ItemNotFound,
    LogMemoryExhausted,
    MemberFailed,
    ModelNotFound,
    Overloaded,
    ProxyError,
    RateLimitExceeded,
    RequestBodyTimeout,
    ResponseFormatNotMet,
    ResponseNotFound,
    ShuttingDown,
    StoreUnavailable,
    ToolError,
    TurnInterrupted,
    TurnLeaseLost,
    TurnTakenOver,
    TurnTimeout,
    Unauthorized,
    UnsupportedContentEncoding,
    UpstreamAuthFailed,
    UpstreamBadRequest,
    UpstreamCircuitOpen,
    UpstreamFailed,
    UpstreamIncomplete,
    UpstreamModelNotFound,
    UpstreamProtocolError,
    UpstreamQuotaExceeded,
    UpstreamRateLimited,
    UpstreamResponseTooLarge,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.events import Cancelled, Failed
from proxy.messages import Usage
from proxy.wire.errors import (
    _ERROR_KINDS,
    envelope,
    error_response,
    failed_event,
    failure_of,
    headers_of,
    invalid_url,
    method_not_allowed,
    stream_error,
)

NEVER = {"x-should-retry": "false"}


def after(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds), "retry-after-ms": str(seconds * 1000)}


CATALOGUE: list[tuple[Exception, int, str, str | None, str | None, dict[str, str]]] = [
    (InvalidRequest("Bad."), 400, "invalid_request_error", None, None, {}),
    (
        InvalidRequest("Bad.", param="n", code="invalid_type"),
        400,
        "invalid_request_error",
        "invalid_type",
        "n",
        {},
    ),
    (BodyTooLarge(10, 11), 413, "server_error", None, None, {}),
    (
        UnsupportedContentEncoding("br"),
        415,
        "invalid_request_error",
        "unsupported_content_encoding",
        None,
        {"Accept-Encoding": "gzip"},
    ),
    (RequestBodyTimeout(30), 408, "invalid_request_error", "request_timeout", None, {"Connection": "close"}),
    (Unauthorized(), 401, "invalid_request_error", "invalid_api_key", None, {"WWW-Authenticate": "Bearer"}),
    (ApiKeyMissing(), 401, "invalid_request_error", None, None, {"WWW-Authenticate": "Bearer"}),
    (ModelNotFound("m"), 404, "invalid_request_error", "model_not_found", None, {}),
    (ConversationNotFound("c"), 404, "invalid_request_error", None, None, {}),
    (AgentNotFound("agent", "a"), 404, "invalid_request_error", None, None, {}),
    (CustomAgentsDisabled(), 404, "invalid_request_error", None, None, {}),
    (ApprovalNotFound("a"), 404, "invalid_request_error", None, None, {}),
    (ItemNotFound("i"), 404, "invalid_request_error", None, None, {}),
    (ResponseNotFound("r"), 404, "invalid_request_error", None, None, {}),
    (CompletionNotFound("c"), 404, "invalid_request_error", None, None, {}),
    (
        RateLimitExceeded("requests", 5, (), 2.5),
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
        None,
        {"Retry-After": "3", "retry-after-ms": "2500"},
    ),
    (Overloaded(), 503, "server_error", "server_is_overloaded", None, after(1)),
    (LogMemoryExhausted(), 503, "server_error", "log_memory_exhausted", None, after(2)),
    (ConversationBusy(), 409, "invalid_request_error", "conversation_busy", None, after(1)),
    (IdempotencyConflict(), 409, "invalid_request_error", "idempotency_key_reused", None, NEVER),
    (UpstreamFailed(), 502, "upstream_error", "upstream_error", None, {}),
    (UpstreamUnreachable(), 502, "upstream_error", "upstream_unreachable", None, {}),
    (UpstreamTimeout(), 504, "upstream_error", "upstream_timeout", None, {}),
    (UpstreamAuthFailed(), 502, "upstream_error", "upstream_auth_failed", None, NEVER),
    (UpstreamModelNotFound(), 502, "upstream_error", "upstream_model_not_found", None, NEVER),
    (UpstreamBadRequest(), 400, "invalid_request_error", "upstream_bad_request", None, {}),
    (ContextLengthExceeded(), 400, "invalid_request_error", "context_length_exceeded", "messages", {}),
    (ContentFiltered(), 400, "invalid_request_error", "content_filter", None, {}),
    (UpstreamRateLimited(retry_after=7), 429, "rate_limit_error", "upstream_rate_limited", None, after(7)),
    (UpstreamRateLimited(), 429, "rate_limit_error", "upstream_rate_limited", None, {}),
    (UpstreamQuotaExceeded(), 429, "upstream_error", "upstream_quota_exceeded", None, NEVER),
    (UpstreamProtocolError(), 502, "upstream_error", "upstream_protocol_error", None, {}),
    (UpstreamIncomplete(), 502, "upstream_error", "upstream_incomplete", None, {}),
    (UpstreamResponseTooLarge(), 502, "upstream_error", "upstream_too_much", None, {}),
    (UpstreamCircuitOpen(retry_after=3), 503, "upstream_error", "upstream_circuit_open", None, after(3)),
    (UpstreamCircuitOpen(), 503, "upstream_error", "upstream_circuit_open", None, after(10)),
    (MemberFailed("helper"), 502, "server_error", "agent_failed", None, {}),
    (ResponseFormatNotMet(), 502, "server_error", "response_format_not_met", None, {}),
    (TurnTimeout(600), 504, "server_error", "turn_timeout", None, NEVER),
    (InternalTurnError(), 500, "server_error", "internal_error", None, {}),
    (AnswerNotStored(), 409, "invalid_request_error", "answer_not_stored", None, NEVER),
    (TurnInterrupted(), 503, "server_error", "turn_interrupted", None, after(1)),
    (TurnTakenOver(), 409, "server_error", "turn_taken_over", None, after(1)),
    (TurnLeaseLost(), 503, "server_error", "turn_lease_lost", None, after(1)),
    (StoreUnavailable(), 503, "server_error", "storage_unavailable", None, after(2)),
    (ShuttingDown(), 503, "server_error", "shutting_down", None, after(2)),
]


@pytest.mark.parametrize(
    ("error", "status", "kind", "code", "param", "headers"), CATALOGUE, ids=lambda value: type(value).__name__
)
def test_every_error_has_its_status_type_code_and_headers(
    error: Exception, status: int, kind: str, code: str | None, param: str | None, headers: dict[str, str]
) -> None:
    assert error_response(error).status == status
    assert json.loads(envelope(error)) == {
        "error": {"message": str(error), "type": kind, "param": param, "code": code}
    }
    assert headers_of(error) == headers


def classes(root: type[ProxyError]) -> Iterator[type[ProxyError]]:
    for one in root.__subclasses__():
        yield one
        yield from classes(one)


def test_the_catalogue_has_every_error_that_can_reach_a_caller() -> None:
    reported = {type(error) for error, *_ in CATALOGUE}
    never_reported = {*classes(ConfigurationError), ConfigurationError, ToolError}
    only_roots = {errors.NotFound, errors.TurnFailed, errors.AgentFailed}
    own = {one for one in classes(ProxyError) if one.__module__ == "proxy.errors"}

    assert own - never_reported - only_roots == reported


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("/etc/secret: bad"),
        ToolError("sk-secret"),
        ValueError("sk-secret"),
        KeyboardInterrupt(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_unexpected_errors_are_reported_without_details(error: BaseException) -> None:
    assert error_response(error) == error_response(InternalTurnError())
    assert failed_event(error, Usage(), ran_effects=False) == Failed(
        "internal_error", InternalTurnError().message, Usage(), is_repeatable=True
    )


# --- turns that failed ---------------------------------------------------------------------------------------

TURN_ERRORS = [
    error for error, *_ in CATALOGUE if isinstance(error, errors.TurnFailed | StoreUnavailable | ShuttingDown)
]


@pytest.mark.parametrize("error", TURN_ERRORS, ids=lambda error: type(error).__name__)
def test_a_stored_failure_leaves_as_the_error_did(error: Exception) -> None:
    failed = failed_event(error, Usage(1, 2), ran_effects=False)

    assert error_response(failed) == error_response(error)
    assert failed.usage == Usage(1, 2)


@pytest.mark.parametrize("error", TURN_ERRORS, ids=lambda error: type(error).__name__)
def test_after_a_tool_with_effects_no_client_is_led_to_repeat_the_turn(error: Exception) -> None:
    failed = failed_event(error, Usage(), ran_effects=True)
    problem = error_response(failed)

    assert not failed.is_repeatable
    assert stream_error(failed).type != "server_error"
    assert (problem.status < 500 and problem.status != 429) or headers_of(failed)["x-should-retry"] == "false"
    assert (problem.status, problem.code, problem.message) == (
        error_response(error).status,
        failed.code,
        str(error),
    )


@pytest.mark.parametrize("ran_effects", [False, True], ids=["no effects", "effects"])
@pytest.mark.parametrize("code", sorted(_ERROR_KINDS))
def test_only_a_client_error_has_the_type_of_one(code: str, ran_effects: bool) -> None:
    """The type of a response agrees with its status, whether or not a repeat is harmless."""
    problem = error_response(Failed(code, "It failed.", Usage(), is_repeatable=not ran_effects))

    if problem.status >= 500:
        assert problem.type in ("server_error", "upstream_error")
    elif problem.status in (400, 401, 404):
        assert problem.type == "invalid_request_error"


@pytest.mark.parametrize("code", sorted(_ERROR_KINDS))
def test_a_stream_has_the_type_server_error_only_if_a_repeat_is_harmless_and_can_succeed(code: str) -> None:
    kind = _ERROR_KINDS[code]
    harmless = stream_error(Failed(code, "It failed.", Usage(), is_repeatable=not kind.is_permanent))
    harmful = stream_error(Failed(code, "It failed.", Usage()))

    assert (harmless.type == "server_error") == (kind.type == "server_error" and not kind.is_permanent)
    assert harmful.type != "server_error"


def test_an_error_without_retry_has_no_retry_after() -> None:
    assert headers_of(failed_event(StoreUnavailable(), Usage(), ran_effects=True)) == NEVER


@pytest.mark.parametrize("error", TURN_ERRORS, ids=lambda error: type(error).__name__)
def test_a_permanent_failure_is_not_repeatable(error: Exception) -> None:
    failed = failed_event(error, Usage(), ran_effects=False)

    assert failed.is_repeatable == (
        headers_of(error).get("x-should-retry") != "false" and error_response(error).status != 400
    )


def test_tls_trouble_is_a_matter_of_set_up() -> None:
    failed = failed_event(UpstreamUnreachable("tls"), Usage(), ran_effects=False)

    assert not failed.is_repeatable
    assert headers_of(failed) == NEVER


def test_a_bad_request_found_during_the_turn_stays_one() -> None:
    failed = failed_event(
        InvalidRequest("Bad.", param="tools", code="invalid_value"), Usage(), ran_effects=False
    )

    assert (failed.code, failed.message, error_response(failed).status) == ("invalid_request", "Bad.", 400)


def test_an_unknown_code_is_reported_unchanged() -> None:
    problem = error_response(Failed("from_the_future", "It failed.", Usage(), is_repeatable=True))

    assert (problem.status, problem.type, problem.code) == (500, "server_error", "from_the_future")


@pytest.mark.parametrize(
    ("reason", "ran_tools", "code", "is_repeatable"),
    [
        ("shutting_down", False, "shutting_down", True),
        ("shutting_down", True, "shutting_down", False),
        ("client_left", False, "turn_cancelled", False),
        ("requested", True, "turn_cancelled", False),
    ],
)
def test_a_cancelled_turn_as_a_failure(reason: Any, ran_tools: bool, code: str, is_repeatable: bool) -> None:
    failed = failure_of(Cancelled(reason, "triage", Usage(1, 2)), ran=["pay", "pay"] if ran_tools else [])

    assert (failed.code, failed.is_repeatable, failed.usage) == (code, is_repeatable, Usage(1, 2))
    assert ("had been called: pay." in failed.message) == ran_tools


# --- forms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "headers"),
    [
        (0.2, {"Retry-After": "1", "retry-after-ms": "200"}),
        (1.2, {"Retry-After": "2", "retry-after-ms": "1200"}),
        (0.0, {}),
        (-5.0, {"Retry-After": "1", "retry-after-ms": "1"}),
        (1e9, {"Retry-After": "3600", "retry-after-ms": "3600000"}),
        (float("inf"), {}),
        (float("nan"), {}),
    ],
    ids=str,
)
def test_retry_after_is_whole_seconds_within_bounds(seconds: float, headers: dict[str, str]) -> None:
    assert headers_of(UpstreamRateLimited(retry_after=seconds)) == headers


@pytest.mark.parametrize(
    "message", ["x" * 10_000, "ä" * 10_000, "\0" * 10_000, '"' * 10_000, "🦊" * 10_000], ids=ascii
)
def test_an_error_is_never_larger_than_two_kilobytes(message: str) -> None:
    data = envelope(InvalidRequest(message, param=message, code="invalid_value"))

    assert len(data) <= 2000
    assert json.loads(data)["error"]["message"].endswith("…")


def test_an_unpaired_surrogate_can_be_encoded() -> None:
    assert json.loads(envelope(InvalidRequest("a\ud800b")))["error"]["message"] == "a?b"


def test_an_unknown_path_and_an_unsupported_method_use_the_envelope() -> None:
    assert json.loads(envelope(invalid_url("GET", "/v1/foo")))["error"] == {
        "message": "Invalid URL (GET /v1/foo)",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    problem = method_not_allowed("PUT", "/v1/models", allow="GET, HEAD")
    assert (problem.status, problem.code, headers_of(problem)) == (
        405,
        "method_not_supported",
        {"Allow": "GET, HEAD"},
    )
    assert len(envelope(invalid_url("GET", "/" * 60_000))) < 400


def test_the_message_for_a_large_body_is_the_official_one() -> None:
    assert (
        str(BodyTooLarge(4194304, 5000000))
        == "Maximum content size limit (4194304) exceeded (5000000 bytes read)"
    )
    assert str(BodyTooLarge(4194304)) == "Maximum content size limit (4194304) exceeded"


# --- the SDK as the judge ------------------------------------------------------------------------------------


def attempts(error: Exception | Failed) -> tuple[int, Exception]:
    """How often the official client asks a server that answers with this error, and what it raises."""
    problem = error_response(error)
    requested: list[httpx2.Request] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        requested.append(request)
        headers = {**headers_of(problem), "content-type": "application/json"}
        # The wait is not what is looked at.
        headers = {name: "1" if name == "retry-after-ms" else value for name, value in headers.items()}
        return httpx2.Response(problem.status, headers=headers, content=envelope(problem))

    transport = httpx2.Client(transport=httpx2.MockTransport(answer))
    client = openai.OpenAI(api_key="k", base_url="http://proxy/v1", http_client=transport)
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="m", messages=[])
    return len(requested), caught.value


@pytest.mark.parametrize(
    ("error", "times", "raised"),
    [
        (InvalidRequest("Bad."), 1, openai.BadRequestError),
        (Unauthorized(), 1, openai.AuthenticationError),
        (ModelNotFound("m"), 1, openai.NotFoundError),
        (ConversationBusy(), 3, openai.ConflictError),
        (IdempotencyConflict(), 1, openai.ConflictError),
        (UpstreamAuthFailed(), 1, openai.InternalServerError),
        (UpstreamQuotaExceeded(), 1, openai.RateLimitError),
        (UpstreamRateLimited(retry_after=1), 3, openai.RateLimitError),
        (TurnTimeout(600), 1, openai.InternalServerError),
        (StoreUnavailable(), 3, openai.InternalServerError),
        (failed_event(StoreUnavailable(), Usage(), ran_effects=True), 1, openai.InternalServerError),
        (failed_event(UpstreamTimeout(), Usage(), ran_effects=True), 1, openai.InternalServerError),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_sdk_repeats_what_may_be_repeated(error: Any, times: int, raised: type[Exception]) -> None:
    requested, caught = attempts(error)

    assert (requested, type(caught)) == (times, raised)
    assert getattr(caught, "code", None) == error_response(error).code
