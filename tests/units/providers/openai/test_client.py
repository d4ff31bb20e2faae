"""What is made of the many forms of a good answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from proxy.events import ReasoningDelta, TextDelta
from proxy.messages import Usage
from proxy.providers.http.pool import HttpSession
from proxy.providers.model import Finished, ToolCallPiece
from proxy.providers.openai.chat_usage import clean_usage
from proxy.providers.openai.client import OpenAIWireModel
from proxy.providers.timeouts import ModelLimits
from proxy.teamfiles.definitions import OpenAIModel
from tests.fakes.model_calls import WITH_TOOLS, Answer, ask
from tests.fakes.replies import JSON
from tests.fakes.upstream import FakeUpstream, Reply, calls, chunk, events, raw, text

USED = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def model_at(upstream: FakeUpstream, session: HttpSession, **more: Any) -> OpenAIWireModel:
    definition = OpenAIModel.model_validate({"model": "m", "base_url": upstream.base_url, **more})
    return OpenAIWireModel(definition, session, ModelLimits(first_token=5, idle=5))


async def answer_to(session: HttpSession, *replies: Reply) -> Answer:
    async with FakeUpstream(*replies) as upstream:
        return await ask(model_at(upstream, session), WITH_TOOLS)


async def test_text_comes_in_pieces_as_it_is_sent(http_session: HttpSession) -> None:
    gate = asyncio.Event()

    async def open_gate() -> None:
        gate.set()

    async with FakeUpstream(text("Hello you", chunks=["Hello", gate, " you"], usage=USED)) as upstream:
        answer = await ask(model_at(upstream, http_session), after_batch=open_gate)

    assert answer.deltas == [TextDelta("Hello"), TextDelta(" you"), Finished("stop", Usage(3, 2))]
    assert answer.batches[0] == [TextDelta("Hello")]


async def test_everything_of_one_read_is_one_batch(http_session: HttpSession) -> None:
    sse = b"".join(b"data: " + json.dumps(chunk({"content": word})).encode() + b"\n\n" for word in "abc")

    answer = await answer_to(http_session, raw(sse + b"data: [DONE]\n\n"))

    assert answer.batches == [[TextDelta("a"), TextDelta("b"), TextDelta("c"), Finished("stop")]]


async def test_the_connection_of_a_whole_answer_is_used_again(http_session: HttpSession) -> None:
    async with FakeUpstream(text("One"), calls(("look_up", {}))) as upstream:
        model = model_at(upstream, http_session)
        await ask(model)
        await ask(model)

        assert upstream.requests[0].connection is upstream.requests[1].connection


@pytest.mark.parametrize(
    ("finish", "reason"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "stop"),
        ("eos_token", "stop"),
        (None, "stop"),
    ],
)
async def test_the_reason_of_an_answer_without_calls(
    http_session: HttpSession, finish: str | None, reason: str
) -> None:
    answer = await answer_to(http_session, events(chunk({"content": "Hello"}), chunk({}, finish)))

    assert (answer.text, answer.reason) == ("Hello", reason)


def whole(message: Any, finish: str | None = "stop", **more: Any) -> Reply:
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return raw(json.dumps({"choices": [choice], **more}).encode(), content_type=JSON)


@pytest.mark.parametrize(
    ("reply", "deltas"),
    [
        pytest.param(
            events(chunk({"content": "Hi"}), chunk({}, "stop", usage=USED), done=False),
            [TextDelta("Hi"), Finished("stop", Usage(3, 2))],
            id="finish and usage together, no [DONE]",
        ),
        pytest.param(
            events(
                chunk({"content": "Hi"}, "stop", usage={"prompt_tokens": 1}), {"choices": [], "usage": USED}
            ),
            [TextDelta("Hi"), Finished("stop", Usage(3, 2))],
            id="text in the last chunk, the last usage counts",
        ),
        pytest.param(
            events(chunk({"content": "Hi"}), chunk({}, "stop"), {"choices": [], "x_groq": {"usage": USED}}),
            [TextDelta("Hi"), Finished("stop", Usage(3, 2))],
            id="usage in Groq's place",
        ),
        pytest.param(
            events(
                chunk({"content": "Hi"}),
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": USED}]},
            ),
            [TextDelta("Hi"), Finished("stop", Usage(3, 2))],
            id="usage in the choice",
        ),
        pytest.param(
            events(chunk({"content": "Hi"}, "stop"), "[DONE]", chunk({"content": "more"})),
            [TextDelta("Hi"), Finished("stop")],
            id="text after [DONE]",
        ),
        pytest.param(
            raw(b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE] '),
            [TextDelta("Hi"), Finished("stop")],
            id="an unfinished last line",
        ),
        pytest.param(
            events(
                {"choices": [], "prompt_filter_results": []},
                {"choices": [{"index": 1, "delta": {"content": "No"}}]},
                {"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]},
                "",
            ),
            [TextDelta("Hi"), Finished("stop")],
            id="no choice, a second choice, an empty event",
        ),
        pytest.param(
            events(
                {
                    "id": None,
                    "error": None,
                    "usage": None,
                    "choices": [
                        {
                            "index": None,
                            "logprobs": None,
                            "finish_reason": "stop",
                            "delta": {"role": None, "content": "Hi", "tool_calls": None, "refusal": None},
                        }
                    ],
                }
            ),
            [TextDelta("Hi"), Finished("stop")],
            id="null fields",
        ),
        pytest.param(
            events(chunk({"role": "assistant", "content": ""}), chunk({}, "stop")),
            [Finished("stop")],
            id="empty",
        ),
        pytest.param(
            events(
                chunk({"reasoning_content": "Hm. "}),
                chunk({"reasoning": "So."}),
                chunk({"content": "Hi"}, "stop"),
            ),
            [ReasoningDelta("Hm. "), ReasoningDelta("So."), TextDelta("Hi"), Finished("stop")],
            id="reasoning under both names",
        ),
        pytest.param(
            events(chunk({"reasoning_content": "Hm.", "reasoning": "Hm."}), chunk({}, "stop")),
            [ReasoningDelta("Hm."), Finished("stop")],
            id="reasoning twice is told once",
        ),
        pytest.param(
            events(
                chunk(
                    {
                        "content": [
                            {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
                            {"type": "text", "text": "Hi"},
                        ]
                    },
                    "stop",
                )
            ),
            [ReasoningDelta("Hm."), TextDelta("Hi"), Finished("stop")],
            id="content as parts",
        ),
        pytest.param(
            events(b'{"choices":[{"delta":{"content":"a\\u0000b\\ud83dc"},"finish_reason":"stop"}]}'),
            [TextDelta("a\ufffdb\ufffdc"), Finished("stop")],
            id="NUL and half a surrogate pair",
        ),
        pytest.param(
            events(b'{"choices":[{"delta":{"content":"a\x02b"},"finish_reason":"stop"}], "x": NaN}'),
            [TextDelta("a\x02b"), Finished("stop")],
            id="a raw control character and NaN",
        ),
        pytest.param(
            whole({"role": "assistant", "content": "Hi"}, usage=USED),
            [TextDelta("Hi"), Finished("stop", Usage(3, 2))],
            id="JSON instead of a stream",
        ),
        pytest.param(
            whole(
                {
                    "content": None,
                    "tool_calls": [
                        {"id": "a", "type": "function", "function": {"name": "roll", "arguments": ""}},
                        {"id": "b", "type": "function", "function": {"name": "roll", "arguments": ""}},
                    ],
                },
                "tool_calls",
            ),
            [ToolCallPiece(0, "", "roll", "a"), ToolCallPiece(1, "", "roll", "b"), Finished("tool_calls")],
            id="calls in JSON instead of a stream",
        ),
        pytest.param(
            whole({"content": "Hi"}, None),
            [TextDelta("Hi"), Finished("stop")],
            id="JSON without a finish reason",
        ),
    ],
)
async def test_forms_of_a_good_answer(http_session: HttpSession, reply: Reply, deltas: list[Any]) -> None:
    answer = await answer_to(http_session, reply)

    assert answer.failure is None
    assert answer.deltas == deltas


async def test_a_refusal_is_reported_as_refusal(http_session: HttpSession) -> None:
    answer = await answer_to(
        http_session, events(chunk({"refusal": "I'm "}), chunk({"refusal": "sorry"}), chunk({}, "stop"))
    )

    assert (answer.refusal, answer.text, answer.reason) == ("I'm sorry", "", "stop")


async def test_log_probabilities_stay_with_their_text(http_session: HttpSession) -> None:
    token = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}
    body = {
        "choices": [
            {"index": 0, "delta": {"content": "Hi"}, "logprobs": {"content": [token], "refusal": None}}
        ]
    }

    answer = await answer_to(http_session, events(body, chunk({}, "stop")))

    assert answer.deltas[0] == TextDelta("Hi", [token])


async def test_an_answer_that_only_lacks_its_end_is_not_waited_for_long(http_session: HttpSession) -> None:
    # The output is complete; the provider keeps the connection open without usage or [DONE].
    async with FakeUpstream(events(chunk({"content": "Hi"}, "stop"), done=False).hang(after=1)) as upstream:
        definition = OpenAIModel(model="m", base_url=upstream.base_url)
        answer = await ask(OpenAIWireModel(definition, http_session, ModelLimits(idle=0.1)))
        await upstream.requests[0].closed()

    assert answer.deltas == [TextDelta("Hi"), Finished("stop")]


async def test_a_reset_behind_a_finished_answer_does_no_harm(http_session: HttpSession) -> None:
    answer = await answer_to(http_session, events(chunk({"content": "Hi"}, "stop"), done=False).cut(after=1))

    assert answer.deltas == [TextDelta("Hi"), Finished("stop")]


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        (USED, Usage(prompt=3, completion=2)),
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 8,
                "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 1},
                "completion_tokens_details": {
                    "reasoning_tokens": 5,
                    "audio_tokens": 2,
                    "accepted_prediction_tokens": 3,
                    "rejected_prediction_tokens": 1,
                },
            },
            Usage(10, 8, 4, 5, 1, 2, 3, 1),
        ),
        ({"prompt_tokens": 10, "completion_tokens": 1, "prompt_cache_hit_tokens": 6}, Usage(10, 1, cached=6)),
        ({"prompt_tokens": 10.0, "completion_tokens": 2.0}, Usage(10, 2)),
        ({"prompt_tokens": -1, "completion_tokens": 2}, Usage(0, 2)),
        ({"prompt_tokens": "9", "completion_tokens": True}, None),
        ({"prompt_tokens": 1e300, "completion_tokens": float("nan")}, None),
        (
            {"prompt_tokens": 2, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 9}},
            Usage(2, 2, cached=2),
        ),
        ({"prompt_tokens": 2, "completion_tokens": 2, "prompt_tokens_details": [1]}, Usage(2, 2)),
        ({}, None),
        (None, None),
        ("many", None),
        ([1, 2], None),
    ],
)
def test_usage_becomes_clean_numbers_or_none(reported: object, usage: Usage | None) -> None:
    assert clean_usage(reported) == usage
