"""The updates of a run of the Microsoft Agent Framework, as events of a member."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proxy.members.adapters.common import (
    json_text,
    outside_tools,
)
from proxy.members.port import (
    MemberContext,
    MemberEvent,
    ModelUsed,
    Reasoning,
    ToolBegan,
    ToolEnded,
)
from proxy.messages import Usage


class AgentFrameworkRun:
    """The function calls of a run, whose arguments come in pieces.

    ``open`` are calls of tools that the framework does not execute: id, name, arguments. ``deferred`` are calls that it
    executes when the other calls of the same reply are answered: name and arguments by id.
    """

    def __init__(
        self, context: MemberContext, asks: Callable[[str], bool], deferred: dict[str, list[str]]
    ) -> None:
        self._external = {tool.name for tool in outside_tools(context)}
        self._asks = asks
        self._pieces: dict[str, tuple[str, list[str]]] = {}
        self.open: list[list[str]] = []
        self.deferred = deferred
        self._used = Usage()
        self.ends_with_text = False
        """Whether the last reply has text; then ``finish_reason`` is its finish reason."""
        self.finish_reason = ""

    def read(self, update: Any) -> list[str | MemberEvent]:
        """Return the events of an update."""
        found: list[str | MemberEvent] = []
        for content in update.contents:
            match content.type:
                case "text" if content.text:
                    self.ends_with_text, self.finish_reason = True, ""
                    found.append(content.text)
                case "text_reasoning" if content.text:
                    found.append(Reasoning(content.text))
                case "usage":
                    if (used := self.used(content.usage_details)) is not None:
                        found.append(used)
                case "function_call":
                    self._add(content)
                case "function_result":
                    self.ends_with_text = False
                    found += self._began()
                    if (call := self.deferred.pop(content.call_id, None)) is not None:
                        found.append(ToolBegan(content.call_id, *call))
                    result = json_text(content.exception or content.result)
                    found.append(ToolEnded(content.call_id, result, bool(content.exception)))
                case _:
                    pass
        if update.finish_reason:
            self.finish_reason = update.finish_reason
            found += self._began()
        return found

    def used(self, details: Any) -> ModelUsed | None:
        """Return the model call since the last one; the framework adds up the usage of all calls of a run."""
        total, known = _usage(details or {}), self._used
        self._used = Usage(
            prompt=max(total.prompt, known.prompt),
            completion=max(total.completion, known.completion),
            cached=max(total.cached, known.cached),
        )
        if self._used == known:
            return None
        return ModelUsed(
            "agent-framework",
            Usage(
                prompt=self._used.prompt - known.prompt,
                completion=self._used.completion - known.completion,
                cached=self._used.cached - known.cached,
            ),
        )

    def _add(self, content: Any) -> None:
        if content.name and any(call[0] == content.call_id for call in self.open):
            # Calls without a function come once more as a whole.
            return
        _, pieces = self._pieces.setdefault(content.call_id, (content.name or "", []))
        if isinstance(content.arguments, str):
            pieces.append(content.arguments)
        elif content.arguments:
            pieces.append(json_text(content.arguments))

    def _began(self) -> list[MemberEvent]:
        pieces, self._pieces = self._pieces, {}
        calls = {call_id: [name, "".join(texts) or "{}"] for call_id, (name, texts) in pieces.items() if name}
        external = {call_id: call for call_id, call in calls.items() if call[0] in self._external}
        self.open += [[call_id, *call] for call_id, call in external.items()]
        own = {call_id: call for call_id, call in calls.items() if call_id not in external}
        if external or any(self._asks(name) for name, _ in own.values()):
            # Nothing of the reply is executed before the others are answered. Calls with approval have separate events.
            self.deferred |= {i: call for i, call in own.items() if not self._asks(call[0])}
            return []
        return [ToolBegan(call_id, name, arguments) for call_id, (name, arguments) in own.items()]


def _usage(details: Mapping[str, Any]) -> Usage:
    return Usage(
        prompt=details.get("input_token_count") or 0,
        completion=details.get("output_token_count") or 0,
        cached=details.get("cache_read_input_token_count") or 0,
    )
