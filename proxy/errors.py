"""Everything raised on purpose: each error is a place in the tree, a stable code and its facts.

``wire.errors`` decides status, type and headers; nothing here knows HTTP. A message is one sentence for the
caller and never holds internals, keys or what people wrote at length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ProxyError(Exception):
    """The root of the tree."""

    code: str | None = "internal_error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigurationError(ProxyError):
    """Something the operator wrote (a variable, a team file) cannot be used; stops the start."""

    code = "configuration"


# --- what a caller did ---------------------------------------------------------------------------------------


class InvalidRequest(ProxyError):
    """The request cannot be understood or not be done as asked."""

    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class BodyTooLarge(ProxyError):
    """The body is over the limit."""

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


class BodyTooSlow(ProxyError):
    """The body did not come in time."""

    code = "request_timeout"

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(f"The body of the request did not come within {limit_seconds:g} seconds.")
        self.limit_seconds = limit_seconds


class Unauthorized(ProxyError):
    """No key, or one that is not known."""

    code: str | None = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("Incorrect API key provided.")


class NoKey(Unauthorized):
    """Not even a key that is not known."""

    # As with the official API, for which a code is about a key that was sent.
    code = None

    def __init__(self) -> None:
        ProxyError.__init__(
            self,
            "You didn't provide an API key. It has to come in the header 'Authorization: Bearer YOUR_KEY'.",
        )


class NotFound(ProxyError):
    """What was asked for does not exist, or is not the caller's."""

    code: str | None = None


class ModelNotFound(NotFound):
    """No team or model has this name."""

    code = "model_not_found"

    def __init__(self, model: str, *, only_at: str | None = None) -> None:
        """``only_at`` is the one path at which the model can be asked."""
        told = "does not exist or you do not have access to it."
        if only_at is not None:
            told = f"is only served at {only_at}."
        super().__init__(f"The model '{model[:200]}' {told}")


class AgentNotFound(NotFound):
    """The caller made no agent, or no team, with this name."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"No {kind} found with the name '{name[:64]}'.")


class AgentsSwitchedOff(NotFound):
    """Callers make no agents here."""

    def __init__(self) -> None:
        super().__init__("This server does not let callers make agents and teams.")


class ConversationNotFound(NotFound):
    """No conversation of this caller and end user has this id."""

    def __init__(self, conversation_id: str) -> None:
        super().__init__(f"Conversation with id '{conversation_id[:128]}' not found.")


class CompletionNotFound(NotFound):
    """No turn of this caller has this id."""

    def __init__(self, completion_id: str) -> None:
        super().__init__(f"Chat completion with id '{completion_id[:128]}' not found.")


class ResponseNotFound(NotFound):
    """No turn of this caller is kept under this id as a response."""

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
    """Another turn of the conversation is under way; asking again a little later works."""

    code = "conversation_busy"

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__("Another turn of this conversation is under way. Please retry in a few seconds.")
        self.retry_after = retry_after


class IdempotencyConflict(ProxyError):
    """The idempotency key was used for another body."""

    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__("This Idempotency-Key was used with a different request body.")


# --- what happened to a turn ---------------------------------------------------------------------------------


class TurnFailed(ProxyError):
    """The turn could not be finished."""

    code = "turn_failed"


class UpstreamFailed(TurnFailed):
    """The language model did not answer as it should.

    ``label`` is the outcome for metrics (a closed set); ``is_retryable`` tells whether the same call may be tried
    again before anything was said; ``retry_after`` is in seconds, as the upstream wished.
    """

    code = "upstream_error"
    sentence = "The model behind this team failed to answer."

    def __init__(
        self,
        label: str = "broken",
        *,
        message: str | None = None,
        is_retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or self.sentence)
        self.label = label
        self.is_retryable = is_retryable
        self.retry_after = retry_after
        self.facts: dict[str, object] = {}
        """For the log only: the provider's host, and what it answered."""


class UpstreamUnreachable(UpstreamFailed):
    """No connection, no TLS, or no HTTP."""

    code = "upstream_unreachable"
    sentence = "The model behind this team could not be reached."


class UpstreamTimeout(UpstreamFailed):
    """Nothing came within the limit for the first byte, or between two."""

    code = "upstream_timeout"
    sentence = "The model behind this team did not answer in time."


class UpstreamAuthFailed(UpstreamFailed):
    """The upstream refused our key; the caller's is right."""

    code = "upstream_auth_failed"
    sentence = "The model behind this team refused the proxy's credentials."


class UpstreamModelNotFound(UpstreamFailed):
    """The upstream does not know the model that the team names."""

    code = "upstream_model_not_found"
    sentence = "The model that this team is set up with does not exist at its provider."


class UpstreamBadRequest(UpstreamFailed):
    """The provider rejected the request.

    ``param`` is the parameter of the caller that it rejected, None if it was another part of the request.
    """

    code = "upstream_bad_request"
    sentence = "The model's provider rejected the request."

    def __init__(
        self, label: str = "bad_request", *, message: str | None = None, param: str | None = None
    ) -> None:
        if param is not None:
            message = f"Unsupported value: '{param}' is not accepted by the model behind this team."
        super().__init__(label, message=message)
        self.param = param


class ContextLengthExceeded(UpstreamFailed):
    """The conversation is longer than the model can read."""

    code = "context_length_exceeded"
    sentence = "The conversation is longer than the model behind this team can read."


class ContentFiltered(UpstreamFailed):
    """The upstream's filter refused the request."""

    code = "content_filter"
    sentence = "The request was refused by the content filter of the model behind this team."


class UpstreamRateLimited(UpstreamFailed):
    """The upstream asks to slow down."""

    code = "upstream_rate_limited"
    sentence = "The model behind this team is rate limited. Please retry later."


class UpstreamQuotaExceeded(UpstreamFailed):
    """The operator's credit at the upstream is used up."""

    code = "upstream_quota_exceeded"
    sentence = "The quota for the model behind this team is used up."


class UpstreamProtocolError(UpstreamFailed):
    """What came is not what the protocol says."""

    code = "upstream_protocol_error"
    sentence = "The model behind this team sent an answer that could not be read."


class UpstreamIncomplete(UpstreamFailed):
    """The stream ended without saying that it was finished."""

    code = "upstream_incomplete"
    sentence = "The answer of the model behind this team broke off."


class UpstreamTooMuch(UpstreamFailed):
    """The answer is over the size limit."""

    code = "upstream_too_much"
    sentence = "The model behind this team sent more than the limit allows."


class UpstreamCircuitOpen(UpstreamFailed):
    """The provider failed many times in a row and is given a rest."""

    code = "upstream_circuit_open"
    sentence = "The model behind this team is failing and is given a short rest. Please retry later."


class AgentFailed(TurnFailed):
    """The team itself could not come to an answer."""

    code = "agent_error"


class ToolLoopLimitReached(AgentFailed):
    """The agents called the model more often than the team allows."""

    code = "tool_loop_limit"

    def __init__(self, limit: int) -> None:
        super().__init__(f"The agents made {limit} model calls without coming to an answer.")
        self.limit = limit


class AnswerNotInForm(AgentFailed):
    """The answer is not in the form that was asked for; free text in its place would be a lie."""

    code = "response_format_not_met"

    def __init__(self) -> None:
        super().__init__("The agents did not answer in the form that was asked for.")


class TurnTimeout(AgentFailed):
    """The whole turn took longer than its limit."""

    code = "turn_timeout"

    def __init__(self, limit_seconds: float) -> None:
        super().__init__(f"The turn was stopped after {limit_seconds:g} seconds.")
        self.limit_seconds = limit_seconds


class InternalTurnError(TurnFailed):
    """A defect of ours, told without its internals."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("The server had an error while processing your request. Sorry about that!")


class TurnLeaseLost(TurnFailed):
    """Another worker treated this worker as dead and interrupted the turn, so its result was not stored."""

    code = "turn_lease_lost"

    def __init__(self) -> None:
        super().__init__(
            "The server lost its lease on this turn, so the response was not stored. Please retry."
        )


# --- tools ---------------------------------------------------------------------------------------------------


class ToolError(ProxyError):
    """A tool call that failed; the message is told to the model and holds no internals.

    Tools raise it to say in their own words why they cannot help.
    """

    code = "tool_error"


# --- where we run --------------------------------------------------------------------------------------------


class StoreUnavailable(ProxyError):
    """The database did not answer."""

    code = "storage_unavailable"

    def __init__(self, retry_after: float = 2.0) -> None:
        super().__init__("The conversation store is not available. Please retry in a few seconds.")
        self.retry_after = retry_after


class RateLimitExceeded(ProxyError):
    """The caller asks for more than it may; ``retry_after`` is in seconds, ``stands`` are for its headers."""

    code = "rate_limit_exceeded"

    def __init__(self, kind: str, limit: int, stands: Sequence[Any], retry_after: float) -> None:
        super().__init__(f"Rate limit reached: at most {limit} {kind} per minute. Please try again later.")
        self.stands = stands
        self.retry_after = retry_after


class Overloaded(ProxyError):
    """As many turns run as may."""

    code = "server_is_overloaded"

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__(
            "The server is at work on as many requests as it takes. Please try again in a second."
        )
        self.retry_after = retry_after


class LogMemoryExhausted(ProxyError):
    """The logs of all turns in this process take as much memory as they may."""

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


class TeamFileError(ConfigurationError):
    """A team file has mistakes; ``problems`` are whole lines, each with file, line and what is wanted."""

    code = "team_file"

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)
