"""The sink between a team and the log of its turn: it sums up usage, and ends calls that the team leaves open."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence

from proxy.events import (
    ContextCompacted,
    DelegateEvent,
    Event,
    ModelCalled,
    TextBatch,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
    model_calls,
)
from proxy.messages import Usage
from proxy.turns.contract import NoSink, Sink
from proxy.turns.records import ModelUse
from proxy.turns.text_relay import TextRelay

_RECORDED: frozenset[type[Event]] = frozenset(
    (ModelCalled, ToolStarted, ToolCompleted, ToolFailed, ContextCompacted, DelegateEvent)
)
"""Most events are text, which has nothing to record."""
_NO_USAGE = Usage()


class Recorder:
    """A sink between a team and the log. It sums up usage, and ends calls that the team leaves open."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.attended = sink.attended
        """Waits as the sink does."""
        self._open: dict[str, ToolStarted] = {}
        self._uses: dict[tuple[str, str], ModelUse] = {}
        """By agent and model, in the order of first use."""
        self.usage = _NO_USAGE
        """Usage of all model calls so far, including failed ones."""

    @property
    def uses(self) -> list[ModelUse]:
        """Usage by agent and model, in the order of first use."""
        return list(self._uses.values())

    def restore(self, events: Iterable[Event]) -> None:
        """Record events that are in the log already."""
        sink, self._sink = self._sink, NoSink()
        for event in events:
            self.emit(event)
        self._sink = sink

    def emit(self, event: Event) -> None:
        """Record an event and forward it."""
        if type(event) in _RECORDED:
            self._record(event)
        self._sink.emit(event)

    def emit_batch(self, events: Sequence[Event]) -> bool:
        """Record events and forward them."""
        if type(events) is not TextBatch:
            for event in events:
                if type(event) not in _RECORDED:
                    continue
                if type(event) is ModelCalled:
                    self._add_use(event)
                else:
                    self._record(event)
        return self._sink.emit_batch(events)

    def open_relay(self) -> TextRelay | None:
        """Return a relay of the sink: text has nothing to record."""
        return self._sink.open_relay()

    def _record(self, event: Event) -> None:
        match event:
            case ModelCalled():
                self._add_use(event)
            case ToolStarted():
                self._open[event.call_id] = event
            case ToolCompleted() | ToolFailed():
                self._open.pop(event.call_id, None)
            case ContextCompacted() | DelegateEvent():
                for call in model_calls(event):
                    self._add_use(call)
            case _:
                pass

    def _add_use(self, call: ModelCalled) -> None:
        key, usage = (call.agent, call.model), call.usage or _NO_USAGE
        self.usage = self.usage + usage if self._uses else usage
        before = self._uses.get(key)
        if before is None:
            self._uses[key] = ModelUse(call.agent, call.model, 1, usage)
        else:
            self._uses[key] = ModelUse(call.agent, call.model, before.calls + 1, before.usage + usage)

    def drain(self) -> Awaitable[None]:
        """Wait as the sink does."""
        return self._sink.drain()

    def close_open_calls(self, error: str = "the turn ended before the tool did") -> None:
        """Emit ``ToolFailed`` for each call without an end."""
        if self._open:
            for call in list(self._open.values()):
                self.emit(ToolFailed(call.call_id, call.name, error, 0.0))
