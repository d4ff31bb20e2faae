"""The answer of an A2A agent: the events of a task, or a message without one."""

from __future__ import annotations

import logging
from typing import Any

from a2a.types import TaskState
from google.protobuf.json_format import MessageToDict, MessageToJson

from proxy.errors import MemberFailed
from proxy.members.port import HandOver, MemberContext, MemberEvent

logger = logging.getLogger(__name__)

HANDOFF = "handoff"
"""Key of metadata with which an agent hands over: ``{"to": "Desk", "reason": "…", "input": {…}}``."""
_FAILED = frozenset(
    (TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_CANCELED, TaskState.TASK_STATE_REJECTED)
)
_WAITS = frozenset((TaskState.TASK_STATE_INPUT_REQUIRED, TaskState.TASK_STATE_AUTH_REQUIRED))
"""States in which the task is continued by the next message of the user."""
_RUNS = frozenset((TaskState.TASK_STATE_SUBMITTED, TaskState.TASK_STATE_WORKING))


class AnswerOfAgent:
    """Reads the events of a task, or a message without one. Snapshots of the task repeat what was read before."""

    def __init__(self, context: MemberContext) -> None:
        state = context.state if isinstance(context.state, dict) else {}
        self._context = context
        self._context_id = state.get("context_id") or ""
        self._has_text = False
        # A task that waited works again from now on.
        self.task_id: str = state.get("open_task") or ""
        self._status = TaskState.TASK_STATE_SUBMITTED if self.task_id else TaskState.TASK_STATE_UNSPECIFIED
        self._earlier: set[str] = set(state.get("read") or ())
        """Ids of artifacts and messages of the task that earlier turns have read."""
        self._artifacts: dict[str, str] = {}
        """Text of artifacts by id, as far as it was read."""
        self._messages: set[str] = set()
        self._has_message = False
        """Whether the agent answered with a message instead of a task."""
        self.has_begun = False
        self.hand_over: HandOver | None = None

    @property
    def agent(self) -> str:
        """The name of the agent."""
        return self._context.agent

    @property
    def is_running(self) -> bool:
        """Whether the task still works, as far as is known."""
        is_unknown = self._status == TaskState.TASK_STATE_UNSPECIFIED and not self._has_message
        return bool(self.task_id) and (self._status in _RUNS or is_unknown)

    @property
    def has_ended(self) -> bool:
        """Whether the answer is complete: a message, or a task that has ended or waits."""
        is_over = self._status in _WAITS or self._status == TaskState.TASK_STATE_COMPLETED
        return self._has_message or is_over or self.hand_over is not None

    @property
    def state(self) -> dict[str, Any]:
        """What is stored: the context, and the task that the next message continues or refers to."""
        waits = self._status in _WAITS
        read = sorted({*self._earlier, *self._artifacts, *self._messages}) if waits else []
        return {
            "context_id": self._context_id,
            "open_task": self.task_id if waits else "",
            "last_task": self.task_id,
            "read": read,
        }

    def forget_task(self) -> None:
        """Begin without the open task."""
        self.task_id, self._status = "", TaskState.TASK_STATE_UNSPECIFIED

    def read(self, response: Any) -> list[str | MemberEvent]:
        """Return the events of one part of the stream.

        Raises:
            MemberFailed: The task failed, or was rejected or cancelled by the agent.
        """
        self.has_begun = True
        match response.WhichOneof("payload"):
            case "message":
                self._has_message = True
                return self._message(response.message)
            case "artifact_update":
                update = response.artifact_update
                self._take_ids(update.task_id, update.context_id)
                return self._artifact(update.artifact)
            case "status_update":
                update = response.status_update
                self._take_ids(update.task_id, update.context_id)
                return self._status_of(update.status, update.metadata)
            case "task":
                task = response.task
                self._take_ids(task.id, task.context_id)
                artifacts = [e for one in task.artifacts for e in self._snapshot(one)]
                return [*artifacts, *self._status_of(task.status, task.metadata)]
            case _:
                return []

    def _take_ids(self, task_id: str, context_id: str) -> None:
        self.task_id = task_id or self.task_id
        self._context_id = context_id or self._context_id

    def _message(self, message: Any) -> list[str | MemberEvent]:
        self._take_ids(message.task_id, message.context_id)
        return self._text(message.parts, message.metadata)

    def _artifact(self, artifact: Any) -> list[str | MemberEvent]:
        """Return the text of a piece of an artifact."""
        found = self._text(artifact.parts, artifact.metadata)
        known = self._artifacts.get(artifact.artifact_id, "")
        self._artifacts[artifact.artifact_id] = known + "".join(map(_text_of, artifact.parts))
        return found

    def _snapshot(self, artifact: Any) -> list[str | MemberEvent]:
        """Return the text of an artifact behind what was read of it."""
        name, text = artifact.artifact_id, "".join(map(_text_of, artifact.parts))
        if name in self._earlier:
            return []
        known = self._artifacts.get(name, "")
        if not known:
            return self._artifact(artifact)
        self._artifacts[name] = text
        return [text[len(known) :]] if text.startswith(known) and text != known else []

    def _status_of(self, status: Any, metadata: Any) -> list[str | MemberEvent]:
        self._take_handoff(metadata)
        if not status.HasField("message"):
            self._set(status.state)
            return []
        message = status.message
        if message.message_id in self._earlier:
            # The question that the message of this turn answers.
            return []
        self._set(status.state)
        if message.message_id in self._messages:
            return []
        if message.message_id:
            self._messages.add(message.message_id)
        is_answer = status.state in _WAITS or (
            status.state == TaskState.TASK_STATE_COMPLETED and not self._has_text
        )
        if is_answer:
            return self._message(message)
        self._take_handoff(message.metadata)
        if status.state in _RUNS:
            self._context.report(" ".join(map(_text_of, message.parts)))
        return []

    def _set(self, state: int) -> None:
        if self._status == TaskState.TASK_STATE_COMPLETED:
            # Final: https://a2a-protocol.org/latest/specification, section 4.1.3.
            return
        self._status = state
        if state not in _RUNS | _WAITS and state != TaskState.TASK_STATE_COMPLETED:
            # Its message can have internals of the agent. States of later versions have no name here.
            name = TaskState.Name(state) if state in _FAILED else str(state)
            logger.warning("task failed", extra={"agent": self.agent, "state": name})
            raise MemberFailed(self.agent)

    def _text(self, parts: Any, metadata: Any) -> list[str | MemberEvent]:
        self._take_handoff(metadata)
        texts = [text for text in map(_text_of, parts) if text]
        self._has_text = self._has_text or bool(texts)
        return list(texts)

    def _take_handoff(self, metadata: Any) -> None:
        wanted = MessageToDict(metadata).get(HANDOFF) if HANDOFF in metadata else None
        if not isinstance(wanted, dict) or not isinstance(wanted.get("to"), str):
            return
        if wanted["to"] in self._context.handoffs:
            data = wanted.get("input")
            self.hand_over = HandOver(
                wanted["to"], str(wanted.get("reason") or ""), data if isinstance(data, dict) else None
            )


def _text_of(part: Any) -> str:
    match part.WhichOneof("content"):
        case "text":
            return str(part.text)
        case "data":
            return str(MessageToJson(part.data, indent=None))
        case "url":
            return f"[{part.filename or part.url}]({part.url})"
        case "raw" if part.media_type.startswith("text/"):
            return bytes(part.raw).decode(errors="replace")
        case "raw":
            return f"[file {part.filename or part.media_type}]"
        case _:
            return ""
