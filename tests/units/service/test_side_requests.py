"""The prompts by which side requests are recognised."""

from __future__ import annotations

import pytest

from proxy.messages import AssistantMessage, Message, SystemMessage, UserMessage
from proxy.service.side_requests import Rule, has_side_request_text, load_rules
from proxy.turns.request import TurnRequest

RULES = load_rules()


def is_side_request(*messages: Message) -> bool:
    return has_side_request_text(TurnRequest(caller="c", model="shop", messages=messages))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.client)
def test_every_listed_prompt_is_recognised_in_its_place(rule: object) -> None:
    (one,) = [known for known in RULES if known is rule]
    text = f"\n{one.begins.upper()}  and more " + " ".join(one.holds)
    message = SystemMessage(text) if "system" in one.place else UserMessage(text)
    other = [] if one.place.startswith("only") else [UserMessage("Hi")]

    assert is_side_request(*other, message)
    assert one.source


@pytest.mark.parametrize(
    "text",
    [
        "### Task:\nWrite a list.\n### Output:\nBullets",
        "What does <chat_history></chat_history> mean?",
        '### Task:\nAnswer.\n<context><source id="1"><chat_history>a</chat_history></source></context>\nHi',
    ],
)
def test_a_message_of_a_person_is_not_a_side_request(text: str) -> None:
    assert not is_side_request(UserMessage(text))


def test_a_task_behind_an_answer_is_not_a_side_request() -> None:
    task = UserMessage("### Task:\nTitle\n<chat_history>a</chat_history>")

    assert is_side_request(task)
    assert not is_side_request(UserMessage("Hi"), AssistantMessage("Hello"), task)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.client)
def test_a_prompt_in_another_place_is_not_a_side_request(rule: Rule) -> None:
    text = " ".join([rule.begins, *rule.holds])
    behind: list[Message] = [UserMessage("Hi"), AssistantMessage("Hello"), UserMessage("Well?")]

    assert not is_side_request(UserMessage(text), *behind[1:])
    assert is_side_request(SystemMessage(text), *behind) == (rule.place == "system")


@pytest.mark.parametrize("rule", [one for one in RULES if "user" in one.place], ids=lambda rule: rule.client)
def test_the_only_user_message_need_not_be_the_last_one_and_the_last_one_need_not_be_the_only_one(
    rule: Rule,
) -> None:
    prompt, note = UserMessage(" ".join([rule.begins, *rule.holds])), SystemMessage("Be brief.")

    assert is_side_request(prompt)
    assert is_side_request(prompt, note) == (rule.place == "only-user")
    assert is_side_request(UserMessage("Hi"), prompt) == (rule.place == "last-user")
    assert not is_side_request(UserMessage("Hi"), prompt, note)
