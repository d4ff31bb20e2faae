"""Decode and validate the body of a chat completion request.

On the fast path, msgspec decodes into types with constraints. Only if that fails, the body is decoded again without
types, to convert tolerated values (an integer sent as ``1.0``) or to produce a precise error. Only ``InvalidRequest``
is raised, whatever the bytes.

If a key is repeated, the last value applies. Unknown keys in messages and tools are only validate_messages to be valid
JSON. A body with a NUL character is rejected, because PostgreSQL cannot store it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec import Struct

from proxy.errors import InvalidRequest
from proxy.messages import FunctionTool, Message, Parameters, ProviderState, ToolChoice
from proxy.wire.chat.message_validation import validate_messages
from proxy.wire.chat.parameters import check_combinations, model_parameters, tool_choice_of, tools_of
from proxy.wire.chat.schema import ChatBody, JsonSchemaFormat
from proxy.wire.provider_state import states_in_chat
from proxy.wire.validation.body_decoder import INVALID_JSON, BodyDecoder, reject_nul

_CONVERSATION_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_decoder = BodyDecoder(ChatBody)
_IGNORED = ("audio", "prompt_cache_options", "prompt_cache_retention")
_NOTHING_IGNORED = (None, None, None)


class ChatRequest(Struct, frozen=True, kw_only=True):
    """A parsed chat completion request.

    ``store`` is None if it is not set. ``ignored`` has the names of parameters without effect, known and unknown,
    sanitised for a header. With ``uses_functions`` the request used the deprecated ``functions``, and the response
    uses ``function_call``.
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
    store: bool | None = None
    metadata: Mapping[str, str] = {}
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    ignored: tuple[str, ...] = ()
    provider_states: Mapping[int, ProviderState] = {}
    has_options: bool = True
    """False if the body has no more than a model, messages and ``stream`` with its options."""


def decode_chat(body: bytes, *, max_messages: int, strict: bool = False) -> ChatRequest:
    """Parse a body; with ``strict``, unknown top-level keys are errors.

    Raises:
        InvalidRequest: The body is invalid; message, ``param`` and ``code`` are those of OpenAI where known.
    """
    try:
        decoded, unknown = _decoder.decode(body, strict=strict)
        return _chat_request(body, decoded, unknown, max_messages=max_messages)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(INVALID_JSON) from None


def decode_chat_without_schemas(body: bytes, *, max_messages: int) -> ChatRequest | None:
    """Parse a body that has no JSON schema, unknown key or value of another type; None for any other.

    Raises:
        InvalidRequest: As ``decode_chat``.
    """
    try:
        decoded = _decoder.decode_known(body)
        if decoded.tools or decoded.functions or type(decoded.response_format) is JsonSchemaFormat:
            return None
        return _chat_request(body, decoded, (), max_messages=max_messages)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _chat_request(
    body: bytes, decoded: ChatBody, unknown: tuple[str, ...], *, max_messages: int
) -> ChatRequest:
    reject_nul(body)
    model, stream = decoded.model, decoded.stream
    # Without ``stream`` they are an error.
    stream_options = decoded.stream_options if stream else None
    # One comparison shows that no other field is set, as in most requests.
    if decoded != ChatBody(
        model=model, messages=decoded.messages, stream=stream, stream_options=stream_options
    ):
        check_combinations(decoded)
        request = _request(decoded, unknown, max_messages=max_messages)
    else:
        request = ChatRequest(
            model=model,
            messages=validate_messages(decoded.messages, max_messages=max_messages),
            stream=stream is True,
            include_usage=stream_options is not None and stream_options.include_usage is True,
            ignored=unknown,
            has_options=False,
        )
    states = states_in_chat(body)
    return msgspec.structs.replace(request, provider_states=states) if states else request


def _request(decoded: ChatBody, unknown: tuple[str, ...], *, max_messages: int) -> ChatRequest:
    tools = tools_of(decoded) if decoded.tools or decoded.functions else ()
    choice: ToolChoice | None = None
    if decoded.tool_choice is not None or decoded.function_call is not None:
        choice, tools = tool_choice_of(decoded, tools)
    # With more than 15 arguments the call would take three times as long.
    return ChatRequest(
        model=decoded.model,
        messages=validate_messages(decoded.messages, max_messages=max_messages),
        stream=bool(decoded.stream),
        include_usage=bool(decoded.stream_options and decoded.stream_options.include_usage),
        parameters=model_parameters(decoded),
        tools=tools,
        tool_choice=choice,
        # ``function_call`` can represent only one call.
        parallel_tool_calls=False if decoded.functions else decoded.parallel_tool_calls,
        uses_functions=bool(decoded.functions),
        store=decoded.store,
        metadata=decoded.metadata or {},
        user=decoded.user,
        safety_identifier=decoded.safety_identifier,
        prompt_cache_key=decoded.prompt_cache_key,
        ignored=_ignored(decoded) + unknown,
    )


def conversation_id(value: str, *, param: str = "X-Conversation-Id") -> str:
    """Return a conversation id chosen by a client if it is valid: 1 to 128 characters of ``A-Z a-z 0-9 . _ : -``.

    ``param`` is the parameter or header for the error. Callers treat an empty value as absent.

    Raises:
        InvalidRequest: The id is invalid.
    """
    if _CONVERSATION_ID.fullmatch(value):
        return value
    raise InvalidRequest(
        f"Invalid '{param}': expected 1 to 128 of the characters A-Z, a-z, 0-9, '.', '_', ':' and '-'.",
        param=param,
        code="invalid_value",
    )


def _ignored(body: ChatBody) -> tuple[str, ...]:
    sent = body.audio, body.prompt_cache_options, body.prompt_cache_retention
    if sent == _NOTHING_IGNORED:
        return ()
    return tuple(name for name, value in zip(_IGNORED, sent, strict=True) if value is not None)
