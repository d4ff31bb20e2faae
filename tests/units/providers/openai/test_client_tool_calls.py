"""Tool calls of providers that number, name and mix their pieces in ways of their own."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.providers.http.pool import HttpSession
from proxy.providers.model import ToolCallPiece
from proxy.providers.openai.client import OpenAIWireModel
from proxy.providers.timeouts import ModelLimits
from proxy.teamfiles.definitions import OpenAIModel
from tests.fakes.model_calls import WITH_TOOLS, Answer, ask
from tests.fakes.upstream import FakeUpstream, Reply, calls, chunk, events


def model_at(upstream: FakeUpstream, session: HttpSession, **more: Any) -> OpenAIWireModel:
    definition = OpenAIModel.model_validate({"model": "m", "base_url": upstream.base_url, **more})
    return OpenAIWireModel(definition, session, ModelLimits(first_token=5, idle=5))


async def answer_to(session: HttpSession, *replies: Reply) -> Answer:
    async with FakeUpstream(*replies) as upstream:
        return await ask(model_at(upstream, session), WITH_TOOLS)


async def test_calls_can_follow_text(http_session: HttpSession) -> None:
    answer = await answer_to(http_session, calls(("look_up", {"q": "rocket"}), text="Let me see."))

    assert answer.text == "Let me see."
    assert answer.calls == [("look_up", '{"q": "rocket"}')]
    assert answer.reason == "tool_calls"


async def test_a_call_is_streamed(http_session: HttpSession) -> None:
    answer = await answer_to(http_session, calls(("look_up", '{"q":1}'), ("refund", '{"id":2}'), pieces=2))

    assert answer.deltas[:-1] == [
        ToolCallPiece(0, '{"q"', "look_up", "call_1_0"),
        ToolCallPiece(0, ":1}"),
        ToolCallPiece(1, '{"id', "refund", "call_1_1"),
        ToolCallPiece(1, '":2}'),
    ]


def piece(index: int | None, arguments: Any, name: str | None = None, call_id: str | None = None) -> Any:
    function = {"name": name, "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return chunk({"tool_calls": [call if index is None else {**call, "index": index}]})


TWO_CALLS = [("look_up", '{"q": "a}"}'), ("refund", '{"id": 7}')]


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(
            [piece(1, '{"q": ', "look_up", "a"), piece(1, '"a}"}'), piece(2, '{"id": 7}', "refund", "b")],
            id="numbers from 1",
        ),
        pytest.param(
            [
                piece(None, '{"q": ', "look_up", "a"),
                piece(None, '"a}"}'),
                piece(None, '{"id": 7}', "refund", "b"),
            ],
            id="no numbers",
        ),
        pytest.param(
            [piece(None, '{"q": "a}"}', "look_up"), piece(None, '{"id": 7}', "refund")],
            id="no numbers and no ids",
        ),
        pytest.param(
            [
                piece(None, '{"q": ', "look_up", "a"),
                piece(None, '{"id": 7}', "refund", "b"),
                piece(None, '"a}"}', None, "a"),
            ],
            id="no numbers, mixed by id",
        ),
        pytest.param(
            [
                piece(0, '{"q": ', "look_up", "a"),
                piece(0, '"a}"}', "look_up", "a"),
                piece(1, "", "refund", "b"),
                piece(1, '{"id": 7}', "refund", "b"),
            ],
            id="id and name repeated",
        ),
        pytest.param(
            [
                piece(0, "", "look_up", "a"),
                piece(1, "", "refund", "b"),
                piece(0, '{"q": "a}"}'),
                piece(1, '{"id": 7}'),
            ],
            id="heads first",
        ),
        pytest.param(
            [
                piece(0, '{"q": ', "look_up", "a"),
                piece(1, '{"id"', "refund", "b"),
                piece(0, '"a}"}'),
                piece(1, ": 7}"),
            ],
            id="mixed",
        ),
        pytest.param(
            [piece(0, '{"q": "a}"}', "look_up", "a"), piece(0, '{"id": 7}', "refund", "b")],
            id="one number for all",
        ),
        pytest.param(
            [piece(0, '{"q": "a}"}', "look_up", "a"), piece(1, '{"id": 7}', "refund", "a")],
            id="one id for all",
        ),
        pytest.param(
            [piece(None, '{"q": "a}"}', "look_up", "a"), piece(None, '{"id": 7}', "refund", "a")],
            id="one id for all and no numbers",
        ),
        pytest.param(
            [
                piece(0, None, "look_up", "a"),
                piece(0, '{"q": "a}"}'),
                piece(1, '{"id": 7}', None, "b"),
                piece(1, "", "refund"),
            ],
            id="the name late",
        ),
        pytest.param(
            [
                piece(0, "{}", "look_up", "a"),
                piece(1, "{}", "refund", "b"),
                piece(0, '{"q": "a}"}'),
                piece(1, '{"id": 7}'),
            ],
            id="placeholders first",
        ),
        pytest.param(
            [
                piece(0, {}, "look_up", "a"),
                piece(0, '{"q": ', "look_up", "a"),
                piece(0, '"a}"}'),
                piece(1, "null", "refund", "b"),
                piece(1, '{"id": 7}', "refund"),
            ],
            id="placeholders first, with the name repeated",
        ),
        pytest.param(
            [
                piece(0, "", "look", "a"),
                piece(0, None, "_up"),
                piece(0, '{"q": "a}"}'),
                piece(1, "", "re", "b"),
                piece(1, "", "refund", "b"),
                piece(1, '{"id": 7}'),
            ],
            id="names in pieces",
        ),
        pytest.param(
            [
                piece(0, '{"q": "a}"}', "look_up", "a"),
                piece(0, " \n"),
                piece(1, '{"id": 7}', "refund", "b"),
                piece(0, "\n"),
            ],
            id="white space behind a call",
        ),
    ],
)
async def test_odd_pieces_of_two_calls_come_out_in_order(
    http_session: HttpSession, pieces: list[Any]
) -> None:
    answer = await answer_to(http_session, events(*pieces, chunk({}, "tool_calls")))

    assert [(name, arguments.strip()) for name, arguments in answer.calls] == TWO_CALLS
    assert answer.reason == "tool_calls"


async def test_the_same_function_twice_is_two_calls(http_session: HttpSession) -> None:
    pieces = [piece(None, '{"n": 1}', "roll"), piece(None, '{"n": 2}', "roll")]

    answer = await answer_to(http_session, events(*pieces, chunk({}, "tool_calls")))

    assert answer.calls == [("roll", '{"n": 1}'), ("roll", '{"n": 2}')]


@pytest.mark.parametrize("arguments", ["", None])
async def test_a_call_without_arguments_is_a_call(http_session: HttpSession, arguments: str | None) -> None:
    pieces = [piece(0, arguments, "back_to_triage", "a"), piece(1, arguments, "refund", "b")]

    answer = await answer_to(http_session, events(*pieces, chunk({}, "tool_calls")))

    assert answer.calls == [("back_to_triage", ""), ("refund", "")]


@pytest.mark.parametrize("arguments", ["null", "[]", '""', "{}", " {} ", [], {}])
async def test_placeholders_of_a_call_without_arguments_become_an_empty_object(
    http_session: HttpSession, arguments: Any
) -> None:
    pieces = [piece(0, arguments, "back_to_triage", "a"), piece(1, arguments, "refund", "b")]

    answer = await answer_to(http_session, events(*pieces, chunk({}, "tool_calls")))

    assert answer.calls == [("back_to_triage", "{}"), ("refund", "{}")]


async def test_a_surrogate_pair_cut_in_the_arguments_is_one_character(http_session: HttpSession) -> None:
    pieces = [piece(0, '{"q": "\ud83d', "look_up", "a"), piece(0, '\ude00"}')]

    answer = await answer_to(http_session, events(*pieces, chunk({}, "tool_calls")))

    assert answer.calls == [("look_up", '{"q": "\U0001f600"}')]


async def test_arguments_that_are_an_object_become_text(http_session: HttpSession) -> None:
    call = {"index": 0, "id": "a", "function": {"name": "look_up", "arguments": {"q": "ö"}}}

    answer = await answer_to(http_session, events(chunk({"tool_calls": [call]}, "tool_calls")))

    assert answer.calls == [("look_up", '{"q":"ö"}')]


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "tool_calls"),
        ("function_call", "tool_calls"),
        ("tool_use", "tool_calls"),
        (None, "tool_calls"),
        ("length", "length"),
        ("content_filter", "content_filter"),
    ],
)
async def test_the_reason_of_an_answer_with_whole_calls(
    http_session: HttpSession, finish: str | None, reason: str
) -> None:
    answer = await answer_to(http_session, events(piece(0, '{"q": 1}', "look_up", "a"), chunk({}, finish)))

    assert (answer.calls, answer.reason) == ([("look_up", '{"q": 1}')], reason)
