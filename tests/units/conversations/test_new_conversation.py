"""The starting point of a list of one user message, which the resolver finds without its rules."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest

from proxy.conversations.fingerprints import Transcript
from proxy.conversations.resolver import ConversationResolver, ResolvedTurn
from proxy.messages import DeveloperMessage, Message, SystemMessage, TextPart, UserMessage
from proxy.turns.plain_items import PlainItems
from proxy.turns.request import TurnRequest
from tests.fakes.models import ScriptedModel
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.teams import FixedTool, agent, team_of
from tests.fakes.turn_records import approvals_of

QUESTIONS: list[list[Message]] = [
    [UserMessage("Hi.")],
    [UserMessage("")],
    [UserMessage([TextPart("Hi.")])],
    [SystemMessage("Be brief."), UserMessage("Hi.")],
    [UserMessage("Hi."), DeveloperMessage("Be brief.")],
]
FLAGS = ("is_stored", "keeps_instructions", "is_addition")


async def starting_point(
    messages: list[Message], fields: dict[str, Any], *, has_effects: bool
) -> dict[str, Any]:
    """Resolve a request to a team; the rules look for repetitions of one whose tools have effects."""
    history = MemoryHistory()
    team = await team_of(agent("triage", ScriptedModel(), tools=[FixedTool("buy", has_effects=has_effects)]))
    assert team.has_effects == has_effects
    request = TurnRequest(caller="alice", model="shop", messages=messages, **fields)
    resolved = await ConversationResolver(history, approvals_of(history), time.time).resolve(request, team)
    assert isinstance(resolved, ResolvedTurn)
    return {name: comparable(getattr(resolved, name)) for name in resolved.__struct_fields__}


def comparable(value: object) -> object:
    if isinstance(value, Transcript):
        return value.state(), value.input_fingerprint()
    return list(value) if isinstance(value, list | tuple | PlainItems) else value


@pytest.mark.parametrize("messages", QUESTIONS)
async def test_a_new_conversation_begins_as_the_rules_would_begin_it(messages: list[Message]) -> None:
    for flags in itertools.product((False, True), repeat=len(FLAGS)):
        for end_user, instructions in itertools.product(("", "bob"), (None, "Answer in French.")):
            fields = dict(zip(FLAGS, flags, strict=True)) | {
                "end_user": end_user,
                "instructions": instructions,
            }

            at_once = await starting_point(messages, fields, has_effects=False)

            assert at_once == await starting_point(messages, fields, has_effects=True)
