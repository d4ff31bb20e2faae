"""What is wrong in team files: where it stands, a sentence, and the nearest right name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

Path = tuple[str | int, ...]
"""Where something stands in the data: keys and indexes from the top."""

MAX_LINES = 200
_SHOWN_LENGTH = 60


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A place in a file; lines and columns count from 1, and line 0 is the file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(slots=True)
class Mistakes:
    """Collects what is wrong; ``lines`` tells it in the order of the files."""

    _found: dict[tuple[Place, str], tuple[Path, str, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, place: Place, path: Path, what: str, *, wrong: str = "", right: Iterable[str] = ()) -> None:
        """Note a mistake; ``wrong`` is the name that was written, ``right`` those that would have been right.

        A mistake in an anchor is told once, however many aliases repeat it.
        """
        self._found.setdefault((place, what), (path, wrong, tuple(right)))

    def __len__(self) -> int:
        return len(self._found)

    def lines(self) -> list[str]:
        """Return one line for each mistake, at most ``MAX_LINES`` and one that counts the rest."""
        ordered = sorted(self._found.items(), key=lambda entry: entry[0][0])
        lines = []
        for (place, what), (path, wrong, right) in ordered[:MAX_LINES]:
            where = f"{dotted(path)}: " if path else ""
            lines.append(f"{place}: {where}{what}{_hint(wrong, right)}")
        if len(ordered) > MAX_LINES:
            lines.append(f"… and {len(ordered) - MAX_LINES} more")
        return lines


def dotted(path: Path) -> str:
    """``("teams", "shop", "agents", 0)`` → ``teams.shop.agents[0]``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_shortened(part)}"
    return text.removeprefix(".")


def quoted(text: str) -> str:
    """Return ``text`` in single quotes, on one line and at most sixty characters long."""
    return f"'{_shortened(text)}'"


def nearest(wrong: str, right: Sequence[str]) -> str | None:
    """Return the name most like ``wrong``, whatever its case; None when none is like it."""
    if len(wrong) > 100:
        return None
    folded = {name.casefold(): name for name in reversed(right)}
    matches = get_close_matches(wrong.casefold(), folded, n=1)
    return folded[matches[0]] if matches else None


def _hint(wrong: str, right: Sequence[str]) -> str:
    near = nearest(wrong, right) if wrong else None
    if near is not None and near != wrong:
        return f"; did you mean {quoted(near)}?"
    if 0 < len(right) <= 12:
        return f"; there {'is' if len(right) == 1 else 'are'} {', '.join(quoted(name) for name in right)}"
    return ""


def _shortened(text: str) -> str:
    text = "".join(character if character.isprintable() else "?" for character in text[: _SHOWN_LENGTH + 1])
    return text if len(text) <= _SHOWN_LENGTH else f"{text[:_SHOWN_LENGTH]}…"
