"""Provider state of chat completions: collected from an answer, returned with the next request.

Several providers reject a request whose assistant messages lack what they returned with tool calls: DeepSeek and Kimi
``reasoning_content``, OpenRouter ``reasoning_details``, Gemini ``tool_calls[].extra_content``. What it holds is opaque:
pieces of a stream are joined, nothing else is changed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from yarl import URL

from proxy.messages import AssistantMessage, Message, ProviderState

logger = logging.getLogger(__name__)

MAX_STATE_BYTES = 1024 * 1024
"""Of one message, as JSON."""
_JOINED = frozenset(("text", "summary", "data"))
"""Members of a reasoning detail that arrive in pieces; the others are whole in each piece that has them."""


class StateCollector:
    """Collects the state of one answer."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._reasoning: list[str] = []
        self._details: list[dict[str, Any]] = []
        self._pieces: dict[tuple[int, str], list[str]] = {}
        """Texts of a detail, by its position and the name of the member."""
        self._by_index: dict[Any, int] = {}
        self._extra: Any = None

    def add(self, reasoning: object, details: object, extra_content: object) -> None:
        """Take the members of one delta."""
        if isinstance(reasoning, str) and reasoning:
            self._reasoning.append(reasoning)
        for detail in details if isinstance(details, list) else ():
            if isinstance(detail, dict):
                self._add_detail(detail)
        if extra_content is not None:
            self._extra = extra_content

    def state(self, calls: list[dict[str, Any]]) -> ProviderState | None:
        """Return what has to be returned with the message; ``calls`` is the state of its calls."""
        members: dict[str, Any] = {}
        if self._reasoning:
            members["reasoning_content"] = "".join(self._reasoning)
        if self._details:
            for (position, name), pieces in self._pieces.items():
                self._details[position][name] = "".join(pieces)
            members["reasoning_details"] = self._details
        if self._extra is not None:
            members["extra_content"] = self._extra
        if not members and not calls:
            return None
        return bounded_state(ProviderState(self._provider, members, calls))

    def _add_detail(self, detail: dict[str, Any]) -> None:
        index = detail.get("index")
        position = self._by_index.get(index) if isinstance(index, int) else None
        if position is None or self._details[position].get("type") != detail.get("type"):
            position = len(self._details)
            self._details.append({})
            if isinstance(index, int):
                self._by_index[index] = position
        whole = self._details[position]
        for name, value in detail.items():
            if name in _JOINED and isinstance(value, str):
                whole.setdefault(name, "")
                self._pieces.setdefault((position, name), []).append(value)
            elif value is not None or name not in whole:
                whole[name] = value


def bounded_state(state: ProviderState) -> ProviderState | None:
    """Return the state, None if it is larger than the limit."""
    size = len(msgspec.json.encode(state))
    if size <= MAX_STATE_BYTES:
        return state
    logger.warning("provider state is over the limit and is dropped", extra={"bytes": size})
    return None


def messages_with_state(
    messages: Sequence[Message], states: Mapping[str, ProviderState], provider: str
) -> Sequence[Message | dict[str, Any]]:
    """Return the messages for a chat completion, with the state that ``provider`` returned with them."""
    if not any(state.provider == provider for state in states.values()):
        return messages
    return [_with_state(message, states, provider) for message in messages]


def _with_state(
    message: Message, states: Mapping[str, ProviderState], provider: str
) -> Message | dict[str, Any]:
    if not isinstance(message, AssistantMessage) or not message.tool_calls:
        return message
    body: dict[str, Any] | None = None
    # Replies that were merged into one message have their calls one after the other.
    for first, call in enumerate(message.tool_calls):
        state = states.get(call.id)
        if state is None or state.provider != provider:
            continue
        if body is None:
            body = msgspec.to_builtins(message)
        body.update(state.members)
        for wire_call, extra in zip(body["tool_calls"][first:], state.calls, strict=False):
            wire_call.update(extra)
    return message if body is None else body


def provider_of(base_url: str, model: str) -> str:
    """Return the name of a model at its provider, without credentials or the query that the URL may hold."""
    url = URL(base_url)
    return f"{url.host}:{url.port}{url.path.rstrip('/')} {model}"
