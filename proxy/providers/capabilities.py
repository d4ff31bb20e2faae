"""What of a caller's wishes a model can fulfil.

Wishes that only shape how an answer is found (sampling, effort, tiers) may stay without effect, and are named. Those
that say what the answer *is*, or what it is about, are refused before a turn begins: an answer under status 200
would be a lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from proxy.messages import Message, Parameters, ToolChoice
from proxy.request_errors import ContentNotSupported, ParameterNotSupported

_NOT_TEXT = frozenset(("image_url", "input_audio", "file"))
_FOR_THE_PROVIDER = frozenset(("safety_identifier", "prompt_cache_key"))
"""What a provider is told for its own ends promises nothing to the caller."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a model can do: ``wishes`` are fields of a request, ``parts`` kinds of content beside text."""

    wishes: frozenset[str] = frozenset((*Parameters.__struct_fields__, "tool_choice"))
    parts: frozenset[str] = _NOT_TEXT

    def __and__(self, other: Abilities) -> Abilities:
        """What both can do."""
        return Abilities(self.wishes & other.wishes, self.parts & other.parts)

    def without(self, *wishes: str) -> Abilities:
        """The same, but for these."""
        return Abilities(self.wishes.difference(wishes), self.parts)

    def check_parameters(
        self,
        parameters: Parameters,
        tool_choice: ToolChoice | None,
        messages: Sequence[Message],
    ) -> list[str]:
        """Return the names of the parameters without effect.

        Raises:
            ParameterNotSupported: One of them determines the content of the answer.
            ContentNotSupported: A message has content that the model does not read.
        """
        unfulfilled = [name for name in _wished(parameters, tool_choice) if name not in self.wishes]
        for name in ("response_format", "logprobs"):
            if name in unfulfilled:
                raise ParameterNotSupported(name)
        if self.parts != _NOT_TEXT:
            self._check_parts(messages)
        return [name for name in unfulfilled if name not in _FOR_THE_PROVIDER]

    def _check_parts(self, messages: Sequence[Message]) -> None:
        for index, message in enumerate(messages):
            for place, kind in _parts_of(message):
                if kind in _NOT_TEXT and kind not in self.parts:
                    raise ContentNotSupported(index, place, kind)


def _wished(parameters: Parameters, tool_choice: ToolChoice | None) -> list[str]:
    wished: dict[str, Any] = msgspec.structs.asdict(parameters)
    if (wished["response_format"] or {}).get("type") == "text":
        wished["response_format"] = None
    if not wished["logprobs"]:
        wished["logprobs"] = None
    wished["tool_choice"] = tool_choice if tool_choice not in ("none", "auto") else None
    return [name for name, value in wished.items() if value is not None]


def _parts_of(message: Message) -> Iterable[tuple[int, Any]]:
    content = message.content
    if not isinstance(content, list):
        return ()
    return [(place, part.__struct_config__.tag) for place, part in enumerate(content)]
