"""What several adapters share: the member of an object, its parameters, and the messages of the conversation."""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import msgspec

from proxy.members.port import HandOver, MemberContext, MemberEvent, Unused
from proxy.members.transcript import note_of_handoff
from proxy.messages import (
    AssistantMessage,
    AudioPart,
    FilePart,
    FunctionTool,
    ImagePart,
    Item,
    Message,
    Parameters,
    ToolCall,
    ToolMessage,
    UserMessage,
    text_of,
)
from proxy.tools.handoff_tools import handoff_reason

NOT_EXECUTED = "not executed: no result was given for this call"
"""The result of a call that frameworks require for each call of the history."""
TRANSFERRED = "transferred"
"""The result of a call that handed over to another agent of the team."""
SAMPLING: Mapping[str, str] = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Parameters that most frameworks have, with their names there."""
T = TypeVar("T")


class FrameworkMember(ABC):
    """An object of a framework as a member. The parameters that the framework does not have are reported as unused."""

    has_effects = True
    parameters: ClassVar[Mapping[str, str]] = {}
    """Parameters of requests that the framework has, with their names there."""

    def __init__(self, found: Any) -> None:
        self._found = found

    async def run(
        self, messages: Sequence[Message], context: MemberContext
    ) -> AsyncIterator[str | MemberEvent]:
        """Run the object; the messages are those of the context."""
        unused = unused_parameters(context.parameters, self._known(context))
        if unused is not None:
            yield unused
        async with aclosing(self._events(context)) as events:
            async for event in events:
                yield event

    async def close(self) -> None:  # noqa: B027
        """Nothing is held."""

    @abstractmethod
    def _events(self, context: MemberContext) -> AsyncGenerator[str | MemberEvent]:
        """Yield text and events of a run."""

    def _known(self, context: MemberContext) -> Collection[str]:
        """Return the names of the parameters that have an effect."""
        return self.parameters

    def _settings(self, context: MemberContext) -> dict[str, Any]:
        """Return the parameters of the request with their names in the framework."""
        given = ((theirs, getattr(context.parameters, name)) for name, theirs in self.parameters.items())
        return {name: value for name, value in given if value is not None}


def unused_parameters(parameters: Parameters, known: Collection[str]) -> Unused | None:
    """Return the parameters of the request that a framework cannot be given; None if there are none."""
    unused = tuple(name for name in msgspec.to_builtins(parameters) if name not in known)
    return Unused(unused) if unused else None


# --- tools -----------------------------------------------------------------------------------------------------


def outside_tools(context: MemberContext) -> list[FunctionTool]:
    """Return the tools that a framework does not execute: those of the client, and handoffs of the team."""
    return [*context.tools, *(tool for tool, _ in context.handoff_tools)]


def handoff_targets(context: MemberContext) -> dict[str, str]:
    """Return the agents to which the member may hand over, by the name of the tool."""
    return {tool.name: target for tool, target in context.handoff_tools}


def schema_of(tool: FunctionTool) -> dict[str, Any]:
    """Return the JSON schema of the parameters of a tool."""
    return tool.parameters or {"type": "object", "properties": {}}


def arguments_of(text: str | None) -> dict[str, Any]:
    """Return the arguments of a call; empty if the text is not a JSON object."""
    try:
        found = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def hand_over_to(target: str, arguments: str) -> HandOver:
    """Return the handover of a call of a handoff tool; ``arguments`` is JSON text."""
    return HandOver(target, handoff_reason(arguments), arguments_of(arguments) or None)


def json_text(value: Any) -> str:
    """Return a value of a framework as text: a string as it is, others as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value, enc_hook=_dumped).decode()


def plain(value: Any) -> Any:
    """Return a value of a framework as a JSON value."""
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=_dumped))


def _dumped(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    return dump(mode="json") if callable(dump) else str(value)


# --- messages --------------------------------------------------------------------------------------------------


def system_text(context: MemberContext) -> str:
    """Return the instructions of the client and a note of the handoff; empty if there are none."""
    return "\n\n".join(filter(None, (context.instructions, note_of_handoff(context))))


def items_since(context: MemberContext) -> Sequence[Item]:
    """Return the items behind the last one with a state of the member, for frameworks that keep the conversation."""
    items = context.items
    newest = max((at for at, item in enumerate(items) if context.state_of(item) is not None), default=-1)
    return items[newest + 1 :]


def spoken(
    items: Iterable[Item], user: Callable[[UserMessage], T], agent: Callable[[Item, str], T]
) -> list[T]:
    """Return the texts of users and agents, converted: ``user`` gets messages, ``agent`` items and their text."""
    return [one for item in items if (one := said(item, user, agent)) is not None]


def said(item: Item, user: Callable[[UserMessage], T], agent: Callable[[Item, str], T]) -> T | None:
    """Return an item converted as in ``spoken``; None for calls, results, and what is not visible."""
    message = item.message
    if isinstance(message, UserMessage):
        return user(message)
    if isinstance(message, AssistantMessage) and item.visible and (text := text_of(message)):
        return agent(item, text)
    return None


def with_own_messages(
    context: MemberContext,
    own: Callable[[Any], Sequence[T]],
    user: Callable[[UserMessage], T],
    agent: Callable[[Item, str], T],
) -> list[T]:
    """Return ``context.items`` converted as in ``spoken``, and ``own(state)`` where the member stored messages.

    A state with ``continues`` replaces the states of the interrupted runs before it, and the questions for approval
    in between: a framework requires results directly behind their calls.
    """
    found: list[T] = []
    start: int | None = None
    for item in context.items:
        state = context.state_of(item)
        if state is not None:
            # The interrupted run is not there if that part of a long conversation was replaced by a summary.
            if start is not None and isinstance(state, dict) and state.get("continues"):
                del found[start:]
            start = len(found)
            found += own(state)
        elif (message := said(item, user, agent)) is not None:
            found.append(message)
    return found


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part of a user message that is not text. ``url`` is an address or a data URL; empty for an uploaded file."""

    kind: Literal["image", "audio", "file"]
    url: str
    media_type: str
    name: str = ""
    detail: str = "auto"
    """Resolution of an image."""
    file_id: str = ""
    """Id of an uploaded file, which only the provider can read."""

    @property
    def base64(self) -> str:
        """The content of a data URL; empty for other addresses."""
        head, separator, data = self.url.partition(";base64,")
        return data if separator and head.startswith("data:") else ""

    @property
    def content(self) -> bytes | None:
        """The decoded content of a data URL; None for other addresses, and for a damaged one."""
        try:
            return base64.b64decode(self.base64, validate=True) or None
        except binascii.Error:
            return None

    @property
    def note(self) -> str:
        """A text for frameworks that cannot be given the content."""
        name = self.name or self.file_id or (self.url if not self.url.startswith("data:") else "")
        return f"[{self.kind}{f' {name}' if name else ''} that cannot be read]"


def attachments_of(message: UserMessage) -> list[Attachment]:
    """Return the images, sounds and files of a message."""
    found = []
    for part in message.content if isinstance(message.content, list) else ():
        match part:
            case ImagePart(image_url=image):
                kind = _media_type(image.url, "image/*")
                found.append(Attachment("image", image.url, kind, detail=image.detail or "auto"))
            case AudioPart(input_audio=audio):
                kind = "audio/mpeg" if audio.format == "mp3" else f"audio/{audio.format}"
                found.append(Attachment("audio", f"data:{kind};base64,{audio.data}", kind))
            case FilePart(file=file):
                data = file.file_data or ""
                # https://platform.openai.com/docs/guides/pdf-files shows data URLs; plain base64 is sent as well.
                url = data if not data or ":" in data[:64] else f"data:application/octet-stream;base64,{data}"
                kind = _media_type(url, "application/octet-stream")
                found.append(Attachment("file", url, kind, file.filename or "", file_id=file.file_id or ""))
            case _:
                pass
    return found


def _media_type(url: str, otherwise: str) -> str:
    return url[len("data:") :].partition(";")[0] if url.startswith("data:") else otherwise


@dataclass(frozen=True, slots=True)
class FrameworkCall:
    """A call that the framework made, and that somebody else answers."""

    call_id: str
    name: str
    arguments: Mapping[str, Any]


def answered_outside(context: MemberContext) -> list[tuple[FrameworkCall, str]]:
    """Return the calls of client tools with results of a member without a state, as the client sent them.

    A conversation that is not stored has no state of the member: the calls are known from the request only.
    """
    if context.state is not None:
        return []
    calls: dict[str, FrameworkCall] = {}
    found = []
    for item in context.later_items:
        message = item.message
        if isinstance(message, AssistantMessage) and item.visible:
            for call in message.tool_calls or ():
                if isinstance(call, ToolCall):
                    arguments = arguments_of(call.function.arguments)
                    calls[call.id] = FrameworkCall(call.id, call.function.name, arguments)
        elif isinstance(message, ToolMessage) and item.visible and message.tool_call_id in calls:
            found.append((calls.pop(message.tool_call_id), text_of(message)))
    if found:
        # The member does not read them from the context any more.
        context.answers()
    return found
