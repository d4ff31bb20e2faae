"""Rules that choose an adaptation from what a provider's rejection names.

Wordings differ between versions of a provider, so the rules match codes, paths and stable words only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from proxy.providers.openai.adaptation import HARMLESS, Adaptation, Omission, Reshaping
from proxy.providers.openai.call_ids import is_short
from proxy.providers.openai.message_forms import (
    is_empty,
    lacks_properties,
    lacks_reasoning,
    lacks_signature,
)
from proxy.providers.openai.rejection import Rejection, is_named_once

Body = Mapping[str, Any]

ESSENTIAL = frozenset(
    (
        *("model", "messages", "input", "instructions", "stream", "store", "tools"),
        *("response_format", "text", "text.format", "logprobs", "top_logprobs"),
    )
)
"""Fields without which the answer is another one. The rejection is the caller's, or the operator's, to know."""
MAX_VALUE_BYTES = 64
"""Of a value that is remembered as not accepted."""


def adaptations_to(rejection: Rejection, body: Body) -> dict[Adaptation, bool]:
    """Return what may get the request accepted; empty if nothing is known.

    The value is whether it can apply to other calls: true unless text of this caller may have caused it.
    """
    for reshaping, is_named, applies in _RESHAPINGS:
        if is_named(rejection) and applies(body):
            return {reshaping: True}
    return dict(_omissions(rejection, body))


def fields_of(body: Body) -> Iterator[tuple[str, Any]]:
    """Yield the fields that may be named in an error: those of the body, and members of ``reasoning`` and ``text``."""
    for name, value in body.items():
        yield name, value
        if name in ("reasoning", "text") and isinstance(value, dict):
            for member, inner in value.items():
                yield f"{name}.{member}", inner


def _omissions(rejection: Rejection, body: Body) -> Iterator[tuple[Adaptation, bool]]:
    fields = dict(fields_of(body))
    named = {name: verdict for name, verdict in rejection.named(fields).items() if name not in ESSENTIAL}
    if len(named) == 2 and "both" in rejection.words:
        first, second = sorted(named, key=rejection.words.find)
        yield Omission(second, next_to=first), True
        return
    for name, verdict in named.items():
        # Without param or loc, an error that quotes the caller's text may name a field by accident.
        is_certain = rejection.is_structured or is_named_once(name, msgspec.json.encode(body))
        is_about_value = verdict == "unsupported value" or _quotes_value(rejection, name, fields[name])
        if name in HARMLESS or (verdict == "unsupported" and not is_about_value):
            yield Omission(name), is_certain
        elif verdict != "invalid":
            value = msgspec.json.encode(fields[name])
            yield Omission(name, value), is_certain and len(value) <= MAX_VALUE_BYTES


def _quotes_value(rejection: Rejection, name: str, value: object) -> bool:
    """Whether the error names the value with the field: ``tool_choice 'none' is not supported``."""
    if not isinstance(value, str) or not value:
        return False
    return re.search(rf"{name}\W{{1,4}}{re.escape(value.lower())}\b", rejection.words) is not None


# --- reshapings: whether the error asks for it, and whether the request can be changed so ---


def _says(pattern: str) -> Callable[[Rejection], bool]:
    search = re.compile(pattern).search
    return lambda rejection: search(rejection.words) is not None


def _at(pattern: str) -> Callable[[Rejection], bool]:
    """Whether one of the places matches; a path begins at the root of the request."""
    match = re.compile(pattern).fullmatch
    return lambda rejection: any(match(place.path) for place in rejection.places)


def _coded(*codes: str) -> Callable[[Rejection], bool]:
    return lambda rejection: rejection.code in codes


def _any(*tests: Callable[[Rejection], bool]) -> Callable[[Rejection], bool]:
    return lambda rejection: any(test(rejection) for test in tests)


def _all(*tests: Callable[[Rejection], bool]) -> Callable[[Rejection], bool]:
    return lambda rejection: all(test(rejection) for test in tests)


def _rejects_role(role: str) -> Callable[[Rejection], bool]:
    """An error about roles names the rejected one first, and those that are accepted behind it."""
    is_about_roles = _any(_at(r"(messages|input)\.\d+\.role"), _says(r"\brole\b"))

    def test(rejection: Rejection) -> bool:
        found = re.search(r"\b(system|developer)\b", rejection.words)
        return is_about_roles(rejection) and found is not None and found[1] == role

    return test


def _messages(body: Body) -> Sequence[Mapping[str, Any]]:
    """Return the messages of a chat completion; a request to Responses has none."""
    messages = body.get("messages")
    return messages if isinstance(messages, list) else ()


def _has_role(role: str) -> Callable[[Body], bool]:
    return lambda body: any(item.get("role") == role for item in _messages(body) or body.get("input", ()))


def _has_message(test: Callable[[Mapping[str, Any]], Any]) -> Callable[[Body], bool]:
    return lambda body: any(map(test, _messages(body)))


def _has_long_ids(body: Body) -> bool:
    ids = [call["id"] for message in _messages(body) for call in message.get("tool_calls") or ()]
    ids += [item["call_id"] for item in body.get("input", ()) if "call_id" in item]
    return not all(map(is_short, ids))


def _has_only_past_calls(body: Body) -> bool:
    return not body.get("tools") and _has_message(lambda message: message.get("tool_calls"))(body)


def _has_user_behind_tool(body: Body) -> bool:
    roles = [message.get("role") for message in _messages(body)]
    return ("tool", "user") in pairwise(roles)


def _ends_with_assistant(body: Body) -> bool:
    messages = _messages(body)
    return bool(messages) and messages[-1].get("role") == "assistant"


_ABOUT_TOOLS = _says(r"\btools?\b|function")
_ABOUT_FORM = _any(
    _at(r"response_format(\..*)?"),
    _says(r"response_format|response.?mime.?type|json (mode|schema|output)|structured output"),
)
_MESSAGE_CONTENT = _at(r"messages\.\d+\.(assistant\.)?content(\..*)?")

# In this order: the first that the error asks for and that changes the request is chosen.
_RESHAPINGS: tuple[tuple[Reshaping, Callable[[Rejection], bool], Callable[[Body], bool]], ...] = (
    (
        # Mistral: code 3280. Anthropic: tool_use.id, a pattern. OpenAI: at most 40 characters.
        Reshaping.SHORT_CALL_IDS,
        _any(
            _coded("3280"),
            _says(r"tool call ids? "),
            _at(r"(messages|input)\.\d+\..*(tool_call_id|tool_use_id|tool_calls\.\d+\.id|tool_use\.id)"),
            _at(r"input\.\d+\.call_id"),
        ),
        _has_long_ids,
    ),
    (Reshaping.SYSTEM_ROLE, _rejects_role("developer"), _has_role("developer")),
    (Reshaping.DEVELOPER_ROLE, _rejects_role("system"), _has_role("system")),
    (
        # Bedrock: toolConfig. Anthropic: "must define tools". LiteLLM: "without `tools=` param".
        Reshaping.HISTORY_TOOLS,
        _any(_says(r"toolconfig|must define tools|without .?tools"), _at("tools")),
        _has_only_past_calls,
    ),
    (Reshaping.REASONING_PLACEHOLDER, _says("reasoning_content"), _has_message(lacks_reasoning)),
    (Reshaping.SIGNATURE_PLACEHOLDER, _says("thought_?signature"), _has_message(lacks_signature)),
    (
        Reshaping.USER_LAST,
        _says(r"prefill|expected last role|(must )?end with a user"),
        _ends_with_assistant,
    ),
    (
        Reshaping.ASSISTANT_BEHIND_TOOL,
        _says(r"unexpected role .?user.? after role .?tool"),
        _has_user_behind_tool,
    ),
    (
        Reshaping.SEPARATE_CALLS,
        _any(_coded("3240"), _says(r"content (or|and) .?tool_calls.? *,? but not both|not both content and")),
        _has_message(lambda message: message.get("content") and message.get("tool_calls")),
    ),
    (
        Reshaping.NO_EMPTY_MESSAGES,
        _any(
            _coded("3240"),
            _MESSAGE_CONTENT,
            _says(
                r"non-?empty|must not be empty|(text|content)\b.*\b(empty|blank)|either content or tool_calls"
            ),
        ),
        _has_message(is_empty),
    ),
    (
        Reshaping.EMPTY_CONTENT,
        _any(_MESSAGE_CONTENT, _says(r"expected a string, got null|content\b.*\b(null|none|required)")),
        _has_message(lambda message: message.get("role") == "assistant" and message.get("content") is None),
    ),
    (
        Reshaping.SCHEMA_PROPERTIES,
        _any(
            _at(r"tools\.\d+\..*properties"),
            _says(r"missing.{0,20}properties|properties.{0,20}(missing|required)"),
        ),
        lambda body: any(lacks_properties(tool) for tool in body.get("tools", ())),
    ),
    (
        # Gemini: "Function calling with a response mime type". Groq: "json mode cannot be combined with tool calling".
        Reshaping.FORM_AFTER_TOOLS,
        _all(_ABOUT_FORM, _ABOUT_TOOLS, lambda rejection: rejection.verdict != "invalid"),
        lambda body: bool(body.get("tools")) and "response_format" in body,
    ),
    (
        # https://platform.openai.com/docs/guides/latest-model: tools with reasoning need the Responses API.
        Reshaping.NO_EFFORT_WITH_TOOLS,
        _all(_any(_at("reasoning_effort"), _says("reasoning_effort")), _ABOUT_TOOLS),
        lambda body: bool(body.get("tools")) and body.get("reasoning_effort") != "none",
    ),
    (
        # Groq: "property 'name' is unsupported". Mistral: loc messages, 1, user, name.
        Reshaping.NO_NAMES,
        _any(_at(r"messages\.\d+\.(\w+\.)?name"), _says(r"property '?name'? is unsupported")),
        _has_message(lambda message: "name" in message and message.get("role") != "function"),
    ),
)
