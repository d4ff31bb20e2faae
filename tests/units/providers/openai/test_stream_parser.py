"""Streams as providers really send them: ends, whole messages, labels, tags and cut characters."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from proxy.errors import UpstreamFailed
from proxy.events import TextDelta
from proxy.providers.http.pool import HttpSession
from proxy.providers.openai.client import OpenAIWireModel
from proxy.providers.timeouts import ModelLimits
from proxy.teamfiles.definitions import OpenAIModel
from tests.fakes.model_calls import WITH_TOOLS, Answer, ask
from tests.fakes.replies import JSON, SSE, Stop
from tests.fakes.upstream import FakeUpstream, Reply, chunk, events, raw

LIMITS = ModelLimits(first_token=20, idle=20)
CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "look_up", "arguments": '{"q": 1}'}}


async def answer_to(session: HttpSession, reply: Reply, limits: ModelLimits = LIMITS) -> Answer:
    async with FakeUpstream(reply) as upstream:
        definition = OpenAIModel.model_validate({"model": "m", "base_url": upstream.base_url})
        return await ask(OpenAIWireModel(definition, session, limits), WITH_TOOLS)


def whole(message: dict[str, Any], finish: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion", "choices": [choice]}


def event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


TRANSCRIPT = [chunk({"content": "Hel"}), chunk({"content": "lo"})]
ENDED = [*TRANSCRIPT, chunk({}, "stop")]


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(events(*ENDED, Stop.HANG), id="an open connection"),
        pytest.param(events(*ENDED, Stop.CUT), id="a reset"),
        pytest.param(raw(*map(event, ENDED), b"data: [DON"), id="a cut in [DONE]"),
        pytest.param(raw(*map(event, ENDED), b'data: {"choices": [], "usa'), id="a cut in the usage"),
        pytest.param(raw(*map(event, ENDED), b"data: {nonsense\n\n"), id="an unreadable chunk"),
    ],
)
async def test_an_answer_with_a_finish_reason_is_complete(http_session: HttpSession, reply: Reply) -> None:
    answer = await answer_to(http_session, reply, ModelLimits(first_token=20, idle=0.5))

    assert (answer.text, answer.reason, answer.failure) == ("Hello", "stop", None)


async def test_comments_do_not_prolong_an_answer_with_a_finish_reason(http_session: HttpSession) -> None:
    # More comments than fit into the wait for usage, each sent when the clock of the loop has moved on.
    ticks = [asyncio.Event() for _ in range(40)]
    steps: list[Any] = [part for tick in ticks for part in (tick, b": ping\n\n")]
    loop = asyncio.get_running_loop()
    for position, tick in enumerate(ticks):
        loop.call_later(position * 0.1, tick.set)

    async with asyncio.timeout(3):
        limits = ModelLimits(usage=0.3)
        answer = await answer_to(http_session, raw(*map(event, ENDED), *steps, Stop.HANG), limits)

    assert (answer.text, answer.reason) == ("Hello", "stop")


@pytest.mark.parametrize("waits_at", [1, 2])
async def test_a_reason_on_every_frame_ends_nothing(http_session: HttpSession, waits_at: int) -> None:
    wait = asyncio.Event()
    frames: list[Any] = [chunk({"content": text}, "stop") for text in "abc"]
    frames.insert(waits_at, wait)
    # Longer than the wait for usage.
    asyncio.get_running_loop().call_later(0.3, wait.set)

    limits = ModelLimits(first_token=20, idle=20, usage=0.05)
    answer = await answer_to(http_session, events(*frames), limits)

    assert (answer.text, answer.reason) == ("abc", "stop")


async def test_a_text_in_one_frame_with_its_reason_is_complete_after_the_idle_limit(
    http_session: HttpSession,
) -> None:
    frames: list[Any] = [chunk({"content": "Hello"}, "stop"), Stop.HANG]

    answer = await answer_to(http_session, events(*frames), ModelLimits(idle=0.3))

    assert (answer.text, answer.reason, answer.failure) == ("Hello", "stop", None)


@pytest.mark.parametrize(
    "frames",
    [
        [chunk({"content": "Hello"}, "stop"), chunk({}, "stop")],
        [
            chunk(
                {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]},
                "tool_calls",
            )
        ],
    ],
)
async def test_an_answer_that_cannot_continue_waits_for_its_usage_only(
    http_session: HttpSession, frames: list[Any]
) -> None:
    async with asyncio.timeout(10):
        answer = await answer_to(http_session, events(*frames, Stop.HANG), ModelLimits(idle=60, usage=0.05))

    assert answer.failure is None


async def test_a_cut_after_a_reason_on_every_frame_is_a_failure(http_session: HttpSession) -> None:
    frames: list[Any] = [chunk({"content": "a"}, "stop"), chunk({"content": "b"}, "stop"), Stop.CUT]

    answer = await answer_to(http_session, events(*frames))

    assert answer.failure is not None
    assert answer.failure.label == "broken"


@pytest.mark.parametrize("reason", ["null", "", "none"])
async def test_a_reason_that_is_none_does_not_finish(http_session: HttpSession, reason: str) -> None:
    answer = await answer_to(http_session, events(chunk({"content": "Hel"}, reason), Stop.END, done=False))

    assert answer.failure is not None
    assert answer.failure.label == "incomplete"


@pytest.mark.parametrize(
    "reason",
    [
        "network_error",
        "error",
        "abort",
        "insufficient_system_resource",
        "malformed_function_call",
        "MALFORMED_FUNCTION_CALL",
    ],
)
async def test_a_finish_reason_that_means_failure_is_one(http_session: HttpSession, reason: str) -> None:
    answer = await answer_to(http_session, events(chunk({}, reason)))

    assert isinstance(answer.failure, UpstreamFailed)
    assert (answer.failure.label, answer.failure.is_retryable) == ("error_event", True)


async def test_an_error_inside_a_choice_is_a_failure(http_session: HttpSession) -> None:
    frame = {
        "choices": [
            {"index": 0, "delta": {}, "error": {"code": 502, "message": "no"}, "finish_reason": "error"}
        ]
    }

    answer = await answer_to(http_session, events(*TRANSCRIPT, frame))

    assert answer.text == "Hello"
    assert answer.failure is not None
    assert (answer.failure.label, answer.failure.is_retryable) == ("status_5xx", True)


@pytest.mark.parametrize(
    ("reported", "reason"),
    [
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("sensitive", "content_filter"),
        ("SAFETY", "content_filter"),
        ("STOP", "stop"),
    ],
)
async def test_finish_reasons_of_other_families(
    http_session: HttpSession, reported: str, reason: str
) -> None:
    answer = await answer_to(http_session, events(*TRANSCRIPT, chunk({}, reported)))

    assert (answer.text, answer.reason) == ("Hello", reason)


@pytest.mark.parametrize(
    "last", [whole({"content": "Hello"}), whole({"content": "Hel"}), whole({"content": "else"})]
)
async def test_a_whole_message_at_the_end_does_not_double_the_text(
    http_session: HttpSession, last: dict[str, Any]
) -> None:
    answer = await answer_to(http_session, events(*TRANSCRIPT, last))

    assert (answer.text, answer.reason) == ("Hello", "stop")


async def test_cumulative_messages_become_pieces(http_session: HttpSession) -> None:
    frames = [whole({"content": "Hel"}, ""), whole({"content": "Hello"}, ""), whole({"content": "Hello!"})]

    answer = await answer_to(http_session, events(*frames))

    assert (answer.text, answer.reason) == ("Hello!", "stop")


@pytest.mark.parametrize("before", [[chunk({"tool_calls": [CALL]})], [], [whole({"tool_calls": [CALL]}, "")]])
async def test_a_whole_message_at_the_end_does_not_double_a_call(
    http_session: HttpSession, before: list[dict[str, Any]]
) -> None:
    last = whole({"content": None, "tool_calls": [{**CALL, "id": "other", "index": None}]}, "tool_calls")
    last["choices"][0]["delta"] = {}

    answer = await answer_to(http_session, events(*before, last))

    assert (answer.calls, answer.reason) == ([("look_up", '{"q": 1}')], "tool_calls")


def pieces_of(content: str, size: int) -> list[str]:
    return [content[start : start + size] for start in range(0, len(content), size)]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
@pytest.mark.parametrize("start", ["", "\n"])
async def test_think_tags_in_the_text_are_reasoning(http_session: HttpSession, start: str, size: int) -> None:
    content = f'{start}<think>Is a < b?</th</think>\n\n{{"a": "<think>"}}'

    answer = await answer_to(
        http_session,
        events(*[chunk({"content": one}) for one in pieces_of(content, size)], chunk({}, "stop")),
    )

    assert (answer.reasoning, answer.text) == ("Is a < b?</th", '{"a": "<think>"}')


async def test_think_tags_of_a_whole_answer_are_reasoning(http_session: HttpSession) -> None:
    body = json.dumps(whole({"content": "<think>Hm.</think>\nYes"})).encode()

    answer = await answer_to(http_session, raw(body, content_type=JSON))

    assert (answer.reasoning, answer.text) == ("Hm.", "Yes")


async def test_white_space_before_a_call_is_dropped(http_session: HttpSession) -> None:
    frames = [
        chunk({"content": "\n"}),
        chunk({"content": "\n"}),
        chunk({"tool_calls": [CALL]}),
        chunk({}, "tool_calls"),
    ]

    answer = await answer_to(http_session, events(*frames))

    assert not [delta for delta in answer.deltas if isinstance(delta, TextDelta)]
    assert answer.calls == [("look_up", '{"q": 1}')]


async def test_white_space_before_text_is_text(http_session: HttpSession) -> None:
    answer = await answer_to(http_session, events(chunk({"content": "\n "}), *ENDED))

    assert answer.text == "\n Hello"


@pytest.mark.parametrize("label", [SSE, "text/plain", JSON, "application/octet-stream"])
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps(whole({"content": "Hello"})).encode(), id="JSON"),
        pytest.param(
            b"\xef\xbb\xbf\r\n" + json.dumps(whole({"content": "Hello"})).encode(), id="JSON after a BOM"
        ),
        pytest.param(b": comment\n\n" + b"".join(map(event, ENDED)) + b"data: [DONE]\n\n", id="SSE"),
        pytest.param(b"\n".join(json.dumps(one).encode() for one in ENDED), id="JSON lines"),
    ],
)
async def test_the_framing_is_detected_from_the_body(
    http_session: HttpSession, label: str, body: bytes
) -> None:
    answer = await answer_to(http_session, raw(body, content_type=label))

    assert (answer.text, answer.reason) == ("Hello", "stop")


@pytest.mark.parametrize("member", ["content", "reasoning_content"])
async def test_a_surrogate_pair_cut_over_two_chunks_is_one_character(
    http_session: HttpSession, member: str
) -> None:
    frames = [
        chunk({member: "a\ud83d"}),
        chunk({member: "\ude00b"}),
        chunk({"content": "!\ud83d"}),
        chunk({}, "stop"),
    ]

    answer = await answer_to(http_session, events(*frames))

    assert answer.reasoning + answer.text == "a\U0001f600b!\ufffd"


def model_at(base_url: str, session: HttpSession) -> OpenAIWireModel:
    definition = OpenAIModel.model_validate({"model": "m", "base_url": base_url})
    return OpenAIWireModel(definition, session)


UNOPENED = "They ask for\nnothing.\n</think>\n\nHello <b> you"


async def test_reasoning_without_an_opening_tag_is_reasoning_from_the_second_answer_on(
    http_session: HttpSession,
) -> None:
    """Before the tag, the parser cannot know that the text starts with reasoning; whole answers are split at once."""
    pieces = [chunk({"content": UNOPENED[start : start + 5]}) for start in range(0, len(UNOPENED), 5)]
    streamed = events(*pieces, chunk(finish="stop"))
    plain = events(chunk({"content": "No"}), chunk({"content": " tag"}), chunk(finish="stop"))
    body = raw(json.dumps(whole({"content": UNOPENED})).encode(), content_type=JSON)
    async with FakeUpstream(streamed, streamed, plain, body) as upstream:
        model = model_at(upstream.base_url, http_session)
        answers = [await ask(model) for _ in range(4)]

    assert (answers[0].reasoning, answers[0].text) == ("", UNOPENED)
    assert (answers[1].reasoning, answers[1].text) == ("They ask for\nnothing.\n", "Hello <b> you")
    # A model that answers without reasoning after all: nothing of its answer is lost.
    assert (answers[2].reasoning, answers[2].text) == ("No tag", "No tag")
    assert (answers[3].reasoning, answers[3].text) == ("They ask for\nnothing.\n", "Hello <b> you")


async def test_a_whole_answer_without_an_opening_tag_is_split_at_once(http_session: HttpSession) -> None:
    body = raw(json.dumps(whole({"content": UNOPENED})).encode(), content_type=JSON)
    async with FakeUpstream(body) as upstream:
        answer = await ask(model_at(upstream.base_url, http_session))

    assert (answer.reasoning, answer.text) == ("They ask for\nnothing.\n", "Hello <b> you")


@pytest.mark.parametrize(
    "text", ["The tag </think> ends it.", "<think> and\n</think>\n are tags", "a\n</think>b"]
)
async def test_a_text_about_tags_changes_no_later_answer(http_session: HttpSession, text: str) -> None:
    reported = events(chunk({"content": "x"}), chunk({"content": text}), chunk(finish="stop"))
    async with FakeUpstream(reported, events(chunk({"content": "Hi"}), chunk(finish="stop"))) as upstream:
        model = model_at(upstream.base_url, http_session)
        first, second = await ask(model), await ask(model)

    assert (first.text, second.text, second.reasoning) == (f"x{text}", "Hi", "")
