"""The body of a chat completion request, decoded and checked.

The fast path accepts, the slow path explains: msgspec decodes into types that state names and ranges; only when that
fails is the body decoded again, plainly, to mend what the contract forgives (an integer sent as ``1.0``) or to say
exactly what is wrong. Nothing but ``InvalidRequest`` is raised, whatever the bytes.

Of keys that come twice the last one counts. What is skipped (unknown keys inside of messages and tools) is only read
as far as JSON is told from no JSON. A body with a NUL character in it is refused:
not every database can keep one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from proxy.errors import InvalidRequest
from proxy.messages import FunctionTool, Message, Parameters, ProviderState, ToolChoice
from proxy.wire.chat.message_validation import checked
from proxy.wire.chat.parameters import check_combinations, parameters_of, tool_choice_of, tools_of
from proxy.wire.chat.schema import ChatBody
from proxy.wire.provider_state import states_in_chat
from proxy.wire.validation.body_decoder import BodyDecoder, refuse_nul

_CONVERSATION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
UNREADABLE = (
    "We could not parse the JSON body of your request. The API expects a JSON object, but what was sent is not valid "
    "JSON."
)

_decoder = BodyDecoder(ChatBody)


class ChatRequest(Struct, frozen=True, kw_only=True):
    """What a caller asks for.

    ``store`` is None when the caller did not say. ``ignored`` names the keys that were sent and have no effect, known
    ones and others, fit for a header. With ``uses_functions`` the tools came as ``functions`` and the answer has to
    speak of ``function_call``.
    """

    model: str
    messages: list[Message]
    stream: bool = False
    include_usage: bool = False
    parameters: Parameters = Parameters()
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    uses_functions: bool = False
    n: int = 1
    store: bool | None = None
    metadata: Mapping[str, str] = {}
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    ignored: tuple[str, ...] = ()
    provider_states: Mapping[int, ProviderState] = {}


def decode_chat(body: bytes, *, max_messages: int, strict: bool = False) -> ChatRequest:
    """Return what the body asks for; with ``strict``, unknown top-level keys are mistakes.

    Raises:
        InvalidRequest: With the sentence, ``param`` and ``code`` of the contract.
    """
    try:
        decoded, unknown = _decode(body, strict=strict)
        check_combinations(decoded)
        request = _request(decoded, unknown, max_messages=max_messages)
        states = states_in_chat(body)
        return msgspec.structs.replace(request, provider_states=states) if states else request
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(UNREADABLE) from None


def _request(decoded: ChatBody, unknown: tuple[str, ...], *, max_messages: int) -> ChatRequest:
    tools = tools_of(decoded)
    choice, offered = tool_choice_of(decoded, tools)
    return ChatRequest(
        model=decoded.model,
        messages=checked(decoded.messages, max_messages=max_messages),
        stream=bool(decoded.stream),
        include_usage=bool(decoded.stream_options and decoded.stream_options.include_usage),
        parameters=parameters_of(decoded),
        tools=offered,
        tool_choice=choice,
        # The old form has room for one call only.
        parallel_tool_calls=False if decoded.functions else decoded.parallel_tool_calls,
        uses_functions=bool(decoded.functions),
        n=decoded.n or 1,
        store=decoded.store,
        metadata=decoded.metadata or {},
        user=decoded.user,
        safety_identifier=decoded.safety_identifier,
        prompt_cache_key=decoded.prompt_cache_key,
        service_tier=decoded.service_tier,
        ignored=_ignored(decoded) + unknown,
    )


def conversation_id(value: str, *, param: str = "X-Conversation-Id") -> str:
    """Return a conversation's id as a caller may choose it: 1–128 of ``A–Z a–z 0–9 . _ : -``.

    ``param`` names where it was given, for the error.

    Raises:
        InvalidRequest: Anything else; an empty value counts as absent and is not for here.
    """
    if _CONVERSATION_ID.fullmatch(value):
        return value
    raise InvalidRequest(
        f"Invalid '{param}': expected 1 to 128 of the characters A-Z, a-z, 0-9, '.', '_', ':' and '-'.",
        param=param,
        code="invalid_value",
    )


# --- bytes to values -----------------------------------------------------------------------------------------


def _decode(body: bytes, *, strict: bool) -> tuple[ChatBody, tuple[str, ...]]:
    decoded, unknown = _decoder.decode(body, strict=strict)
    refuse_nul(body)
    return decoded, unknown


def _ignored(body: ChatBody) -> tuple[str, ...]:
    return tuple(
        name
        for name in ("audio", "prompt_cache_options", "prompt_cache_retention")
        if getattr(body, name) is not None
    )
