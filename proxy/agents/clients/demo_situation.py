"""What the demonstration's rules look at: who said what, and what was called, read from a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.agents.clients.port import ModelRequest
from proxy.messages import AssistantMessage, FunctionTool, ToolCall, ToolMessage, UserMessage, text_of

_MAX_READ = 1000
"""Characters of a message that rules look at."""
_MAX_BACK = 60
"""Messages that rules look back at."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What rules look at. Texts are newest first."""

    team: str
    agent: str
    user_texts: tuple[str, ...]
    agent_texts: tuple[str, ...]
    after: str | None
    """The tool whose result the agent was just given."""
    result: str
    called: frozenset[str]
    """What was called since the user's last words, by any agent."""
    offered: Mapping[str, FunctionTool]

    @property
    def said(self) -> str:
        """The user's last words."""
        return self.user_texts[0] if self.user_texts else ""

    @property
    def asked(self) -> str:
        """What an agent said last."""
        return self.agent_texts[0] if self.agent_texts else ""


def situation_of(request: ModelRequest) -> Situation:
    """Read from a request what rules look at."""
    offered = {tool.name: tool for tool in request.tools} if request.tool_choice != "none" else {}
    recent = request.messages[-_MAX_BACK:]
    user_texts, agent_texts, called = [], [], set()
    is_since_user = True
    for message in reversed(recent):
        if isinstance(message, UserMessage):
            is_since_user = False
            user_texts.append(text_of(message)[:_MAX_READ])
        elif isinstance(message, AssistantMessage):
            if text := text_of(message):
                agent_texts.append(text[:_MAX_READ])
            if is_since_user:
                called |= {
                    call.function.name for call in message.tool_calls or () if isinstance(call, ToolCall)
                }
    after, result = _last_result(request)
    # A result of another agent's call is how this agent got the floor: it begins with the user's words.
    is_own = after is not None and any(tool.name == after for tool in request.tools)
    return Situation(
        team=request.team,
        agent=request.agent,
        user_texts=tuple(user_texts),
        agent_texts=tuple(agent_texts),
        after=after if is_own else None,
        result=result if is_own else "",
        called=frozenset(called),
        offered=offered,
    )


def _last_result(request: ModelRequest) -> tuple[str | None, str]:
    last = request.messages[-1] if request.messages else None
    if not isinstance(last, ToolMessage):
        return None, ""
    for message in reversed(request.messages):
        if isinstance(message, AssistantMessage):
            for call in message.tool_calls or ():
                if isinstance(call, ToolCall) and call.id == last.tool_call_id:
                    return call.function.name, text_of(last)[:_MAX_READ]
            break
    return None, ""
