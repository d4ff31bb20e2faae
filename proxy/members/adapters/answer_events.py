"""What adapters report about an answer: that it is incomplete, and which agent of the framework's team writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from proxy.events import AgentSpeaking, Handoff, MemberTeamEvent
from proxy.members.port import Incomplete, MemberEvent, TeamEvent

_CUT: Mapping[str, Literal["length", "content_filter"]] = {
    "length": "length",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "refusal": "content_filter",
}
"""Finish reasons of incomplete answers, in lower case: of OpenAI, Anthropic and Google."""


def incomplete(reason: str | None, *, is_reported: bool) -> list[MemberEvent]:
    """Return the event for an answer that ended with this finish reason, if it is incomplete.

    ``is_reported``: the model always has a finish reason, so that a stream without one was cut by its provider.
    """
    if not reason:
        return [Incomplete("length")] if is_reported else []
    known = _CUT.get(reason.lower())
    return [Incomplete(known)] if known is not None else []


class InnerAgents:
    """Reports which agent of a framework's team is active, as events of a team of another handoff-proxy."""

    def __init__(self, active: str = "") -> None:
        """``active`` writes first, without an event."""
        self._active = active
        self._announced = active

    def hand_over(self, source: str, target: str, reason: str = "") -> list[MemberEvent]:
        """Return the event of a handoff."""
        self._active = target
        return [TeamEvent(MemberTeamEvent(source, Handoff(source, target, reason)))]

    def write(self, agent: str = "") -> list[MemberEvent]:
        """Return the event of an agent, by default the active one, that begins to write."""
        self._active = agent or self._active
        if not self._active or self._active == self._announced:
            return []
        self._announced = self._active
        return [TeamEvent(MemberTeamEvent(self._active, AgentSpeaking(self._active)))]
