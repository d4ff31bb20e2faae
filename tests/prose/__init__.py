"""Check documentation, comments, docstrings, strings and names for words that STYLE rules out.

``rules.toml`` lists the covered paths and the patterns. A pattern has to be wrong in every context, so narrow it
rather than allow exceptions. Inline code is not checked: wire values and quoted identifiers keep their spelling.
Of names, those of functions and classes are checked, and under the paths of ``names`` all that a file defines.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
import tomllib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
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
# No pattern matches over it.
_SEPARATOR = "\n\0\n"
_IDENTIFIER = re.compile(r"[^\W\d]\w*")
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


@dataclass(frozen=True, slots=True)
class Config:
    """The rules, the paths where prose is checked, and those where all names are; relative to the repository."""

    rules: Sequence[Rule]
    paths: Sequence[str]
    names: Sequence[str]


def load_config(path: Path = RULES) -> Config:
    """Read the configuration."""
    config = tomllib.loads(path.read_text("utf-8"))
    rules = [Rule.of(rule["avoid"], rule["write"]) for rule in config["rules"]]
    return Config(rules, config["paths"], config["names"])


def check_config(config: Config, root: Path = ROOT) -> Iterator[Finding]:
    """Yield all findings."""
    yield from check_paths(config.paths, config.rules, root)
    modules = (path for path in _files(config.names, root) if path.suffix == ".py")
    yield from check_names(modules, config.rules, root)


def check_paths(paths: Sequence[str], rules: Sequence[Rule], root: Path = ROOT) -> Iterator[Finding]:
    """Yield the findings in files, and in the files of folders, in order; a path can be a glob pattern."""
    for path in _files(paths, root):
        yield from check_file(path, rules, root)


def _files(paths: Sequence[str], root: Path) -> Iterator[Path]:
    for name in paths:
        matches = sorted(root.glob(name))
        if not matches:
            raise FileNotFoundError(root / name)
        for top in matches:
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                is_covered = path.suffix in SUFFIXES and not SKIPPED.intersection(path.parts)
                if path.is_file() and (is_covered or path == top):
                    yield path


def check_file(path: Path, rules: Sequence[Rule], root: Path = ROOT) -> Sequence[Finding]:
    """Return the findings in the prose of one file, in order."""
    return _findings(path.relative_to(root), _prose_of(path.read_text("utf-8"), path.suffix), rules)


def check_names(paths: Iterable[Path], rules: Sequence[Rule], root: Path = ROOT) -> Iterator[Finding]:
    """Yield the findings in the names that Python files define, in order; those of their imports are not."""
    texts = {path: path.read_text("utf-8") for path in paths}
    words = {path: frozenset(_IDENTIFIER.findall(text)) for path, text in texts.items()}
    # Few words match a rule. One search for them takes a tenth of the time of all syntax trees.
    distinct = sorted(frozenset().union(*words.values()))
    found = _findings(Path(), ((line, _phrase(word)) for line, word in enumerate(distinct)), rules)
    matching = {distinct[finding.line] for finding in found}
    for path, text in texts.items():
        if matching.intersection(words[path]):
            names = ((line, _phrase(name)) for line, name in _names(ast.parse(text)))
            yield from _findings(path.relative_to(root), names, rules)


def _phrase(name: str) -> str:
    return _WORD_BREAK.sub(" ", name)


def _findings(path: Path, pieces: Iterable[tuple[int, str]], rules: Sequence[Rule]) -> Sequence[Finding]:
    """Match the rules with all pieces of text at once, because most files have many short ones."""
    starts: list[int] = []
    lines: list[int] = []
    parts: list[str] = []
    size = 0
    for line, piece in pieces:
        starts.append(size)
        lines.append(line)
        parts.append(piece)
        size += len(piece) + len(_SEPARATOR)
    text = _SEPARATOR.join(parts)
    findings = []
    for rule in rules:
        for found in rule.pattern.finditer(text):
            piece_number = bisect_right(starts, found.start()) - 1
            at = lines[piece_number] + text.count("\n", starts[piece_number], found.start())
            findings.append(Finding(path, at, " ".join(found[0].split()), rule.instead))
    return sorted(findings, key=lambda finding: finding.line)


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the names that the module binds, and the attributes that it sets, with their lines."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name) | ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield node.lineno, name
            case _:
                pass


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
            yield token.start[0], _phrase(token.string)
        previous = token.string


_STRINGS = frozenset(
    number for number, name in tokenize.tok_name.items() if name in ("STRING", "FSTRING_MIDDLE")
)


def _blank(found: re.Match[str]) -> str:
    return "\n" * found[0].count("\n")
