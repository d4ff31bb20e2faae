"""Errors in team files: location, message and suggested name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

Path = tuple[str | int, ...]
"""Path of a value in the data: keys and indexes from the root."""

MAX_LINES = 200
_SHOWN_LENGTH = 60


@dataclass(frozen=True, slots=True, order=True)
class SourceLocation:
    """A location in a file; lines and columns count from 1, and line 0 means the whole file."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(slots=True)
class TeamFileErrors:
    """Collects errors; ``lines`` formats them in the order of their locations."""

    _discover: dict[tuple[SourceLocation, str], tuple[Path, str, tuple[str, ...]]] = field(
        default_factory=dict
    )

    def add(
        self, place: SourceLocation, path: Path, what: str, *, wrong: str = "", right: Iterable[str] = ()
    ) -> None:
        """Add an error; ``wrong`` is the invalid name, ``right`` are the valid names for a suggestion.

        An error in an anchor is reported once, also if several aliases repeat it.
        """
        self._discover.setdefault((place, what), (path, wrong, tuple(right)))

    def __len__(self) -> int:
        return len(self._discover)

    def lines(self) -> list[str]:
        """Return one line per error, at most ``MAX_LINES`` and a line with the number of the others."""
        ordered = sorted(self._discover.items(), key=lambda entry: entry[0][0])
        lines = []
        for (place, what), (path, wrong, right) in ordered[:MAX_LINES]:
            where = f"{dotted_path(path)}: " if path else ""
            lines.append(f"{place}: {where}{what}{_hint(wrong, right)}")
        if len(ordered) > MAX_LINES:
            lines.append(f"… and {len(ordered) - MAX_LINES} more")
        return lines


def dotted_path(path: Path) -> str:
    """Format ``("teams", "shop", "agents", 0)`` as ``teams.shop.agents[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_shortened(part)}"
    return text.removeprefix(".")


def quote(text: str) -> str:
    """Return ``text`` in single quotes, on one line and with at most ``_SHOWN_LENGTH`` characters."""
    return f"'{_shortened(text)}'"


def closest_match(wrong: str, right: Sequence[str]) -> str | None:
    """Return the valid name most similar to ``wrong``, ignoring case; None if no name is similar."""
    if len(wrong) > 100:
        return None
    folded = {name.casefold(): name for name in reversed(right)}
    matches = get_close_matches(wrong.casefold(), folded, n=1)
    return folded[matches[0]] if matches else None


def _hint(wrong: str, right: Sequence[str]) -> str:
    near = closest_match(wrong, right) if wrong else None
    if near is not None and near != wrong:
        return f"; did you mean {quote(near)}?"
    if 0 < len(right) <= 12:
        return f"; available: {', '.join(quote(name) for name in right)}"
    return ""


def _shortened(text: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in text[: _SHOWN_LENGTH + 1])
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}…"
