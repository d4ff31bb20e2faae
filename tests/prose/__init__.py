"""Check documentation, comments, docstrings, strings and names for words that STYLE rules out.

``rules.toml`` lists the covered paths and the patterns. A pattern has to be wrong in every context, so narrow it
rather than allow exceptions. Inline code is not checked: wire values and quoted identifiers keep their spelling.
"""

from __future__ import annotations

import io
import re
import tokenize
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RULES = Path(__file__).with_name("rules.toml")
SUFFIXES = frozenset((".css", ".html", ".ini", ".js", ".md", ".py", ".toml", ".yaml"))
SKIPPED = frozenset(("__pycache__", "node_modules", "vendor"))

_MARKDOWN_CODE = re.compile(r"`[^`\n]+`|\]\([^)\s]+\)")
_DOCSTRING_CODE = re.compile(r"``[^`]+``")
# Before Python 3.12 an f-string is one token, with the expressions in it.
_FORMATTED = re.compile(r"(?i:f|fr|rf)['\"]")
_FORMATTED_CODE = re.compile(r"``[^`]+``|\{[^{}]*\}")
_WORD_BREAK = re.compile(r"_+|(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern of words to avoid, and the words to write instead."""

    pattern: re.Pattern[str]
    instead: str

    @classmethod
    def of(cls, avoid: str, instead: str) -> Rule:
        """Return the rule for a regular expression; a space in it also matches a line break."""
        return cls(re.compile(avoid.replace(" ", r"\s+"), re.IGNORECASE), instead)


@dataclass(frozen=True, slots=True)
class Finding:
    """A match of a rule; ``line`` counts from 1."""

    path: Path
    line: int
    text: str
    instead: str

    def __str__(self) -> str:
        """Return the finding in the format of compilers, which editors can jump to."""
        return f"{self.path}:{self.line}: '{self.text}': write {self.instead}"


def load_config(path: Path = RULES) -> tuple[Sequence[str], Sequence[Rule]]:
    """Return the covered paths, relative to the repository, and the rules."""
    config = tomllib.loads(path.read_text("utf-8"))
    return config["paths"], [Rule.of(rule["avoid"], rule["write"]) for rule in config["rules"]]


def check_paths(paths: Sequence[str], rules: Sequence[Rule], root: Path = ROOT) -> Iterator[Finding]:
    """Yield the findings in files, and in the files of folders, in order; a path can be a glob pattern."""
    for name in paths:
        matches = sorted(root.glob(name))
        if not matches:
            raise FileNotFoundError(root / name)
        for top in matches:
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                is_covered = path.suffix in SUFFIXES and not SKIPPED.intersection(path.parts)
                if path.is_file() and (is_covered or path == top):
                    yield from check_file(path, rules, root)


def check_file(path: Path, rules: Sequence[Rule], root: Path = ROOT) -> Iterator[Finding]:
    """Yield the findings in one file, in order."""
    text = path.read_text("utf-8")
    for line, prose in _prose_of(text, path.suffix):
        for rule in rules:
            for found in rule.pattern.finditer(prose):
                at = line + prose.count("\n", 0, found.start())
                yield Finding(path.relative_to(root), at, " ".join(found[0].split()), rule.instead)


def _prose_of(text: str, suffix: str) -> Iterator[tuple[int, str]]:
    """Yield pieces of prose with the line on which each starts."""
    if suffix == ".py":
        yield from _prose_of_python(text)
    elif suffix == ".md":
        yield 1, _MARKDOWN_CODE.sub(_blank, text)
    else:
        yield 1, text


def _prose_of_python(text: str) -> Iterator[tuple[int, str]]:
    previous = ""
    comment: list[str] = []
    comment_at = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comment_at = comment_at or token.start[0]
            comment.append(token.string.lstrip("#"))
        elif token.type != tokenize.NL and comment:
            yield comment_at, "\n".join(comment)
            comment, comment_at = [], 0
        if token.type in _STRINGS:
            code = _FORMATTED_CODE if _FORMATTED.match(token.string) else _DOCSTRING_CODE
            yield token.start[0], code.sub(_blank, token.string)
        elif token.type == tokenize.NAME and previous in ("def", "class"):
            yield token.start[0], _WORD_BREAK.sub(" ", token.string)
        previous = token.string


_STRINGS = frozenset(
    number for number, name in tokenize.tok_name.items() if name in ("STRING", "FSTRING_MIDDLE")
)


def _blank(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")
