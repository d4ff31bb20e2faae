"""Configuration of an MCP server: the program or the URL, the limits, and the allowed tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_INHERITED = (
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER",
    # Required by most programs on Windows.
    "APPDATA", "COMSPEC", "LOCALAPPDATA", "PATHEXT", "SYSTEMDRIVE", "SYSTEMROOT", "TEMP", "USERPROFILE",
)  # fmt: skip
"""Environment variables that a program inherits; API keys and database URLs are not inherited."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program to start as a child process; ``environment`` is its complete environment."""

    command: str
    arguments: tuple[str, ...] = field(default=(), repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: Path = Path()


@dataclass(frozen=True, slots=True)
class HttpEndpoint:
    """A server with the streamable HTTP transport."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """An MCP server and its configured name; times are in seconds.

    ``tools`` is None if all tools are allowed. ``without_effects`` is None if the pinned ``readOnlyHint`` applies.
    """

    name: str
    reach: Program | HttpEndpoint
    tools: tuple[str, ...] | None = None
    without_effects: tuple[str, ...] | None = None
    connect_seconds: float = 30.0
    call_seconds: float | None = None
    max_answer_bytes: int = 1024 * 1024
    stop_seconds: float = 2.0
    """Time for a program to exit after its input is closed; after SIGTERM it has half of it."""


def child_environment(environment: Mapping[str, str], configured: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a program: a few variables of ``environment``, and the configured ones."""
    # bash versions vulnerable to Shellshock (CVE-2014-6271) execute a value that starts with "() {".
    inherited = {
        name: environment[name]
        for name in _INHERITED
        if name in environment and not environment[name].startswith("()")
    }
    return {**inherited, **configured}
