"""Substitute environment variables in values: ``${NAME}``, ``${NAME:-default}``, and ``$${`` for a literal ``${``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

# A default ends at the first brace of either kind: the scan is linear in the length of the text.
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^{}]*))?\}|\$\{")


class Substitution(Struct, frozen=True):
    """A text with its references replaced.

    ``unset`` are variables without value and default, ``has_malformed`` is true if a ``${`` does not start a valid
    reference; in both cases the text is unchanged. ``is_reference`` is true if the whole text is one reference.
    """

    text: str
    unset: tuple[str, ...] = ()
    has_malformed: bool = False
    is_reference: bool = False


def substitute(text: str, environment: Mapping[str, str]) -> Substitution | None:
    """Replace the references in ``text``; None if there are none.

    As in a shell, the default replaces a variable that is unset or empty (POSIX, Parameter Expansion).
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
        return Substitution(text, tuple(unset), has_malformed)
    pieces.append(text[end:])
    whole = _REFERENCE.fullmatch(text)
    return Substitution("".join(pieces), is_reference=whole is not None and whole["name"] is not None)
