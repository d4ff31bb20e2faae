"""Messages, tools and parameters in the types of AutoGen's model clients."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any, Literal, cast

import msgspec
from autogen_core import FunctionCall, Image
from autogen_core import models as llm
from autogen_core.tools import BaseTool, ToolSchema
from PIL import Image as PilImage
from PIL import UnidentifiedImageError
from pydantic import BaseModel

from proxy.errors import UpstreamBadRequest
from proxy.messages import (
    AssistantMessage,
    DeveloperMessage,
    FunctionMessage,
    FunctionTool,
    ImagePart,
    ImageUrl,
    Message,
    NamedToolChoice,
    Parameters,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolChoice,
    ToolMessage,
    UserMessage,
    text_of,
)
from proxy.providers.capabilities import Abilities

MAX_PIXELS = 50_000_000
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)

Family = Literal["openai", "anthropic", "ollama", "other"]

# Which of our parameters a client understands, and under which name. The OpenAI clients take all as they are.
_NAMES: Mapping[Family, Mapping[str, str]] = {
    "anthropic": {
        "temperature": "temperature",
        "top_p": "top_p",
        "max_tokens": "max_tokens",
        "max_completion_tokens": "max_tokens",
        "stop": "stop_sequences",
    },
    "ollama": {
        "temperature": "temperature",
        "top_p": "top_p",
        "seed": "seed",
        "stop": "stop",
        "frequency_penalty": "frequency_penalty",
        "presence_penalty": "presence_penalty",
        "max_tokens": "num_predict",
        "max_completion_tokens": "num_predict",
    },
    "other": {},
}


# Clients refuse what their SDK does not know, and these are of no use to the caller.
_NOT_PASSED_ON = ("safety_identifier", "prompt_cache_key")


def abilities_of(family: Family, *, can_see: bool) -> Abilities:
    """Return the parameters and kinds of content that a client of this family supports."""
    parts = frozenset(("image_url",)) if can_see else frozenset[str]()
    if family == "openai":
        # AutoGen reads log probabilities, but does not return them.
        return Abilities(parts=parts).without("logprobs", "top_logprobs", *_NOT_PASSED_ON)
    return Abilities(frozenset((*_NAMES[family], "tool_choice")), parts)


def has_images(messages: Iterable[Message]) -> bool:
    """Whether any message shows an image."""
    return any(
        isinstance(part, ImagePart)
        for message in messages
        if isinstance(message.content, list)
        for part in message.content
    )


def llm_messages(
    messages: Sequence[Message], family: Family, *, takes_many_system_messages: bool
) -> list[llm.LLMMessage]:
    """Return the chain in AutoGen's types; neighbouring tool results become one message.

    Where a client takes one system message only, all become one at the beginning. Decoding images takes a
    while: with ``has_images`` and another family than ``openai``, call it from a thread.

    Raises:
        UpstreamBadRequest: A message holds what the client cannot be given; its sentence says what.
    """
    found: list[llm.LLMMessage] = []
    names: dict[str, str] = {}
    for message in messages:
        match message:
            case SystemMessage() | DeveloperMessage():
                found.append(llm.SystemMessage(content=text_of(message)))
            case UserMessage():
                content = _user_content(message, family)
                found.append(llm.UserMessage(content=content, source=_source(message.name, "user")))
            case AssistantMessage():
                spoken = _assistant(message)
                names.update((call.id, call.name) for call in _calls_of(spoken))
                found.append(spoken)
            case ToolMessage():
                call_id = message.tool_call_id
                _add_result(found, call_id, names.get(call_id, "unknown"), _result(message))
            case FunctionMessage():
                _add_result(found, message.name, message.name, text_of(message))
    return found if takes_many_system_messages else _with_one_system_message(found)


def tool_schema(tool: FunctionTool) -> ToolSchema:
    """Return the tool in AutoGen's form; without parameters it takes an empty object."""
    parameters = {"type": "object", "properties": {}, **(tool.parameters or {})}
    return cast(
        ToolSchema,
        {
            "name": tool.name,
            "description": tool.description or "",
            "parameters": parameters,
            "strict": bool(tool.strict),
        },
    )


def component_tool_choice(choice: ToolChoice | None) -> NamedTool | Literal["auto", "required", "none"]:
    """Return the choice in AutoGen's form, where a named tool is an object."""
    if isinstance(choice, NamedToolChoice):
        return NamedTool(choice.name)
    return choice or "auto"


def create_args(parameters: Parameters, parallel_tool_calls: bool | None, family: Family) -> dict[str, Any]:
    """Return what of the parameters the client understands; the rest is left to its configuration.

    Raises:
        UpstreamBadRequest: An answer of a certain form is wanted, and the client cannot ask for it.
    """
    requested: dict[str, Any] = msgspec.to_builtins(parameters)
    for name in _NOT_PASSED_ON:
        requested.pop(name, None)
    if family == "openai":
        if parallel_tool_calls is not None:
            requested["parallel_tool_calls"] = parallel_tool_calls
        return requested
    if requested.get("response_format", {}).get("type", "text") != "text":
        raise UpstreamBadRequest(
            "bad_request", message="The model behind this team cannot be asked for a response format."
        )
    known = _NAMES[family]
    found = {known[name]: value for name, value in requested.items() if name in known}
    if isinstance(found.get("stop_sequences"), str):
        found["stop_sequences"] = [found["stop_sequences"]]
    return found


class _NoFields(BaseModel):
    pass


class NamedTool(BaseTool[_NoFields, _NoFields]):
    """Stands for the tool that a model has to call; only its name is looked at, it is never run."""

    def __init__(self, name: str) -> None:
        super().__init__(args_type=_NoFields, return_type=_NoFields, name=name, description="")

    async def run(self, args: _NoFields, cancellation_token: object) -> _NoFields:
        """Do nothing."""
        return args


class _LinkedImage(Image):
    """An image that is forwarded as the URL; AutoGen's class would decode and encode it again."""

    def __init__(self, link: ImageUrl) -> None:
        # The parent's constructor wants the decoded image.
        self._link = link

    def to_openai_format(self, detail: Literal["auto", "low", "high"] = "auto") -> dict[str, Any]:
        """Return the part as it came."""
        return {
            "type": "image_url",
            "image_url": {"url": self._link.url, "detail": self._link.detail or detail},
        }


def _user_content(message: UserMessage, family: Family) -> str | list[str | Image]:
    if not isinstance(message.content, list):
        return text_of(message)
    found: list[str | Image] = []
    for part in message.content:
        match part:
            case TextPart():
                found.append(part.text)
            case RefusalPart():
                found.append(part.refusal)
            case ImagePart():
                found.append(_LinkedImage(part.image_url) if family == "openai" else _decoded(part.image_url))
            case _:
                raise UpstreamBadRequest(
                    "bad_request", message="The model behind this team can be given text and images only."
                )
    return found if any(isinstance(part, Image) for part in found) else text_of(message)


def _decoded(link: ImageUrl) -> Image:
    start = _DATA_URL.match(link.url)
    if start is None:
        # Nothing here fetches what a message points to.
        raise UpstreamBadRequest(
            "bad_request", message="The model behind this team needs images as base64 data URLs."
        )
    try:
        image = PilImage.open(BytesIO(base64.b64decode(link.url[start.end() :], validate=True)))
        if image.width * image.height > MAX_PIXELS:
            raise UpstreamBadRequest("bad_request", message="An image has too many pixels.")
        return Image(image)
    except (binascii.Error, UnidentifiedImageError, OSError, ValueError, PilImage.DecompressionBombError):
        raise UpstreamBadRequest("bad_request", message="An image could not be read.") from None


def _assistant(message: AssistantMessage) -> llm.AssistantMessage:
    calls = [
        FunctionCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls or ()
        if isinstance(call, ToolCall)
    ]
    if message.function_call is not None:
        # The deprecated kind has no id; its result names the function instead.
        legacy = message.function_call
        calls.append(FunctionCall(id=legacy.name, name=legacy.name, arguments=legacy.arguments))
    source = _source(message.name, "assistant")
    text = text_of(message)
    if calls:
        return llm.AssistantMessage(content=calls, thought=text or None, source=source)
    return llm.AssistantMessage(content=text, source=source)


def _result(message: ToolMessage) -> str:
    if isinstance(message.content, list) and not all(isinstance(part, TextPart) for part in message.content):
        raise UpstreamBadRequest(
            "bad_request", message="The model behind this team takes results of tools as text only."
        )
    return text_of(message)


def _calls_of(message: llm.AssistantMessage) -> Sequence[FunctionCall]:
    return message.content if isinstance(message.content, list) else ()


def _add_result(found: list[llm.LLMMessage], call_id: str, name: str, content: str) -> None:
    result = llm.FunctionExecutionResult(content=content, name=name, call_id=call_id)
    if found and isinstance(found[-1], llm.FunctionExecutionResultMessage):
        found[-1].content.append(result)
    else:
        found.append(llm.FunctionExecutionResultMessage(content=[result]))


def _with_one_system_message(messages: list[llm.LLMMessage]) -> list[llm.LLMMessage]:
    instructions = [message.content for message in messages if isinstance(message, llm.SystemMessage)]
    rest: list[llm.LLMMessage] = [
        message for message in messages if not isinstance(message, llm.SystemMessage)
    ]
    if not instructions:
        return rest
    return [llm.SystemMessage(content="\n\n".join(instructions)), *rest]


def _source(name: str | None, otherwise: str) -> str:
    """Return a name that AutoGen takes: it refuses others with an error."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] if name else otherwise
