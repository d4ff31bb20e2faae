"""The stream of a Responses API, for models whose script has ``is_responses``."""

from __future__ import annotations

import json
from typing import Any

_ITEM = "msg_0bench0bench0bench0bench0bench0bench0bench0bench"
_AT: dict[str, Any] = {"item_id": _ITEM, "output_index": 0}
_USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 10,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 30,
}


def opening(model: str) -> bytes:
    """Return the events before the first text."""
    item = _message("", "in_progress")
    started = {"response": _response(model, [], "in_progress", None)}
    return b"".join(
        [
            event("response.created", **started),
            event("response.in_progress", **started),
            event("response.output_item.added", output_index=0, item={**item, "content": []}),
            event("response.content_part.added", **_AT, content_index=0, part=item["content"][0]),
        ]
    )


def delta(text: str) -> bytes:
    """Return the event of a piece of text, with about the size that OpenAI's has."""
    return event(
        "response.output_text.delta",
        **_AT,
        content_index=0,
        delta=text,
        logprobs=[],
        obfuscation="bench0bench0",
    )


def ending(model: str) -> bytes:
    """Return the events after the last text, without that text."""
    item = _message("", "completed")
    return b"".join(
        [
            event("response.output_text.done", **_AT, content_index=0, text="", logprobs=[]),
            event("response.content_part.done", **_AT, content_index=0, part=item["content"][0]),
            event("response.output_item.done", output_index=0, item=item),
            event("response.completed", response=_response(model, [item], "completed", _USAGE)),
        ]
    )


def event(kind: str, **members: Any) -> bytes:
    """Return an event with SSE framing."""
    data = json.dumps({"type": kind, "sequence_number": 4, **members}, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode()


def _message(text: str, status: str) -> dict[str, Any]:
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
    return {"id": _ITEM, "type": "message", "status": status, "role": "assistant", "content": [part]}


def _response(model: str, output: list[Any], status: str, usage: Any) -> dict[str, Any]:
    return {
        "id": "resp_0bench0bench0bench0bench0bench0bench0bench0bench",
        "object": "response",
        "created_at": 1_700_000_000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": output,
        "usage": usage,
    }
