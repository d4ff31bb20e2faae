"""The body of a request for a response, decoded and validate_messages.

As in ``chat.parse``, a slow path produces the errors, and only ``InvalidRequest`` is raised, whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from proxy.errors import InvalidRequest
from proxy.messages import ContextMode, FunctionTool, Parameters, ToolChoice
from proxy.wire.chat.parameters import check_depth
from proxy.wire.chat.parse import conversation_id
from proxy.wire.responses.input import InputPiece, approval_responses, parse_input
from proxy.wire.responses.options import Body, Echo
from proxy.wire.responses.schema import (
    CompactBody,
    ConversationBody,
    CountBody,
    JsonSchemaText,
    ResponsesBody,
)
from proxy.wire.responses.tools import choice_body, choice_of, tool_body, tools_of
from proxy.wire.validation.body_decoder import INVALID_JSON, BodyDecoder, reject_nul
from proxy.wire.validation.errors import empty, missing, unsupported_parameter

_decoder = BodyDecoder(ResponsesBody)
_compact_decoder = BodyDecoder(CompactBody)
_count_decoder = BodyDecoder(CountBody)
_ECHOED = (
    "instructions",
    "previous_response_id",
    "parallel_tool_calls",
    "temperature",
    "top_p",
    "top_logprobs",
    "max_output_tokens",
    "max_tool_calls",
    "truncation",
    "metadata",
    "user",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "background",
    "store",
)
"""Parameters that the Response object repeats unchanged."""


class ResponsesRequest(Struct, frozen=True, kw_only=True):
    """What a caller asks for.

    ``said`` is the input in pieces, to be joined when its references are resolved. ``conversation`` is an id, not yet
    looked up; so is ``previous_response_id``. ``ignored`` names the keys that were sent and have no effect.
    """

    model: str
    said: Sequence[InputPiece]
    echo: Echo
    stream: bool = False
    background: bool = False
    store: bool = True
    instructions: str | None = None
    previous_response_id: str | None = None
    conversation: str | None = None
    parameters: Parameters = Parameters()
    tools: tuple[FunctionTool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = None
    metadata: Mapping[str, str] = {}
    user: str | None = None
    safety_identifier: str | None = None
    logprobs: bool = False
    sums_up_reasoning: bool = False
    asks_for_approval: bool = False
    includes_server_calls: bool = False
    context_mode: ContextMode | None = None
    compact_threshold: int | None = None
    shows_compactions: bool = False
    ignored: tuple[str, ...] = ()


def decode_response_request(text: bytes, *, max_items: int, strict: bool = False) -> ResponsesRequest:
    """Parse a body; with ``strict``, unknown top-level keys are errors.

    Raises:
        InvalidRequest: The body is invalid; message, ``param`` and ``code`` are those of OpenAI where known.
    """
    return _decode(_decoder, text, max_items=max_items, strict=strict)


def decode_response_without_schemas(text: bytes, *, max_items: int) -> ResponsesRequest | None:
    """Parse a body that has no JSON schema, unknown key or value of another type; None for any other.

    Raises:
        InvalidRequest: As ``decode_response_request``.
    """
    try:
        body = _decoder.decode_known(text)
        if body.tools or (body.text is not None and isinstance(body.text.format, JsonSchemaText)):
            return None
        return _response_request(text, body, (), max_items=max_items)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def decode_compact_request(text: bytes, *, max_items: int, strict: bool = False) -> ResponsesRequest:
    """Parse the body of a request for a compaction, as ``decode_response_request`` does."""
    return _decode(_compact_decoder, text, max_items=max_items, strict=strict)


def decode_count_request(text: bytes, *, max_items: int, strict: bool = False) -> ResponsesRequest:
    """Parse the body of a request for the number of input tokens, as ``decode_response_request`` does."""
    return _decode(_count_decoder, text, max_items=max_items, strict=strict)


def _decode(decoder: BodyDecoder[Any], text: bytes, *, max_items: int, strict: bool) -> ResponsesRequest:
    try:
        body, unknown = decoder.decode(text, strict=strict)
        if not isinstance(body, ResponsesBody):
            body = _as_response_body(body)
        return _response_request(text, body, unknown, max_items=max_items)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(INVALID_JSON) from None


def _response_request(
    text: bytes, body: ResponsesBody, unknown: tuple[str, ...], *, max_items: int
) -> ResponsesRequest:
    reject_nul(text)
    _check(body)
    return _request(body, unknown, max_items=max_items)


def _as_response_body(body: CompactBody | CountBody) -> ResponsesBody:
    """Return the fields of a request about a context as those of a response that is not stored."""
    values = {name: getattr(body, name) for name in body.__struct_fields__}
    known = {name: value for name, value in values.items() if name in ResponsesBody.__struct_fields__}
    return ResponsesBody(**known, store=False)


def _request(body: ResponsesBody, unknown: tuple[str, ...], *, max_items: int) -> ResponsesRequest:
    said = parse_input(body.input if body.input is not None else [], max_items=max_items)
    tools = tools_of(body.tools or ())
    choice, offered = choice_of(body, tools)
    conversation = _conversation(body)
    return ResponsesRequest(
        model=body.model,
        said=said,
        echo=_echo(body, tools, conversation),
        stream=bool(body.stream),
        background=bool(body.background),
        store=body.store is not False,
        instructions=body.instructions,
        previous_response_id=body.previous_response_id,
        conversation=conversation,
        parameters=_parameters(body),
        tools=offered,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        user=body.user,
        safety_identifier=body.safety_identifier,
        logprobs=_includes_logprobs(body),
        sums_up_reasoning=bool(
            body.reasoning and (body.reasoning.summary or body.reasoning.generate_summary)
        ),
        asks_for_approval="handoff.approval_requests" in (body.include or ()),
        # A client that answers requests for approval supports the calls that follow, as in the official API.
        includes_server_calls="handoff.mcp_calls" in (body.include or ()) or bool(approval_responses(said)),
        context_mode="auto" if body.context_management else body.truncation,
        compact_threshold=_compact_threshold(body),
        shows_compactions=bool(body.context_management),
        ignored=_ignored(body) + unknown,
    )


# --- validation ----------------------------------------------------------------------------------------------


def _check(body: ResponsesBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    if body.previous_response_id is not None and body.conversation is not None:
        raise InvalidRequest(
            "Mutually exclusive parameters. Ensure you are only providing one of: 'previous_response_id' or "
            "'conversation'.",
            param="previous_response_id",
            code="mutually_exclusive_parameters",
        )
    if body.background and body.store is False:
        raise InvalidRequest(
            "Background responses must be stored: 'background' cannot be true when 'store' is false.",
            param="background",
            code="invalid_parameter_combination",
        )
    for name in ("prompt", "moderation"):
        if getattr(body, name) is not None:
            raise unsupported_parameter(name, "is not supported with this model.")
    _check_input(body)
    form = body.text.format if body.text is not None else None
    if isinstance(form, JsonSchemaText):
        check_depth(form.schema, "text.format.schema")


def _check_input(body: ResponsesBody) -> None:
    """Require input, except in a request that continues a response or conversation."""
    if body.previous_response_id is not None or body.conversation is not None:
        return
    if body.input is None:
        raise missing("input")
    if body.input == []:
        raise empty("array", "input")


def _conversation(body: ResponsesBody) -> str | None:
    named = body.conversation.id if isinstance(body.conversation, ConversationBody) else body.conversation
    return None if named is None else conversation_id(named, param="conversation")


def _ignored(body: ResponsesBody) -> tuple[str, ...]:
    names = [
        name
        for name in (
            "background_options",
            "prompt_cache_options",
            "prompt_cache_retention",
            "access_programs",
            "image",
        )
        if getattr(body, name)
    ]
    if body.reasoning is not None:
        names.extend(f"reasoning.{name}" for name in ("context", "mode") if getattr(body.reasoning, name))
    return tuple(names)


def _compact_threshold(body: ResponsesBody) -> int | None:
    thresholds = [entry.compact_threshold for entry in body.context_management or ()]
    return min((one for one in thresholds if one is not None), default=None)


# --- parameters ----------------------------------------------------------------------------------------------


def _includes_logprobs(body: ResponsesBody) -> bool:
    return body.top_logprobs is not None or "message.output_text.logprobs" in (body.include or ())


def _parameters(body: ResponsesBody) -> Parameters:
    text, reasoning = body.text, body.reasoning
    return Parameters(
        temperature=body.temperature,
        top_p=body.top_p,
        max_completion_tokens=body.max_output_tokens,
        logprobs=True if _includes_logprobs(body) else None,
        top_logprobs=body.top_logprobs,
        response_format=_response_format(body),
        reasoning_effort=reasoning.effort if reasoning is not None else None,
        verbosity=text.verbosity if text is not None else None,
        service_tier=body.service_tier,
    )


def _response_format(body: ResponsesBody) -> Body | None:
    """Return the response format in the format of chat completions, which providers receive."""
    form = body.text.format if body.text is not None else None
    if form is None:
        return None
    if not isinstance(form, JsonSchemaText):
        return dict(msgspec.to_builtins(form))
    optional = {"description": form.description, "strict": form.strict}
    given = {name: value for name, value in optional.items() if value is not None}
    return {"type": "json_schema", "json_schema": {"name": form.name, "schema": form.schema, **given}}


# --- parameters repeated in the response ---------------------------------------------------------------------


def _echo(body: ResponsesBody, tools: Sequence[FunctionTool], conversation: str | None) -> Echo:
    given: dict[str, Any] = {name: getattr(body, name) for name in _ECHOED}
    given["conversation"] = conversation
    given["tool_choice"] = None if body.tool_choice is None else choice_body(body.tool_choice)
    return Echo(
        tools=[tool_body(tool) for tool in tools],
        text=_text_body(body),
        reasoning=_reasoning_body(body),
        **{name: value for name, value in given.items() if value is not None},
    )


def _reasoning_body(body: ResponsesBody) -> Body:
    reasoning = body.reasoning
    if reasoning is None:
        return {"effort": None, "summary": None}
    return {"effort": reasoning.effort, "summary": reasoning.summary or reasoning.generate_summary}


def _text_body(body: ResponsesBody) -> Body:
    form = body.text.format if body.text is not None else None
    verbosity = body.text.verbosity if body.text is not None else None
    format_body: Body = {"type": "text"}
    if isinstance(form, JsonSchemaText):
        format_body = {
            "type": "json_schema",
            "description": form.description,
            "name": form.name,
            "schema": form.schema,
            "strict": bool(form.strict),
        }
    elif form is not None:
        format_body = dict(msgspec.to_builtins(form))
    return {"format": format_body, "verbosity": verbosity or "medium"}
