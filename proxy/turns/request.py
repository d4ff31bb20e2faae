"""A request to a team, in the form that all APIs share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from msgspec import Struct, field
from msgspec.structs import force_setattr

from proxy.message_lists import without_instructions
from proxy.messages import (
    Compaction,
    ContextMode,
    DeveloperMessage,
    FunctionTool,
    Item,
    Message,
    Parameters,
    ProviderState,
    SystemMessage,
    ToolChoice,
    is_instruction,
)
from proxy.turns.plain_items import PlainItems
from proxy.turns.structured_output import ResponseFormat
from proxy.wire.approvals import ApprovalDecision

IdSource = Literal["conversation-id", "frontend-header", "metadata"]
Match = Literal[
    "previous-response",
    "parent-id",
    "conversation-id",
    "frontend-header",
    "metadata",
    "tool-calls",
    "fingerprint",
    "last-answer",
    "agent-name",
    "entry",
    "side-request",
    "same-turn",
]
"""The rule that resolved conversation and agent, sent as ``X-Conversation-Match``. ``same-turn``: the request attached
to a turn that had already begun."""
ROOT = "root"
"""Value of a parent id that starts a new branch at the beginning of the conversation."""
ParentSource = Literal["previous-response", "parent-id"]
DisconnectPolicy = Literal["cancel", "detach"]
BusyPolicy = Literal["reject", "queue", "interrupt"]
"""What a request does while a turn of its conversation is running."""


class TurnRequest(Struct, frozen=True):
    """One request to a team.

    ``conversation_id`` is the id that the client sends, ``id_source`` the parameter. Frontends that send a
    ``frontend-header`` always send the whole message list, so a list without assistant messages restarts the
    conversation there and does not continue it. ``body_digest`` is equal for repetitions of a request. ``options`` are
    those of the response encoder, stored with the turn as JSON.
    """

    caller: str
    model: str
    messages: Sequence[Message]
    end_user: str = ""
    conversation_id: str | None = None
    id_source: IdSource = "conversation-id"
    parameters: Parameters = field(default_factory=Parameters)
    response_format: ResponseFormat | None = None
    """The compiled ``parameters.response_format``."""
    tools: Sequence[FunctionTool] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    is_streamed: bool = True
    """The client reads the answer while it is written."""
    is_strict: bool = False
    """A parameter that would have no effect is an error."""
    uses_functions: bool = False
    """The request uses the deprecated ``functions``: results have no call id."""
    is_stored: bool = True
    is_listed: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    options: object = None
    body_digest: bytes | None = None
    idempotency_key: str | None = None
    is_retry: bool = False
    is_repeatable: bool = False
    """The client repeats requests that fail, like the official SDKs."""
    is_side: bool = False
    on_disconnect: DisconnectPolicy | None = None
    busy: BusyPolicy | None = None
    """The policy of the request; None for that of the team."""
    parent: str | None = None
    """Public id of the turn that the messages follow; ``ROOT`` for the beginning of the conversation."""
    parent_source: ParentSource = "previous-response"
    """The parameter that names the parent: ``previous_response_id`` or ``X-Parent-Id``."""
    approval_decisions: Sequence[ApprovalDecision] = ()
    """Decisions on approvals that the parent turn requested."""
    is_addition: bool = False
    """All messages are new, assistant messages included. The list has no earlier messages."""
    must_exist: bool = False
    """The conversation is not created on first use."""
    instructions: str | None = None
    """Instructions for this turn only, in addition to those of the agents."""
    keeps_instructions: bool = False
    """System and developer messages are stored with the conversation and apply to later turns too."""
    in_background: bool = False
    """The client does not wait for the response and retrieves it later by its id."""
    max_tool_calls: int | None = None
    """Maximum number of calls of server tools, if lower than the limit of the team."""
    context_mode: ContextMode | None = None
    """None for the setting of the team."""
    compact_threshold: int | None = None
    """Tokens from which on the context is shortened, if lower than the limit of the team."""
    summaries: Collection[int] = ()
    """Indexes of the messages that are summaries of everything before them."""
    provider_states: Mapping[int, ProviderState] = field(default_factory=dict)
    """Provider state that the client sent, by the index of the message."""
    # The next four follow from the others, see ``__post_init__``.
    system_messages: Sequence[SystemMessage | DeveloperMessage] = ()
    """The system and developer messages of ``messages``."""
    turn_messages: Sequence[Message] = ()
    """The other messages."""
    _states: Mapping[int, ProviderState] = field(default_factory=dict)
    """``provider_states`` by ``id()`` of the message."""
    _summaries: Collection[int] = ()
    """The ``id()`` of each summary."""

    def __post_init__(self) -> None:
        messages = self.messages
        others = without_instructions(messages)
        force_setattr(self, "turn_messages", others)
        # Most requests have none of the others. A request that replaces another one has those of the other one first.
        if others is not messages or self.system_messages:
            system = [message for message in messages if is_instruction(message)]
            force_setattr(self, "system_messages", system)
        if self.provider_states or self._states:
            states = {id(messages[at]): state for at, state in self.provider_states.items()}
            force_setattr(self, "_states", states)
        if self.summaries or self._summaries:
            force_setattr(self, "_summaries", {id(messages[at]) for at in self.summaries})

    def item_of(self, message: Message) -> Item:
        """Return one of the messages as an item, with the provider state that the client sent with it."""
        compaction = Compaction(retained_from=0) if id(message) in self._summaries else None
        return Item(message, state=self._states.get(id(message)), compaction=compaction)

    def items_of(self, messages: Sequence[Message]) -> Sequence[Item]:
        """Return some of the messages as items."""
        if not self._states and not self._summaries:
            return PlainItems(messages)
        return [self.item_of(message) for message in messages]


Clock = Callable[[], float]
