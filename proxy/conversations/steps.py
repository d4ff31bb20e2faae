"""Branches that start inside a turn: the part of a stored turn up to one of its events, as a separate turn.

A turn consists of model calls, and each model call adds one assistant message and the results of its tool calls. A step
ends behind the results of its model call, so that calls and results stay together, and behind a handoff that the call
made. The part up to there becomes a sibling of the turn, which other turns can follow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from proxy.events import (
    ApprovalDecided,
    ClientToolArguments,
    ClientToolCall,
    Completed,
    Entry,
    Event,
    Handoff,
    ModelCalled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    decode_journal,
    encode_journal,
    is_closing,
)
from proxy.messages import AssistantMessage, Item, OpenCalls, ToolMessage, Usage
from proxy.turns.records import TurnRecord
from proxy.wire.chat.answer_text import visible_text

_STEP = re.compile(r"(.+)\.(\d{1,9})", re.ASCII | re.DOTALL)
_OF_A_MODEL_CALL = (
    ReasoningDelta,
    TextDelta,
    RefusalDelta,
    ClientToolCall,
    ClientToolArguments,
    ModelCalled,
)
"""Events that a model call emits before its tool calls run."""


class Step(Struct, frozen=True):
    """The beginning of the turn ``record``: its first items and events, and the agent that is active behind them."""

    record: TurnRecord
    items: Sequence[Item]
    entries: Sequence[Entry]
    first_agent: str
    agent: str
    fingerprint: bytes | None = None
    """Of the transcript behind the step, if its items have text."""

    @property
    def text(self) -> str:
        """The text of the items, as clients see it."""
        return visible_text(entry.event for entry in self.entries)

    def journal(self, turn_id: str) -> bytes:
        """Return the stored form of the events for the turn ``turn_id``, with a closing event."""
        usage = Usage()
        events: list[Event] = []
        for entry in self.entries:
            event = entry.event
            if isinstance(event, ModelCalled) and event.usage is not None:
                usage += event.usage
            events.append(Started(turn_id, event.agent, event.steps) if isinstance(event, Started) else event)
        times = [entry.time for entry in self.entries]
        return encode_journal([*events, Completed(self.agent, "stop", usage)], [*times, times[-1]])


def split_step(parent: str) -> tuple[str, int | None]:
    """Return the turn id and the event position of a reference; ``chatcmpl-….7`` is event 7, without it None."""
    match = _STEP.fullmatch(parent)
    return (match[1], int(match[2])) if match else (parent, None)


def step_at(record: TurnRecord, position: int) -> Step | None:
    """Return the step of a turn that contains the event at ``position``; None if the turn has no such event."""
    entries = decode_journal(record.journal).entries() if record.journal else []
    if not 1 <= position <= len(entries):
        return None
    calls = _model_calls(entries)
    ends = _ends(record.items, entries)
    number = min(calls[position - 1], len(ends) - 1)
    # The calls of a turn that failed or was stopped may have no results.
    while number > 0 and _has_open_calls(record.items[: ends[number]]):
        number -= 1
    shown = [entry for entry, call in zip(entries, calls, strict=True) if call <= number]
    shown = [entry for entry in shown if not is_closing(entry.event)]
    agent = first = next(entry.event.agent for entry in entries if isinstance(entry.event, Started))
    for entry in shown:
        if isinstance(entry.event, Handoff):
            agent = entry.event.target
    return Step(record, record.items[: ends[number]], shown, first, agent)


def finished_part(record: TurnRecord) -> Step | None:
    """Return the step of an unfinished turn that ends behind its last tool result; None if it has no result.

    The events of a turn whose worker died are not stored; the step then has only the first one.
    """
    items = list(record.items)
    while items and not isinstance(items[-1].message, ToolMessage):
        items.pop()
    if not items:
        return None
    if record.journal:
        entries = decode_journal(record.journal).entries()
        calls, ends = _model_calls(entries), _ends(record.items, entries)
        number = next(at for at, end in enumerate(ends) if end >= len(items))
        shown = [entry for entry, call in zip(entries, calls, strict=True) if call <= number]
        shown = [entry for entry in shown if not is_closing(entry.event)]
    else:
        shown = [Entry(1, Started(record.id, items[0].agent or record.agent), record.created_at)]
    first = next(entry.event.agent for entry in shown if isinstance(entry.event, Started))
    return Step(record, items, shown, first, record.agent)


def _model_calls(entries: Sequence[Entry]) -> list[int]:
    """Return for each event the number of its model call, from 1; 0 for events before the first one."""
    numbers = []
    ended = 0
    for entry in entries:
        numbers.append(ended + 1 if isinstance(entry.event, _OF_A_MODEL_CALL) else ended)
        if isinstance(entry.event, ModelCalled):
            ended += 1
    return numbers


def _ends(items: Sequence[Item], entries: Sequence[Entry]) -> list[int]:
    """Return the number of items up to the end of each model call, after that of the items before the first one.

    Approved calls of an earlier turn run before the first model call.
    """
    repeated = {entry.event.call_id for entry in entries if isinstance(entry.event, ApprovalDecided)}
    starts = []
    for at, item in enumerate(items):
        message = item.message
        if isinstance(message, AssistantMessage):
            ids = {call.id for call in message.tool_calls or ()}
            if not ids or not ids <= repeated:
                starts.append(at)
    return [*starts, len(items)]


def _has_open_calls(items: Sequence[Item]) -> bool:
    calls = OpenCalls()
    for item in items:
        calls.observe(item.message)
    return bool(calls.ids)
