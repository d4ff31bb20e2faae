"""How an MCP server is reached, as the operator set it up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PASSED_ON = (
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "TMPDIR", "TZ", "USER",
    # Without these, hardly a program runs on Windows.
    "APPDATA", "COMSPEC", "LOCALAPPDATA", "PATHEXT", "SYSTEMDRIVE", "SYSTEMROOT", "TEMP", "USERPROFILE",
)  # fmt: skip
"""What a program is given of our environment; keys and database URLs are not among it."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is started as a child process; ``environment`` is all that it is given."""

    command: str
    arguments: tuple[str, ...] = field(default=(), repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    folder: Path = Path()


@dataclass(frozen=True, slots=True)
class Address:
    """A server that is asked over streamable HTTP."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """An MCP server by the operator's name for it; times are in seconds.

    ``tools`` is None when all are allowed; ``without_effects`` when what the server said as it was pinned decides.
    """

    name: str
    reach: Program | Address
    tools: tuple[str, ...] | None = None
    without_effects: tuple[str, ...] | None = None
    connect_seconds: float = 30.0
    call_seconds: float | None = None
    max_answer_bytes: int = 1024 * 1024
    stop_seconds: float = 2.0
    """What a program is given to end when its input is closed; after SIGTERM it is given half of it."""


def child_environment(ours: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a program: a few variables of ``ours``, and what it is ``given``."""
    # A value like "() {" is a function of a shell that some shells would run.
    safe = {name: ours[name] for name in _PASSED_ON if name in ours and not ours[name].startswith("()")}
    return {**safe, **given}
