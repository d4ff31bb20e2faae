"""Members of a message and its calls that neither the API nor this proxy knows: state of further providers.

A provider that needs such members rejects the next request without them, as the known ones do. Others ignore them, and
one that rejects them is sent none from then on (``Reshaping.NO_UNKNOWN_STATE``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from proxy.messages import CALL_STATE_MEMBERS, MESSAGE_STATE_MEMBERS, ProviderState
from proxy.providers.openai.stream_chunk import KnownCall, KnownDelta, KnownFunction

MAX_COLLECTED_BYTES = 4 * 1024 * 1024
"""Of the chunks of one answer that have unknown members."""
_MAX_DEPTH = 8
"""Levels of objects whose members are joined; a value below is that of its last chunk."""

CallMembers = Sequence[Mapping[str, Any]]
"""Unknown members of some calls."""


class _KnownChoice(Struct):
    delta: KnownDelta | None = None
    message: KnownDelta | None = None


class _KnownChunk(Struct):
    choices: list[_KnownChoice] | None = None


class _Choice(Struct):
    delta: dict[str, Any] | None = None
    message: dict[str, Any] | None = None
    index: Any = 0


class _Chunk(Struct):
    choices: list[_Choice] | None = None


_KNOWN = frozenset(KnownDelta.__struct_fields__)
_KNOWN_OF_CALL = frozenset(KnownCall.__struct_fields__)
_KNOWN_OF_FUNCTION = frozenset(KnownFunction.__struct_fields__)
_decode_known = msgspec.json.Decoder(_KnownChunk).decode
_decode = msgspec.json.Decoder(_Chunk).decode


class UnknownMembers(Struct):
    """Collects the unknown members of one answer's message, and finds those of its calls."""

    has_any: bool = False
    """Whether a chunk had an unknown member; then the next ones may have them too."""
    _pieces: list[dict[str, Any]] = []
    _size: int = 0

    def read(self, chunk: bytes) -> tuple[CallMembers, CallMembers]:
        """Add the unknown members in a chunk or a whole completion.

        Return those of the calls in its ``delta`` and in its ``message``, in their order; empty if no call has any. A
        chunk that is not valid JSON has none.
        """
        try:
            _decode_known(chunk)
        except msgspec.ValidationError:
            pass
        except (ValueError, RecursionError):
            return (), ()
        else:
            return (), ()
        self.has_any = True
        self._size += len(chunk)
        if self._size > MAX_COLLECTED_BYTES:
            self._pieces.clear()
            return (), ()
        try:
            choices = _decode(chunk).choices or ()
        except (ValueError, RecursionError):
            return (), ()
        choice = next((one for one in choices if not one.index), _Choice())
        return self._add(choice.delta or {}), self._add(choice.message or {})

    def _add(self, message: dict[str, Any]) -> CallMembers:
        if unknown := _unknown(message, _KNOWN):
            self._pieces.append(unknown)
        calls = message.get("tool_calls")
        found = [*map(_of_call, calls)] if isinstance(calls, list) else []
        return found if any(found) else ()

    def joined(self) -> dict[str, Any]:
        """Return the members of the message."""
        return joined(self._pieces)


def _of_call(call: object) -> dict[str, Any]:
    if not isinstance(call, dict):
        return {}
    unknown = _unknown(call, _KNOWN_OF_CALL)
    function = call.get("function")
    if isinstance(function, dict) and (of_function := _unknown(function, _KNOWN_OF_FUNCTION)):
        unknown["function"] = of_function
    return unknown


def without_unknown(state: ProviderState) -> ProviderState:
    """Return the state with known members only."""
    return msgspec.structs.replace(
        state,
        members={name: value for name, value in state.members.items() if name in MESSAGE_STATE_MEMBERS},
        calls=[
            {name: value for name, value in call.items() if name in (*CALL_STATE_MEMBERS, "id")}
            for call in state.calls
        ],
    )


def _unknown(values: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    return {
        name: value for name, value in values.items() if name not in known and value not in (None, "", [], {})
    }


def joined(pieces: Sequence[dict[str, Any]], depth: int = 0) -> dict[str, Any]:
    """Join objects of several chunks: their texts and lists are joined, other values are those of the last chunk."""
    by_name: dict[str, list[Any]] = {}
    for piece in pieces:
        for name, value in piece.items():
            by_name.setdefault(name, []).append(value)
    return {name: _joined_value(values, depth) for name, values in by_name.items()}


def _joined_value(values: list[Any], depth: int) -> Any:
    last = values[-1]
    if all(value == last for value in values):
        # Repeated in each chunk.
        return last
    if all(isinstance(value, str) for value in values):
        is_cumulative = all(later.startswith(earlier) for earlier, later in itertools.pairwise(values))
        return last if is_cumulative else "".join(values)
    if all(isinstance(value, list) for value in values):
        return [*itertools.chain.from_iterable(values)]
    if depth < _MAX_DEPTH and all(isinstance(value, dict) for value in values):
        return joined(values, depth + 1)
    return last
