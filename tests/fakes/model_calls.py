"""Call a model and split its response."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from proxy.errors import UpstreamFailed
from proxy.events import ReasoningDelta, RefusalDelta, TextDelta
from proxy.messages import FunctionTool, UserMessage
from proxy.providers.model import Finished, Model, ModelDelta, ModelRequest, ToolCallPiece, forward_of

HELLO = ModelRequest(messages=[UserMessage(content="Hello")])
WITH_TOOLS = ModelRequest(
    messages=[UserMessage(content="Look it up")],
    tools=[
        FunctionTool("look_up", "Looks up.", {"type": "object", "properties": {}}),
        FunctionTool("refund"),
    ],
)


@dataclass
class Answer:
    """The output of a model call and its end."""

    batches: list[list[ModelDelta]] = field(default_factory=list)
    failure: UpstreamFailed | None = None

    @property
    def deltas(self) -> list[ModelDelta]:
        return [delta for batch in self.batches for delta in batch]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas if isinstance(delta, TextDelta))

    @property
    def reasoning(self) -> str:
        return "".join(delta.text for delta in self.deltas if isinstance(delta, ReasoningDelta))

    @property
    def refusal(self) -> str:
        return "".join(delta.text for delta in self.deltas if isinstance(delta, RefusalDelta))

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Names and arguments; checks on the way that the pieces keep the promise of the port."""
        calls: list[tuple[str, str]] = []
        for delta in self.deltas:
            if isinstance(delta, ToolCallPiece):
                if delta.index == len(calls):
                    assert delta.name, "the first piece of a call carries its name"
                    calls.append((delta.name, ""))
                assert delta.index == len(calls) - 1, "calls come one after the other"
                name, arguments = calls[-1]
                calls[-1] = (name, arguments + delta.arguments)
        return calls

    @property
    def end(self) -> Finished | None:
        """The last delta if it is ``Finished``; checks that no other is."""
        finished = [delta for delta in self.deltas if isinstance(delta, Finished)]
        assert len(finished) <= 1
        assert not finished or self.deltas[-1] is finished[0]
        return finished[0] if finished else None

    @property
    def reason(self) -> str | None:
        return self.end.reason if self.end is not None else None


async def ask(
    model: Model, request: ModelRequest = HELLO, *, after_batch: Callable[[], Awaitable[object]] | None = None
) -> Answer:
    """Return the answer, whole or as far as it came; anything but an ``UpstreamFailed`` is raised.

    Batches are forwarded if the model supports it, unless there is ``after_batch``, which is called after each.
    """
    answer = Answer()

    def take(batch: Sequence[ModelDelta]) -> bool:
        answer.batches.append(list(batch))
        # Stop after each third batch, as if there was no room.
        return len(answer.batches) % 3 != 0

    try:
        async with model.stream(request) as batches:
            forward = forward_of(batches) if after_batch is None else None
            async for batch in batches:
                answer.batches.append(list(batch))
                if after_batch is not None:
                    await after_batch()
                while forward is not None and not await forward(take):
                    pass
    except UpstreamFailed as failure:
        answer.failure = failure
    return answer
