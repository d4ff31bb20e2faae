"""Assembly of streamed tool calls from their pieces.

Providers number calls from 1, leave numbers out, repeat ids and names with every piece, use one number for
all calls, or mix the pieces of several. The result follows the contract of the port: calls 0, 1, … one after
the other, each beginning with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from proxy.errors import UpstreamIncomplete, UpstreamProtocolError, UpstreamResponseTooLarge
from proxy.providers.model import ToolCallPiece
from proxy.providers.openai.json_nesting import JsonNesting
from proxy.providers.openai.provider_state import SIGNED_ID
from proxy.providers.openai.stream_chunk import CallDelta, FunctionDelta
from proxy.providers.openai.unknown_members import joined
from proxy.providers.sanitize import clean

MAX_CALLS = 256

Ending = Literal["whole", "unknown", "cut_short"]
"""How an answer with calls ended: its reason says that they are complete, there was no reason, or a limit cut it."""

_PLACEHOLDERS = ("{}", "null", "[]", '""')
"""What some send for no arguments, others before the real arguments, which then come whole on the same index."""

_LONGEST_PLACEHOLDER = 16


class _Call:
    """One call as far as it came; ``held`` is what of its arguments did not go out yet."""

    __slots__ = (
        "arguments",
        "call_id",
        "half",
        "held",
        "is_begun",
        "name",
        "nesting",
        "position",
        "provider_state",
        "unknown",
    )

    def __init__(self, position: int, call_id: str | None) -> None:
        self.position = position
        self.call_id = call_id
        self.name = ""
        self.arguments: list[str] = []
        self.held: list[str] = []
        self.half = ""
        """The first half of a surrogate pair; the second half is in the next piece."""
        self.nesting = JsonNesting()
        self.is_begun = False
        self.provider_state: dict[str, Any] = {}
        self.unknown: list[dict[str, Any]] = []

    @property
    def is_closed(self) -> bool:
        """Whether the arguments are whole, as far as that can be known before the end."""
        return self.nesting.is_closed and not self.is_placeholder

    @property
    def is_placeholder(self) -> bool:
        """Whether the arguments stand, or may come to stand, for none, and none of them were sent on."""
        if len(self.arguments) != len(self.held) or sum(map(len, self.arguments)) > _LONGEST_PLACEHOLDER:
            return False
        text = "".join(self.arguments).strip()
        return bool(text) and text != "{" and any(one.startswith(text) for one in _PLACEHOLDERS)

    def add(self, arguments: str) -> None:
        if arguments.lstrip().startswith("{") and self.is_placeholder:
            self.arguments.clear()
            self.held.clear()
            self.nesting = JsonNesting()
        arguments = self.half + arguments
        self.half = arguments[-1] if "\ud800" <= arguments[-1] <= "\udbff" else ""
        arguments = clean(arguments.removesuffix(self.half))
        if not arguments:
            return
        self.arguments.append(arguments)
        self.held.append(arguments)
        self.nesting.add(arguments)


class CallAssembler:
    """Takes pieces as they come and gives them in order.

    The first call's pieces pass at once. The next call's pass once the object before them is closed; until
    then, or until the end, they wait.
    """

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._front = 0
        """The call whose pieces pass at once; those before it are whole."""

    @property
    def has_calls(self) -> bool:
        """Whether any call came."""
        return bool(self._calls)

    def states(self) -> list[dict[str, Any]]:
        """Return the provider state of each call; the list is empty if no call has any."""
        states = [joined(call.unknown) | call.provider_state for call in self._calls]
        return states if any(states) else []

    def add(self, delta: CallDelta, unknown: Mapping[str, Any] = {}) -> list[ToolCallPiece]:
        """Return the pieces that are certain now; ``unknown`` are members of the delta that the API does not have.

        Raises:
            UpstreamProtocolError: A piece belongs to no call, or to one that was whole already.
            UpstreamResponseTooLarge: There are more than ``MAX_CALLS`` calls.
        """
        if not unknown and (pieces := self.further_arguments(delta)) is not None:
            return pieces
        name, arguments = _content(delta.function)
        if name and arguments and self._is_repetition(delta.id, name, arguments):
            return []
        call = self._call_of(delta, name, arguments)
        if call is None:
            if name or arguments:
                raise UpstreamProtocolError("protocol")
            return []
        if unknown:
            call.unknown.append(dict(unknown))
        if delta.extra_content is not None:
            call.provider_state["extra_content"] = delta.extra_content
        if delta.provider_specific_fields is not None:
            call.provider_state["provider_specific_fields"] = delta.provider_specific_fields
        if call.call_id is not None and SIGNED_ID in call.call_id:
            call.provider_state["id"] = call.call_id
        if name and name != call.name and not call.is_begun:
            # A name in pieces; some send it again and longer.
            call.name = name if name.startswith(call.name) else call.name + name
        if arguments:
            if call.position < self._front:
                if arguments.strip():
                    raise UpstreamProtocolError("protocol")
                return []
            call.add(arguments)
        return self._released()

    def _is_repetition(self, call_id: object, name: str, arguments: str) -> bool:
        """Whether this is a call that arrived before, as some providers repeat all calls in their last chunk."""
        earlier = self._by_id.get(call_id) if isinstance(call_id, str) else None
        if earlier is None or earlier.name != name or not earlier.nesting.is_closed:
            return False
        return _is_same_json("".join(earlier.arguments), arguments)

    def further_arguments(self, delta: CallDelta) -> list[ToolCallPiece] | None:
        """Return a piece of the arguments of the front call, as nearly every delta is; None if it is something else."""
        call = self._by_index.get(delta.index) if type(delta.index) is int else None
        function = delta.function
        if (
            call is None
            or not call.is_begun
            or call.position != self._front
            or call.half
            or function is None
            or function.name
            or delta.id
            or delta.extra_content is not None
            or delta.provider_specific_fields is not None
        ):
            return None
        arguments = function.arguments
        if type(arguments) is not str or not arguments or not arguments.isascii() or "\x00" in arguments:
            return None
        call.arguments.append(arguments)
        call.nesting.add(arguments)
        if call.nesting.is_closed and self._front + 1 < len(self._calls):
            self._front += 1
            return [ToolCallPiece(call.position, arguments), *self._released()]
        return [ToolCallPiece(call.position, arguments)]

    def _released(self) -> list[ToolCallPiece]:
        """Return what is new of the front call, and of those behind it if it is closed."""
        pieces = self._advance()
        while self._front + 1 < len(self._calls) and self._calls[self._front].is_closed:
            self._front += 1
            pieces += self._advance()
        return pieces

    def finish(self, ending: Ending) -> list[ToolCallPiece]:
        """Return what was held back; no more pieces come.

        Raises:
            UpstreamIncomplete: A call was cut.
            UpstreamProtocolError: A call has no name.
        """
        if ending != "whole" and any(_is_cut(call, ending) for call in self._calls):
            raise UpstreamIncomplete("incomplete", is_retryable=ending == "unknown")
        pieces: list[ToolCallPiece] = []
        for call in self._calls[self._front :]:
            self._front = call.position
            pieces += self._advance(is_end=True)
            if not call.is_begun:
                raise UpstreamProtocolError("protocol")
        return pieces

    def _advance(self, *, is_end: bool = False) -> list[ToolCallPiece]:
        """Return what is new of the front call. Before the end, a name waits for arguments: it may be in pieces."""
        call = self._calls[self._front]
        if not call.name or (not call.held and (call.is_begun or not is_end)):
            return []
        arguments = "".join(call.held)
        if call.is_placeholder:
            if not is_end:
                return []
            arguments = "{}"
        call.held.clear()
        if call.is_begun:
            return [ToolCallPiece(self._front, arguments)]
        call.is_begun = True
        return [ToolCallPiece(self._front, arguments, call.name, call.call_id)]

    def _call_of(self, delta: CallDelta, name: str, arguments: str) -> _Call | None:
        call_id = clean(delta.id) if isinstance(delta.id, str) and delta.id else None
        index = delta.index if isinstance(delta.index, int) else None
        if index is not None:
            call = self._by_index.get(index)
        elif call_id is not None:
            # An id that changes with every piece belongs to the last call, unless a name says otherwise.
            call = self._by_id.get(call_id) or (None if name else self._last())
        else:
            call = self._last()
        if (
            call is not None
            and name
            and _begins_another(call, call_id, name, arguments, has_index=index is not None)
        ):
            call = self._by_id.get(call_id) if call_id is not None and call_id != call.call_id else None
        if call is None and (name or call_id or index is not None):
            call = self._begun(call_id)
        if call is not None:
            if call_id is not None and call.call_id is None:
                call.call_id = call_id
                self._by_id[call_id] = call
            if index is not None:
                self._by_index[index] = call
        return call

    def _begun(self, call_id: str | None) -> _Call:
        if len(self._calls) == MAX_CALLS:
            raise UpstreamResponseTooLarge("too_much")
        call = _Call(len(self._calls), call_id)
        self._calls.append(call)
        if call_id is not None:
            self._by_id[call_id] = call
        return call

    def _last(self) -> _Call | None:
        return self._calls[-1] if self._calls else None


def _begins_another(call: _Call, call_id: str | None, name: str, arguments: str, *, has_index: bool) -> bool:
    """Whether a piece with a name, that seems to belong to ``call``, is the first of another one.

    Some repeat the name with every piece, and some (Google's compatible endpoint) use one number for all
    calls.
    """
    if not call.name:
        return False
    is_same_call = has_index and call_id in (None, call.call_id)
    if is_same_call and not call.arguments and name != call.name:
        # The next piece of a name.
        return False
    if is_same_call and name == call.name and call.is_placeholder:
        return False
    if name != call.name or (call_id is not None and call.call_id not in (None, call_id)):
        return True
    return call.nesting.is_closed and bool(arguments.strip())


def _is_cut(call: _Call, ending: Ending) -> bool:
    arguments = "".join(call.arguments)
    if not arguments:
        return ending == "cut_short"
    try:
        msgspec.json.decode(arguments)
    except (ValueError, RecursionError):
        return True
    return False


def _is_same_json(one: str, other: str) -> bool:
    try:
        return bool(msgspec.json.decode(one) == msgspec.json.decode(other))
    except (ValueError, RecursionError):
        return False


def _content(function: FunctionDelta | None) -> tuple[str, str]:
    if function is None:
        return "", ""
    name, arguments = function.name, function.arguments
    if arguments is not None and not isinstance(arguments, str):
        # Some send the arguments as the object itself.
        arguments = msgspec.json.encode(arguments).decode()
    return clean(name) if isinstance(name, str) else "", arguments or ""
