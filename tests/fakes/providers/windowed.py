"""A provider with a hard context window, whose model writes summaries that contain every planted fact.

A token is four bytes of the prompt. ``main`` plays the model of the agents: a plan of functions of the request body. A
summary request is recognised by its instructions.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.fakes.replies import Reply
from tests.fakes.upstream import Received, calls, error, text

FACT = re.compile(r"fact-\d+-[a-z]+")
"""What a test plants in a message, and asks for later."""
Usage = dict[str, int]
Answer = Callable[[Any, Usage | None], Reply]
"""The reply to a request body, with the size of its prompt."""


def says(content: str) -> Answer:
    return lambda body, usage: text(content, usage=usage)


def calls_of(*wanted: tuple[str, Any], content: str | None = None) -> Answer:
    return lambda body, usage: calls(*wanted, text=content, usage=usage)


def tokens_of(body: Any) -> int:
    """The size of a prompt: messages and tools."""
    prompt = json.dumps([body.get("messages"), body.get("tools") or []], separators=(",", ":"))
    return len(prompt) // 4


def is_summary_request(body: Any) -> bool:
    return str(body["messages"][0].get("content", "")).startswith("You write the summary")


def prompt_text(body: Any) -> str:
    return json.dumps(body["messages"])


class WindowedProvider:
    """An ``answer`` function for ``FakeUpstream``."""

    def __init__(
        self,
        window: int,
        *,
        side_window: int = 1_000_000,
        summary: str | None = None,
        reports_usage: bool = True,
        message: str = "This model's maximum context length is {window} tokens. However, your messages resulted in "
        "{tokens} tokens.",
    ) -> None:
        self.window = window
        self.side_window = side_window
        self.summary = summary
        self.reports_usage = reports_usage
        self.message = message
        self.accepted: list[Any] = []
        """Bodies of the accepted requests of agents, in order."""
        self.rejected: list[Any] = []
        self.violations: list[str] = []
        """Calls without results, and results without calls, in accepted requests."""
        self.summaries: list[Any] = []
        """Bodies of the summary requests."""
        self.plan: deque[Answer] = deque()

    def then(self, *replies: Answer) -> None:
        """Add replies to requests of agents; without any, the answer is a note."""
        self.plan.extend(replies)

    def __call__(self, received: Received) -> Reply:
        body = received.body
        tokens = tokens_of(body)
        if is_summary_request(body):
            if tokens > self.side_window:
                return self._rejection(tokens, self.side_window)
            self.summaries.append(body)
            return self._summary(body)
        if tokens > self.window:
            self.rejected.append(body)
            return self._rejection(tokens, self.window)
        self.violations += _violations(body["messages"])
        self.accepted.append(body)
        answer = self.plan.popleft() if self.plan else says("Noted.")
        usage = {"prompt_tokens": tokens, "completion_tokens": 20, "total_tokens": tokens + 20}
        return answer(body, usage if self.reports_usage else None)

    def _summary(self, body: Any) -> Reply:
        if self.summary is not None:
            return text(self.summary)
        facts = list(dict.fromkeys(FACT.findall(prompt_text(body))))
        return text(f"Summary {len(self.summaries)}: the user planted {', '.join(facts)}")

    def _rejection(self, tokens: int, window: int) -> Reply:
        return error(
            400, code="context_length_exceeded", message=self.message.format(window=window, tokens=tokens)
        )


def _violations(messages: Any) -> list[str]:
    found: list[str] = []
    open_calls: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] in open_calls:
                open_calls.remove(message["tool_call_id"])
            else:
                found.append("a result without its call")
            continue
        found += ["a call without its result" for _ in open_calls]
        open_calls = [call["id"] for call in message.get("tool_calls") or ()]
    return found + ["a call without its result" for _ in open_calls]
