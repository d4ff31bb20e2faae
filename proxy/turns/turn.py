"""A turn: what a request asks of a team, and the state of the team while it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct, field

from proxy.events import ApprovalDecided
from proxy.messages import (
    AssistantMessage,
    ContextMode,
    DeveloperMessage,
    FunctionTool,
    Item,
    Parameters,
    SystemMessage,
    ToolChoice,
    ToolMessage,
)
from proxy.turns.steps import StepLog, TurnStep
from proxy.turns.structured_output import ResponseFormat

RUN_UNKNOWN = (
    "error: it is not known whether this call was executed, because the server stopped while it ran. Do not claim "
    "that it was, and do not repeat it before you have checked or asked."
)
"""The result of an approved call that has begun and has no recorded result."""
CALL_UNKNOWN = (
    "error: it is not known whether this call was executed, because the turn ended while it ran. Do not claim that it "
    "was, and do not repeat it before you have checked or asked."
)
"""The result of a call with effects that was running when its turn ended."""


class ProgressLog(Protocol):
    """Stores the items of a running turn, in case its worker dies."""

    async def store(self, agent: str, items: Sequence[Item]) -> None:
        """Store the items before a tool with effects starts.

        Raises:
            StoreUnavailable: They are not stored; the tool must not start.
        """
        ...

    def note(self, agent: str, items: Sequence[Item]) -> None:
        """Store the items soon."""
        ...


class ApprovedCallLog(Protocol):
    """Records runs of approved calls over all workers and attempts, so that no call runs twice."""

    async def begin(self, approval_id: str) -> bool:
        """Record that the call is about to run; False if it may have run before.

        Raises:
            StoreUnavailable: Nothing was recorded; the call must not run.
        """
        ...

    async def end(self, approval_id: str, result: str) -> None:
        """Record the result."""
        ...


class ContinuationCall(Struct, frozen=True):
    """A call of an earlier turn that this turn repeats. If ``result`` is None, it is run now."""

    approval_id: str
    name: str
    arguments: str
    result: str | None = None


class ApprovalContinuation(Struct, frozen=True):
    """The beginning of a turn that follows a question for approval.

    ``decided`` are events to emit; the agent loop sets the new ids of repeated calls. ``note`` is the text of a user
    message if the request has no user message. ``runs`` is not None if a call has to be run.
    """

    decided: Sequence[ApprovalDecided] = ()
    note: str = ""
    calls: Sequence[ContinuationCall] = ()
    runs: ApprovedCallLog | None = None


class Turn(Struct):
    """One request to a team, and its state.

    ``context`` has all earlier messages and the input, oldest first. ``overlay`` are the system and developer messages
    of the client, added to the instructions of the active agent. The team updates ``agent`` (the active agent),
    ``items`` (its messages in order), ``draft`` (text of an incomplete model reply) and ``ran_effects`` (whether a tool
    with side effects was started), so that an interrupted turn can be stored and reported correctly.
    """

    id: str
    conversation_id: str
    caller: str
    agent: str
    context: Sequence[Item]
    overlay: Sequence[SystemMessage | DeveloperMessage] = ()
    parameters: Parameters = field(default_factory=Parameters)
    response_format: ResponseFormat | None = None
    client_tools: Sequence[FunctionTool] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = None
    """Maximum number of calls of server tools; None for the limit of the team."""
    is_streamed: bool = True
    """The client reads the answer while it is written, so that its deltas are those of the provider."""
    is_strict: bool = False
    """A parameter that would have no effect is an error."""
    context_mode: ContextMode | None = None
    """Whether the request enables or disables the compaction of its context; None for the setting of the team."""
    compact_threshold: int | None = None
    """Tokens from which on the request wants its context shortened."""
    may_ask: bool = False
    """Whether the turn can end with a question for approval: the store has everything that its continuation needs."""
    continuation: ApprovalContinuation | None = None
    items: list[Item] = field(default_factory=list)
    draft: list[str] = field(default_factory=list)
    ran_effects: bool = False
    end_user: str = ""
    """The person behind the caller, as the request names it."""
    steps: StepLog | None = None
    """Records the steps; None for a turn that another worker cannot continue."""
    resumed: TurnStep | None = None
    """The step after which this worker continues the turn of another one."""
    running_effects: int = 0
    """Number of tool calls with effects that are running."""
    ran_tools: bool = False
    """Whether a tool has ended, one with effects has started, or an agent has handed off. Approved calls, which have
    their own log, do not count."""
    call_results: dict[str, str] = field(default_factory=dict)
    """Results of calls, by call id, that are not in ``items`` yet."""
    call_scope: str = ""
    """The start of the keys of tool calls: the id of the turn, or of an earlier attempt at the same request."""
    progress: ProgressLog | None = None
    compactions: StoredCompactions | None = None
    """The compactions of the conversation; None if it is not stored."""
    begin: asyncio.Future[None] | None = None
    """Completes when the turn is stored as running; None if it was stored before it started."""

    async def wait_for_begin(self) -> None:
        """Wait until the turn is stored as running.

        Before that, it may only call models: another turn of the conversation can be running at another worker.

        Raises:
            CancelledError: The turn could not begin, or this task was cancelled.
        """
        if self.begin is not None:
            await asyncio.shield(self.begin)
            self.begin = None

    @property
    def public_id(self) -> str:
        """The id of the turn that the client knows; the turn of a delegate has another one."""
        return self.id.partition("/")[0]

    def items_so_far(self) -> list[Item]:
        """Return the items, with the known results of open calls, and the draft as the last one if there is any."""
        items = list(self.items)
        last = items[-1] if items else None
        if last is not None and isinstance(last.message, AssistantMessage):
            items += [
                Item(ToolMessage(call.id, self.call_results[call.id]), agent=last.agent, visible=False)
                for call in last.message.tool_calls or ()
                if call.id in self.call_results
            ]
        if self.draft:
            items.append(Item(AssistantMessage(content="".join(self.draft)), agent=self.agent))
        return items


class ApprovalRequest(Struct, frozen=True):
    """A call that needs approval; ``arguments`` is the JSON text of the model."""

    id: str
    call_id: str
    tool: str
    arguments: str


class StoredCompactions(Protocol):
    """The compactions of one conversation, on all branches."""

    async def read(self) -> Sequence[Item]:
        """Return the newest items with a compaction, oldest first.

        Raises:
            StoreUnavailable: The database did not answer.
        """
        ...
