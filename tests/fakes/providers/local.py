"""Qwen without a reasoning parser, and Azure OpenAI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.fakes.providers.chat import SECRET, USAGE, ChatProvider
from tests.fakes.replies import Reply, chunk, events
from tests.fakes.upstream import Received


class Qwen(ChatProvider):
    """Reasoning in the text, between tags that can be split over two chunks."""

    def call_chunks(self, call: dict[str, Any], state: Any) -> list[dict[str, Any]]:
        return [*self._reasoning_text(), *super().call_chunks(call, state)]

    def text_chunks(self, text: str) -> list[dict[str, Any]]:
        return [*self._reasoning_text(), *super().text_chunks(text)]

    def _reasoning_text(self) -> list[dict[str, Any]]:
        pieces = ("<th", "ink>Hidden ", f"{SECRET} reasoning</thi", "nk>\n\n")
        return [chunk({"content": piece}) for piece in pieces]


class Azure(ChatProvider):
    """A deployment: the key in ``api-key``, or a token of Entra ID; the first chunk has no choices."""

    path = "/openai/deployments/our-gpt/chat/completions"

    def __init__(self, *arguments: Any, token: str | None = None, **options: Any) -> None:
        """``token`` is an accepted token of Entra ID."""
        super().__init__(*arguments, **options)
        self._token = token

    def __call__(self, received: Received) -> Reply:
        if "api-version=" not in received.query:
            return self._reject(404, "Resource not found")
        return super().__call__(received)

    def is_authorised(self, headers: Mapping[str, str], key: str) -> bool:
        has_token = self._token is not None and headers.get("authorization") == f"Bearer {self._token}"
        return has_token or headers.get("api-key") == key

    def _events(self, *chunks: dict[str, Any]) -> Reply:
        results = {"hate": {"filtered": False, "severity": "safe"}}
        first = {
            "choices": [],
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": results}],
        }
        return events(first, *chunks, {"choices": [], "usage": USAGE})
