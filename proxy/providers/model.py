"""The model port: one call of a language model, streamed.

Every implementation passes the same contract tests (``tests/contracts/test_models.py``). What they promise:

- ``stream`` is a context manager; leaving it in any way, cancellation included, closes the connection to the
  model at once.
- It yields *batches*: all deltas of one network read together, so that they can become one write to the client.
- The deltas of a whole answer end with exactly one ``Finished``. An answer that breaks off, or is not what the
  protocol says, raises an ``UpstreamFailed`` instead; a cut tool call is therefore never seen as a whole one.
- Call pieces arrive ordered by ``index`` (0, 1, … without a gap); the first piece of a call carries its name.
  Ids are the model's own and may be empty or repeated: who stores calls gives them new ids.
- An answer with calls finishes with ``tool_calls``, or, when a limit ended it after its last whole call, with
  ``length`` or ``content_filter``.
- Nothing but ``UpstreamFailed`` and ``CancelledError`` is raised.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import Any, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from proxy.events import ParametersIgnored, ReasoningDelta, RefusalDelta, TextDelta
from proxy.messages import (
    FinishReason,
    FunctionTool,
    Message,
    Parameters,
    ProviderState,
    SystemMessage,
    ToolChoice,
    Usage,
)
from proxy.providers.capabilities import Abilities
from proxy.turns.text_relay import OpenRelay


class CacheableLayout(Struct, frozen=True):
    """Messages with the instructions of all agents, and the tools of all agents."""

    messages: Sequence[Message]
    """System messages can follow other messages."""
    tools: Sequence[FunctionTool]

    @property
    def has_late_instructions(self) -> bool:
        """Whether a system message follows another message, which some providers reject."""
        return any(isinstance(message, SystemMessage) for message in self.messages[1:])


# Shared: a request exists as long as its answer, and most have neither.
NO_STATES: Mapping[Any, ProviderState] = MappingProxyType({})
_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class ModelRequest(Struct, frozen=True):
    """One model call.

    ``messages`` is a complete chain in the order of the wire, the agent's instructions first. ``agent`` and
    ``team`` name the caller (the demonstration selects its script by them; others ignore them).
    """

    messages: Sequence[Message]
    tools: Sequence[FunctionTool] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    parameters: Parameters = field(default_factory=Parameters)
    team: str = ""
    agent: str = ""
    states: Mapping[str, ProviderState] = NO_STATES
    """Provider state of assistant messages, by the id of the first tool call of each."""
    text_states: Mapping[int, ProviderState] = NO_STATES
    """Provider state of assistant messages without calls, by ``id()`` of the message."""
    requested: frozenset[str] = frozenset()
    """Names of the parameters that the caller set; the others come from the team file."""
    is_strict: bool = False
    """A parameter of the caller that the provider rejects is an error. Otherwise the answer may ignore it, and begins
    with ``ParametersIgnored``."""
    cacheable: CacheableLayout | None = None
    """The same request in a form that keeps the provider's prompt cache, for models that accept it."""
    headers: Mapping[str, str] = _NO_HEADERS
    """Headers of this request, for models over HTTP."""
    allowed_tools: Sequence[str] = ()
    """The names of ``tools`` that may be called; empty for all."""

    @property
    def has_client_state(self) -> bool:
        """Whether some provider state was sent by the client."""
        return any(not s.provider for s in (*self.states.values(), *self.text_states.values()))

    def without_client_state(self) -> ModelRequest:
        """Return the request with provider state that models returned only."""
        if not self.has_client_state:
            return self
        return replace(
            self,
            states={key: state for key, state in self.states.items() if state.provider},
            text_states={key: state for key, state in self.text_states.items() if state.provider},
        )

    def without_state(self) -> ModelRequest:
        """Return the request without any provider state."""
        return replace(self, states={}, text_states={})

    def in_cacheable_layout(self, *, allows_subset: bool) -> ModelRequest:
        """Return the request in its cacheable form; ``allows_subset``: the provider supports ``allowed_tools``."""
        layout = self.cacheable
        if layout is None:
            return self
        names = tuple(tool.name for tool in self.tools)
        is_subset = allows_subset and len(names) < len(layout.tools)
        return replace(
            self,
            messages=layout.messages,
            tools=layout.tools,
            tool_choice=self.tool_choice if self.tools or not layout.tools else "none",
            allowed_tools=names if is_subset else (),
            cacheable=None,
        )


# Deltas come by the thousand and contain no cycles: the garbage collector need not track them.
class ToolCallPiece(Struct, frozen=True, gc=False):
    """A piece of tool call ``index``. ``name`` is set in the first piece of a call only."""

    index: int
    arguments: str = ""
    name: str | None = None
    call_id: str | None = None


class RemoteEvent(Struct, frozen=True, gc=False):
    """The ``handoff`` object of a chunk: an event of a team of another handoff-proxy. Its members are not checked."""

    body: dict[str, Any]


class UsagePiece(Struct, frozen=True, gc=False):
    """The usage so far, from models that report it during the answer; final if the answer is interrupted."""

    usage: Usage


class Finished(Struct, frozen=True):
    """The answer is complete. ``usage`` is None if the model did not report it.

    ``model`` is the name of the model that answered, if it is another than the configured one (a fallback). ``cost`` is
    that of ``usage``, if a price is configured.
    """

    reason: FinishReason
    usage: Usage | None = None
    model: str | None = None
    cost: float | None = None
    state: ProviderState | None = None
    """What the provider expects back with the calls of this answer."""


ModelDelta = (
    ParametersIgnored
    | TextDelta
    | ReasoningDelta
    | RefusalDelta
    | ToolCallPiece
    | RemoteEvent
    | UsagePiece
    | Finished
)


Take = Callable[[Sequence[ModelDelta]], bool]
"""Processes a batch; returns False if no other batch should be read for now."""


class Forward(Protocol):
    """The method ``forward`` of the batches of an answer."""

    def __call__(self, take: Take, open_relay: OpenRelay | None = None) -> Awaitable[bool]:
        """Pass batches to ``take``, see ``forward_of``."""
        ...


def forward_of(batches: AsyncIterator[Sequence[ModelDelta]]) -> Forward | None:
    """Return the method ``forward`` of the batches of an answer, None if they have none.

    ``await forward(take)`` passes batches to ``take`` in the call of the event loop that receives them: a switch to the
    task that reads them costs more than the rest of what is done with a single chunk. It returns False after ``take``
    returned False, and True if the next batch has to be read by iteration: always the last one and failures. With
    ``open_relay``, text may be passed to relays instead of ``take`` (``turns.text_relay``).
    """
    return getattr(batches, "forward", None)


class Model(Protocol):
    """A language model."""

    @property
    def name(self) -> str:
        """The name under which usage is counted; for the OpenAI wire, the model's name at its provider."""
        ...

    @property
    def abilities(self) -> Abilities:
        """The parameters and kinds of content that it supports."""
        ...

    def stream(
        self, request: ModelRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ModelDelta]]]:
        """Call the model, and read the answer in batches inside the block; see also ``forward_of``.

        Raises:
            UpstreamFailed: On entering the block or while reading.
        """
        ...

    async def close(self) -> None:
        """Release the resources of the model; it is not called again."""
        ...


def with_joined_text(batch: Sequence[ModelDelta]) -> Sequence[ModelDelta]:
    """Return the deltas of one read, with successive texts as one delta; log probabilities stay with their text."""
    if len(batch) < 2:
        return batch
    joined: list[ModelDelta] = []
    texts: list[str] = []
    for delta in batch:
        if type(delta) is TextDelta and delta.logprobs is None:
            texts.append(delta.text)
            continue
        if texts:
            joined.append(TextDelta("".join(texts)))
            texts.clear()
        joined.append(delta)
    if texts:
        joined.append(TextDelta("".join(texts)))
    return joined
