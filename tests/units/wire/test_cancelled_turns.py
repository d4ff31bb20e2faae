"""The failure of a cancelled turn names all tools that have run, in every format."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from proxy.events import Cancelled, DelegateEvent, Entry, Event, Failed, MemberTeamEvent, Started, ToolStarted
from proxy.messages import Usage
from proxy.wire.chat.completion import AnswerOptions, completion
from proxy.wire.chat.stream import ChunkEncoder
from proxy.wire.legacy.ask import QuestionEncoder
from proxy.wire.legacy.chat import ChatEventEncoder
from proxy.wire.legacy.ndjson import LineEncoder, TextBuilder

OPTIONS = AnswerOptions(id="chatcmpl-1", created=1, model="bank")
CANCELLED: tuple[Event, ...] = (
    Started("chatcmpl-1", "triage"),
    ToolStarted("call_1", "look_up", "{}", "triage"),
    DelegateEvent("call_2", "helper", ToolStarted("call_3", "book", "{}", "helper")),
    MemberTeamEvent("clerk", DelegateEvent("call_4", "aide", ToolStarted("call_5", "pay", "{}", "aide"))),
    Cancelled("client_left", "triage", Usage()),
)


def _frames(encode_entry: Callable[[Entry], bytes], entries: Iterable[Entry]) -> str:
    return b"".join(map(encode_entry, entries)).decode()


def _whole_text(entries: Iterable[Entry]) -> str:
    builder = TextBuilder()
    for entry in entries:
        builder.add(entry)
    answer = builder.answer()
    assert isinstance(answer, Failed)
    return answer.message


def _message(entries: Iterable[Entry]) -> str:
    answer = completion(OPTIONS, [entry.event for entry in entries])
    assert isinstance(answer, Failed)
    return answer.message


FORMATS: dict[str, Callable[[list[Entry]], str]] = {
    "completion": lambda entries: _message(entries),
    "chunks": lambda entries: _frames(ChunkEncoder(OPTIONS).encode, entries),
    "lines": lambda entries: _frames(LineEncoder(is_typed=False).encode, entries),
    "one line": _whole_text,
    "chat events": lambda entries: _frames(ChatEventEncoder().encode, entries),
    "questions": lambda entries: _frames(
        QuestionEncoder("chatcmpl-1", "Why?", agents=["triage"]).encode, entries
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_failure_names_tools_of_agents_delegates_and_teams_of_members(name: str) -> None:
    entries = [Entry(position, event, 1.0) for position, event in enumerate(CANCELLED, 1)]

    assert "Tools of the turn had been called: look_up, book, pay." in FORMATS[name](entries)
