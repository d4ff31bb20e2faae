"""Provider state of chat completions: collected from an answer, returned with the next request.

Several providers reject a request whose assistant messages lack what they returned with tool calls: DeepSeek and Kimi
``reasoning_content``, OpenRouter ``reasoning_details``, Gemini ``tool_calls[].extra_content``, gateways of LiteLLM
``thinking_blocks``, ``provider_specific_fields`` or a signature in the id of the call. Other providers may want further
members back (``unknown_members``). All of it is opaque: pieces of a stream are joined, nothing else is changed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec

from proxy.messages import AssistantMessage, Message, ProviderState, ToolMessage, is_within_limit
from proxy.providers.http.url import HttpUrl
from proxy.providers.model import ModelRequest
from proxy.providers.openai.unknown_members import without_unknown

logger = logging.getLogger(__name__)

_JOINED = frozenset(("text", "summary", "data"))
"""Members of a reasoning detail that arrive in pieces; the others are whole in each piece that has them."""
_WITH_CALLS_ONLY = ("reasoning_content", "thinking_blocks", "provider_specific_fields")
"""Not returned with text: DeepSeek's older models reject it there, the others ignore it."""
MAX_COLLECTED_BYTES = 16 * 1024 * 1024
"""Of the pieces of one answer, which are much longer than the joined state: each repeats its type and index."""
SIGNED_ID = "__thought__"
"""Behind it LiteLLM appends a thought signature to the id of a call (litellm, prompt_templates/factory.py)."""


class StateCollector:
    """Collects the state of one answer."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._reasoning: list[str] = []
        self._details: list[dict[str, Any]] = []
        self._pieces: dict[tuple[int, str], list[str]] = {}
        """Texts of a detail, by its position and the name of the member."""
        self._by_index: dict[Any, int] = {}
        self._blocks: list[dict[str, Any]] = []
        self._others: dict[str, Any] = {}
        self._thinking: list[list[str]] = []
        """Texts of each block."""
        self._size = 0
        """Bytes of the details and blocks, as they came."""

    def add_reasoning(self, reasoning: str) -> None:
        """Add a piece of ``reasoning_content``."""
        if reasoning:
            self._reasoning.append(reasoning)

    def add(self, details: object, blocks: object, **others: object) -> None:
        """Add the members of one delta; ``blocks`` are ``thinking_blocks``, ``others`` are whole in each delta."""
        for members, add in ((details, self._add_detail), (blocks, self._add_block)):
            for member in members if isinstance(members, list) else ():
                if isinstance(member, dict) and self._has_room(member):
                    add(member)
        for name, value in others.items():
            if value is not None:
                self._others[name] = value

    def state(
        self, calls: list[dict[str, Any]], *, has_calls: bool, unknown: Mapping[str, Any] = {}
    ) -> ProviderState | None:
        """Return what has to be returned with the message; ``calls`` is the state of its calls.

        ``unknown`` are members of the message that the API does not have.
        """
        if self._size > MAX_COLLECTED_BYTES:
            logger.warning(
                "provider state is over the limit and is dropped", extra={"provider": self._provider}
            )
            return None
        members: dict[str, Any] = {**unknown, **self._others}
        if self._reasoning:
            members["reasoning_content"] = "".join(self._reasoning)
        if self._details:
            for (position, name), pieces in self._pieces.items():
                self._details[position][name] = "".join(pieces)
            members["reasoning_details"] = self._details
        if self._blocks:
            for block, pieces in zip(self._blocks, self._thinking, strict=True):
                if pieces:
                    block["thinking"] = "".join(pieces)
            members["thinking_blocks"] = self._blocks
        if not has_calls:
            for name in _WITH_CALLS_ONLY:
                members.pop(name, None)
        if not members and not calls:
            return None
        return bounded_state(ProviderState(self._provider, members, calls))

    def _has_room(self, member: dict[str, Any]) -> bool:
        """Count a piece, and return whether it can be collected: an incomplete state is of no use."""
        if self._size <= MAX_COLLECTED_BYTES:
            self._size += len(msgspec.json.encode(member))
            if self._size > MAX_COLLECTED_BYTES:
                self._details.clear()
                self._pieces.clear()
                self._by_index.clear()
                self._blocks.clear()
                self._thinking.clear()
        return self._size <= MAX_COLLECTED_BYTES

    def _add_block(self, block: dict[str, Any]) -> None:
        """Add a piece of a block; a block ends with its signature, or where another type begins."""
        last = self._blocks[-1] if self._blocks else None
        if last is None or last.get("signature") or last.get("type") != block.get("type"):
            self._blocks.append(last := {})
            self._thinking.append([])
        for name, value in block.items():
            if name == "thinking" and isinstance(value, str):
                last.setdefault(name, "")
                self._thinking[-1].append(value)
            elif value or name not in last:
                last[name] = value

    def _add_detail(self, detail: dict[str, Any]) -> None:
        index = detail.get("index")
        position = self._by_index.get(index) if isinstance(index, int) else None
        kind = detail.get("type")
        if position is None or kind not in (None, self._details[position].get("type")):
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
    if is_within_limit(state):
        return state
    logger.warning("provider state is over the limit and is dropped", extra={"provider": state.provider})
    return None


def messages_with_state(request: ModelRequest, provider: str) -> Sequence[Message | dict[str, Any]]:
    """Return the messages for a chat completion, with the state that ``provider`` or the client sent with them."""
    if not (request.states or request.text_states) or not has_state(request, provider):
        return request.messages
    ids: dict[str, str] = {}
    """Ids of calls at the provider, by those that are stored."""
    return [_with_state(message, request, provider, ids) for message in request.messages]


def has_state(request: ModelRequest, provider: str) -> bool:
    """Whether the request has state that is sent to this provider and model."""
    return any(is_for(state, provider) for state in (*request.states.values(), *request.text_states.values()))


def has_unknown_state(request: ModelRequest, provider: str) -> bool:
    """Whether the request has state that is sent to this provider, in members that only the provider knows."""
    states = [*request.states.values(), *request.text_states.values()]
    return any(is_for(state, provider) and without_unknown(state) != state for state in states)


def without_unknown_state(request: ModelRequest) -> ModelRequest:
    """Return the request with provider state in known members only."""
    return msgspec.structs.replace(
        request,
        states={key: without_unknown(state) for key, state in request.states.items()},
        text_states={key: without_unknown(state) for key, state in request.text_states.items()},
    )


def is_for(state: ProviderState | None, provider: str) -> bool:
    """Whether the state is sent to this provider and model."""
    return state is not None and state.provider in (provider, "")


def _with_state(
    message: Message, request: ModelRequest, provider: str, ids: dict[str, str]
) -> Message | dict[str, Any]:
    if isinstance(message, ToolMessage):
        call_id = ids.get(message.tool_call_id)
        return message if call_id is None else msgspec.structs.replace(message, tool_call_id=call_id)
    if not isinstance(message, AssistantMessage):
        return message
    body: dict[str, Any] | None = None
    if not message.tool_calls:
        state = request.text_states.get(id(message))
        if state is not None and is_for(state, provider):
            members = {n: value for n, value in state.members.items() if n not in _WITH_CALLS_ONLY}
            body = msgspec.to_builtins(message) | members
        return message if body is None else body
    # Replies that were merged into one message have their calls one after the other.
    for first, call in enumerate(message.tool_calls):
        state = request.states.get(call.id)
        if state is None or not is_for(state, provider):
            continue
        if body is None:
            body = msgspec.to_builtins(message)
        body.update(state.members)
        for wire_call, extra in zip(body["tool_calls"][first:], state.calls, strict=False):
            if "id" in extra:
                ids[wire_call["id"]] = extra["id"]
            function = wire_call["function"] | extra.get("function", {})
            wire_call.update(extra, function=function)
    return message if body is None else body


def provider_of(base_url: str, model: str) -> str:
    """Return the name of a model at its provider, without credentials or the query that the URL may hold."""
    url = HttpUrl.parse(base_url)
    return f"{url.host}:{url.port}{unquote(url.path.rstrip('/'))} {model}"
