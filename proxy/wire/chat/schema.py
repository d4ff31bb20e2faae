"""Schema of the body of ``POST /chat/completions``: names, types and ranges.

msgspec decodes into ``ChatBody``; ``validation.error_messages`` reads the same declarations to describe errors.
Sources: OpenAI's published OpenAPI document, and its SDKs where they accept more. Every optional field can be null,
which means unset.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from proxy.messages import Message, TextPart

# \Z, because $ also matches before a line break at the end.
_Identifier = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+\Z")]
_Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
_Limit = Annotated[int, Meta(ge=1, le=2**63 - 1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]

# --- tools ---------------------------------------------------------------------------------------------------


class FunctionBody(Struct, frozen=True):
    """A function definition of the client."""

    name: _Identifier
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionToolBody(Struct, frozen=True, tag="function", tag_field="type"):
    """A function tool."""

    function: FunctionBody


class CustomToolBody(Struct, frozen=True, tag="custom", tag_field="type"):
    """A custom tool; part of the schema so that the error names it."""

    custom: dict[str, Any]


ToolBody = FunctionToolBody | CustomToolBody


class NamedFunction(Struct, frozen=True):
    """A reference to a function by name."""

    name: str


class FunctionChoice(Struct, frozen=True, tag="function", tag_field="type"):
    """Tool choice: the model must call this function."""

    function: NamedFunction


class CustomChoice(Struct, frozen=True, tag="custom", tag_field="type"):
    """Tool choice: the model must call this custom tool."""

    custom: NamedFunction


class AllowedTools(Struct, frozen=True):
    """The tools that the model can call in this request."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionChoice | CustomChoice], Meta(min_length=1, max_length=128)]


class AllowedToolsChoice(Struct, frozen=True, tag="allowed_tools", tag_field="type"):
    """Tool choice: the model can call only these tools."""

    allowed_tools: AllowedTools


ToolChoiceBody = Literal["none", "auto", "required"] | FunctionChoice | CustomChoice | AllowedToolsChoice

# --- response format -----------------------------------------------------------------------------------------


class TextFormat(Struct, frozen=True, tag="text", tag_field="type"):
    """Plain text, the default."""


class JsonObjectFormat(Struct, frozen=True, tag="json_object", tag_field="type"):
    """Any JSON object."""


class JsonSchema(Struct, frozen=True, omit_defaults=True):
    """A named JSON schema for the response."""

    name: _Identifier
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class JsonSchemaFormat(Struct, frozen=True, tag="json_schema", tag_field="type"):
    """JSON that matches a schema."""

    json_schema: JsonSchema


class Prediction(Struct, frozen=True, tag="content", tag_field="type"):
    """Predicted output."""

    content: str | list[TextPart]


class AudioOptions(Struct, frozen=True):
    """Audio output options, which are ignored without the modality ``audio``."""

    voice: Any = None
    format: str | None = None


class StreamOptions(Struct, frozen=True):
    """Options of a streamed response."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


# --- body ----------------------------------------------------------------------------------------------------


class ChatBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request body. An unknown key makes the fast decoder fail, so that the body decoder can report it."""

    model: Annotated[str, Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: _Limit | None = None
    max_tokens: _Limit | None = None
    stop: str | Annotated[list[str], Meta(min_length=1, max_length=4)] | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    seed: _Int64 | None = None
    logit_bias: Annotated[dict[str, Annotated[int, Meta(ge=-100, le=100)]], Meta(max_length=1024)] | None = (
        None
    )
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    tools: Annotated[list[ToolBody], Meta(max_length=128)] | None = None
    tool_choice: ToolChoiceBody | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[list[FunctionBody], Meta(max_length=128)] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOptions | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    prediction: Prediction | None = None
    user: str | None = None
    safety_identifier: Annotated[str, Meta(max_length=128)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    web_search_options: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    # Last, so that an error in a small field is found before the messages are decoded.
    messages: Annotated[list[Message], Meta(min_length=1)]
