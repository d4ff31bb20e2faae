"""What a message and a thought add to the stream, step by step, in the official order."""

from __future__ import annotations

from typing import Any, TypeVar

from proxy.wire.chat.response_models import encode
from proxy.wire.responses.items import (
    Body,
    ItemStatus,
    MessageItem,
    OutputItem,
    ReasoningItem,
    RefusalPart,
    TextPart,
)

P = TypeVar("P", TextPart, RefusalPart)


class Steps:
    """The steps of one turn, counted; and the items that they speak of, in the order in which they began."""

    def __init__(self, turn_id: str) -> None:
        self.turn_id = turn_id
        self.items: list[OutputItem] = []
        self.count = 0
        self._pending: list[Body] = []

    def take(self) -> list[Body]:
        """Return what was pending since the last call."""
        pending, self._pending = self._pending, []
        return pending

    def add_event(self, kind: str, /, **fields: Any) -> None:
        """Add a step."""
        self._pending.append({"type": kind, "sequence_number": self.count, **fields})
        self.count += 1

    def tell_of(self, item: OutputItem, kind: str, /, **fields: Any) -> None:
        """Add a step of an item."""
        self.add_event(kind, item_id=item.id, output_index=item.index, **fields)

    def begin(self, item: OutputItem) -> None:
        """An item begins."""
        self.items.append(item)
        self.add_event("response.output_item.added", output_index=item.index, item=item.body())

    def finish(self, item: OutputItem) -> None:
        """An item is whole."""
        self.add_event("response.output_item.done", output_index=item.index, item=item.body())


class MessageWriter:
    """Writes the message that is open, if one is."""

    def __init__(self, steps: Steps) -> None:
        self.text_place = b""
        """Where the next piece of text belongs, in the words of its step; empty when no text is open."""
        self._steps = steps
        self._item: MessageItem | None = None

    @property
    def is_open(self) -> bool:
        """Whether more can be said in it."""
        return self._item is not None

    def open(self) -> None:
        """Begin a message."""
        self._item = MessageItem(self._steps.turn_id, len(self._steps.items))
        self._steps.begin(self._item)

    def more_text(self, text: str) -> int:
        """Take a piece of the text that is open, without telling it; return the number of the step that tells it."""
        assert self._item is not None
        self._item.parts[-1].pieces.append(text)
        self._steps.count += 1
        return self._steps.count - 1

    def say(self, text: str, logprobs: list[Body]) -> None:
        """Add to the text."""
        item, part = self._part(TextPart)
        part.pieces.append(text)
        part.logprobs.extend(logprobs)
        place = len(item.parts) - 1
        self._steps.tell_of(
            item, "response.output_text.delta", content_index=place, delta=text, logprobs=logprobs
        )

    def refuse(self, text: str) -> None:
        """Add to the refusal."""
        item, part = self._part(RefusalPart)
        part.pieces.append(text)
        self._steps.tell_of(item, "response.refusal.delta", content_index=len(item.parts) - 1, delta=text)

    def say_nothing(self) -> None:
        """Let the message have a text, be it empty."""
        self._part(TextPart)

    def close(self, status: ItemStatus) -> None:
        """End the message, if one is open."""
        item, self._item = self._item, None
        if item is not None:
            self._close_part(item)
            item.status = status
            self._steps.finish(item)

    def _part(self, kind: type[P]) -> tuple[MessageItem, P]:
        """Return the message and its last part, which is of this kind."""
        item = self._item
        assert item is not None
        part = item.parts[-1] if item.parts else None
        if not isinstance(part, kind):
            self._close_part(item)
            part = kind()
            item.parts.append(part)
            index = len(item.parts) - 1
            self._steps.tell_of(item, "response.content_part.added", content_index=index, part=part.body())
            if kind is TextPart:
                place = {"item_id": item.id, "output_index": item.index, "content_index": index}
                self.text_place = encode(place)[1:-1]
        return item, part

    def _close_part(self, item: MessageItem) -> None:
        self.text_place = b""
        if not item.parts:
            return
        index, part = len(item.parts) - 1, item.parts[-1]
        body = part.body()
        if isinstance(part, TextPart):
            said = {"text": body["text"], "logprobs": body["logprobs"]}
            self._steps.tell_of(item, "response.output_text.done", content_index=index, **said)
        else:
            self._steps.tell_of(item, "response.refusal.done", content_index=index, refusal=body["refusal"])
        self._steps.tell_of(item, "response.content_part.done", content_index=index, part=body)


class ReasoningWriter:
    """Writes the thought that is open, if one is; as a summary where the caller asked for one."""

    def __init__(self, steps: Steps, *, is_summary: bool) -> None:
        self._steps = steps
        self._item: ReasoningItem | None = None
        self._is_summary = is_summary
        self._words = "response.reasoning_summary_text" if is_summary else "response.reasoning_text"
        self._part = "response.reasoning_summary_part" if is_summary else "response.content_part"
        self._place = {"summary_index": 0} if is_summary else {"content_index": 0}

    @property
    def is_open(self) -> bool:
        """Whether more can be thought in it."""
        return self._item is not None

    def think(self, text: str) -> None:
        """Add to the thought; begin one if none is open."""
        if self._item is None:
            self._item = ReasoningItem(
                self._steps.turn_id, len(self._steps.items), is_summary=self._is_summary
            )
            self._steps.begin(self._item)
            self._steps.tell_of(self._item, f"{self._part}.added", **self._place, part=self._item.part())
        self._item.pieces.append(text)
        self._steps.tell_of(self._item, f"{self._words}.delta", **self._place, delta=text)

    def close(self, status: ItemStatus) -> None:
        """End the thought, if one is open."""
        item, self._item = self._item, None
        if item is not None:
            part = item.part()
            self._steps.tell_of(item, f"{self._words}.done", **self._place, text=part["text"])
            self._steps.tell_of(item, f"{self._part}.done", **self._place, part=part)
            item.status = status
            self._steps.finish(item)
