"""One chunk of a streamed chat completion, or a whole one, as it was decoded.

Loosely typed: providers deviate from the format in many ways, and the parser decides what each deviation means.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from proxy.errors import UpstreamProtocolError
from proxy.providers.openai.chat_usage import ReportedUsage
from proxy.providers.sanitize import clean

STATE_MEMBERS: Final = ("reasoning_details", "extra_content", "thinking_blocks", "provider_specific_fields")
"""Members of a message that are provider state only."""


class FunctionDelta(Struct, gc=False):
    """The ``function`` of a streamed call. Loosely typed: what is wrong here is looked at here."""

    name: Any = None
    arguments: Any = None


class CallDelta(Struct, gc=False):
    """A streamed piece of a call as it came."""

    index: Any = None
    id: Any = None
    function: FunctionDelta | None = None
    extra_content: Any = None
    """Provider state of the call (Gemini's thought signatures)."""
    provider_specific_fields: Any = None
    """The same behind a gateway of LiteLLM."""


class ChunkDelta(Struct, gc=False):
    """A delta, or a whole message: the members that are read."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    reasoning_details: Any = None
    extra_content: Any = None
    thinking_blocks: Any = None
    provider_specific_fields: Any = None
    tool_calls: list[CallDelta] | None = None
    function_call: Any = None
    """The only call in the deprecated form, without index and id (old OpenAI-compatible servers)."""


class ChunkChoice(Struct, gc=False):
    """A choice of a chunk, or of a whole completion."""

    delta: ChunkDelta | None = None
    message: ChunkDelta | None = None
    finish_reason: Any = None
    logprobs: Any = None
    index: Any = 0
    usage: Any = None
    error: Any = None


class Chunk(Struct, gc=False):
    """A chunk, or a whole completion."""

    choices: list[ChunkChoice] | None = None
    usage: Any = None
    error: Any = None
    x_groq: Any = None
    handoff: Any = None
    """An event of another handoff-proxy (``wire.chat.extension_objects``)."""


_CALLS: Final = ChunkDelta.__struct_fields__.index("tool_calls")
MEMBERS_READ: Final = len(ChunkDelta.__struct_fields__)
"""The first members of each delta; those behind them are known, and not read."""


class KnownFunction(FunctionDelta, forbid_unknown_fields=True):
    """The ``function`` of a call without unknown members."""


class KnownCall(CallDelta, forbid_unknown_fields=True):
    """A piece of a call without unknown members."""

    function: KnownFunction | None = None
    type: Any = None
    custom: Any = None


class KnownDelta(ChunkDelta, forbid_unknown_fields=True):
    """A delta or message without unknown members: it has those that are read, and the others of the API reference."""

    tool_calls: list[KnownCall] | None = None  # type: ignore[assignment]
    role: Any = None
    name: Any = None
    annotations: Any = None
    audio: Any = None
    images: Any = None
    parsed: Any = None
    prefix: Any = None


class KnownChoice(ChunkChoice):
    """A choice whose message has no unknown members."""

    delta: KnownDelta | None = None
    message: KnownDelta | None = None


class KnownChunk(Chunk):
    """A chunk, or a whole completion, whose message has no unknown members, and whose usage has the usual form."""

    choices: list[KnownChoice] | None = None  # type: ignore[assignment]
    usage: ReportedUsage | None = None


decode = msgspec.json.Decoder(Chunk).decode
decode_known = msgspec.json.Decoder(KnownChunk).decode
"""Raises ``msgspec.ValidationError`` for a chunk with anything else."""


def only_delta(chunk: Chunk) -> ChunkDelta | None:
    """Return the delta of a chunk that has nothing else with a meaning.

    What is null, empty, false or 0 has no meaning.
    """
    choices = chunk.choices
    if not choices or len(choices) > 1:
        return None
    choice = choices[0]
    # Compared one by one: ``any(astuple(…))`` takes several times as long.
    has_more = (
        choice.finish_reason
        or choice.message
        or choice.logprobs
        or choice.index
        or choice.usage
        or choice.error
        or chunk.usage
        or chunk.error
        or chunk.x_groq
        or chunk.handoff
    )
    return None if has_more else choice.delta


def only_text(delta: ChunkDelta) -> str:
    """Return the piece of ``content`` of a delta that has nothing else; empty if it has, or has no text."""
    text = delta.content
    has_more = (
        type(text) is not str
        or delta.reasoning_content
        or delta.reasoning
        or delta.refusal
        or delta.reasoning_details
        or delta.extra_content
        or delta.thinking_blocks
        or delta.provider_specific_fields
        or delta.tool_calls
        or delta.function_call
    )
    return "" if has_more else text


def only_call(delta: ChunkDelta) -> CallDelta | None:
    """Return the call of a delta that has nothing else; None if it has, or has not one call."""
    calls = delta.tool_calls
    if calls is None or len(calls) != 1 or any(astuple(delta)[:_CALLS]) or delta.function_call:
        return None
    return calls[0]


def is_piece(delta: ChunkDelta) -> bool:
    """Whether the delta has a piece of reasoning, or of the arguments of a call that began before."""
    if delta.reasoning_content or delta.reasoning:
        return True
    calls = delta.tool_calls
    if calls is None or len(calls) != 1:
        return False
    function = calls[0].function
    return function is not None and not (function.name or calls[0].id) and bool(function.arguments)


def token_list(logprobs: object, of: str) -> list[Any] | None:
    """Return the log probabilities of one text member, None if there are none."""
    tokens = logprobs.get(of) if isinstance(logprobs, dict) else None
    return tokens if isinstance(tokens, list) and tokens else None


def legacy_call(function_call: object) -> list[CallDelta]:
    """Return a ``function_call`` as a tool call, or a piece of it; empty if it holds neither name nor arguments.

    Deprecated in favour of ``tool_calls``: https://platform.openai.com/docs/api-reference/chat/object
    """
    if not isinstance(function_call, dict):
        return []
    function = FunctionDelta(function_call.get("name"), function_call.get("arguments"))
    return [CallDelta(index=0, function=function)] if function.name or function.arguments else []


def whole_chunks(body: bytes) -> list[tuple[Chunk, bytes]]:
    """Decode a body that is one JSON object, or one JSON object per line; return each with its JSON.

    Raises:
        UpstreamProtocolError: It is neither.
    """
    try:
        return [(decoded(body), body)]
    except UpstreamProtocolError:
        lines = [line for line in body.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
    return [(decoded(line), line) for line in lines]


def decoded(data: bytes) -> Chunk:
    """Decode one chunk.

    Raises:
        UpstreamProtocolError: It is not JSON, or not a chunk.
    """
    try:
        return decode(data)
    except (ValueError, RecursionError):
        return repaired(data)


def repaired(data: bytes) -> Chunk:
    """Decode a chunk that msgspec rejects.

    Raises:
        UpstreamProtocolError: It is not JSON, or not a chunk.
    """
    # msgspec refuses raw control characters, NaN and half surrogate pairs; some models produce them. The halves stay:
    # the other half may be in the next chunk.
    try:
        loose = json.loads(data, strict=False, parse_constant=lambda _: None)
        chunk = msgspec.convert(loose, Chunk)
        for choice in chunk.choices or ():
            choice.logprobs = _cleaned(choice.logprobs)
            for part in (choice.delta, choice.message):
                if part is not None:
                    for name in STATE_MEMBERS:
                        setattr(part, name, _cleaned(getattr(part, name)))
                    for call in part.tool_calls or ():
                        call.extra_content = _cleaned(call.extra_content)
                        call.provider_specific_fields = _cleaned(call.provider_specific_fields)
    except (ValueError, RecursionError):
        raise UpstreamProtocolError("protocol") from None
    return chunk


def _cleaned(value: Any) -> Any:
    """Return a JSON value whose text holds whole characters only."""
    return value and json.loads(clean(json.dumps(value, ensure_ascii=False)))
