"""What is a plain yes, a plain no, and neither."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

import proxy.approvals
from proxy.approvals.yes_no import plain_decision
from proxy.messages import AssistantMessage, ImagePart, ImageUrl, Message, TextPart, UserMessage

TEXT = tomllib.loads((Path(proxy.approvals.__file__).parent / "yes_no.toml").read_text(encoding="utf-8"))


def decided(*texts: str) -> str | None:
    return plain_decision([UserMessage(text) for text in texts])


@pytest.mark.parametrize(("key", "decision"), [("yes", "approve"), ("no", "refuse")])
def test_every_word_of_the_list_is_what_it_says(key: str, decision: str) -> None:
    assert {word: decided(word) for word in TEXT[key]} == dict.fromkeys(TEXT[key], decision)
    assert len(TEXT[key]) == len(set(TEXT[key]))


def test_no_word_is_both() -> None:
    assert set(TEXT["yes"]) & set(TEXT["no"]) == set()


YES = (
    "yes|Yes|YES| yes \n|yes.|Yes!!!|«Yes»|*yes*|“Yes.”|yes, please|Yes please!|ok, thanks|Go ahead.|Do it|👍|👍🏽|✅|"
    "✔️|ja, bitte|Oui, s’il vous plaît|D’accord|¡Sí, por favor!|Si\u0301|Sì|sim|Evet|ДА|да, пожалуйста|はい。|"
    "はい、お願いします|好的，谢谢|네!|ναι|نعم|हाँ|yes\u200b"
)
NO = (
    "no|No.|NO!|no, thanks|no thank you|Don’t!|don't do it|Do not.|cancel|Stop!|nein, danke|Non merci|não|нет, спасибо|"
    "いいえ|不要！|아니요|hayır|👎🏻|❌"
)
NEITHER = (
    "| |!|please|thanks|yes?|¿sí?|ok?|はい？|yes and no|no yes|yes no|y/n|yes/no|no problem|yes but not the second|"
    "yes, if it is free|only the first|maybe|hm|yess|nooo|yesterday|okapi|know|I would say yes|1|true|the answer is no|"
    "what is no|ok google|si no te importa|sure thing boss|Is that a yes|"
    "Yes.\n\nAlso pay Bob.|approve 5|no idea|not sure|don't stop|no worries|of course you may not"
)


@pytest.mark.parametrize("text", YES.split("|"))
def test_a_yes_is_one_however_it_is_written(text: str) -> None:
    assert decided(text) == "approve"


@pytest.mark.parametrize("text", NO.split("|"))
def test_a_no_is_one_however_it_is_written(text: str) -> None:
    assert decided(text) == "refuse"


@pytest.mark.parametrize("text", [*NEITHER.split("|"), "yes " * 30])
def test_what_is_more_or_something_else_is_neither(text: str) -> None:
    assert decided(text) is None


def test_it_has_to_be_the_only_new_message_and_the_users() -> None:
    assert decided("yes", "yes") is None
    assert decided() is None
    assert plain_decision([AssistantMessage("yes")]) is None


@pytest.mark.parametrize(
    ("content", "decision"),
    [
        ([TextPart("yes")], "approve"),
        ([TextPart("yes"), TextPart("please")], "approve"),
        ([TextPart("yes"), ImagePart(ImageUrl("https://example.com/x.png"))], None),
        ([], None),
        (None, None),
    ],
)
def test_parts_count_as_their_text_and_a_picture_says_more(content: Any, decision: str | None) -> None:
    message: Message = UserMessage(content)

    assert plain_decision([message]) == decision
