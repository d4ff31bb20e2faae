"""The lock file ``mcp-tools.lock`` next to the team files: the MCP tools that the operator accepted.

It is indented JSON, sorted by server and tool, so that changes can be reviewed in a diff::

    {"version": 1, "servers": {"files": {"read_file": {"sha256": "…", "description": "…", "input_schema": {…}}}}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from proxy.errors import ConfigurationError
from proxy.tools.mcp.pins import Pin

FILE_NAME = "mcp-tools.lock"
_VERSION = 1
_MAX_BYTES = 16 * 1024 * 1024

Pins = Mapping[str, Mapping[str, Pin]]
"""Pinned tools by server and tool name."""


class _Tool(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    sha256: str
    description: str
    input_schema: dict[str, Any]
    read_only: bool = False


class _Lock(msgspec.Struct, forbid_unknown_fields=True):
    version: int
    servers: dict[str, dict[str, _Tool]]


def read_lock(folder: Path) -> Pins:
    """Return the pins in the lock file of a folder; empty if there is no such file.

    Raises:
        ConfigurationError: The file is invalid or unreadable; the message is written to follow the path.
    """
    path = folder / FILE_NAME
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror or 'unknown reason'}") from None
    if len(content) > _MAX_BYTES:
        raise ConfigurationError(f"is larger than {_MAX_BYTES:,} bytes")
    try:
        lock = msgspec.json.decode(content, type=_Lock)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ConfigurationError("not a valid lock file; recreate it with 'handoff-proxy mcp pin'") from None
    if lock.version != _VERSION:
        raise ConfigurationError("unsupported lock file version; recreate it with 'handoff-proxy mcp pin'")
    return {server: _pins(server, tools) for server, tools in lock.servers.items()}


def write_lock(folder: Path, pins: Pins) -> Path:
    """Write the lock file of a folder atomically and return its path.

    Raises:
        ConfigurationError: It cannot be written.
    """
    servers = {
        server: {name: _encode(pin) for name, pin in sorted(tools.items())}
        for server, tools in sorted(pins.items())
    }
    path = folder / FILE_NAME
    temporary = path.with_name(f".{FILE_NAME}.new")
    try:
        text = json.dumps({"version": _VERSION, "servers": servers}, indent=2, ensure_ascii=False)
        temporary.write_text(f"{text}\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror or 'unknown reason'}") from None
    return path


def _pins(server: str, tools: Mapping[str, _Tool]) -> Mapping[str, Pin]:
    pins = {
        name: Pin(name, tool.description, tool.input_schema, tool.read_only) for name, tool in tools.items()
    }
    for name, pin in pins.items():
        if pin.digest != tools[name].sha256:
            raise ConfigurationError(
                f"tool {_quote(name)} of server {_quote(server)} does not match its hash: the file was edited; "
                "pin the tool again with 'handoff-proxy mcp pin'"
            )
    return pins


def _quote(name: str) -> str:
    """Return a name from a server in quotation marks, shortened and with non-printable characters replaced."""
    shown = "".join(character if character.isprintable() else "?" for character in name[:60])
    return f"'{shown}'"


def _encode(pin: Pin) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "sha256": pin.digest,
        "description": pin.description,
        "input_schema": pin.input_schema,
    }
    return {**encoded, "read_only": True} if pin.read_only else encoded
