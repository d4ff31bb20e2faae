"""The interface of members: agents of a team that answer with their own code.

A member is run once for each turn in which it is the active agent. It streams text and events, and its context has
the caller and what the member can do. Nothing waits in memory for a client or a person: ``MemberContext.call_tool`` and
``run_approved`` end the turn, and the next turn runs the member again with their results.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from proxy.errors import ToolError
from proxy.events import MemberTeamEvent
from proxy.members.state import state_of
from proxy.messages import FunctionTool, Item, Message, Parameters, Usage, UserMessage, text_of


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer; a plain string is the same."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the reasoning, which is not part of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """The member ends its run, and the agent ``to`` becomes active; ``reason`` is what that agent needs to know."""

    to: str
    reason: str = ""
    input: Mapping[str, Any] | None = None
    """The structured data that the team file requires for this handoff."""


@dataclass(frozen=True, slots=True)
class ToolBegan:
    """The member called one of its own tools. ``call_id`` is unique in the run; ``arguments`` is JSON text."""

    call_id: str
    name: str
    arguments: str = "{}"
    agent: str = ""
    """The agent that called it, if the member has several."""


@dataclass(frozen=True, slots=True)
class ToolEnded:
    """The call with this id ended."""

    call_id: str
    result: str
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class ModelUsed:
    """The member called a model."""

    model: str
    usage: Usage
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class Unused:
    """Parameters of the request that have no effect on the answer, by name."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Incomplete:
    """The answer is incomplete: the model stopped at a token limit (``length``), or a filter did.

    It becomes the finish reason of the turn, if the member does not hand over afterwards.
    """

    reason: Literal["length", "content_filter"] = "length"


@dataclass(frozen=True, slots=True)
class TeamEvent:
    """An event of a team inside of the member, whose text is that of the member."""

    event: MemberTeamEvent


MemberEvent = (
    Text | Reasoning | HandOver | ToolBegan | ToolEnded | ModelUsed | Unused | Incomplete | TeamEvent
)


class NotApproved(ToolError):
    """The call was refused, or it is not known whether it was executed; ``message`` says which."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a call that the member made in an earlier turn of the same exchange."""

    name: str
    arguments: Mapping[str, Any]
    result: str


class Channel(Protocol):
    """What a context does its work with; implemented by ``agents.member_loop``."""

    def report(self, text: str) -> None:
        """Report progress."""
        ...

    def answers(self) -> Sequence[Answer]:
        """Return the results that have not been read, and mark them as read."""
        ...

    def resume(self) -> None:
        """Drop the results of calls that the member made before it stored its newest state."""
        ...

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool of the client."""
        ...

    async def run_approved(
        self, name: str, arguments: Mapping[str, Any], function: Callable[[], Awaitable[object] | object]
    ) -> str:
        """Run a function after a person has approved it."""
        ...

    @property
    def is_cancelled(self) -> bool:
        """Whether the run has been stopped."""
        ...


@dataclass(slots=True)
class MemberContext:
    """What a member learns about the turn, and what it can do apart from its answer."""

    turn_id: str
    conversation_id: str
    caller: str
    """Name of the API key."""
    end_user: str
    """The person behind the key, as the request names it; empty if it does not."""
    team: str
    agent: str
    """The name of the member in its team."""
    items: Sequence[Item]
    """All messages of the conversation with their authors, hidden ones of other agents included."""
    later_items: Sequence[Item] = ()
    """The calls of this member in earlier turns of the exchange, with their results."""
    instructions: str = ""
    """System and developer messages of the client."""
    parameters: Parameters = field(default_factory=Parameters)
    """Those of the request, ``response_format`` included."""
    tools: Sequence[FunctionTool] = ()
    """The client's tools, for ``call_tool``."""
    handoffs: Mapping[str, str] = field(default_factory=dict)
    """The agents that the member may hand over to, and when to; empty if no more handoffs are possible."""
    handoff_tools: Sequence[tuple[FunctionTool, str]] = ()
    """The same agents as tools for a model, each with the agent to which it hands over."""
    handed_over_by: str = ""
    """The agent that handed over to this one in this turn."""
    handoff_reason: str = ""
    handoff_input: Mapping[str, Any] | None = None
    """The structured data of that handoff, if the team file requires any."""
    state: Any = None
    """JSON value, at most 1 MiB, stored with the answer. At first it is that of the last answer on this branch."""
    channel: Channel | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """The text of the newest user message."""
        return next(
            (text_of(i.message) for i in reversed(self.items) if isinstance(i.message, UserMessage)), ""
        )

    @property
    def is_cancelled(self) -> bool:
        """Whether the turn was cancelled, for functions in threads; coroutines are cancelled."""
        return self.channel is not None and self.channel.is_cancelled

    def state_of(self, item: Item) -> Any:
        """Return the state that the member stored with one of ``items``; None for the items of others."""
        return state_of(self.agent, item)

    def report(self, text: str) -> None:
        """Report progress in one line, for clients that show it before the answer. Any thread may call it."""
        if self.channel is not None:
            self.channel.report(text)

    def answers(self) -> Sequence[Answer]:
        """Return the results of calls of earlier turns of this exchange that ``call_tool`` has not returned.

        For members that resume from ``state`` instead of running from the beginning.
        """
        return () if self.channel is None else self.channel.answers()

    def resume(self) -> None:
        """Continue from ``state`` instead of running from the beginning.

        The calls with which that state was stored are the next ones that ``call_tool`` and ``run_approved`` answer;
        results of earlier calls are dropped.
        """
        if self.channel is not None:
            self.channel.resume()

    async def call_tool(self, name: str, arguments: Mapping[str, Any] | None = None) -> str:
        """Return the result of a tool of the client.

        The turn ends here with the call. When the client has sent the result, the member is run again from the
        beginning, with the same messages, and this call returns the result. Text before it is not sent again.

        Raises:
            ToolError: The request has no such tool.
        """
        if self.channel is None:
            raise ToolError(f"there is no tool named {name!r}")
        return await self.channel.call_tool(name, arguments or {})

    async def run_approved(
        self, name: str, arguments: Mapping[str, Any], function: Callable[[], Awaitable[object] | object]
    ) -> str:
        """Run ``function`` once after a person has approved ``name`` with ``arguments``; return its result as text.

        The turn ends here with the question, and the member is run again after the decision, as for ``call_tool``. The
        function is not run a second time when the member is: its result is stored.

        Raises:
            NotApproved: A person refused, or it is not known whether the function has run.
            ToolError: Approval cannot be requested: the conversation is not stored.
        """
        if self.channel is None:
            raise ToolError("approval cannot be requested here")
        return await self.channel.run_approved(name, arguments, function)


Sees = Literal["all", "text", "own"]
"""What a member gets of a conversation: all messages, the text of users and agents only, or the messages since its last
answer, because it stores the conversation itself."""


def sees_of(member: object) -> Sees:
    """Return what a member gets of a conversation, its attribute ``sees``; all messages if it has none."""
    sees: Sees = getattr(member, "sees", "all")
    return sees


class Member(Protocol):
    """An agent with its own code. One instance serves all turns, several of them at the same time.

    An attribute ``sees`` (``Sees``) says what it gets of a conversation; without it, the member gets all messages.
    """

    @property
    def has_effects(self) -> bool:
        """Whether a run can have side effects, so that clients must not repeat a failed turn by themselves."""
        ...

    def run(self, messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
        """Answer the last user message of ``messages``: yield text and events.

        The run is over when the iterator is, or after ``HandOver``. When the turn is cancelled, the iterator is
        cancelled too; it has one second to end.
        """
        ...

    async def close(self) -> None:
        """Release resources; the member is not run again."""
        ...
