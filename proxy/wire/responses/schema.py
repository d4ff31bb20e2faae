"""The body of ``POST /responses`` as types: names, types and ranges, and nothing that needs thought.

Sources: OpenAI's published document, and where its SDKs are wider, the SDKs. Every optional field may be null, which
means that it was not set. Items of the input, tools and the choice of one are decoded one by one, because their
``type`` may be left out, or be one of many that are only known in order to be refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from proxy.wire.approvals import MAX_REASON
from proxy.wire.chat.schema import JsonObjectFormat, Metadata, TextFormat

_Identifier = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+\Z")]
_Limit = Annotated[int, Meta(ge=1, le=2**63 - 1)]

# --- items of the input --------------------------------------------------------------------------------------


class ItemReference(Struct, frozen=True):
    """An item that is kept here, by its id."""

    id: str


class ApprovalResponseInput(Struct, frozen=True):
    """A decision about a call of the server's, by the id of the item that asked."""

    approval_request_id: Annotated[str, Meta(min_length=1)]
    approve: bool
    reason: Annotated[str, Meta(max_length=MAX_REASON)] | None = None


READ_ITEMS = ("message", "function_call", "function_call_output", "item_reference", "mcp_approval_response")
"""Items that mean something here."""
PASSED_OVER = ("reasoning", "mcp_call", "mcp_list_tools", "mcp_approval_request")
"""Items that clients send back and that need not come: what agents thought and did is kept here."""
REFUSED_ITEMS = (
    "additional_tools",
    "apply_patch_call",
    "apply_patch_call_output",
    "code_interpreter_call",
    "compaction",
    "compaction_trigger",
    "computer_call",
    "computer_call_output",
    "configuration_update",
    "custom_tool_call",
    "custom_tool_call_output",
    "file_search_call",
    "image_generation_call",
    "local_shell_call",
    "local_shell_call_output",
    "program",
    "program_output",
    "shell_call",
    "shell_call_output",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
)
"""Items of tools that are not offered."""

# --- tools ---------------------------------------------------------------------------------------------------


REFUSED_TOOLS = (
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use",
    "computer_use_preview",
    "custom",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "namespace",
    "programmatic_tool_calling",
    "shell",
    "tool_search",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
)
"""Hosted tools, and others that a team cannot offer."""


class FunctionChoiceItem(Struct, frozen=True):
    """The function that has to be called."""

    name: str


class AllowedToolsItem(Struct, frozen=True):
    """Only these tools may be called; each is a type and a name."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=128)]


# --- the shape of the answer ---------------------------------------------------------------------------------


class JsonSchemaText(Struct, frozen=True, tag="json_schema", tag_field="type"):
    """JSON that obeys a schema."""

    name: _Identifier
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextOptions(Struct, frozen=True):
    """What the text of the answer is like."""

    format: TextFormat | JsonObjectFormat | JsonSchemaText | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Struct, frozen=True):
    """How much a model thinks, and what is shown of it."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class StreamingOptions(Struct, frozen=True):
    """What a stream carries beside the answer."""

    include_obfuscation: bool | None = None


class ConversationBody(Struct, frozen=True):
    """A conversation by its id."""

    id: str


Include = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "handoff.approval_requests",
    "handoff.mcp_calls",
]
"""The last two are extensions. Clients may reject such items of an MCP server that they did not configure:
openai-agents ends its run at a request for approval, and the AI SDK reads calls as calls of the client's tools. A
response therefore contains these items only if the request includes them."""

# --- the whole -----------------------------------------------------------------------------------------------


class ResponsesBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body. An unknown key stops the decoding of the whole, so that somebody looks at it."""

    model: Annotated[str, Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamingOptions | None = None
    background: bool | None = None
    background_options: dict[str, Any] | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationBody | None = None
    instructions: str | None = None
    max_output_tokens: _Limit | None = None
    max_tool_calls: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: Annotated[list[Include], Meta(max_length=64)] | None = None
    metadata: Metadata | None = None
    truncation: Literal["auto", "disabled"] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    user: str | None = None
    safety_identifier: Annotated[str, Meta(max_length=128)] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    prompt: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    context_management: list[dict[str, Any]] | None = None
    access_programs: dict[str, Any] | None = None
    image: dict[str, Any] | None = None
    # Last, so that a mistake in a small field is found without decoding the history.
    input: str | list[dict[str, Any]] | None = None
