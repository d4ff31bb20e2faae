"""Pinned definitions of MCP tools, and their comparison with the definitions that a server lists now.

A server can change its tool descriptions at any time, and models follow descriptions as instructions. Models therefore
receive the pinned definitions, and a tool whose current definition differs is withdrawn.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

PREFIX = "mcp:"
"""Prefix of MCP tools in team files: ``mcp:server`` and ``mcp:server/tool``."""

_MAX_NAME = 64
"""Function names have at most 64 characters (OpenAI API reference, chat completions, ``tools``)."""


class Pin(msgspec.Struct, frozen=True):
    """A tool definition from a server; ``read_only`` is the server's ``readOnlyHint``, which is not verified."""

    name: str
    description: str
    input_schema: Mapping[str, Any]
    read_only: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of name, description and schema, independent of the order of keys in the schema."""
        hashed = [self.name, self.description, self.input_schema]
        return hashlib.sha256(msgspec.json.encode(hashed, order="deterministic")).hexdigest()


Status = Literal["same", "changed", "missing", "unpinned"]


class Comparison(msgspec.Struct, frozen=True):
    """The status of each pinned or listed tool by name."""

    states: Mapping[str, Status] = msgspec.field(default_factory=dict)

    def names(self, *wanted: Status) -> list[str]:
        """Return the sorted names of the tools with one of the statuses."""
        return sorted(name for name, status in self.states.items() if status in wanted)


def compare(pinned: Mapping[str, Pin], listed: Iterable[Pin]) -> Comparison:
    """Compare pinned tools with the tools listed now; a name that is listed twice counts as changed."""
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


def filter_allowed(listed: Sequence[Pin], names: Sequence[str] | None) -> list[Pin]:
    """Return the listed tools that the operator allows; all if ``names`` is None."""
    return [tool for tool in listed if names is None or tool.name in names]


def reference(server: str, tool: str) -> str:
    """Return the name of a tool of a server in team files."""
    return f"{PREFIX}{server}/{tool}"


def model_name(server: str, tool: str) -> str:
    """Return the function name of a tool for models: ``server__tool``, with letters, digits, ``_`` and ``-`` only.

    The server name is a prefix, so that tools of two servers can have the same name. A name over 64 characters is cut
    and ends with a hash of the whole name.
    """
    whole = f"{server}__{tool}"
    name = re.sub(r"[^A-Za-z0-9_-]", "_", whole)
    if len(name) <= _MAX_NAME:
        return name
    return f"{name[: _MAX_NAME - 9]}_{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
