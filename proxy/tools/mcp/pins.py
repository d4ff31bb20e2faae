"""Tools as the operator accepted them, and how they differ from what a server tells of them now.

A server can change what it tells models at any time, and a description is an instruction. So models are told what
was pinned, and a tool that is not any more what was pinned is withdrawn.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

PREFIX = "mcp:"
"""In front of an MCP server's name where a team file names tools: ``mcp:server`` and ``mcp:server/tool``."""

_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class Pin:
    """A tool as its server told of it; ``read_only`` is what the server said, not what is known."""

    name: str
    description: str
    input_schema: Mapping[str, Any]
    read_only: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 over name, description and schema, whatever the order of keys in the schema."""
        told = [self.name, self.description, self.input_schema]
        return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()


Status = Literal["same", "changed", "missing", "unpinned"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What has become of each tool since it was pinned, by name."""

    states: Mapping[str, Status] = field(default_factory=dict)

    def names(self, *wanted: Status) -> list[str]:
        """Return the tools of which this is true, sorted."""
        return sorted(name for name, status in self.states.items() if status in wanted)


def compared(pinned: Mapping[str, Pin], listed: Iterable[Pin]) -> Comparison:
    """Compare what was pinned with what is listed now; a name that is listed twice counts as changed."""
    states: dict[str, Status] = dict.fromkeys(pinned, "missing")
    for tool in listed:
        pin = pinned.get(tool.name)
        if pin is None:
            states[tool.name] = "unpinned"
        elif states[tool.name] == "missing" and pin.digest == tool.digest:
            states[tool.name] = "same"
        else:
            states[tool.name] = "changed"
    return Comparison(states)


def allowed(listed: Sequence[Pin], names: Sequence[str] | None) -> list[Pin]:
    """Return the tools that agents may have at all; ``names`` is None when that is all of them."""
    return [tool for tool in listed if names is None or tool.name in names]


def reference(server: str, tool: str) -> str:
    """Return how a team file names a tool of a server."""
    return f"{PREFIX}{server}/{tool}"


def model_name(server: str, tool: str) -> str:
    """Return the name under which models see a tool: ``server__tool``, of letters, digits, ``_`` and ``-``.

    The server's name is in front, so that two servers may each have a ``search``. What would be longer than the 64
    characters that models take ends in a hash of the whole.
    """
    whole = f"{server}__{tool}"
    name = re.sub(r"[^A-Za-z0-9_-]", "_", whole)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}_{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
