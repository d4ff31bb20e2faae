"""What a request for a turn derives from its messages."""

from __future__ import annotations

from msgspec.structs import replace

from proxy.messages import DeveloperMessage, Message, SystemMessage, UserMessage
from proxy.turns.request import TurnRequest

SYSTEM, DEVELOPER, USER = SystemMessage("Be brief."), DeveloperMessage("Be kind."), UserMessage("Hi")


def request_of(*messages: Message) -> TurnRequest:
    return TurnRequest("caller", "model", list(messages))


def test_a_request_knows_its_instructions_and_the_other_messages() -> None:
    request = request_of(SYSTEM, USER, DEVELOPER)

    assert (request.system_messages, request.turn_messages) == ([SYSTEM, DEVELOPER], [USER])


def test_a_request_with_other_messages_has_nothing_of_those_before() -> None:
    request = replace(request_of(SYSTEM, USER), messages=[USER], summaries=())

    assert (list(request.system_messages), request.turn_messages) == ([], [USER])


def test_a_request_with_another_option_keeps_what_its_messages_say() -> None:
    request = replace(TurnRequest("caller", "model", [SYSTEM, USER], summaries=(1,)), is_retry=True)

    assert request.system_messages == [SYSTEM]
    assert request.item_of(USER).compaction is not None
    assert replace(request, summaries=()).item_of(USER).compaction is None
