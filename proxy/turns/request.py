"""What a client asks of the exchange, whatever door it came through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from proxy.messages import (
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
"""Which rule found the conversation and the agent, as told in ``X-Conversation-Match``; ``same-turn`` when there was
nothing to find, because the turn had begun."""
ROOT = "root"
"""In place of a turn's id: no turn."""
ParentSource = Literal["previous-response", "parent-id"]
DisconnectPolicy = Literal["cancel", "detach"]


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One request to a team.

    ``conversation_id`` is the client's, with where it was found; a ``frontend-header`` comes from programs that
    always send their whole list, so that there a list without answers is a rewind and not an addition.
    ``body_digest`` is equal for requests that ask for the same in the same place. ``options`` is what an encoder of the
    response needs; it is stored with the turn as JSON.
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
    is_strict: bool = False
    """A parameter that would have no effect is an error."""
    uses_functions: bool = False
    """The tools came in the deprecated form; so will the result of a call, without the call's id."""
    is_stored: bool = True
    is_listed: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    options: object = None
    body_digest: bytes | None = None
    idempotency_key: str | None = None
    is_retry: bool = False
    is_side: bool = False
    on_disconnect: DisconnectPolicy | None = None
    parent: str | None = None
    """The public id of the turn to go on from, whatever was said since; ``ROOT`` begins the conversation anew."""
    parent_source: ParentSource = "previous-response"
    """The parameter that names the parent: ``previous_response_id`` or ``X-Parent-Id``."""
    approval_decisions: Sequence[ApprovalDecision] = ()
    """Decisions on approvals that the parent turn requested."""
    is_addition: bool = False
    """All of the messages are new, answers among them too; nothing that was said before is shown."""
    must_exist: bool = False
    """The conversation is not made on first use."""
    instructions: str | None = None
    """Laid over the agents' own for this turn only."""
    keeps_instructions: bool = False
    """System and developer messages belong to what was said: they are kept, and laid over later turns as well."""
    in_background: bool = False
    """Nobody waits for the answer; it will be asked for by the turn's id."""
    max_tool_calls: int | None = None
    """Calls of the server's tools in this turn, if fewer than the team allows."""
    provider_states: Mapping[int, ProviderState] = field(default_factory=dict)
    """Provider state that the client sent, by the index of the message."""
    system_messages: Sequence[SystemMessage | DeveloperMessage] = field(init=False)
    """The system and developer messages of ``messages``."""
    turn_messages: Sequence[Message] = field(init=False)
    """The other messages."""
    _states: Mapping[int, ProviderState] = field(init=False, repr=False)
    """``provider_states`` by ``id()`` of the message."""

    def __post_init__(self) -> None:
        system: list[SystemMessage | DeveloperMessage] = []
        others: list[Message] = []
        for message in self.messages:
            if is_instruction(message):
                system.append(message)
            else:
                others.append(message)
        object.__setattr__(self, "system_messages", system)
        object.__setattr__(self, "turn_messages", others)
        states = {id(self.messages[at]): state for at, state in self.provider_states.items()}
        object.__setattr__(self, "_states", states)

    def item_of(self, message: Message) -> Item:
        """Return one of the messages as an item, with the provider state that the client sent with it."""
        return Item(message, state=self._states.get(id(message)))


Clock = Callable[[], float]
