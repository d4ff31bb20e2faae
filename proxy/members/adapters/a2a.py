"""Agents of the A2A protocol 1.0 (https://a2a-protocol.org), found by their agent card.

The agent keeps the conversation under a context id, which is stored with its answer, and receives the messages since
then. A task that asks for input, or for a sign-in, is continued by the next message. Only the server of the card is
contacted, because the configured headers can have keys.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
from a2a.client import A2ACardResolver, A2AClientError, ClientConfig, ClientFactory
from a2a.types import (
    CancelTaskRequest,
    GetTaskRequest,
    Role,
    SendMessageRequest,
    StreamResponse,
)
from a2a.types import Message as TheirMessage
from a2a.types import Part as TheirPart
from a2a.utils.errors import A2AError

from proxy.errors import MemberFailed
from proxy.members.adapters.a2a_answer import AnswerOfAgent
from proxy.members.adapters.bounded_transport import BoundedTransport
from proxy.members.adapters.common import Attachment, FrameworkMember, attachments_of, items_since, spoken
from proxy.members.port import MemberContext, MemberEvent, Sees
from proxy.messages import UserMessage, text_of
from proxy.tracing import add_trace_headers

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
CARD_TIMEOUT = 10.0
CANCEL_TIMEOUT = 0.8
"""Seconds to cancel a task whose turn was cancelled."""
POLL_DELAYS = 0.1, 2.0
"""Seconds before the state of a task is read without a stream: at first, and at most; the delay doubles."""
_BINDINGS = ("JSONRPC", "HTTP+JSON")


class A2AMember(FrameworkMember):
    """A remote agent. The card is read by the first turn."""

    sees: Sees = "own"

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        super().__init__(url)
        self._url = url
        self._headers = headers
        self._http: httpx.AsyncClient | None = None
        self._client: Any = None
        self._opening = asyncio.Lock()

    async def _events(self, context: MemberContext) -> AsyncGenerator[str | MemberEvent]:
        """Send the messages since the last answer, and stream the answer."""
        client = await self._open(context.agent)
        answer = AnswerOfAgent(context)
        try:
            async with aclosing(_responses(client, _message(context), answer)) as responses:
                async for response in responses:
                    for event in answer.read(response):
                        yield event
        finally:
            if answer.is_running:
                await _cancel(client, answer.task_id)
        if not answer.has_ended:
            logger.warning("the answer of the agent has no end", extra={"agent": context.agent})
            raise MemberFailed(context.agent)
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
                        transport=BoundedTransport(trust_env=False),
                        trust_env=False,
                        event_hooks={"request": [add_trace_headers]},
                    )
                # Other turns wait for the card too.
                async with asyncio.timeout(CARD_TIMEOUT):
                    card = await A2ACardResolver(self._http, self._url).get_agent_card()
                served = [one for one in card.supported_interfaces if _origin(one.url) == _origin(self._url)]
                if not served:
                    logger.warning("the card has no address at its own server", extra={"agent": agent})
                    raise MemberFailed(agent)
                del card.supported_interfaces[:]
                card.supported_interfaces.extend(served)
                config = ClientConfig(
                    httpx_client=self._http,
                    supported_protocol_bindings=list(_BINDINGS),
                    # Only a task with a known id can be cancelled.
                    polling=not card.capabilities.streaming,
                )
                self._client = ClientFactory(config).create(card)
            return self._client


async def _responses(client: Any, message: Any, answer: AnswerOfAgent) -> AsyncGenerator[Any]:
    """Yield what the agent streams; without a stream, or after it broke, the task until it has ended or waits."""
    try:
        async with aclosing(client.send_message(SendMessageRequest(message=message))) as stream:
            async for response in stream:
                yield response
    except A2AClientError:
        if not answer.is_running or not answer.has_begun:
            raise
        logger.warning("the stream of a task broke", extra={"agent": answer.agent})
    except A2AError:
        if answer.has_begun or not message.task_id:
            raise
        # The agent no longer has the open task; the context id identifies the conversation.
        message.task_id = ""
        answer.forget_task()
        async with aclosing(client.send_message(SendMessageRequest(message=message))) as stream:
            async for response in stream:
                yield response
    delay, longest = POLL_DELAYS
    while answer.is_running:
        await asyncio.sleep(delay)
        delay = min(2 * delay, longest)
        yield StreamResponse(task=await client.get_task(GetTaskRequest(id=answer.task_id)))


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
    earlier = spoken(
        items[: max(newest, 0)],
        lambda message: f"user: {text_of(message)}" if text_of(message) else "",
        lambda item, text: f"{item.agent or 'assistant'}: {text}",
    )
    lines = [line for line in earlier if line]
    parts = [TheirPart(text="\n".join(("Earlier in this conversation:", *lines)))] if lines else []
    message = items[newest].message if newest >= 0 else UserMessage(context.text)
    assert isinstance(message, UserMessage)
    return [*parts, TheirPart(text=text_of(message)), *map(_attachment, attachments_of(message))]


def _attachment(one: Attachment) -> Any:
    if one.url and not one.url.startswith("data:"):
        return TheirPart(url=one.url, media_type=one.media_type, filename=one.name)
    content = one.content
    if content is None:
        return TheirPart(text=one.note)
    return TheirPart(raw=content, media_type=one.media_type, filename=one.name)
