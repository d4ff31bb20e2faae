"""Errors of requests that are valid but do not fit their team, conversation or approvals.

They carry facts only. ``wire.chat.errors`` and ``wire.responses.errors`` render the sentences, because the two APIs
name the same things differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.errors import ProxyError


class RejectedRequest(ProxyError):
    """The root of these errors; the status is 400."""

    code = "invalid_request"
    message = "The request was rejected."

    def __init__(self) -> None:
        super().__init__(self.message)

    def __str__(self) -> str:
        return repr(self)


# --- the team ---


@dataclass(eq=False)
class ParameterNotSupported(RejectedRequest):
    """A parameter that decides the content of the answer, or any parameter of a strict request, has no effect."""

    name: str


@dataclass(eq=False)
class ContentNotSupported(RejectedRequest):
    """No model of the team reads this kind of content part. The indexes are those of the message and its part."""

    message_index: int
    part_index: int
    kind: str


@dataclass(eq=False)
class ToolNameTaken(RejectedRequest):
    """The client tool with this index has the name of a tool of the team."""

    index: int
    name: str
    team: str


@dataclass(eq=False)
class InvalidResponseSchema(RejectedRequest):
    """The schema of ``response_format`` is invalid, or its regular expressions exceed the limits."""

    max_patterns: int


class BackgroundSideRequest(RejectedRequest):
    """A side request asks for ``background``, but its answer is not stored and could not be retrieved later."""


@dataclass(eq=False)
class AgentOutdated(RejectedRequest):
    """A custom agent uses a tool or model that the operator has removed."""

    agent: str
    removed: str


# --- the conversation ---


@dataclass(eq=False)
class ParentNotFound(RejectedRequest):
    """The request names a parent turn, or a step of one, that does not exist or is not part of a conversation."""

    reference: str


@dataclass(eq=False)
class ToolCallNotFound(RejectedRequest):
    """The message with this index is the result of a tool call that is not pending."""

    call_id: str
    index: int


@dataclass(eq=False)
class FunctionCallNotFound(RejectedRequest):
    """The message with this index is the result of a ``function_call`` (deprecated) that is not pending."""

    index: int


@dataclass(eq=False)
class ToolResultsMissing(RejectedRequest):
    """Tool calls are pending and the request does not have their results."""

    call_ids: Sequence[str]


class ToolCallsNotStored(RejectedRequest):
    """The request has only the results of tool calls, and the turn of these calls has no stored content."""


# --- approvals ---


@dataclass(eq=False)
class ApprovalNotRequested(RejectedRequest):
    """A decision on an approval that the parent turn did not request."""

    approval_id: str


@dataclass(eq=False)
class DecisionsMissing(RejectedRequest):
    """The request has decisions on some of the pending approvals, but not on these."""

    approval_ids: Sequence[str]


@dataclass(eq=False)
class ApprovalExpired(RejectedRequest):
    """The conversation has continued after the approval was requested."""

    approval_id: str


@dataclass(eq=False)
class ApprovalAlreadyDecided(RejectedRequest):
    """The approval has another decision."""

    approval_id: str
    status: str


# --- definitions of custom agents and teams ---


@dataclass(eq=False)
class UnknownName(RejectedRequest):
    """The field at ``path`` names a model, tool or agent that does not exist; ``similar`` is the closest known name."""

    path: str
    kind: str
    name: str
    similar: str | None


@dataclass(eq=False)
class ToolNameTooLong(RejectedRequest):
    """The name of the tool for the handoff or delegate at ``path`` is too long."""

    path: str
    tool: str


@dataclass(eq=False)
class HandoffToolNameTaken(RejectedRequest):
    """The agent has another tool with the name of the tool that the handoff or delegate at ``path`` needs."""

    path: str
    tool: str


@dataclass(eq=False)
class AgentNameTaken(RejectedRequest):
    """The name belongs to a team, a model, or an agent of the other kind."""

    name: str


@dataclass(eq=False)
class AgentInUse(RejectedRequest):
    """Another agent hands off to this one, so it cannot be deleted."""

    name: str
    used_by: str


@dataclass(eq=False)
class TooManyAgents(RejectedRequest):
    """The caller has reached the maximum number of custom agents and teams."""

    limit: int
