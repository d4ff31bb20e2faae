"""The conversation as a remote agent sees it, and the approvals that a remote team has requested.

The endpoint receives the text of users and agents. If a call of a remote team needs approval, the question that the
user sees is one of this server. The endpoint knows its own question, so it receives that one, and the decision
as the message behind it.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Struct

from proxy.members.port import MemberContext
from proxy.messages import AssistantMessage, Item, Message, ToolMessage, UserMessage, text_of

YES, NO = "yes", "no"


class RemoteApproval(Struct, frozen=True):
    """A call of the remote team that waits; ``id`` is that of the approval at the endpoint."""

    id: str
    name: str
    arguments: dict[str, object]


class RemoteQuestion(Struct, frozen=True):
    """The question of the remote team, as it is stored with the calls that are put before the user."""

    text: str
    """Behind the text in front of it, in the same message."""
    conversation: str
    """The id under which the endpoint has the conversation."""
    approvals: list[RemoteApproval]


def question_of(context: MemberContext, item: Item) -> RemoteQuestion | None:
    """Return the question that is stored with an item."""
    state = context.state_of(item)
    if not isinstance(state, dict) or not isinstance(item.message, AssistantMessage):
        return None
    try:
        return msgspec.convert(state, RemoteQuestion) if item.message.tool_calls else None
    except msgspec.ValidationError:
        return None


def last_question(context: MemberContext) -> RemoteQuestion | None:
    """Return the newest question of this exchange."""
    questions = (question_of(context, item) for item in reversed(context.later_items))
    return next((question for question in questions if question is not None), None)


class RemoteTranscript:
    """The messages for the endpoint. ``is_undecided``: the last one is the question, whose decision has to follow."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context
        self._hides_question = False
        self.is_undecided = False
        self.messages: list[Message] = []
        for item in context.items:
            self.messages += self._shown(item, has_calls=False)
        for item in context.later_items:
            self.messages += self._shown(item, has_calls=True)

    def _shown(self, item: Item, *, has_calls: bool) -> Iterator[Message]:
        message, is_own = item.message, item.agent == self._context.agent
        if (question := question_of(self._context, item)) is not None:
            yield AssistantMessage(content=text_of(message) + question.text)
            self.is_undecided = self._hides_question = True
        elif isinstance(message, UserMessage):
            # A decision by id is stored as a hidden message of the agent.
            yield UserMessage(_decision_in(text_of(message))) if self.is_undecided and is_own else message
            self.is_undecided = self._hides_question = False
        elif isinstance(message, AssistantMessage) and is_own and self._hides_question and item.visible:
            # The question of this server.
            self._hides_question = False
        elif isinstance(message, AssistantMessage) and item.visible:
            if has_calls or text_of(message):
                yield message if has_calls else AssistantMessage(content=text_of(message))
        elif isinstance(message, AssistantMessage) and is_own and self.is_undecided:
            # The call is repeated after its approval, in the turn of a delegate without a message of the user.
            yield UserMessage(YES)
            self.is_undecided = False
        elif isinstance(message, ToolMessage) and item.visible and has_calls:
            yield message


def _decision_in(note: str) -> str:
    """Return the decision that a note about decisions by id contains; of several lines, one may be a yes."""
    lines = [line.rpartition(": ")[2] for line in note.splitlines()] if "\n" in note else [note]
    return YES if any(line.casefold().startswith(YES) for line in lines) else NO
