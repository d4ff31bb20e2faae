"""Agents that are not instructions and a model: functions, objects of agent frameworks, and remote agents.

The public interface for authors of such agents: ``from proxy.members import HandOver, MemberContext``. These names and
their signatures change only with a new major version. The modules of this package are internal, except for
``proxy.members.agentchat``.
"""

from proxy.events import MemberTeamEvent
from proxy.members.port import (
    HandOver,
    Incomplete,
    MemberContext,
    MemberEvent,
    ModelUsed,
    NotApproved,
    Reasoning,
    TeamEvent,
    Text,
    ToolBegan,
    ToolEnded,
    Unused,
)
from proxy.messages import Message, Usage, text_of

__all__ = [
    "HandOver",
    "Incomplete",
    "MemberContext",
    "MemberEvent",
    "MemberTeamEvent",
    "Message",
    "ModelUsed",
    "NotApproved",
    "Reasoning",
    "TeamEvent",
    "Text",
    "ToolBegan",
    "ToolEnded",
    "Unused",
    "Usage",
    "text_of",
]
