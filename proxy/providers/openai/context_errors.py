"""The numbers in errors about a context window that is exceeded: the window, and the size of the request.

Each provider has its own sentence, and llama.cpp members of the error object. Forms observed from OpenAI, Azure, vLLM,
Anthropic, Gemini, Mistral, xAI, OpenRouter, Fireworks, Moonshot, Cohere, TGI and LM Studio. Only numbers are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NUMBER = r"(\d{1,3}(?:,\d{3})+|\d{2,8})"
# Each sentence once, with what is before and behind the number: a number alone could be of the caller's text.
_WINDOW = re.compile(
    rf"maximum context length (?:is|of|:) {_NUMBER}"
    rf"|model maximum context length: {_NUMBER}"
    rf"|maximum prompt length is {_NUMBER}"
    rf"|> {_NUMBER} maximum"
    rf"|maximum number of tokens allowed \(?{_NUMBER}"
    rf"|(?:exceeded|exceeds) (?:the )?model(?:'s)? token limit:? {_NUMBER}"
    rf"|for model with {_NUMBER} maximum context length"
    rf"|context (?:length|window|size) (?:of|is|:)(?: only)? \(?{_NUMBER}"
    rf"|available context size \({_NUMBER}"
    rf"|(?:must be <=|cannot exceed) {_NUMBER}"
    # Groq's limit of tokens per minute, which is the largest request that can succeed.
    rf"|: limit {_NUMBER}, requested",
    re.IGNORECASE,
)
_SIZE = re.compile(
    rf"messages resulted in {_NUMBER}"
    rf"|(?:you )?requested(?: about)? {_NUMBER} tokens"
    rf"|prompt is too long: {_NUMBER}"
    rf"|input token count \(?{_NUMBER}"
    rf"|prompt contains {_NUMBER} tokens"
    rf"|request contains {_NUMBER} tokens"
    rf"|, requested {_NUMBER}"
    rf"|your (?:input|request) (?:has|is|of) {_NUMBER} tokens",
    re.IGNORECASE,
)


def stated_window(error: Mapping[str, Any], words: str) -> int | None:
    """Return the context window in tokens; None if the error does not state it."""
    return _member(error, "n_ctx") or _first(_WINDOW, words)


def stated_size(error: Mapping[str, Any], words: str) -> int | None:
    """Return the size of the request in tokens; None if the error does not state it."""
    return _member(error, "n_prompt_tokens") or _first(_SIZE, words)


def _member(error: Mapping[str, Any], name: str) -> int | None:
    value = error.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9 else None


def _first(pattern: re.Pattern[str], words: str) -> int | None:
    match = pattern.search(words)
    if match is None:
        return None
    return int(next(group for group in match.groups() if group).replace(",", ""))
