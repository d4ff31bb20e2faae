"""The exceptions of the proxy, each with a stable code and its facts.

``wire.errors`` maps them to status, type and headers; this module does not depend on HTTP. A message is one sentence
for the caller, without internals, keys or long user input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ProxyError(Exception):
    """Base class of the exceptions of the proxy."""

    code: str | None = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigurationError(ProxyError):
    """The configuration (a variable, a team file) is invalid; the server does not start."""

    code = "configuration"


# --- requests ------------------------------------------------------------------------------------------------


class InvalidRequest(ProxyError):
    """The request is invalid or cannot be fulfilled."""

    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class BodyTooLarge(ProxyError):
    """The body exceeds the size limit."""

    code = None

    def __init__(self, limit_bytes: int, read_bytes: int | None = None) -> None:
        read = "" if read_bytes is None else f" ({read_bytes} bytes read)"
        super().__init__(f"Maximum content size limit ({limit_bytes}) exceeded{read}")
        self.limit_bytes = limit_bytes


class UnsupportedContentEncoding(ProxyError):
    """The body has a content coding that cannot be decoded."""

    code = "unsupported_content_encoding"

    def __init__(self, encoding: str) -> None:
        super().__init__(
            f"Unsupported Content-Encoding: '{encoding[:64]}'. Send the body with gzip or without encoding."
        )
        self.encoding = encoding


class RequestBodyTimeout(ProxyError):
    """The body was not received within the time limit."""

    code = "request_timeout"

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(f"The request body was not received within {limit_seconds:g} seconds.")
        self.limit_seconds = limit_seconds


class Unauthorized(ProxyError):
    """The API key is unknown, revoked or expired."""

    code: str | None = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("Incorrect API key provided.")


class ApiKeyMissing(Unauthorized):
    """The request has no API key."""

    # OpenAI sends the code ``invalid_api_key`` only for a key that was sent. Observed, not documented.
    code = None

    def __init__(self) -> None:
        ProxyError.__init__(
            self,
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer "
            "auth (i.e. Authorization: Bearer YOUR_KEY).",
        )


class NotFound(ProxyError):
    """The object does not exist, or belongs to another caller."""

    code: str | None = None


class ModelNotFound(NotFound):
    """No team or model has this name."""

    code = "model_not_found"

    def __init__(self, model: str, *, only_at: str | None = None, hint: str = "") -> None:
        """``only_at`` is the only endpoint that supports the model; ``hint`` is a sentence about other models."""
        reason = "does not exist or you do not have access to it."
        if only_at is not None:
            reason = f"is only supported at {only_at}."
        super().__init__(" ".join(filter(None, (f"The model '{model[:200]}' {reason}", hint))))
        self.model = model
        self.only_at = only_at


class AgentNotFound(NotFound):
    """The caller has no custom agent or team with this name."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"No {kind} found with the name '{name[:64]}'.")


class CustomAgentsDisabled(NotFound):
    """Custom agents are disabled on this server."""

    def __init__(self) -> None:
        super().__init__("Custom agents and teams are disabled on this server.")


class ConversationNotFound(NotFound):
    """No conversation of this caller and end user has this id."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(f"Conversation with id '{conversation_id[:128]}' not found.")


class CompletionNotFound(NotFound):
    """No turn of this caller has this id."""

    def __init__(self, completion_id: str) -> None:
        super().__init__(f"Chat completion with id '{completion_id[:128]}' not found.")


class ResponseNotFound(NotFound):
    """The caller has no stored response with this id."""

    def __init__(self, response_id: str) -> None:
        super().__init__(f"Response with id '{response_id[:128]}' not found.")


class ItemNotFound(NotFound):
    """The conversation has no item with this id."""

    def __init__(self, item_id: str) -> None:
        super().__init__(f"Item with id '{item_id[:128]}' not found.")


class ApprovalNotFound(NotFound):
    """No approval of this caller and end user has this id."""

    def __init__(self, approval_id: str) -> None:
        super().__init__(f"Approval with id '{approval_id[:128]}' not found.")


class ConversationBusy(ProxyError):
    """Another turn of the conversation is running; the request can be retried later."""

    code = "conversation_busy"

    def __init__(self, retry_after: float = 1.0) -> None:
        # OpenAI's message for ``conversation_locked``.
        super().__init__(
            "Another process is currently operating on this conversation. Please retry in a few seconds."
        )
        self.retry_after = retry_after


class IdempotencyConflict(ProxyError):
    """The idempotency key was used for another body."""

    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used with a different request body.")


# --- turns ---------------------------------------------------------------------------------------------------


class TurnFailed(ProxyError):
    """The turn failed."""

    code = "turn_failed"


class UpstreamFailed(TurnFailed):
    """A model call failed.

    ``label`` is the outcome for metrics (a closed set). ``is_retryable`` is true if the call can be retried before the
    first delta. ``retry_after`` is the provider's value in seconds.
    """

    code = "upstream_error"
    default_message = "The model behind this team failed to respond."

    def __init__(
        self,
        label: str = "broken",
        *,
        message: str | None = None,
        is_retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or self.default_message)
        self.label = label
        self.is_retryable = is_retryable
        self.retry_after = retry_after
        self.error: object = None
        """The error object of the provider, from inside a response. It can hold secrets, and is not logged."""
        self.facts: dict[str, object] = {}
        """Log fields: the provider's host and its response."""


class UpstreamUnreachable(UpstreamFailed):
    """No connection, or a failure of TLS or HTTP."""

    code = "upstream_unreachable"
    default_message = "The model behind this team could not be reached."


class UpstreamTimeout(UpstreamFailed):
    """A timeout before the first byte or between two."""

    code = "upstream_timeout"
    default_message = "The model behind this team did not respond in time."


class UpstreamAuthFailed(UpstreamFailed):
    """The provider rejected the key of the proxy; the key of the caller is valid."""

    code = "upstream_auth_failed"
    default_message = "The provider of the model behind this team rejected the proxy's credentials."


class UpstreamModelNotFound(UpstreamFailed):
    """The provider does not know the configured model."""

    code = "upstream_model_not_found"
    default_message = "The model that is configured for this team does not exist at its provider."


class UpstreamBadRequest(UpstreamFailed):
    """The provider rejected the request.

    ``param`` is the parameter of the caller that it rejected, None if it was another part of the request.
    """

    code = "upstream_bad_request"
    default_message = "The model's provider rejected the request."

    def __init__(
        self, label: str = "bad_request", *, message: str | None = None, param: str | None = None
    ) -> None:
        if param is not None:
            message = f"Unsupported value: '{param}' is not accepted by the model behind this team."
        super().__init__(label, message=message)
        self.param = param


class ContextLengthExceeded(UpstreamFailed):
    """The input exceeds the context window of the model.

    ``window`` and ``tokens`` are the limit and the size of the input, if the provider states them. ``is_fallback``: the
    window is that of another model than the agent's first one.
    """

    code = "context_length_exceeded"
    # OpenAI's message.
    default_message = (
        "Your input exceeds the context window of this model. Please adjust your input and try again."
    )

    def __init__(
        self,
        label: str = "context_length",
        *,
        message: str | None = None,
        window: int | None = None,
        tokens: int | None = None,
    ) -> None:
        super().__init__(label, message=message)
        self.window = window
        self.tokens = tokens
        self.is_fallback = False


class ContentFiltered(UpstreamFailed):
    """The provider's content filter rejected the request."""

    code = "content_filter"
    default_message = "The request was rejected by the content filter of the model behind this team."


class UpstreamRateLimited(UpstreamFailed):
    """The provider's rate limit is reached."""

    code = "upstream_rate_limited"
    default_message = "The model behind this team is rate limited. Please retry later."


class UpstreamQuotaExceeded(UpstreamFailed):
    """The operator's quota at the provider is exhausted."""

    code = "upstream_quota_exceeded"
    default_message = "The quota for the model behind this team is exhausted."


class UpstreamProtocolError(UpstreamFailed):
    """The response of the provider does not follow the protocol."""

    code = "upstream_protocol_error"
    default_message = "The model behind this team sent a response that could not be decoded."


class UpstreamIncomplete(UpstreamFailed):
    """The stream ended without a finish reason."""

    code = "upstream_incomplete"
    default_message = "The response of the model behind this team ended before it was complete."


class UpstreamResponseTooLarge(UpstreamFailed):
    """The response exceeds the size limit."""

    code = "upstream_too_much"
    default_message = "The response of the model behind this team exceeds the size limit."


class UpstreamCircuitOpen(UpstreamFailed):
    """The circuit breaker is open after consecutive failures of the provider."""

    code = "upstream_circuit_open"
    default_message = "The model behind this team is temporarily unavailable. Please retry later."


class AgentFailed(TurnFailed):
    """The team did not complete the turn."""

    code = "agent_error"


class MemberFailed(AgentFailed):
    """The code of an agent raised an exception."""

    code = "agent_failed"

    def __init__(self, agent: str) -> None:
        super().__init__(f"The agent '{agent}' failed.")
        self.agent = agent


class ResponseFormatNotMet(AgentFailed):
    """The output does not match ``response_format``."""

    code = "response_format_not_met"

    def __init__(self) -> None:
        super().__init__("The model output does not match 'response_format'.")


class TurnTimeout(AgentFailed):
    """The turn exceeded its time limit."""

    code = "turn_timeout"

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(f"The turn was stopped after {limit_seconds:g} seconds.")
        self.limit_seconds = limit_seconds


class InternalTurnError(TurnFailed):
    """A defect of the proxy, reported without details."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("The server had an error while processing your request. Sorry about that!")


class AnswerNotStored(TurnFailed):
    """The turn is complete, but its request had ``store: false``, and its events are not in memory any more."""

    code = "answer_not_stored"

    def __init__(self) -> None:
        super().__init__("The response to this request was not stored, so it cannot be repeated.")


class TurnInterrupted(TurnFailed):
    """The worker that ran the turn has ended, and the turn could not be continued."""

    code = "turn_interrupted"

    def __init__(self) -> None:
        super().__init__(
            "The worker that ran this turn has ended, so the response is incomplete. Please retry."
        )


class TurnTakenOver(TurnFailed):
    """Another worker continues the turn from a point before the last event that the client has."""

    code = "turn_taken_over"

    def __init__(self) -> None:
        super().__init__(
            "The worker that ran this turn has ended, and another one continues it from an earlier point. "
            "Please read the response again from its beginning."
        )


class TurnLeaseLost(TurnFailed):
    """Another worker treated this worker as dead and interrupted the turn, so its result was not stored."""

    code = "turn_lease_lost"

    def __init__(self) -> None:
        super().__init__(
            "The server lost its lease on this turn, so the response was not stored. Please retry."
        )


# --- tools ---------------------------------------------------------------------------------------------------


class ToolError(ProxyError):
    """A failed tool call; the message is passed to the model and must not contain internals."""

    code = "tool_error"


# --- server --------------------------------------------------------------------------------------------------


class StoreUnavailable(ProxyError):
    """The database did not answer."""

    code = "storage_unavailable"

    def __init__(self, retry_after: float = 2.0) -> None:
        super().__init__("The conversation store is not available. Please retry in a few seconds.")
        self.retry_after = retry_after


class RateLimitExceeded(ProxyError):
    """The caller exceeded a limit; ``retry_after`` is in seconds, ``stands`` are the values for the headers."""

    code = "rate_limit_exceeded"

    def __init__(self, kind: str, limit: int, stands: Sequence[Any], retry_after: float) -> None:
        # OpenAI's message, without model and organization.
        name = {"requests": "RPM", "tokens": "TPM"}[kind]
        super().__init__(
            f"Rate limit reached on {kind} per min ({name}): Limit {limit}. Please try again in {retry_after:.3g}s."
        )
        self.stands = stands
        self.retry_after = retry_after


class Overloaded(ProxyError):
    """The maximum number of turns is running."""

    code = "server_is_overloaded"

    def __init__(self, retry_after: float = 1.0) -> None:
        # OpenAI's message for the same code.
        super().__init__("Our servers are currently overloaded. Please try again later.")
        self.retry_after = retry_after


class LogMemoryExhausted(ProxyError):
    """The turn logs of this process have reached their memory limit."""

    code = "log_memory_exhausted"

    def __init__(self, retry_after: float = 2.0) -> None:
        super().__init__("The server has no memory for another turn. Please retry in a few seconds.")
        self.retry_after = retry_after


class ShuttingDown(ProxyError):
    """The server is stopping."""

    code = "shutting_down"

    def __init__(self) -> None:
        super().__init__("The server is shutting down. Please retry in a few seconds.")
        self.retry_after = 2.0


class SchemaTooNew(ConfigurationError):
    """The database was migrated by a newer version of the program."""

    code = "schema_too_new"


class DatabaseNotReady(ConfigurationError):
    """The database does not answer, or has to be migrated first. A later start can succeed without another change."""


class TeamFileError(ConfigurationError):
    """Team files have errors; ``problems`` has one line per error, with file, line and message."""

    code = "team_file"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
