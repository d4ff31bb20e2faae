"""What MCP servers tell of their tools now, beside what was pinned, in lines for the operator."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from proxy.tools.mcp.pins import Comparison, Pin, Status, compared

_STATES: tuple[tuple[Status, str], ...] = (
    ("same", "as pinned"),
    ("changed", "changed"),
    ("missing", "missing"),
    ("unpinned", "not pinned"),
)
_MAX_LINES = 60
_MAX_LINE = 160


@dataclass(frozen=True, slots=True)
class Found:
    """What a server tells of the tools that agents may have; ``trouble`` says why it tells nothing."""

    server: str
    tools: Sequence[Pin] = ()
    missing: Sequence[str] = ()
    """Tools that the operator's list names and the server does not have."""
    trouble: str = ""
    last_words: str = ""


@dataclass(frozen=True, slots=True)
class Audit:
    """Lines for people, and whether all is well."""

    lines: tuple[str, ...]
    is_well: bool


def checked(found: Sequence[Found], pins: Mapping[str, Mapping[str, Pin]]) -> Audit:
    """Compare what was found with what is pinned, and tell every difference."""
    lines: list[str] = []
    is_well = True
    for server in found:
        pinned = pins.get(server.server, {})
        comparison = compared(pinned, server.tools)
        if server.trouble:
            lines += _trouble(server)
        else:
            lines.append(f"{server.server}: {_counted(comparison)}")
            lines += _differences(server, comparison, pinned)
        is_well &= not (
            server.trouble or server.missing or comparison.names("changed", "missing", "unpinned")
        )
    return Audit(tuple(lines), is_well)


def accepted(found: Sequence[Found], pins: Mapping[str, Mapping[str, Pin]]) -> Audit:
    """Tell what is pinned now; ``pins`` is what was before."""
    lines: list[str] = []
    for server in found:
        if server.trouble:
            lines += _trouble(server)
            continue
        pinned = pins.get(server.server, {})
        comparison = compared(pinned, server.tools)
        lines.append(f"{server.server}: {_words(len(server.tools), 'tool')} pinned")
        lines += [line for tool in server.tools for line in _tool(tool, comparison, pinned)]
        lines += [f"  - {_clean(name)}: the server has it no more" for name in comparison.names("missing")]
        lines += _not_there(server)
    return Audit(tuple(lines), not any(server.trouble or server.missing for server in found))


def _tool(tool: Pin, comparison: Comparison, pinned: Mapping[str, Pin]) -> Iterator[str]:
    """Tell of a tool that is being pinned: what it is, when it is new, or how it has changed."""
    match comparison.states[tool.name]:
        case "unpinned":
            only_reads = ", only reads" if tool.read_only else ""
            yield f"  + {_clean(tool.name)}{only_reads}: {_first_line(tool)}"
        case "changed":
            yield f"  ~ {_clean(tool.name)}"
            yield from _difference(pinned[tool.name], tool)
        case _:
            yield f"    {_clean(tool.name)}"


def _differences(server: Found, comparison: Comparison, pinned: Mapping[str, Pin]) -> Iterator[str]:
    tools = {tool.name: tool for tool in server.tools}
    for name in comparison.names("changed"):
        yield f"  ~ {_clean(name)} is not what was pinned"
        yield from _difference(pinned[name], tools[name])
    for name in comparison.names("missing"):
        yield f"  - {_clean(name)} is pinned, and the server has it no more"
    for name in comparison.names("unpinned"):
        yield f"  + {_clean(name)} is not pinned: {_first_line(tools[name])}"
    yield from _not_there(server)


def _not_there(server: Found) -> Iterator[str]:
    yield from (
        f"  ! {_clean(name)} is in the list 'tools', and the server has no such tool"
        for name in server.missing
    )


def _first_line(tool: Pin) -> str:
    return _clean(tool.description.strip().partition("\n")[0])


def _difference(old: Pin, new: Pin) -> Iterator[str]:
    """Tell how a tool has changed, line by line."""
    if old.digest == new.digest:
        yield "      listed more than once"
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
    yield from (f"      {_clean(line)}" for line in changes if not line.startswith("@@"))


def _schema(pin: Pin) -> Sequence[str]:
    return json.dumps(pin.input_schema, indent=2, sort_keys=True, ensure_ascii=False).splitlines()


def _counted(comparison: Comparison) -> str:
    told = [f"{len(names)} {word}" for status, word in _STATES if (names := comparison.names(status))]
    return ", ".join(told) or "no tools"


def _trouble(server: Found) -> Iterator[str]:
    yield f"{server.server}: the server {server.trouble}"
    yield from (f"    | {_clean(line)}" for line in server.last_words.splitlines()[-10:])


def _words(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _clean(text: str) -> str:
    """Return what a server wrote, fit for one line of a terminal: nothing in it can move the cursor or hide."""
    shown = "".join(character if character.isprintable() else "�" for character in text[: _MAX_LINE + 1])
    return shown if len(text) <= _MAX_LINE else f"{shown[:_MAX_LINE]}…"
