"""A process that writes turns without end and reports each acknowledged one, until it is killed.

``python -m tests.fakes.writer_process URL NAME`` talks in the conversations ``NAME-0`` … ``NAME-7`` at once and
prints ``NAME-3 17`` when turn 17 of the fourth is finished.
"""

from __future__ import annotations

import asyncio
import sys
import time

from proxy.messages import AssistantMessage, Item, UserMessage
from proxy.store.turns import open_history
from proxy.turns.repository import TurnRepository
from tests.fakes.turn_records import new_turn, the_end

CONVERSATIONS = 8


async def talk(history: TurnRepository, conversation: str) -> None:
    known = await history.find_conversation("alice", conversation)
    parent = known.head if known else None
    number = len(await history.chain(parent)) if parent is not None else 0
    while True:
        begun = await history.begin(
            new_turn(
                conversation,
                id=f"chatcmpl-{conversation}-{number}-{time.time_ns()}",
                parent=parent,
                input=[Item(UserMessage(f"ask {number}"))],
            )
        )
        answer = [Item(AssistantMessage(f"{part} {number}"), "sales") for part in ("first", "last")]
        assert await history.finish(the_end(begun.turn, items=answer))
        print(conversation, number, flush=True)
        parent, number = begun.turn, number + 1


async def main(url: str, name: str) -> None:
    history = open_history(url)
    await asyncio.gather(*(talk(history, f"{name}-{number}") for number in range(CONVERSATIONS)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
