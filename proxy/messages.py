"""Messages in the format of the OpenAI API, and items: messages as stored in a conversation.

Decoding drops fields that are not declared here, so that no unknown field of a client reaches a model. Encoding is the
exact inverse for declared fields (absent stays absent, null stays null).

A request can have thousands of messages, which contain no cycles: with ``gc=False`` the garbage collector does not
visit them.
"""

from __future__ import annotations

from typing import Any, Literal, TypeGuard

import msgspec
from msgspec import UNSET, Struct, UnsetType

# --- content parts -------------------------------------------------------------------------------------------


class TextPart(Struct, frozen=True, gc=False, tag="text", tag_field="type"):
    """Text."""

    text: str


class ImageUrl(Struct, frozen=True, gc=False, omit_defaults=True):
    """An http(s) or data URL of an image. The proxy does not fetch it."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Struct, frozen=True, gc=False, tag="image_url", tag_field="type"):
    """An image."""

    image_url: ImageUrl


class AudioData(Struct, frozen=True, gc=False):
    """Base64 audio."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(Struct, frozen=True, gc=False, tag="input_audio", tag_field="type"):
    """Audio input."""

    input_audio: AudioData


class FileData(Struct, frozen=True, gc=False, omit_defaults=True):
    """A file: its content as a data URL, or the id of an uploaded one."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class FilePart(Struct, frozen=True, gc=False, tag="file", tag_field="type"):
    """A file."""

    file: FileData


class RefusalPart(Struct, frozen=True, gc=False, tag="refusal", tag_field="type"):
    """A refusal of the assistant."""

    refusal: str


Part = TextPart | ImagePart | AudioPart | FilePart | RefusalPart
Content = str | list[Part] | None | UnsetType

# --- tool calls ----------------------------------------------------------------------------------------------


class FunctionCall(Struct, frozen=True, gc=False):
    """Name, and arguments as the JSON text that the model wrote."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True, gc=False, tag="function", tag_field="type"):
    """A call of a function tool."""

    id: str
    function: FunctionCall


class CustomCall(Struct, frozen=True, gc=False):
    """Name and free-form input of a custom tool call."""

    name: str
    input: str


class CustomToolCall(Struct, frozen=True, gc=False, tag="custom", tag_field="type"):
    """A call of a custom tool."""

    id: str
    custom: CustomCall


# --- messages by role ----------------------------------------------------------------------------------------


class SystemMessage(Struct, frozen=True, gc=False, omit_defaults=True, tag="system", tag_field="role"):
    """Instructions."""

    content: Content = UNSET
    name: str | None = None


class DeveloperMessage(Struct, frozen=True, gc=False, omit_defaults=True, tag="developer", tag_field="role"):
    """Instructions, with the role that replaces ``system`` for newer models."""

    content: Content = UNSET
    name: str | None = None


class UserMessage(Struct, frozen=True, gc=False, omit_defaults=True, tag="user", tag_field="role"):
    """A message of the user."""

    content: Content = UNSET
    name: str | None = None


class AudioReference(Struct, frozen=True, gc=False):
    """A reference to an earlier audio response."""

    id: str


class AssistantMessage(Struct, frozen=True, gc=False, omit_defaults=True, tag="assistant", tag_field="role"):
    """Text, refusal and tool calls of an assistant."""

    content: Content = UNSET
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall | CustomToolCall] | None = None
    function_call: FunctionCall | None = None
    audio: AudioReference | None = None


class ToolMessage(Struct, frozen=True, gc=False, omit_defaults=True, tag="tool", tag_field="role"):
    """The result of a tool call."""

    tool_call_id: str
    content: Content = UNSET


class FunctionMessage(Struct, frozen=True, gc=False, omit_defaults=True, tag="function", tag_field="role"):
    """The result of a ``function_call`` (deprecated)."""

    name: str
    content: Content = UNSET


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage

# For long lists, ``type(message) is …`` takes a tenth of the time of isinstance, which calls the metaclass of msgspec
# structs. None of these classes has subclasses.
INSTRUCTIONS: frozenset[type[Message]] = frozenset((SystemMessage, DeveloperMessage))


def is_instruction(message: Message) -> TypeGuard[SystemMessage | DeveloperMessage]:
    """Return whether the message has instructions (role system or developer)."""
    return type(message) in INSTRUCTIONS


def text_of(message: Message) -> str:
    """Return the text of a message: its string, or its text parts joined with line breaks; ``""`` if there is none.

    A refusal counts as text.
    """
    content = message.content
    if type(content) is str:
        return content
    if not content:
        return (message.refusal or "") if isinstance(message, AssistantMessage) else ""
    return "\n".join(
        part.text if isinstance(part, TextPart) else part.refusal
        for part in content
        if isinstance(part, TextPart | RefusalPart)
    )


# --- stored items --------------------------------------------------------------------------------------------


MESSAGE_STATE_MEMBERS = (
    "reasoning_content",
    "reasoning_details",
    "thinking_blocks",
    "extra_content",
    "provider_specific_fields",
)
"""Members of assistant messages that are provider state: DeepSeek and Kimi, OpenRouter, LiteLLM, Gemini, LiteLLM."""
CALL_STATE_MEMBERS = ("extra_content", "provider_specific_fields")
MAX_STATE_BYTES = 1024 * 1024
"""Maximum size of the provider state of one message, as JSON."""


class ProviderState(Struct, frozen=True, omit_defaults=True):
    """What a provider returned with a reply, and expects back unchanged. Opaque.

    ``provider`` names the provider and the model that it came from; no other is sent it. It is empty if a client sent
    the state. It is never sent to clients, written to logs or exported. Chat completions use ``members`` (of the
    assistant message) and ``calls`` (further members of each call, in their order); Responses use ``items`` (reasoning
    items, and where text and calls stand among them).
    """

    provider: str
    members: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []


def is_within_limit(state: ProviderState) -> bool:
    """Whether the state is at most ``MAX_STATE_BYTES`` long."""
    return len(msgspec.json.encode(state)) <= MAX_STATE_BYTES


class Compaction(Struct, frozen=True, omit_defaults=True):
    """Marks an item that changes how agents see the items before it; its message is the summary.

    Items are counted in groups, backwards from the item: a user message is one group, and so is an assistant message
    with the results of its calls. If items are deleted later, a group count never separates a call from its result.
    """

    retained_from: int | None = None
    """Number of groups before the item that follow the summary. None if there is no summary."""
    whole: int = 0
    """Number of groups before the item whose tool results are complete. Results before them are shortened."""
    shortened_to: int = 1000
    """Characters of each shortened tool result."""
    scope: str = ""
    """The handoff whose target sees only a part of the conversation; the compaction is of that part."""
    summary_digest: str = ""
    """Digest of the messages that the summary replaces, by which other branches find it."""
    shortened_digest: str = ""
    """Digest of the messages before those whose tool results are complete."""


HandoffHistory = Literal["all", "since_handoff", "summary", "none"]
"""What the target of a handoff sees: everything; the message that led to the handoff and what follows; the same after a
summary of what was before; only the handover data and what follows."""


class HandoffRecord(Struct, frozen=True, omit_defaults=True):
    """A handoff, stored with the result of its call."""

    source: str
    target: str
    history: HandoffHistory = "all"
    returns: bool = False
    """Control returns to ``source`` when ``target`` has answered."""
    reason: str = ""
    data: str = ""
    """Structured handover data as JSON text."""
    summary: str = ""


class DelegateRecord(Struct, frozen=True, omit_defaults=True):
    """The work of a delegate that waits for approval of calls, with the result of the call that started it."""

    agent: str
    """The active agent of the delegate."""
    items: list[Item]
    """Its own messages so far."""
    approvals: list[str]
    """The ids of the approvals."""


class Item(Struct, frozen=True, gc=False, omit_defaults=True):
    """A message as stored in a conversation.

    ``agent`` is the author; None for messages of the client. ``visible`` items were sent by or to the client; hidden
    items (handoffs, server tool calls and their results, summaries) are visible to agents only.
    """

    message: Message
    agent: str | None = None
    visible: bool = True
    state: ProviderState | None = None
    """Of the provider, for an assistant message."""
    compaction: Compaction | None = None
    tokens: int | None = None
    """Size of the context after this assistant message, as its provider reported it: prompt and completion."""
    delegate: DelegateRecord | None = None
    """What a delegate has done that waits for approval."""
    handoff: HandoffRecord | None = None
    """Of the result of a handoff, in teams whose handoffs have options."""


class ForeignItem(Struct, frozen=True):
    """An item that agents do not see (reasoning, hosted tools), stored and returned unchanged."""

    body: dict[str, Any]


class OpenCalls:
    """Tracks the tool calls of the newest assistant message without a result, message by message.

    Consecutive messages with tool calls only count as one; any message other than results discards open calls.
    """

    __slots__ = ("_is_consecutive", "ids")

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._is_consecutive = False

    def observe(self, message: Message) -> None:
        """Process the next message; instructions have no effect."""
        match message:
            case AssistantMessage():
                calls = [call.id for call in message.tool_calls or ()]
                self.ids = [*self.ids, *calls] if self._is_consecutive and not text_of(message) else calls
                self._is_consecutive = bool(calls)
            case ToolMessage():
                self.ids = [call_id for call_id in self.ids if call_id != message.tool_call_id]
                self._is_consecutive = False
            case UserMessage() | FunctionMessage():
                self.ids = []
                self._is_consecutive = False
            case SystemMessage() | DeveloperMessage():
                pass


class Usage(Struct, frozen=True, omit_defaults=True):
    """Tokens of one or more model calls; all numbers are >= 0.

    ``prompt`` and ``completion`` include their details: ``cached`` is part of ``prompt``, ``reasoning`` of
    ``completion``.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    audio_prompt: int = 0
    audio_completion: int = 0
    accepted_prediction: int = 0
    rejected_prediction: int = 0

    @property
    def total(self) -> int:
        """Sum of prompt and completion tokens."""
        return self.prompt + self.completion

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.cached + other.cached,
            self.reasoning + other.reasoning,
            self.audio_prompt + other.audio_prompt,
            self.audio_completion + other.audio_completion,
            self.accepted_prediction + other.accepted_prediction,
            self.rejected_prediction + other.rejected_prediction,
        )


# --- tools and parameters ------------------------------------------------------------------------------------


class FunctionTool(Struct, frozen=True, omit_defaults=True):
    """A function that a model can call. ``parameters`` is a JSON Schema object; None means no arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


ToolChoiceMode = Literal["none", "auto", "required"]


class NamedToolChoice(Struct, frozen=True):
    """Tool choice: the model must call this function."""

    name: str


ToolChoice = ToolChoiceMode | NamedToolChoice
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


EventsMode = Literal["none", "extension", "reasoning", "all"]
"""How responses report handoffs and tool calls: not, as ``handoff`` objects, as text in ``reasoning_content`` together
with the reasoning of models, or both."""


class Parameters(Struct, frozen=True, omit_defaults=True):
    """Model parameters with the names of the chat completions API; None means unset.

    The encoded form is the corresponding part of a request body.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    service_tier: str | None = None
    prediction: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


ContextMode = Literal["auto", "disabled"]
"""``auto`` shortens the context of a request that is too long; ``disabled`` makes such a request fail."""
