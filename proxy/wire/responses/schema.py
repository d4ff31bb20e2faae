"""Schema of the body of ``POST /responses``: names, types and ranges.

Sources: OpenAI's published OpenAPI document, and its SDKs where they accept more. Every optional field can be null,
which means unset. Input items, tools and tool choices are decoded one by one: their ``type`` can be omitted, or be one
of many that are known only to reject them by name.
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
    """A reference to a stored item by id."""

    id: str


class CompactionInput(Struct, frozen=True):
    """A summary of the input before it."""

    encrypted_content: str


class ContextManagement(Struct, frozen=True):
    """When the context is shortened; ``compaction`` is the only type."""

    type: Literal["compaction"]
    compact_threshold: Annotated[int, Meta(ge=1000, le=2**63 - 1)] | None = None


class ApprovalResponseInput(Struct, frozen=True):
    """A decision on a server tool call, with the id of the approval request."""

    approval_request_id: Annotated[str, Meta(min_length=1)]
    approve: bool
    reason: Annotated[str, Meta(max_length=MAX_REASON)] | None = None


SUPPORTED_ITEMS = (
    "message",
    "function_call",
    "function_call_output",
    "item_reference",
    "mcp_approval_response",
    "compaction",
)
"""Item types that are converted to messages or decisions."""
IGNORED_ITEMS = ("reasoning", "mcp_call", "mcp_list_tools", "mcp_approval_request")
"""Item types that clients send back and this server ignores, because it has stored reasoning and server tool calls."""
UNSUPPORTED_ITEMS = (
    "additional_tools",
    "apply_patch_call",
    "apply_patch_call_output",
    "code_interpreter_call",
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
"""Item types of hosted tools, which are not supported."""

# --- tools ---------------------------------------------------------------------------------------------------


UNSUPPORTED_TOOLS = (
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
"""Types of hosted tools and other tools that are not supported."""


class FunctionChoiceItem(Struct, frozen=True):
    """Tool choice: the model must call this function."""

    name: str


class AllowedToolsItem(Struct, frozen=True):
    """Tool choice: the model can call only these tools, each given as type and name."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=128)]


# --- response format -----------------------------------------------------------------------------------------


class JsonSchemaText(Struct, frozen=True, tag="json_schema", tag_field="type"):
    """JSON that matches a schema."""

    name: _Identifier
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextOptions(Struct, frozen=True):
    """Format and verbosity of the output text."""

    format: TextFormat | JsonObjectFormat | JsonSchemaText | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Struct, frozen=True):
    """Reasoning effort, and whether to return a summary."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class StreamingOptions(Struct, frozen=True):
    """Options of a streamed response."""

    include_obfuscation: bool | None = None


class ConversationBody(Struct, frozen=True):
    """A reference to a conversation by id."""

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

# --- body ----------------------------------------------------------------------------------------------------


class _ContextBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields that requests about a context share."""

    model: Annotated[str, Meta(min_length=1)]
    previous_response_id: str | None = None
    instructions: str | None = None


class CompactBody(_ContextBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /responses/compact``."""

    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    image: dict[str, Any] | None = None
    input: str | list[dict[str, Any]] | None = None


class CountBody(_ContextBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of ``POST /responses/input_tokens``."""

    conversation: str | ConversationBody | None = None
    parallel_tool_calls: bool | None = None
    personality: Annotated[str, Meta(max_length=64)] | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    input: str | list[dict[str, Any]] | None = None


class ResponsesBody(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The request body. An unknown key makes the fast decoder fail, so that the body decoder can report it."""

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
    context_management: Annotated[list[ContextManagement], Meta(max_length=16)] | None = None
    access_programs: dict[str, Any] | None = None
    image: dict[str, Any] | None = None
    # Last, so that an error in a small field is found before the input is decoded.
    input: str | list[dict[str, Any]] | None = None
