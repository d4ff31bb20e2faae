"""Resolve references to stored items in the input of a response.

Some clients send item ids instead of content (``item_reference``). An id can be that of an output item of a response or
that of an item of a conversation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from proxy.errors import InvalidRequest
from proxy.events import decode_journal
from proxy.messages import AssistantMessage, FunctionCall, Item, Message, ToolCall
from proxy.turns.records import TurnRecord
from proxy.turns.repository import TurnRepository, accessible_turn
from proxy.wire.conversations.objects import WireItem, items_of
from proxy.wire.responses.ids import parse_item_id
from proxy.wire.responses.input import InputPiece, Reference, ResolvedPiece, SummaryPiece
from proxy.wire.responses.items import (
    CallItem,
    CompactionItem,
    ItemRefusalPart,
    ItemTextPart,
    MessageItem,
    OutputItem,
)
from proxy.wire.responses.options import decode_options
from proxy.wire.responses.output import Output
from proxy.wire.validation.errors import clip

_CONVERSATION_ITEM = re.compile(r"[a-z]+_([0-9a-f]{32})_\d{1,9}(?:_[0-9a-f]{8})?", re.ASCII)


class References:
    """Resolves the references of one request; each turn is read once."""

    def __init__(self, history: TurnRepository, caller: str, end_user: str) -> None:
        self._history = history
        self._caller = caller
        self._end_user = end_user
        self._records: dict[str, TurnRecord | None] = {}
        self._outputs: dict[str, Sequence[OutputItem]] = {}

    async def resolved(
        self, said: Sequence[InputPiece], *, parent: str | None, conversation_id: str | None
    ) -> list[ResolvedPiece]:
        """Return the input with references replaced by messages.

        References to items of the conversation (of ``parent``, a turn id, or ``conversation_id``) are removed, because
        the turn has these messages already.

        Raises:
            InvalidRequest: A reference is not an item of this caller.
        """
        references = [piece for piece in said if isinstance(piece, Reference)]
        if not references:
            return [piece for piece in said if not isinstance(piece, Reference)]
        if parent is not None:
            record = await self._record(parent)
            conversation_id = record.conversation_id if record is not None else None
        found: list[ResolvedPiece] = []
        for piece in said:
            if not isinstance(piece, Reference):
                found.append(piece)
                continue
            turn, message = await self._find(piece)
            if message is not None and turn.conversation_id != conversation_id:
                found.append(message)
        return found

    async def _find(self, reference: Reference) -> tuple[TurnRecord, Message | SummaryPiece | None]:
        """Return the turn and the message; None for reasoning and server tool calls, which are not repeated."""
        place = parse_item_id(reference.id)
        if place is not None and (turn := await self._record(place[0])) is not None:
            items = self._output(turn)
            if place[1] < len(items) and items[place[1]].id == reference.id:
                return turn, _message_of_output(items[place[1]])
        elif listed := _CONVERSATION_ITEM.fullmatch(reference.id):
            for prefix in ("chatcmpl-", "items_"):
                turn = await self._record(prefix + listed[1])
                item = _listed_message(turn, reference.id) if turn is not None else None
                if turn is not None and item is not None:
                    return turn, item
        raise InvalidRequest(f"Item with id '{clip(reference.id)}' not found.", param=reference.param)

    async def _record(self, turn_id: str) -> TurnRecord | None:
        if turn_id not in self._records:
            record = await accessible_turn(self._history, self._caller, turn_id, self._end_user)
            self._records[turn_id] = record
        return self._records[turn_id]

    def _output(self, turn: TurnRecord) -> Sequence[OutputItem]:
        if turn.id not in self._outputs:
            self._outputs[turn.id] = _output_of(turn)
        return self._outputs[turn.id]


def _output_of(turn: TurnRecord) -> Sequence[OutputItem]:
    try:
        options = msgspec.structs.replace(decode_options(turn.options), id=turn.id)
    except msgspec.DecodeError:
        return ()
    output = Output(options)
    for entry in decode_journal(turn.journal).entries() if turn.journal else ():
        output.add(entry.event, entry.time)
    return output.items


def _message_of_output(item: OutputItem) -> Message | SummaryPiece | None:
    match item:
        case MessageItem():
            text = "".join("".join(part.pieces) for part in item.parts if isinstance(part, ItemTextPart))
            refusal = "".join(
                "".join(part.pieces) for part in item.parts if isinstance(part, ItemRefusalPart)
            )
            return AssistantMessage(content=text or (None if refusal else ""), refusal=refusal or None)
        case CallItem():
            call = ToolCall(item.call_id, FunctionCall(item.name, item.arguments))
            return AssistantMessage(content=None, tool_calls=[call])
        case CompactionItem():
            return SummaryPiece(item.summary)
        case _:
            return None


def _listed_message(turn: TurnRecord, item_id: str) -> Message | None:
    for position, item in enumerate([*turn.input, *turn.items]):
        for wired in items_of(turn.id, position, item, ()):
            if wired.id == item_id:
                return _message_of(item, wired)
    return None


def _message_of(item: Item, wired: WireItem) -> Message | None:
    """Return the part of a stored message that corresponds to the item."""
    message = item.message
    if not isinstance(message, AssistantMessage) or not message.tool_calls:
        return message
    if wired.call_id is None:
        return msgspec.structs.replace(message, tool_calls=None)
    calls = [call for call in message.tool_calls if call.id == wired.call_id]
    return AssistantMessage(content=None, tool_calls=calls)
