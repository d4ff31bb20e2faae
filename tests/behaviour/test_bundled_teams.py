"""The bundled teams without a key: the demo model answers, and everything else is real."""

from __future__ import annotations

import asyncio
import csv
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web
from pydantic import BaseModel

from proxy.tools.sales import FILE
from tests.behaviour.chat_client import Caller, assistant, user
from tests.behaviour.test_turn_events import frames_of, get
from tests.fakes.services import FakeServices
from tests.server import Served, serve

TWO_THINGS = "What's the weather in Tokyo and what's 15 + 27?"
REPORT = "Generate a monthly business report for our sales performance"


@pytest.fixture
async def services() -> AsyncIterator[FakeServices]:
    async with FakeServices() as created:
        yield created


@pytest.fixture
async def served(tmp_path: Path, services: FakeServices) -> AsyncIterator[Served]:
    url = services.url
    async with serve(tmp_path, weather_url=url, geocoding_url=url, stock_url=url, searxng_url=url) as created:
        yield created


async def happened(served: Served, turn_id: str) -> list[dict[str, Any]]:
    return frames_of((await get(served, f"/turns/{turn_id}/events")).text)


async def test_all_three_are_listed(served: Served) -> None:
    listed = [model.id async for model in served.client().models.list()]

    assert listed[:3] == ["acme-support", "assistant", "business-insights"]


async def test_the_assistant_runs_two_tools_and_answers_from_both(served: Served) -> None:
    completion = await Caller(served).completion([user(TWO_THINGS)], model="assistant")

    events = await happened(served, completion.id)
    tools = [event for event in events if event["type"].startswith("tool.")]
    assert {event["data"]["name"] for event in tools} == {"get_weather", "calculate"}
    assert [event["type"] for event in tools] == ["tool.started"] * 2 + ["tool.completed"] * 2
    answer = completion.choices[0].message.content or ""
    assert answer.endswith("The weather in Tokyo, Japan: 12.4 °C, overcast, wind 8.3 km/h.\n\n15 + 27 = 42")


async def test_its_tools_run_in_parallel(served: Served, services: FakeServices) -> None:
    both = asyncio.Barrier(2)

    async def met(request: web.Request) -> web.StreamResponse:
        # One after the other, the first would wait for ever.
        await both.wait()
        return web.json_response({}, status=500)

    services.answer("/v1/search", met)
    services.answer("/v8", met)

    answer = await Caller(served).ask(
        [user("The weather in Tokyo, and the price of AAPL?")], model="assistant"
    )

    assert answer.endswith(
        "I could not find out the weather: the geocoding service responded with an error (status 500).\n\n"
        "I could not find out the price: the quote service responded with an error (status 500)."
    )


async def test_without_network_the_assistant_says_so_and_answers_the_rest(
    served: Served, services: FakeServices
) -> None:
    await services.__aexit__(None, None, None)
    try:
        answer = await Caller(served).ask([user(TWO_THINGS)], model="assistant")
    finally:
        await services.__aenter__()

    assert answer.endswith(
        "I could not find out the weather: the geocoding service could not be reached.\n\n15 + 27 = 42"
    )


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("What time is it in Tokyo?", " in Asia/Tokyo, on "),
        ("What time is it in Narnia?", "there is no time zone 'Narnia'"),
        (
            "What is the stock price of AAPL?",
            "Apple Inc. stands at 271.49 USD (1.97 % against the day before).",
        ),
        ("Search the web for roadrunners", 'I found "Result 1" (https://example.org/1): Content of 1.'),
        ("How much is 15% of 80?", "15% of 80 = 12"),
        ("And 1/0?", "I could not work that out: division by zero."),
        ("Weather in Atlantis?", "no place named 'Atlantis' was found"),
        ("Hello", "Ask me about the weather"),
        ("Sing", "Without a language model I understand"),
    ],
)
async def test_every_tool_of_the_assistant_can_be_requested(
    served: Served, content: str, answer: str
) -> None:
    assert answer in await Caller(served).ask([user(content)], model="assistant")


# --- business-insights ---


def december() -> dict[str, float]:
    """The revenue of the last month, by product."""
    revenue: dict[str, float] = {}
    with FILE.open() as file:
        for row in csv.DictReader(file):
            if row["month"] == "2025-12":
                revenue[row["product"]] = revenue.get(row["product"], 0) + float(row["revenue"])
    return revenue


async def test_a_report_goes_through_its_agents_and_holds_real_figures(served: Served) -> None:
    completion = await Caller(served).completion([user(REPORT)], model="business-insights")

    events = await happened(served, completion.id)
    handoffs = [event["data"] for event in events if event["type"] == "handoff"]
    assert [(handoff["from"], handoff["to"]) for handoff in handoffs] == [
        ("PlanningAgent", "DataAgent"),
        ("DataAgent", "ReportAgent"),
    ]
    assert "3. what stands out; 4. the report" in handoffs[0]["reason"]
    requested = [
        json.loads(event["data"]["arguments"]) for event in events if event["type"] == "tool.started"
    ]
    assert [query["group_by"] for query in requested] == ["product", "region", "month"]
    report = completion.choices[0].message.content or ""
    revenue = december()
    best = max(revenue, key=lambda product: revenue[product])
    assert "# Monthly business report: 2025-12\n" in report
    assert f"Sales came to **${sum(revenue.values()):,.2f}**" in report
    assert f"| {best} | ${revenue[best]:,.2f} |" in report
    assert "transfer" not in report.lower()


async def test_the_next_question_gets_a_new_plan(served: Served) -> None:
    caller = Caller(served)
    messages = [user(REPORT)]
    messages.append(assistant(await caller.ask(messages, model="business-insights")))

    completion = await caller.completion(
        [*messages, user("And how were sales in the West?")], model="business-insights"
    )

    speaking = [
        event["agent"] for event in await happened(served, completion.id) if event["type"] == "agent.speaking"
    ]
    assert speaking[-1] == "ReportAgent"
    assert "In the region West, sales of 2025-12 came to $" in (completion.choices[0].message.content or "")


@pytest.mark.parametrize(
    ("model", "question", "parts"),
    [
        ("assistant", "What is 15 + 27 and the time in Tokyo?", ["15 + 27 = 42", "Asia/Tokyo"]),
        (
            "business-insights",
            "Generate a monthly business report for our sales performance",
            ["## Best products", "## Regions", "The six months since"],
        ),
    ],
)
async def test_the_demonstration_answers_whole_also_with_one_call_at_a_time(
    model: str, question: str, parts: list[str], tmp_path: Path
) -> None:
    async with serve(tmp_path) as served:
        answer = await served.client().chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            parallel_tool_calls=False,
        )

    for part in parts:
        assert part in (answer.choices[0].message.content or "")


# --- the conversations of the documents that the team comes from ---------------------------------------------

ORDER = [
    ("Hello, I need some help.", "TriageAgent", None),
    ("I want the rocket my friend bought", "SalesAgent", None),
    ("Tell me about the Giant Rubber Band", "SalesAgent", None),
    ("That sounds great, I'll take it!", "SalesAgent", None),
    ("Yes, I agree to the price and the caveat.", "SalesAgent", ("execute_order", "ACME Giant Rubber Band")),
]
NAME = ("They are the SpaceX 3000s", "IssuesAndRepairsAgent", None)
REFUND = ("I want refund", "IssuesAndRepairsAgent", ("execute_refund", "SpaceX 3000 Rocket Shoes"))
STORIES = {
    "an order": ORDER,
    "a refund": [NAME, REFUND],
    "a refund that is asked for first": [
        ("I want refund", "IssuesAndRepairsAgent", None),
        (NAME[0], *REFUND[1:]),
    ],
    "a refund after a greeting": [ORDER[0], NAME, REFUND],
    "a refund after an order": [*ORDER, NAME, REFUND],
    "a refund of the order": [
        *ORDER,
        ("I want refund", "IssuesAndRepairsAgent", ("execute_refund", "ACME Giant Rubber Band")),
    ],
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
async def test_the_documented_phrases_lead_to_an_order_and_a_refund(
    served: Served, story: list[tuple[str, str, tuple[str, str] | None]]
) -> None:
    caller = Caller(served)
    messages: list[Any] = []
    for words, agent, expected in story:
        messages.append(user(words))
        completion = await caller.completion(messages, model="acme-support")
        messages.append(assistant(completion.choices[0].message.content or ""))

        turn: Any = await served.client().get(f"/turns/{completion.id}", cast_to=object)
        results = [
            (event["data"]["name"], json.loads(event["data"]["result"])["product"])
            for event in await happened(served, completion.id)
            if event["type"] == "tool.completed" and event["data"]["name"].startswith("execute")
        ]
        assert (turn["agent"], results) == (agent, [expected] if expected else []), words


# --- structured output of the demonstration ------------------------------------------------------------------

TITLE_SCHEMA = {
    "type": "object",
    "properties": {
        "language": {"type": "string", "description": "The detected language of the conversation"},
        "title": {"type": "string", "description": "A concise title for the conversation"},
    },
    "required": ["language", "title"],
    "additionalProperties": False,
}
TITLE_PROMPT = (
    "Analyze this conversation and provide:\n1. The detected language of the conversation\n2. A concise title in the "
    "detected language (5 words or less, no punctuation or quotation)\n\nUser: My unicycle exploded.\nAI: I am sorry."
)


@pytest.mark.parametrize("model", ["acme-support", "acme-support/side"])
async def test_titles_with_a_schema_are_valid(served: Served, model: str) -> None:
    answer = await served.client().chat.completions.create(
        model=model,
        messages=[user(TITLE_PROMPT)],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "title", "schema": TITLE_SCHEMA, "strict": True},
        },
    )

    assert json.loads(answer.choices[0].message.content or "") == {
        "language": "English",
        "title": "My unicycle exploded",
    }


class Refund(BaseModel):
    product: str
    amount: float
    status: Literal["done", "open"]
    notes: list[str]


async def test_a_team_answers_with_the_schema_of_the_sdk_after_its_tool_calls(served: Served) -> None:
    parsed = await served.client().chat.completions.parse(
        model="assistant", messages=[user(TWO_THINGS)], response_format=Refund
    )

    refund = parsed.choices[0].message.parsed
    assert refund is not None
    assert refund.product.endswith("15 + 27 = 42")
    assert refund.status == "done"


async def test_json_without_a_schema_is_an_object(served: Served) -> None:
    stream = await served.client().chat.completions.create(
        model="acme-support",
        messages=[user("Answer in JSON: hello")],
        response_format={"type": "json_object"},
        stream=True,
    )
    written = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    assert list(json.loads(written)) == ["answer"]
