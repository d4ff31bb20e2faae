"""The excerpt of a provider's error message that the log has."""

from __future__ import annotations

import json
import time

import pytest

from proxy.providers.openai.error_report import MAX_MESSAGE, excerpt, report

SENT = json.dumps(
    {"messages": [{"role": "user", "content": "Where is my order of twelve rockets, please?"}]}
).encode()


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Unsupported: 'temperature' in messages[0].role.", "Unsupported: 'temperature' in messages[0].role."),
        ("Incorrect API key: sk-proj-abc***xyz. See it.", "Incorrect API key: […]. See it."),
        ("No access with Bearer abcd1234.", "No access with […]"),
        ("Bad api_key=hunter22 given", "Bad […] given"),
        ("Token eyJhbGciOiJIUzI1NiJ9.e30.x is old", "Token […] is old"),
        ("The key is topsecret now", "The key is […] now"),
        ("Invalid content: 'my dog is ill'", "Invalid content: […]"),
        ("Bad text: Where is my order of twelve rockets, please?", "Bad text:"),
        ("Where is my order", ""),
        ("Invalid: {'messages': [{'content': 'x'}]}", "Invalid:"),
        ("one\n two\tthree", "one two three"),
        ("y " * 1000, ("y " * 150).rstrip()),
        ("", ""),
    ],
)  # fmt: skip
def test_secrets_and_echoes_are_removed(message: str, shown: str) -> None:
    assert excerpt(message, sent=SENT, secrets=["topsecret"]) == shown


def test_a_secret_at_the_limit_is_not_cut_in_two() -> None:
    message = "y" * 20 + " " + "z " * 137 + "topsecret behind"

    shown = excerpt(message, secrets=["topsecret"])

    assert len(shown) <= MAX_MESSAGE
    assert "tops" not in shown


def test_the_report_has_what_the_error_has() -> None:
    error = {"error": {"message": "No.", "code": 3280, "param": None}}

    assert report(400, json.dumps(error).encode()) == {
        "status": 400,
        "code": "3280",
        "provider_message": "No.",
    }
    assert report(400, b"upstream connect error") == {
        "status": 400,
        "provider_message": "upstream connect error",
    }
    assert report(502, b"<html>down</html>") == {"status": 502}
    assert report(None, {"message": "No."}) == {"provider_message": "No."}
    assert report(400, b"\xff\xfe") == {"status": 400, "provider_message": "\ufffd\ufffd"}


@pytest.mark.parametrize(
    "message", ["a" * 100_000, "'" * 100_000, "token=" * 20_000, "sk-" * 40_000, "ab" * 60_000]
)
def test_long_messages_and_requests_take_little_time(message: str) -> None:
    sent = b"a" * 4_000_000
    began = time.process_time()

    excerpt(message, sent=sent, secrets=["x" * 40])

    # Up to 0.3 s on a slow machine. A search of the request for each character takes many times as long.
    assert time.process_time() - began < 3
