"""Emit the stream events of message and reasoning items, in the order of the OpenAI API."""

from __future__ import annotations

from typing import Any, TypeVar

from proxy.wire.chat.response_models import encode
from proxy.wire.responses.items import (
    Body,
    ItemRefusalPart,
    ItemStatus,
    ItemTextPart,
    MessageItem,
    OutputItem,
    ReasoningItem,
)

P = TypeVar("P", ItemTextPart, ItemRefusalPart)


class EventSequence:
    """The numbered stream events of one turn, and its output items in order."""

    def __init__(self, turn_id: str) -> None:
        self.turn_id = turn_id
        self.items: list[OutputItem] = []
        self.count = 0
        self._pending: list[Body] = []

    def drain(self) -> list[Body]:
        """Return what was pending since the last call."""
        pending, self._pending = self._pending, []
        return pending

    def add_event(self, kind: str, /, **fields: Any) -> None:
        """Add an event."""
        self._pending.append({"type": kind, "sequence_number": self.count, **fields})
        self.count += 1

    def add_item_event(self, item: OutputItem, kind: str, /, **fields: Any) -> None:
        """Add an event of an item."""
        self.add_event(kind, item_id=item.id, output_index=item.index, **fields)

    def add_item(self, item: OutputItem) -> None:
        """Add an item and its ``response.output_item.added`` event."""
        self.items.append(item)
        self.add_event("response.output_item.added", output_index=item.index, item=item.body())

    def finish_item(self, item: OutputItem) -> None:
        """Add the ``response.output_item.done`` event of an item."""
        self.add_event("response.output_item.done", output_index=item.index, item=item.body())


class MessageWriter:
    """Emits the events of the current message."""

    def __init__(self, steps: EventSequence) -> None:
        self.text_place = b""
        """JSON fields that locate the current text part in its delta events; empty if there is none."""
        self._steps = steps
        self._item: MessageItem | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a current message."""
        return self._item is not None

    def open(self) -> None:
        """Start a message."""
        self._item = MessageItem(self._steps.turn_id, len(self._steps.items))
        self._steps.add_item(self._item)

    def append_text(self, text: str) -> int:
        """Append a delta to the current text without an event; return the sequence number reserved for the event."""
        assert self._item is not None
        self._item.parts[-1].pieces.append(text)
        self._steps.count += 1
        return self._steps.count - 1

    def add_text(self, text: str, logprobs: list[Body]) -> None:
        """Append a text delta."""
        item, part = self._last_part(ItemTextPart)
        part.pieces.append(text)
        part.logprobs.extend(logprobs)
        place = len(item.parts) - 1
        self._steps.add_item_event(
            item, "response.output_text.delta", content_index=place, delta=text, logprobs=logprobs
        )

    def add_refusal(self, text: str) -> None:
        """Append a refusal delta."""
        item, part = self._last_part(ItemRefusalPart)
        part.pieces.append(text)
        self._steps.add_item_event(
            item, "response.refusal.delta", content_index=len(item.parts) - 1, delta=text
        )

    def ensure_text(self) -> None:
        """Add an empty text part if the message has none."""
        self._last_part(ItemTextPart)

    def close(self, status: ItemStatus) -> None:
        """Finish the current message, if there is one."""
        item, self._item = self._item, None
        if item is not None:
            self._close_part(item)
            item.status = status
            self._steps.finish_item(item)

    def _last_part(self, kind: type[P]) -> tuple[MessageItem, P]:
        """Return the message and its last part; start a part if the last one has another type."""
        item = self._item
        assert item is not None
        part = item.parts[-1] if item.parts else None
        if not isinstance(part, kind):
            self._close_part(item)
            part = kind()
            item.parts.append(part)
            index = len(item.parts) - 1
            self._steps.add_item_event(
                item, "response.content_part.added", content_index=index, part=part.body()
            )
            if kind is ItemTextPart:
                place = {"item_id": item.id, "output_index": item.index, "content_index": index}
                self.text_place = encode(place)[1:-1]
        return item, part

    def _close_part(self, item: MessageItem) -> None:
        self.text_place = b""
        if not item.parts:
            return
        index, part = len(item.parts) - 1, item.parts[-1]
        body = part.body()
        if isinstance(part, ItemTextPart):
            said = {"text": body["text"], "logprobs": body["logprobs"]}
            self._steps.add_item_event(item, "response.output_text.done", content_index=index, **said)
        else:
            self._steps.add_item_event(
                item, "response.refusal.done", content_index=index, refusal=body["refusal"]
            )
        self._steps.add_item_event(item, "response.content_part.done", content_index=index, part=body)


class ReasoningWriter:
    """Emits the events of the current reasoning item, as a summary if the client requested one."""

    def __init__(self, steps: EventSequence, *, is_summary: bool) -> None:
        self._steps = steps
        self._item: ReasoningItem | None = None
        self._is_summary = is_summary
        self._text_event = "response.reasoning_summary_text" if is_summary else "response.reasoning_text"
        self._part_event = "response.reasoning_summary_part" if is_summary else "response.content_part"
        self._index_field = {"summary_index": 0} if is_summary else {"content_index": 0}

    @property
    def is_open(self) -> bool:
        """Whether there is a current reasoning item."""
        return self._item is not None

    def add_text(self, text: str) -> None:
        """Append a reasoning delta; start an item if there is none."""
        if self._item is None:
            self._item = ReasoningItem(
                self._steps.turn_id, len(self._steps.items), is_summary=self._is_summary
            )
            self._steps.add_item(self._item)
            self._steps.add_item_event(
                self._item, f"{self._part_event}.added", **self._index_field, part=self._item.part()
            )
        self._item.pieces.append(text)
        self._steps.add_item_event(self._item, f"{self._text_event}.delta", **self._index_field, delta=text)

    def close(self, status: ItemStatus) -> None:
        """Finish the current reasoning item, if there is one."""
        item, self._item = self._item, None
        if item is not None:
            part = item.part()
            self._steps.add_item_event(
                item, f"{self._text_event}.done", **self._index_field, text=part["text"]
            )
            self._steps.add_item_event(item, f"{self._part_event}.done", **self._index_field, part=part)
            item.status = status
            self._steps.finish_item(item)
