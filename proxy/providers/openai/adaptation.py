"""Types of the changes to a request that its provider rejected.

A ``Reshaping`` keeps the meaning of the request. An ``Omission`` leaves a field out; if the caller set it and it would
have changed the answer, the caller is informed. ``adaptation_rules`` chooses them, ``adapted_body`` applies them.
"""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Reshaping(StrEnum):
    """Another form of the same request. The value is shown in logs and by ``handoff-proxy check --connect``."""

    SHORT_CALL_IDS = "call ids of nine letters and digits"
    DEVELOPER_ROLE = "developer messages instead of system messages"
    SYSTEM_ROLE = "system messages instead of developer messages"
    HISTORY_TOOLS = "tools of earlier calls, with tool_choice none"
    USER_LAST = "user message behind a last assistant message"
    ASSISTANT_BEHIND_TOOL = "assistant message between tool result and user message"
    SEPARATE_CALLS = "text and tool calls in separate messages"
    NO_EMPTY_MESSAGES = "no empty assistant messages"
    EMPTY_CONTENT = "empty content instead of null"
    SCHEMA_PROPERTIES = "properties in every object schema"
    FORM_AFTER_TOOLS = "response_format in a second call, without tools"
    NO_EFFORT_WITH_TOOLS = "reasoning_effort none with tools"
    REASONING_PLACEHOLDER = "reasoning_content in messages with calls that have none"
    SIGNATURE_PLACEHOLDER = "placeholder for missing thought signatures"
    NO_NAMES = "no name in messages"
    NO_UNKNOWN_STATE = "no provider state in members that the proxy does not know"
    NO_CLIENT_STATE = "no provider state that clients send"
    NO_STATE = "no provider state"
    """Of one call: what was stored is not accepted any more."""
    REASONING_FIRST = "text before </think> is reasoning"
    """Learned from an answer and not from an error: the chat template has the opening tag in the prompt (vLLM)."""


class Omission(Struct, frozen=True):
    """A field that is not sent: at all, with one ``value`` (as JSON), or next to another field."""

    name: str
    value: bytes | None = None
    next_to: str | None = None

    def __str__(self) -> str:
        if self.value is not None:
            # Anything else, such as stop sequences, may be text that people wrote.
            is_plain = self.name in _WORDS or self.value[:1] in _NUMBERS
            return (
                f"no {self.name} of {self.value.decode()}" if is_plain else f"not all values of {self.name}"
            )
        return f"no {self.name}" if self.next_to is None else f"no {self.name} next to {self.next_to}"


Adaptation = Reshaping | Omission

TWINS = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
"""Two names of one limit; a provider rejects the one that it does not know, and both together."""
HARMLESS = frozenset(
    (
        *(
            "stream_options",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
            "user",
            "metadata",
        ),
        *("include", "reasoning.summary", "parallel_tool_calls"),
    )
)
"""Fields whose absence does not change an answer; the proxy itself limits parallel calls."""
_WORDS = (
    "reasoning_effort",
    "reasoning.effort",
    "verbosity",
    "text.verbosity",
    "tool_choice",
    "service_tier",
)
"""Fields whose values are words of the API."""
_NUMBERS = tuple(b"%c" % sign for sign in b"-0123456789tfn")
"""First characters of numbers, true, false and null."""
