"""The interface of tools, and the context that a call receives."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from msgspec import Struct

from proxy.messages import FunctionTool


class ToolContext(Struct, frozen=True):
    """Context of one tool call.

    A Python function receives it in a parameter annotated with this class, which is not in the schema for the model.
    """

    call_key: str
    """Idempotency key: equal for all attempts of the same call (``turn:step:index``, or the id of its approval)."""
    turn_id: str
    conversation_id: str
    caller: str
    """Pseudonym of the API key."""
    agent: str
    """Name of the agent that calls the tool."""
    data_dir: Path
    """Folder for data of tools (``PROXY_DATA_DIR``); it exists."""


class Tool(Protocol):
    """A tool that the proxy executes.

    A tool that can become unavailable while the server runs also has a property ``is_offered``.
    """

    @property
    def spec(self) -> FunctionTool:
        """Name, description and argument schema for the model; computed once, cheap to read."""
        ...

    @property
    def has_effects(self) -> bool:
        """Whether a call can have side effects outside the conversation."""
        ...

    async def call(self, arguments: dict[str, object], context: ToolContext) -> str:
        """Run the tool with a JSON object as arguments and return the result as text.

        Raises:
            ToolError: The message is passed to the model.
            Exception: A defect of the tool; the model receives only "the tool failed".
        """
        ...


def can_become_unavailable(tool: Tool) -> bool:
    """Return whether ``is_offered`` can change while the server runs."""
    return hasattr(type(tool), "is_offered")


def is_offered(tool: Tool) -> bool:
    """Return whether the tool is currently passed to models."""
    return getattr(tool, "is_offered", True)
