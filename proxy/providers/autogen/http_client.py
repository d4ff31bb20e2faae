"""A hold on the HTTP connections of somebody else's model client.

AutoGen's clients read each chunk in a separate task. Cancelled between two of them, or before the next one began to
run, they leave the response open and the provider writing. Those built on an SDK with an httpx client inside (OpenAI,
Azure OpenAI, Anthropic, Ollama) can be helped: the responses of a call are noted as they arrive and closed when the
call is left. Others have to be caught while they read.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from proxy.tracing import add_trace_headers

_responses: ContextVar[list[Any] | None] = ContextVar("responses of the model call", default=None)
_LOOP_TURNS = 10
"""Iterations of the event loop between the delivery of a piece and the client's next read."""


def take_hold(client: object) -> None:
    """Have the responses of this client noted, ``traceparent`` sent, and redirects refused: they would take the
    conversation along.
    """
    http = getattr(getattr(client, "_client", None), "_client", None)
    hooks = getattr(http, "event_hooks", None)
    if isinstance(hooks, dict) and isinstance(hooks.get("response"), list):
        hooks["response"].append(_note)
        hooks.setdefault("request", []).append(add_trace_headers)
        http.follow_redirects = False  # type: ignore[union-attr]


def note_responses() -> list[Any]:
    """Return the list in which the responses of the running task, and of tasks that it starts, are noted."""
    noted: list[Any] = []
    _responses.set(noted)
    return noted


async def let_read() -> None:
    """Give a client the time to come to its next read, in which it can be cancelled."""
    for _ in range(_LOOP_TURNS):
        await asyncio.sleep(0)


async def close_responses(noted: list[Any]) -> None:
    """Close the noted responses; those that were read to their end are closed already."""
    for response in noted:
        # No caller is left that could handle the error.
        with suppress(Exception):
            await response.aclose()


async def close_connections(client: object) -> None:
    """Close the httpx client inside, if there is one; AutoGen's Ollama client leaves it open."""
    close = getattr(getattr(getattr(client, "_client", None), "_client", None), "aclose", None)
    if close is not None:
        await close()


async def _note(response: Any) -> None:
    noted = _responses.get()
    if noted is not None:
        noted.append(response)
