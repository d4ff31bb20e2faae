"""Output items under construction, in the format of the OpenAI API.

Server tool calls and handoffs are encoded as calls of an MCP server (``mcp_call``): clients show these as executed by
the server and do not execute them.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from proxy.wire.responses.compaction import compaction_body
from proxy.wire.responses.ids import item_id

Body = dict[str, Any]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
SERVER_LABEL = "handoff-proxy"


class ItemTextPart:
    """A text part of a message."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.logprobs: list[Any] = []

    def body(self) -> Body:
        """Return the current state of the part."""
        return {
            "type": "output_text",
            "annotations": [],
            "logprobs": list(self.logprobs),
            "text": "".join(self.pieces),
        }


class ItemRefusalPart:
    """A refusal part of a message."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def body(self) -> Body:
        """Return the current state of the part."""
        return {"type": "refusal", "refusal": "".join(self.pieces)}


class MessageItem:
    """An assistant message."""

    def __init__(self, turn_id: str, index: int) -> None:
        self.id = item_id("msg", turn_id, index)
        self.index = index
        self.parts: list[ItemTextPart | ItemRefusalPart] = []
        self.status: ItemStatus = "in_progress"

    def body(self) -> Body:
        """Return the current state of the item."""
        return {
            "id": self.id,
            "type": "message",
            "status": self.status,
            "content": [part.body() for part in self.parts],
            "role": "assistant",
        }


class ReasoningItem:
    """Reasoning of a model, as a summary if the client requested one."""

    def __init__(self, turn_id: str, index: int, *, is_summary: bool) -> None:
        self.id = item_id("rs", turn_id, index)
        self.index = index
        self.pieces: list[str] = []
        self.is_summary = is_summary
        self.status: ItemStatus = "in_progress"

    def part(self) -> Body:
        """Return the current state of the only part."""
        return {
            "type": "summary_text" if self.is_summary else "reasoning_text",
            "text": "".join(self.pieces),
        }

    def body(self) -> Body:
        """Return the current state of the item."""
        parts = [self.part()] if self.pieces else []
        body: Body = {
            "id": self.id,
            "type": "reasoning",
            "summary": parts if self.is_summary else [],
            "encrypted_content": None,
            "status": self.status,
        }
        if not self.is_summary:
            body["content"] = parts
        return body


class CallItem:
    """A call of a client tool, which the client executes."""

    def __init__(self, turn_id: str, index: int, call_id: str, name: str) -> None:
        self.id = item_id("fc", turn_id, index)
        self.index = index
        self.call_id = call_id
        self.name = name
        self.pieces: list[str] = []
        self.status: ItemStatus = "in_progress"

    @property
    def arguments(self) -> str:
        """The JSON text received so far."""
        return "".join(self.pieces)

    def body(self) -> Body:
        """Return the current state of the item."""
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "arguments": self.arguments,
            "call_id": self.call_id,
            "name": self.name,
        }


class ServerCallItem:
    """A server tool call or handoff, which needs no result from the client."""

    def __init__(
        self, turn_id: str, index: int, name: str, arguments: str, approval_id: str | None = None
    ) -> None:
        self.id = item_id("mcp", turn_id, index)
        self.approval_id = approval_id
        self.index = index
        self.name = name
        self.arguments = arguments
        self.output: str | None = None
        self.error: str | None = None
        self.status: Literal["in_progress", "completed", "failed"] = "in_progress"

    def body(self) -> Body:
        """Return the current state of the item."""
        return {
            "id": self.id,
            "type": "mcp_call",
            "status": self.status,
            "approval_request_id": self.approval_id,
            "arguments": self.arguments if self.status != "in_progress" else "",
            "error": _error(self.error),
            "name": self.name,
            "output": self.output,
            "server_label": SERVER_LABEL,
        }


class ApprovalItem:
    """A call of the server's that a person has to approve; its id is the approval's."""

    def __init__(self, approval_id: str, index: int, name: str, arguments: str) -> None:
        self.id = approval_id
        self.index = index
        self.name = name
        self.arguments = arguments

    def body(self) -> Body:
        """Return the item."""
        return {
            "id": self.id,
            "type": "mcp_approval_request",
            "arguments": self.arguments,
            "name": self.name,
            "server_label": SERVER_LABEL,
        }


class CompactionItem:
    """A summary of everything before it, which the client can send instead of that."""

    def __init__(self, turn_id: str, index: int, summary: str) -> None:
        self.id = item_id("cmp", turn_id, index)
        self.index = index
        self.summary = summary

    def body(self) -> Body:
        """Return the item."""
        return compaction_body(self.id, self.summary)


OutputItem = MessageItem | ReasoningItem | CallItem | ServerCallItem | ApprovalItem | CompactionItem


def json_arguments(shown: str) -> str:
    """Return the arguments of a server tool call as valid JSON; truncated arguments become ``{"text": …}``."""
    try:
        msgspec.json.decode(shown)
    except (msgspec.DecodeError, RecursionError):
        return msgspec.json.encode({"text": shown}).decode() if shown else "{}"
    return shown


def _error(message: str | None) -> Body | None:
    if message is None:
        return None
    return {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": message}]}
