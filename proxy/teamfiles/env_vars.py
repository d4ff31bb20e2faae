"""Environment variables named in values: ``${NAME}``, ``${NAME:-default}``, and ``$${`` for a literal ``${``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# A default ends at the first brace of either kind, so that scanning a text stays linear in its length.
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\}|\$\{")


@dataclass(frozen=True, slots=True)
class Substituted:
    """A text with its references replaced.

    ``unset`` are variables without value and default, ``has_malformed`` tells of a ``${`` that opens no reference;
    both leave the text as it was. ``is_reference`` tells that the text was one reference and nothing else.
    """

    text: str
    unset: tuple[str, ...] = ()
    has_malformed: bool = False
    is_reference: bool = False


def substitute(text: str, environment: Mapping[str, str]) -> Substituted | None:
    """Replace the references in ``text``; None when there are none.

    As in a shell, a default stands in for a variable that is unset or empty.
    """
    if "${" not in text:
        return None
    pieces: list[str] = []
    unset: dict[str, None] = {}
    has_malformed = False
    end = 0
    for match in _REFERENCE.finditer(text):
        pieces.append(text[end : match.start()])
        end = match.end()
        name, default = match["name"], match["default"]
        if match[0] == "$${":
            pieces.append("${")
        elif name is None:
            has_malformed = True
        elif default is not None:
            pieces.append(environment.get(name) or default)
        elif name in environment:
            pieces.append(environment[name])
        else:
            unset[name] = None
    if unset or has_malformed:
        return Substituted(text, tuple(unset), has_malformed)
    pieces.append(text[end:])
    whole = _REFERENCE.fullmatch(text)
    return Substituted("".join(pieces), is_reference=whole is not None and whole["name"] is not None)
