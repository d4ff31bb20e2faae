"""What the demonstration's rules look at: who said what, and what was called, read from a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.agents.clients.port import ModelRequest
from proxy.messages import AssistantMessage, FunctionTool, ToolCall, ToolMessage, UserMessage, text_of

_MAX_READ = 1000
"""Characters of a message that rules look at."""
_MAX_RESULT_READ = 4000
"""Characters of a tool's result that rules look at."""
_MAX_BACK = 60
"""Messages that rules look back at."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What rules look at. Texts are newest first."""

    team: str
    agent: str
    user_texts: tuple[str, ...]
    agent_texts: tuple[str, ...]
    results: Mapping[str, str]
    """What the agent was just given, by tool; a tool's results below each other when it was called more than once."""
    given: str
    """Every result since the user's last words, of any agent's tools, the oldest first."""
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
    user_texts, agent_texts, given, called = [], [], [], set()
    is_since_user = True
    for message in reversed(recent):
        if isinstance(message, UserMessage):
            is_since_user = False
            user_texts.append(text_of(message)[:_MAX_READ])
        elif isinstance(message, ToolMessage) and is_since_user:
            given.append(text_of(message)[:_MAX_RESULT_READ])
        elif isinstance(message, AssistantMessage):
            if text := text_of(message):
                agent_texts.append(text[:_MAX_READ])
            if is_since_user:
                called |= {
                    call.function.name for call in message.tool_calls or () if isinstance(call, ToolCall)
                }
    return Situation(
        team=request.team,
        agent=request.agent,
        user_texts=tuple(user_texts),
        agent_texts=tuple(agent_texts),
        results=_last_results(request),
        given="\n".join(reversed(given)),
        called=frozenset(called),
        offered=offered,
    )


def _last_results(request: ModelRequest) -> Mapping[str, str]:
    """Return what the calls of the last reply gave.

    The result of another agent's call is how this agent got the floor, and does not count: it begins with the user's
    words.
    """
    texts: dict[str, str] = {}
    for message in reversed(request.messages):
        if isinstance(message, ToolMessage):
            texts[message.tool_call_id] = text_of(message)[:_MAX_RESULT_READ]
            continue
        if not isinstance(message, AssistantMessage):
            break
        own = {tool.name for tool in request.tools}
        results: dict[str, str] = {}
        for call in message.tool_calls or ():
            if isinstance(call, ToolCall) and call.id in texts and call.function.name in own:
                before = results.get(call.function.name)
                text = texts[call.id]
                results[call.function.name] = text if before is None else f"{before}\n{text}"
        return results
    return {}
