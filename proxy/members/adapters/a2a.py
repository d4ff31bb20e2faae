"""Agents of the A2A protocol 1.0 (https://a2a-protocol.org), found by their agent card.

The agent keeps the conversation under a context id, which is stored with its answer, and receives the messages since
then. A task that asks for input is continued by the next message. Only the server of the card is contacted, because the
configured headers can have keys.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.types import CancelTaskRequest, Role, SendMessageRequest, TaskState
from a2a.types import Message as TheirMessage
from a2a.types import Part as TheirPart
from google.protobuf.json_format import MessageToDict, MessageToJson

from proxy.errors import MemberFailed
from proxy.members.adapters.common import items_since, unused_parameters
from proxy.members.port import HandOver, MemberContext, MemberEvent, Sees
from proxy.messages import AssistantMessage, ImagePart, Message, UserMessage, text_of
from proxy.tracing import add_trace_headers

CONNECT_TIMEOUT = 10.0
CANCEL_TIMEOUT = 0.8
"""Seconds to cancel a task whose turn was cancelled."""
HANDOFF = "handoff"
"""Key of metadata with which an agent hands over: ``{"to": "Desk", "reason": "…"}``."""
_ENDED = frozenset(
    (
        TaskState.TASK_STATE_COMPLETED,
        TaskState.TASK_STATE_FAILED,
        TaskState.TASK_STATE_CANCELED,
        TaskState.TASK_STATE_REJECTED,
    )
)
_FAILED = _ENDED - {TaskState.TASK_STATE_COMPLETED} | {TaskState.TASK_STATE_AUTH_REQUIRED}
_BINDINGS = ("JSONRPC", "HTTP+JSON")


class A2AMember:
    """A remote agent. The card is read by the first turn."""

    has_effects = True
    sees: Sees = "own"

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._url = url
        self._headers = headers
        self._http: httpx.AsyncClient | None = None
        self._client: Any = None
        self._opening = asyncio.Lock()

    async def run(
        self, messages: Sequence[Message], context: MemberContext
    ) -> AsyncIterator[str | MemberEvent]:
        """Send the messages since the last answer, and stream the answer."""
        unused = unused_parameters(context.parameters, ())
        if unused is not None:
            yield unused
        client = await self._open(context.agent)
        answer = _AnswerOfAgent(context)
        try:
            async for response in client.send_message(SendMessageRequest(message=_message(context))):
                for event in answer.read(response):
                    yield event
        finally:
            if answer.is_running:
                await _cancel(client, answer.task_id)
        context.state = answer.state
        if answer.hand_over is not None:
            yield answer.hand_over

    async def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            await self._http.aclose()

    async def _open(self, agent: str) -> Any:
        async with self._opening:
            if self._client is None:
                if self._http is None:
                    # Answers take as long as they take; the turn has a time limit.
                    self._http = httpx.AsyncClient(
                        headers=self._headers,
                        timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT),
                        trust_env=False,
                        event_hooks={"request": [add_trace_headers]},
                    )
                card = await A2ACardResolver(self._http, self._url).get_agent_card()
                served = [one for one in card.supported_interfaces if _origin(one.url) == _origin(self._url)]
                if not served:
                    raise MemberFailed(agent)
                del card.supported_interfaces[:]
                card.supported_interfaces.extend(served)
                config = ClientConfig(httpx_client=self._http, supported_protocol_bindings=list(_BINDINGS))
                self._client = ClientFactory(config).create(card)
            return self._client


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"https": 443, "http": 80}.get(parts.scheme)


async def _cancel(client: Any, task_id: str) -> None:
    # The turn has ended in any case.
    with suppress(Exception):
        async with asyncio.timeout(CANCEL_TIMEOUT):
            await client.cancel_task(CancelTaskRequest(id=task_id))


# --- the message -----------------------------------------------------------------------------------------------


def _message(context: MemberContext) -> Any:
    state = context.state if isinstance(context.state, dict) else {}
    message = TheirMessage(
        message_id=secrets.token_hex(16),
        role=Role.ROLE_USER,
        parts=_parts(context),
        context_id=state.get("context_id") or "",
        task_id=state.get("open_task") or "",
    )
    if state.get("last_task") and not state.get("open_task"):
        message.reference_task_ids.append(state["last_task"])
    facts = {
        "conversation_id": context.conversation_id,
        "end_user": context.end_user,
        "instructions": context.instructions,
        "handed_over_by": context.handed_over_by,
        "handoff_reason": context.handoff_reason,
        "handoff_input": dict(context.handoff_input or {}),
        "handoffs": dict(context.handoffs),
    }
    message.metadata.update({name: value for name, value in facts.items() if value})
    return message


def _parts(context: MemberContext) -> list[Any]:
    """Return the last user message, after the messages of others since the last answer as one part."""
    items = items_since(context)
    newest = max((at for at, i in enumerate(items) if isinstance(i.message, UserMessage)), default=-1)
    earlier = [
        f"{item.agent or ('user' if isinstance(item.message, UserMessage) else 'assistant')}: {text_of(item.message)}"
        for item in items[: max(newest, 0)]
        if item.visible and isinstance(item.message, UserMessage | AssistantMessage) and text_of(item.message)
    ]
    parts = [TheirPart(text="\n".join(("Earlier in this conversation:", *earlier)))] if earlier else []
    message = items[newest].message if newest >= 0 else UserMessage(context.text)
    parts.append(TheirPart(text=text_of(message)))
    if isinstance(message.content, list):
        parts += [_image(part.image_url.url) for part in message.content if isinstance(part, ImagePart)]
    return parts


def _image(url: str) -> Any:
    head, separator, data = url.partition(";base64,")
    if not separator:
        return TheirPart(url=url, media_type="image/*")
    with suppress(binascii.Error):
        return TheirPart(raw=base64.b64decode(data), media_type=head.removeprefix("data:"))
    return TheirPart(text="[image that cannot be decoded]")


# --- the answer ------------------------------------------------------------------------------------------------


class _AnswerOfAgent:
    """Reads the events of a task, or a message without one."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context
        self._context_id = ""
        self._status = TaskState.TASK_STATE_UNSPECIFIED
        self._has_text = False
        self.task_id = ""
        self.hand_over: HandOver | None = None

    @property
    def is_running(self) -> bool:
        """Whether the task still works."""
        open_states = (TaskState.TASK_STATE_SUBMITTED, TaskState.TASK_STATE_WORKING)
        return bool(self.task_id) and self._status in open_states

    @property
    def state(self) -> dict[str, str]:
        """What is stored: the context, and the task that the next message continues or refers to."""
        waits = self._status == TaskState.TASK_STATE_INPUT_REQUIRED
        return {
            "context_id": self._context_id,
            "open_task": self.task_id if waits else "",
            "last_task": self.task_id,
        }

    def read(self, response: Any) -> list[str | MemberEvent]:
        """Return the events of one part of the stream.

        Raises:
            MemberFailed: The task failed, was rejected, or needs a sign-in.
        """
        match response.WhichOneof("payload"):
            case "message":
                return self._message(response.message)
            case "artifact_update":
                update = response.artifact_update
                self._take_ids(update.task_id, update.context_id)
                return self._text(update.artifact.parts, update.artifact.metadata)
            case "status_update":
                update = response.status_update
                self._take_ids(update.task_id, update.context_id)
                return self._status_of(update.status, update.metadata)
            case "task":
                task = response.task
                self._take_ids(task.id, task.context_id)
                artifacts = [e for one in task.artifacts for e in self._text(one.parts, one.metadata)]
                return [*artifacts, *self._status_of(task.status, task.metadata)]
            case _:
                return []

    def _take_ids(self, task_id: str, context_id: str) -> None:
        self.task_id = task_id or self.task_id
        self._context_id = context_id or self._context_id

    def _message(self, message: Any) -> list[str | MemberEvent]:
        self._take_ids(message.task_id, message.context_id)
        return self._text(message.parts, message.metadata)

    def _status_of(self, status: Any, metadata: Any) -> list[str | MemberEvent]:
        self._status = status.state
        self._take_handoff(metadata)
        if status.state in _FAILED:
            raise MemberFailed(self._context.agent)
        if not status.HasField("message"):
            return []
        is_answer = status.state == TaskState.TASK_STATE_INPUT_REQUIRED or (
            status.state == TaskState.TASK_STATE_COMPLETED and not self._has_text
        )
        if is_answer:
            return self._message(status.message)
        if status.state not in _ENDED:
            self._take_handoff(status.message.metadata)
            self._context.report(" ".join(map(_text_of, status.message.parts)))
        return []

    def _text(self, parts: Any, metadata: Any) -> list[str | MemberEvent]:
        self._take_handoff(metadata)
        texts = [text for text in map(_text_of, parts) if text]
        self._has_text = self._has_text or bool(texts)
        return list(texts)

    def _take_handoff(self, metadata: Any) -> None:
        wanted = MessageToDict(metadata).get(HANDOFF) if HANDOFF in metadata else None
        if isinstance(wanted, dict) and wanted.get("to") in self._context.handoffs:
            self.hand_over = HandOver(wanted["to"], str(wanted.get("reason") or ""), wanted)


def _text_of(part: Any) -> str:
    match part.WhichOneof("content"):
        case "text":
            return str(part.text)
        case "data":
            return str(MessageToJson(part.data, indent=None))
        case "url":
            return f"[{part.filename or part.url}]({part.url})"
        case "raw":
            return f"[file {part.filename or part.media_type}]"
        case _:
            return ""
