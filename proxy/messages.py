"""Messages in the words of the OpenAI wire, and items: messages as a conversation keeps them.

Decoding a message keeps the fields named here and drops every other, so that nothing a client added travels to a
model by accident. Encoding gives back exactly what came in of them (absent stays absent, null stays null).
"""

from __future__ import annotations

from typing import Any, Literal, TypeGuard

import msgspec
from msgspec import UNSET, Struct, UnsetType

# --- content parts -------------------------------------------------------------------------------------------


class TextPart(Struct, frozen=True, tag="text", tag_field="type"):
    """A piece of text."""

    text: str


class ImageUrl(Struct, frozen=True, omit_defaults=True):
    """Where an image is: an http(s) or data URL. Nothing here fetches it."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Struct, frozen=True, tag="image_url", tag_field="type"):
    """An image."""

    image_url: ImageUrl


class AudioData(Struct, frozen=True):
    """Base64 audio."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(Struct, frozen=True, tag="input_audio", tag_field="type"):
    """A sound."""

    input_audio: AudioData


class FileData(Struct, frozen=True, omit_defaults=True):
    """A file: its content as a data URL, or the id of an uploaded one."""

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class FilePart(Struct, frozen=True, tag="file", tag_field="type"):
    """A file."""

    file: FileData


class RefusalPart(Struct, frozen=True, tag="refusal", tag_field="type"):
    """What the assistant said when it refused."""

    refusal: str


Part = TextPart | ImagePart | AudioPart | FilePart | RefusalPart
Content = str | list[Part] | None | UnsetType

# --- tool calls ----------------------------------------------------------------------------------------------


class FunctionCall(Struct, frozen=True):
    """Name and JSON text of the arguments, as the model wrote it."""

    name: str
    arguments: str


class ToolCall(Struct, frozen=True, tag="function", tag_field="type"):
    """A call of a function tool."""

    id: str
    function: FunctionCall


class CustomCall(Struct, frozen=True):
    """Name and free-form input of a custom tool's call."""

    name: str
    input: str


class CustomToolCall(Struct, frozen=True, tag="custom", tag_field="type"):
    """A call of a custom tool."""

    id: str
    custom: CustomCall


# --- messages by role ----------------------------------------------------------------------------------------


class SystemMessage(Struct, frozen=True, omit_defaults=True, tag="system", tag_field="role"):
    """Instructions."""

    content: Content = UNSET
    name: str | None = None


class DeveloperMessage(Struct, frozen=True, omit_defaults=True, tag="developer", tag_field="role"):
    """Instructions, in the newer word."""

    content: Content = UNSET
    name: str | None = None


class UserMessage(Struct, frozen=True, omit_defaults=True, tag="user", tag_field="role"):
    """What the person said."""

    content: Content = UNSET
    name: str | None = None


class AudioReference(Struct, frozen=True):
    """An earlier audio answer."""

    id: str


class AssistantMessage(Struct, frozen=True, omit_defaults=True, tag="assistant", tag_field="role"):
    """What an agent said or called."""

    content: Content = UNSET
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall | CustomToolCall] | None = None
    function_call: FunctionCall | None = None
    audio: AudioReference | None = None


class ToolMessage(Struct, frozen=True, omit_defaults=True, tag="tool", tag_field="role"):
    """The result of a tool call."""

    tool_call_id: str
    content: Content = UNSET


class FunctionMessage(Struct, frozen=True, omit_defaults=True, tag="function", tag_field="role"):
    """The result of a call of the deprecated kind."""

    name: str
    content: Content = UNSET


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage

# Where every message of a long list is looked at, ``type(message) is …`` takes a tenth of the time of isinstance,
# which asks the metaclass of these classes. None of them has subclasses.
_INSTRUCTIONS = (SystemMessage, DeveloperMessage)


def is_instruction(message: Message) -> TypeGuard[SystemMessage | DeveloperMessage]:
    """Whether the message tells an agent what to do, rather than being part of what was said."""
    return type(message) in _INSTRUCTIONS


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


# --- what a conversation keeps -------------------------------------------------------------------------------


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
"""Of one message, as JSON."""


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


class Item(Struct, frozen=True, omit_defaults=True):
    """One message as a conversation keeps it.

    ``agent`` is who said it (None: the person, or the caller's program). ``visible`` items are what the client saw;
    hidden ones (transfers, server tool calls and their results) are only for the agents.
    """

    message: Message
    agent: str | None = None
    visible: bool = True
    state: ProviderState | None = None
    """Of the provider, for an assistant message."""


class ForeignItem(Struct, frozen=True):
    """An item of a kind that agents are not shown (reasoning, hosted tools): kept and given back as it came."""

    body: dict[str, Any]


class OpenCalls:
    """The calls of the newest assistant message that have no result yet, message by message.

    Messages in a row that hold nothing but calls count as one; anything else but results closes what is open.
    """

    __slots__ = ("_goes_on", "ids")

    def __init__(self) -> None:
        self.ids: list[str] = []
        self._goes_on = False

    def take(self, message: Message) -> None:
        """Take the next message; instructions change nothing."""
        match message:
            case AssistantMessage():
                calls = [call.id for call in message.tool_calls or ()]
                self.ids = [*self.ids, *calls] if self._goes_on and not text_of(message) else calls
                self._goes_on = bool(calls)
            case ToolMessage():
                self.ids = [call_id for call_id in self.ids if call_id != message.tool_call_id]
                self._goes_on = False
            case UserMessage() | FunctionMessage():
                self.ids = []
                self._goes_on = False
            case SystemMessage() | DeveloperMessage():
                pass


class Usage(Struct, frozen=True, omit_defaults=True):
    """Tokens of one model call or of many; all numbers are >= 0.

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
        """Prompt and completion together."""
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


# --- what a caller offers and wishes -------------------------------------------------------------------------


class FunctionTool(Struct, frozen=True, omit_defaults=True):
    """A function that a model may call. ``parameters`` is a JSON Schema object; None means no arguments."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


ToolChoiceMode = Literal["none", "auto", "required"]


class NamedToolChoice(Struct, frozen=True):
    """The model has to call this function."""

    name: str


ToolChoice = ToolChoiceMode | NamedToolChoice
FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]


EventsMode = Literal["none", "extension", "reasoning", "all"]
"""What an answer tells beside the answer: nothing, what happened as objects under ``handoff``, as text in
``reasoning_content`` (with what the models thought aloud), or both."""


class Parameters(Struct, frozen=True, omit_defaults=True):
    """What a caller wishes of the model that answers, in the words of the wire; None means not wished.

    Encoded, it is the part of a request body that holds these fields.
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


encode_item = msgspec.json.Encoder().encode
decode_item = msgspec.json.Decoder(Item).decode
