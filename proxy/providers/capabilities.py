"""Parameters and kinds of content that a model supports.

Unsupported parameters that only influence an answer (sampling, effort, tiers) have no effect, and are reported. Those
that define what the answer contains are rejected before a turn begins, because a response with status 200 would claim
that they were applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from proxy.message_lists import TextMessages
from proxy.messages import Message, Parameters, ToolChoice
from proxy.request_errors import ContentNotSupported, ParameterNotSupported

_NO_PARAMETERS = Parameters()
_TEXT = frozenset((str,))
_content = attrgetter("content")
_NOT_TEXT = frozenset(("image_url", "input_audio", "file"))
_FOR_THE_PROVIDER = frozenset(("safety_identifier", "prompt_cache_key"))
"""For the provider's own purposes; without effect for the caller."""


class Abilities(msgspec.Struct, frozen=True):
    """What a model supports: ``parameters`` of a request, and ``parts``, kinds of content in addition to text."""

    parameters: frozenset[str] = frozenset((*Parameters.__struct_fields__, "tool_choice"))
    parts: frozenset[str] = _NOT_TEXT

    def __and__(self, other: Abilities) -> Abilities:
        """What both can do."""
        return Abilities(self.parameters & other.parameters, self.parts & other.parts)

    def without(self, *parameters: str) -> Abilities:
        """The same, but for these."""
        return Abilities(self.parameters.difference(parameters), self.parts)

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
        if tool_choice is None and parameters == _NO_PARAMETERS and self.parts == _NOT_TEXT:
            return []
        unsupported = [name for name in _requested(parameters, tool_choice) if name not in self.parameters]
        for name in ("response_format", "logprobs"):
            if name in unsupported:
                raise ParameterNotSupported(name)
        if self.parts != _NOT_TEXT:
            self._check_parts(messages)
        return [name for name in unsupported if name not in _FOR_THE_PROVIDER]

    def _check_parts(self, messages: Sequence[Message]) -> None:
        for index, message in enumerate(messages):
            for place, kind in _parts_of(message):
                if kind in _NOT_TEXT and kind not in self.parts:
                    raise ContentNotSupported(index, place, kind)


def is_plain(parameters: Parameters, messages: Sequence[Message]) -> bool:
    """Whether every model can do what a request without tools needs: no parameters, and only text."""
    if parameters != _NO_PARAMETERS:
        return False
    return type(messages) is TextMessages or _TEXT.issuperset(map(type, map(_content, messages)))


def _requested(parameters: Parameters, tool_choice: ToolChoice | None) -> list[str]:
    requested: dict[str, Any] = msgspec.structs.asdict(parameters)
    if (requested["response_format"] or {}).get("type") == "text":
        requested["response_format"] = None
    if not requested["logprobs"]:
        requested["logprobs"] = None
    requested["tool_choice"] = tool_choice if tool_choice not in ("none", "auto") else None
    return [name for name, value in requested.items() if value is not None]


def _parts_of(message: Message) -> Iterable[tuple[int, Any]]:
    content = message.content
    if not isinstance(content, list):
        return ()
    return [(place, part.__struct_config__.tag) for place, part in enumerate(content)]
