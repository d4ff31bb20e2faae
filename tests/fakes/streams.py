"""Streams of chunks, as tests look at them: frame by frame, and as the official SDK reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import httpx2
from openai import OpenAI
from openai.types.chat import ChatCompletion

from proxy.events import Entry, Event
from proxy.wire.chat.completion import AnswerOptions
from proxy.wire.chat.stream import ChunkEncoder
from proxy.wire.events import sse

PLAIN = AnswerOptions(id="chatcmpl-1", created=1700000000, model="acme-support")


def entries(events: Iterable[Event]) -> list[Entry]:
    return [Entry(position, event) for position, event in enumerate(events, 1)]


def stream(*events: Event, options: AnswerOptions = PLAIN, after: sse.Position = sse.START) -> bytes:
    encoder = ChunkEncoder(options, after=after, has_ids=True)
    return b"".join(encoder.encode(entry) for entry in entries(events))


def frames(data: bytes) -> list[tuple[str | None, str]]:
    """The id and the data of every frame; anything else in a frame is an error."""
    found = []
    for block in data.decode().removesuffix("\n\n").split("\n\n"):
        *ids, last = block.split("\n")
        assert last.startswith("data: ")
        assert len(ids) <= 1
        found.append((ids[0].removeprefix("id: ") if ids else None, last.removeprefix("data: ")))
    return found


def deltas(data: bytes) -> list[Any]:
    """The delta of every chunk, the finish reason in place of an empty one; and whatever else the frames hold."""
    reported: list[Any] = []
    for _, text in frames(data):
        if text == "[DONE]":
            reported.append(text)
            continue
        chunk = json.loads(text)
        if chunk.get("choices"):
            (choice,) = chunk["choices"]
            reported.append(choice["delta"] or choice["finish_reason"])
        else:
            reported.append({key: value for key, value in chunk.items() if key in ("usage", "error")})
    return reported


def sdk(data: bytes, content_type: str = "text/event-stream", *, step: int = 7) -> OpenAI:
    """The official client, before a server that answers with these bytes, a few at a time."""
    pieces = [data[start : start + step] for start in range(0, len(data), step)]

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": content_type}, content=iter(pieces))

    return OpenAI(
        api_key="k",
        base_url="http://proxy/v1",
        http_client=httpx2.Client(transport=httpx2.MockTransport(answer)),
    )


def read(data: bytes) -> ChatCompletion:
    """What the SDK's own helper makes of a stream."""
    with sdk(data).chat.completions.stream(model="m", messages=[]) as events:
        for _ in events:
            pass
        return events.get_final_completion()
