"""Report how the current tools of MCP servers differ from the pinned ones, as text for the operator."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from proxy.tools.mcp.pins import Comparison, Pin, Status, compare

_STATES: tuple[tuple[Status, str], ...] = (
    ("same", "as pinned"),
    ("changed", "changed"),
    ("missing", "missing"),
    ("unpinned", "not pinned"),
)
_MAX_LINES = 60
_MAX_LINE = 160


class DiscoveredTools(Struct, frozen=True):
    """The allowed tools that a server lists now; ``failure`` is the reason if it could not be queried."""

    server: str
    tools: Sequence[Pin] = ()
    missing: Sequence[str] = ()
    """Names in the configured list ``tools`` that the server does not have."""
    failure: str = ""
    stderr_tail: str = ""


class Audit(Struct, frozen=True):
    """The lines of a report; ``is_ok`` is false if an exit code should signal a difference or a failure."""

    lines: tuple[str, ...]
    is_ok: bool


def report_differences(found: Sequence[DiscoveredTools], pins: Mapping[str, Mapping[str, Pin]]) -> Audit:
    """Report every difference between the listed and the pinned tools."""
    lines: list[str] = []
    is_ok = True
    for server in found:
        pinned = pins.get(server.server, {})
        comparison = compare(pinned, server.tools)
        if server.failure:
            lines += _failure(server)
        else:
            lines.append(f"{server.server}: {_counts(comparison)}")
            lines += _differences(server, comparison, pinned)
        is_ok &= not (server.failure or server.missing or comparison.names("changed", "missing", "unpinned"))
    return Audit(tuple(lines), is_ok)


def report_accepted(found: Sequence[DiscoveredTools], pins: Mapping[str, Mapping[str, Pin]]) -> Audit:
    """Report what is pinned now and how it differs from the previous ``pins``."""
    lines: list[str] = []
    for server in found:
        if server.failure:
            lines += _failure(server)
            continue
        pinned = pins.get(server.server, {})
        comparison = compare(pinned, server.tools)
        lines.append(f"{server.server}: {_quantity(len(server.tools), 'tool')} pinned")
        lines += [line for tool in server.tools for line in _pinned_tool(tool, comparison, pinned)]
        lines += [f"  - {_printable(name)}: removed from the server" for name in comparison.names("missing")]
        lines += _unknown_names(server)
    return Audit(tuple(lines), not any(server.failure or server.missing for server in found))


def _pinned_tool(tool: Pin, comparison: Comparison, pinned: Mapping[str, Pin]) -> Iterator[str]:
    """Yield the description of a new tool, or the changes of a tool that was pinned before."""
    match comparison.states[tool.name]:
        case "unpinned":
            read_only = ", read-only" if tool.read_only else ""
            yield f"  + {_printable(tool.name)}{read_only}: {_first_line(tool)}"
        case "changed":
            yield f"  ~ {_printable(tool.name)}"
            yield from _difference(pinned[tool.name], tool)
        case _:
            yield f"    {_printable(tool.name)}"


def _differences(server: DiscoveredTools, comparison: Comparison, pinned: Mapping[str, Pin]) -> Iterator[str]:
    tools = {tool.name: tool for tool in server.tools}
    for name in comparison.names("changed"):
        yield f"  ~ {_printable(name)} differs from the pinned tool"
        yield from _difference(pinned[name], tools[name])
    for name in comparison.names("missing"):
        yield f"  - {_printable(name)} is pinned, but removed from the server"
    for name in comparison.names("unpinned"):
        yield f"  + {_printable(name)} is not pinned: {_first_line(tools[name])}"
    yield from _unknown_names(server)


def _unknown_names(server: DiscoveredTools) -> Iterator[str]:
    yield from (
        f"  ! {_printable(name)} is in the list 'tools', but the server has no such tool"
        for name in server.missing
    )


def _first_line(tool: Pin) -> str:
    return _printable(tool.description.strip().partition("\n")[0])


def _difference(old: Pin, new: Pin) -> Iterator[str]:
    """Yield a diff of the description and the input schema of a tool."""
    if old.digest == new.digest:
        yield "      list_tools more than once"
    lines = [
        *_changed_lines(old.description.splitlines(), new.description.splitlines(), "description"),
        *_changed_lines(_schema(old), _schema(new), "input schema"),
    ]
    yield from lines[:_MAX_LINES]
    if len(lines) > _MAX_LINES:
        yield f"      … and {len(lines) - _MAX_LINES} more lines"


def _changed_lines(old: Sequence[str], new: Sequence[str], what: str) -> Iterator[str]:
    changes = list(difflib.unified_diff(old, new, n=1, lineterm=""))[2:]
    if changes:
        yield f"      {what}"
    yield from (f"      {_printable(line)}" for line in changes if not line.startswith("@@"))


def _schema(pin: Pin) -> Sequence[str]:
    return json.dumps(pin.input_schema, indent=2, sort_keys=True, ensure_ascii=False).splitlines()


def _counts(comparison: Comparison) -> str:
    counts = [f"{len(names)} {word}" for status, word in _STATES if (names := comparison.names(status))]
    return ", ".join(counts) or "no tools"


def _failure(server: DiscoveredTools) -> Iterator[str]:
    yield f"{server.server}: the server {server.failure}"
    yield from (f"    | {_printable(line)}" for line in server.stderr_tail.splitlines()[-10:])


def _quantity(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _printable(text: str) -> str:
    """Return text of a server as one terminal line: control and invisible characters replaced, length limited."""
    shown = "".join(character if character.isprintable() else "�" for character in text[: _MAX_LINE + 1])
    return shown if len(text) <= _MAX_LINE else f"{shown[:_MAX_LINE]}…"
