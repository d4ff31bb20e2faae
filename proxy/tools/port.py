"""What a tool is to an agent, and what a call of it is told about where it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from proxy.messages import FunctionTool


@dataclass(frozen=True, slots=True)
class ToolContext:
    """The circumstances of one call.

    A Python function that has a parameter annotated with this class gets it; the model never sees that parameter.
    """

    call_key: str
    """The same for every attempt of the same call (``turn:step:index``, or the id of its approval); tools with effects
    may use it to recognise a repeat."""
    turn_id: str
    conversation_id: str
    caller: str
    agent: str
    data_dir: Path


class Tool(Protocol):
    """A tool of the server.

    One that can be withdrawn while the server runs has a property ``is_offered`` besides (see ``is_offered``).
    """

    @property
    def spec(self) -> FunctionTool:
        """Name, description and argument schema as the model is told; computed once, cheap to read."""
        ...

    @property
    def has_effects(self) -> bool:
        """Whether a call changes something outside of the conversation; true unless the tool says otherwise."""
        ...

    async def call(self, arguments: dict[str, object], context: ToolContext) -> str:
        """Run with arguments that are a JSON object, and return the result as text.

        Raises:
            ToolError: With a sentence for the model.
            Exception: Anything else is a defect; the model is told that the tool failed, and nothing more.
        """
        ...


def is_offered(tool: Tool) -> bool:
    """Whether models are told of the tool now."""
    return getattr(tool, "is_offered", True)
