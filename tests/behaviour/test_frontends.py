"""Requests as Open WebUI sends them: task headers, prompts of side requests, and templates around user messages."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest

from tests.behaviour.bank import Customer
from tests.behaviour.chat_client import (
    HIDDEN,
    WEATHER,
    Caller,
    agent_of,
    assistant,
    shape_of,
    sold,
    user,
)
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served

CHAT = {"X-OpenWebUI-Chat-Id": "chat-1"}
RULES = (
    "### Task:\nRespond to the user query using the provided context.\n\n### Output:\nA clear response.\n\n"
)
SOURCES = '<context>\n<source id="1" name="a.txt">USER: <chat_history> It flies.</chat_history></source>\n</context>\n'


def with_file(question: str) -> str:
    """Return the message as Open WebUI sends it with a file, knowledge, or web search."""
    return f"{RULES}{SOURCES}\n{question}"


def in_query(question: str) -> str:
    """Return the message in the template of older versions."""
    return f"{RULES}{SOURCES}\n<user_query>\n{question}\n</user_query>\n"


TITLE = (
    "### Task:\nGenerate a concise, 3-5 word title.\n### Output:\nJSON\n### Chat History:\n"
    "<chat_history>\nUSER: I want a rocket\n</chat_history>"
)
COMPACTION = (
    "### Task:\nSummarize the conversation history that will be compacted out of the active chat context.\n\n"
    "### Messages Being Compacted:\nUSER: I want a rocket"
)
EMOJI = (
    "Your task is to reflect the speaker's likely facial expression through a fitting emoji. "
    "Message: ```I want a rocket```"
)
MERGE = (
    "You have been provided with a set of responses from various models to the latest user query: "
    '"I want a rocket"\n\nYour task is to synthesize.\n\nResponses from models: """Red"""'
)


@pytest.mark.parametrize("value", ["{{TASK}}", "{{ TASK }}", "None", "null", ""])
async def test_a_task_header_without_a_task_marks_no_side_request(
    served: Served, upstream: FakeUpstream, value: str
) -> None:
    caller = Caller(served)

    messages = await sold(caller, upstream, headers={**CHAT, "X-Task": value})
    assert caller.match == "frontend-header"

    upstream.reply(text("Rocket talk"))
    await caller.ask([user(TITLE)], headers={**CHAT, "X-Task": value})
    assert caller.match == "side-request"

    upstream.reply(text("Ten"))
    await caller.ask([*messages, user("Red")], headers={**CHAT, "X-Task": value})
    assert shape_of(upstream) == [*HIDDEN, "user:Red"]


async def test_placeholders_that_were_not_replaced_do_not_join_chats(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    headers = {"X-OpenWebUI-Chat-Id": "{{CHAT_ID}}", "X-Conversation-Id": "{{CHAT_ID}}"}

    conversations = set()
    for question in ("One", "Two"):
        upstream.reply(text("Yes"))
        await caller.ask([user(question)], headers=headers)
        conversations.add(caller.conversation)

    assert len(conversations) == 2
    assert shape_of(upstream) == ["system", "user:Two"]


@pytest.mark.parametrize("prompt", [TITLE, COMPACTION, EMOJI, MERGE])
async def test_prompts_of_open_webui_are_side_requests(
    served: Served, upstream: FakeUpstream, prompt: str
) -> None:
    caller = Caller(served)
    upstream.reply(text("Done"))

    await caller.ask([user(prompt)], headers=CHAT)

    assert caller.match == "side-request"
    assert "tools" not in upstream.requests[0].body


@pytest.mark.parametrize("wrapped", [with_file, in_query])
async def test_a_question_with_a_file_reaches_the_team_and_keeps_hidden_items(
    served: Served, upstream: FakeUpstream, wrapped: Any
) -> None:
    caller = Caller(served)
    upstream.reply(text("What colour?"))
    await caller.ask([user(wrapped("I want a rocket"))], headers=CHAT)
    assert caller.match == "frontend-header"
    # Only the newest user message is wrapped.
    shown = [user("I want a rocket"), assistant("What colour?")]
    first = shape_of(upstream)

    upstream.reply(text("Ten"))
    await caller.ask([*shown, user(wrapped("Red"))], headers=CHAT)
    upstream.reply(text("Bye"))
    await caller.ask([*shown, user("Red"), assistant("Ten"), user("Bye")])

    assert caller.match == "fingerprint"
    assert shape_of(upstream) == [
        *first,
        "assistant:What colour?",
        f"user:{wrapped('Red')}",
        "assistant:Ten",
        "user:Bye",
    ]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_yes_behind_a_file_is_a_decision(customer: Customer) -> None:
    customer.headers = CHAT
    await customer.asks_to_pay(5)

    await customer.asks(with_file("yes"), text("Paid."))

    assert customer.paid() == [5]


async def test_a_base_url_with_a_slash_at_its_end_is_served(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    async with httpx2.AsyncClient(base_url=served.url) as http:
        body = {"model": "shop", "messages": [user("Hi")]}
        answer = await http.post("/v1//chat/completions", json=body)
        models = await http.get("/v1//models")

    assert answer.json()["choices"][0]["message"]["content"] == "Hi"
    assert models.json()["object"] == "list"


# --- branches of a frontend's chat ---------------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, CHAT], ids=["stateless", "with a frontend's id"])
async def test_a_regenerated_answer_with_the_same_text_keeps_the_tool_results(
    served: Served, upstream: FakeUpstream, headers: dict[str, str]
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream, headers=headers)
    conversation = caller.conversation
    # Without an id, only the conversation of the first turn may be named for the second.
    await sold(caller, upstream, headers=headers or {"X-Conversation-Id": conversation})

    upstream.reply(text("Ten"))
    await caller.ask([*messages, user("Red")], headers=headers)
    assert shape_of(upstream) == [*HIDDEN, "user:Red"]
    upstream.reply(text("Ten"))
    await caller.ask([*messages, user("Red")], headers=headers)
    upstream.reply(text("Five"))
    await caller.ask([*messages, user("Red"), assistant("Ten"), user("How many?")], headers=headers)
    # The user edits the message before that.
    upstream.reply(text("Two"))
    await caller.ask([*messages, user("Blue")], headers=headers)

    assert shape_of(upstream) == [*HIDDEN, "user:Blue"]
    assert agent_of(upstream) == "sales"


async def test_a_user_message_in_place_of_results_closes_the_calls_of_a_named_parent(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(calls(("weather", {"city": "Rome"})), text("Fine"))
    requested = await caller.completion([user("Weather?")], tools=[WEATHER])

    await caller.ask([user("Never mind")], headers={"X-Parent-Id": requested.id})
    assert shape_of(upstream) == ["system", "user:Weather?", "calls:weather", "result", "user:Never mind"]
    assert "not executed" in upstream.requests[-1].body["messages"][3]["content"]

    with pytest.raises(openai.BadRequestError, match="tool"):
        await caller.ask([assistant("Hm")], headers={"X-Parent-Id": requested.id})


def own_template(question: str) -> str:
    """Return the message in a template of an operator."""
    return f"Use the documents below.\n-----\nA rocket is a vehicle that flies.\n-----\nQuestion: {question} (be brief)"


async def test_the_hidden_items_of_a_chat_are_retained_with_every_template(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    upstream.reply(
        calls(("transfer_to_sales", {"reason": "wants a rocket"})), text("What colour?"), text("Ten")
    )
    await caller.ask([user(own_template("I want a rocket"))], headers=CHAT)

    await caller.ask([user("I want a rocket"), assistant("What colour?"), user("Red")], headers=CHAT)

    assert shape_of(upstream) == [
        "system",
        f"user:{own_template('I want a rocket')}",
        *HIDDEN[2:],
        "user:Red",
    ]
    # An edited message is not the stored one: the list is the transcript.
    upstream.reply(text("Ten"))
    await caller.ask([user("I want a boat"), assistant("What colour?"), user("Red")], headers=CHAT)
    assert shape_of(upstream) == ["system", "user:I want a boat", "assistant:What colour?", "user:Red"]
    assert agent_of(upstream) == "sales"


SUMMARY = "[CONVERSATION SUMMARY]\nThe user wants a rocket."


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([{"role": "system", "content": SUMMARY}, user("Red")], id="system"),
        pytest.param(
            [{"role": "system", "content": SUMMARY}, assistant("What colour?"), user("Red")], id="tail"
        ),
        pytest.param([assistant("The user wants a rocket."), user("Red")], id="assistant"),
        pytest.param([user("Summary of the conversation: a rocket."), user("Red")], id="user"),
        pytest.param(
            [user("Conversation so far: a rocket."), assistant("Got it."), user("Red")], id="user and answer"
        ),
    ],
)
async def test_a_summarised_chat_continues_with_the_active_agent(
    served: Served, upstream: FakeUpstream, messages: Any
) -> None:
    caller = Caller(served)
    await sold(caller, upstream, headers=CHAT)
    upstream.reply(text("Ten"), text("Bye"))

    await caller.ask(messages, headers=CHAT)

    assert (caller.match, agent_of(upstream)) == ("frontend-header", "sales")
    shown = shape_of(upstream)[1:]
    assert shown == [f"{m['role']}:{m['content']}" for m in messages if m["role"] != "system"]
    await caller.ask([*messages, assistant("Ten"), user("Bye")], headers=CHAT)
    assert agent_of(upstream) == "sales"
    assert shape_of(upstream)[1:] == [*shown, "assistant:Ten", "user:Bye"]


@pytest.mark.parametrize("headers", [{}, CHAT], ids=["stateless", "with a frontend's id"])
async def test_a_continued_answer_is_one_message_afterwards(
    served: Served, upstream: FakeUpstream, headers: dict[str, str]
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream, headers=headers)
    upstream.reply(calls(("execute_order", {"product": "rocket", "price": 5}), text=None), text("Or black."))

    more = await caller.ask(messages, headers=headers)
    assert more == "\n\nOr black."
    joined = [messages[0], assistant(messages[1]["content"] + more)]
    upstream.reply(text("Ten"))
    await caller.ask([*joined, user("Red")], headers=headers)

    expected = [*HIDDEN, "calls:execute_order", "result", "assistant:Or black.", "user:Red"]
    assert shape_of(upstream) == expected
    # A client that shows the continuation as a message of its own.
    upstream.reply(text("Ten"))
    await caller.ask([*messages, assistant("Or black."), user("Red")], headers=headers)
    assert shape_of(upstream) == expected
