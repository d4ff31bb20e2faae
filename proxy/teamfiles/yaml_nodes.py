"""YAML text into nodes, within bounds, with PyYAML's complaints put into plain words."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.nodes import Node

MAX_NODES = 20_000
MAX_DEPTH = 40


class Unreadable(Exception):
    """A file that cannot be read any further; line and column count from 1, line 0 is the file as a whole."""

    def __init__(self, what: str, line: int = 0, column: int = 0) -> None:
        super().__init__(what)
        self.what = what
        self.line = line
        self.column = column


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with bounds, and plain scalars read as YAML 1.2 does.

    YAML 1.1 takes ``no`` for false, ``010`` for eight, ``12:30`` for 750 and ``1e3`` for text.
    """

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - overrides PyYAML's own table, filled below

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise Unreadable(f"more than {MAX_NODES:,} values", mark.line + 1, mark.column + 1)
        if self._depth >= MAX_DEPTH:
            raise Unreadable(f"nested more than {MAX_DEPTH} levels deep", mark.line + 1, mark.column + 1)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+0123456789.")),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def compose(text: str) -> Node | None:
    """Return the root node of the one document in ``text``; None when there is none.

    Raises:
        Unreadable: Not YAML, or over the bounds.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise _unreadable(error, text) from None
    except yaml.reader.ReaderError as error:
        line, column = line_and_column(text, int(error.position))
        raise Unreadable(
            f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed", line, column
        ) from None
    # PyYAML lets these through for escapes and version numbers that are out of range.
    except (yaml.YAMLError, ValueError, OverflowError):
        raise Unreadable("not valid YAML: an escape or a number is out of range") from None


def plain_value(text: str) -> bool | int | float | str:
    """Read a number or a truth value as it would be read in a file; anything else stays text."""
    for tag, pattern in _Loader.yaml_implicit_resolvers.get(text[:1], ()):
        if tag.endswith((":bool", ":int", ":float")) and pattern.match(text):
            try:
                value: bool | int | float = scalar(tag, text)
            except ValueError:
                return text
            return value
    return text


def scalar(tag: str, text: str) -> Any:
    """Return the value of a scalar with one of the core tags.

    Raises:
        ValueError: The text is none of the tag's, or a number out of range.
    """
    match tag.removeprefix("tag:yaml.org,2002:"):
        case "bool":
            if text.lower() not in ("true", "false"):
                raise ValueError
            return text.lower() == "true"
        case "int":
            # What is written as a number is sent as one, and msgspec sends no more than 64 bits.
            if not -(2**63) <= int(text) < 2**64:
                raise ValueError
            return int(text)
        case "float":
            number = float(text)
            if number - number != 0:
                raise ValueError
            return number
        case "null":
            return None
        case _:
            return text


def line_and_column(text: str, position: int) -> tuple[int, int]:
    """Return line and column, from 1, of a position in ``text``."""
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


_UNCLOSED_QUOTE = "unexpected end of stream"
_PLAIN_WORDS = (
    ("but found another document", "a team file is one YAML document; a second one begins here"),
    ("undefined alias", "no anchor has the name of this alias; text that begins with '*' needs quotes"),
    ("duplicate anchor", "this anchor has the name of another one"),
    ("tag handle", "text that begins with '!' needs quotes"),
    (repr("\t"), "a tab cannot indent; use spaces"),
    ("cannot start any token", "text that begins with this character needs quotes"),
    ("mapping values are not allowed", "a ':' is not expected here; text that holds ': ' needs quotes"),
    ("could not find expected ':'", "expected 'key: value' in the line before this one"),
    (
        "expected the node content",
        "a value is expected here; text that begins with this character needs quotes",
    ),
    ("<document start>", "this does not fit the indentation or the quotes of what stands before it"),
    ("<block end>", "this does not fit the indentation or the quotes of what stands before it"),
    ("',' or ']'", "expected ',' or ']' here; the list begins in line {line}"),
    ("',' or '}'", "expected ',' or '}' here; the mapping begins in line {line}"),
    (_UNCLOSED_QUOTE, "a quoted text is not closed"),
    (
        "unknown escape character",
        "in double quotes a '\\' begins an escape, and this is none; use single quotes",
    ),
)


def _unreadable(error: yaml.MarkedYAMLError, text: str) -> Unreadable:
    context, mark = error.context_mark, error.problem_mark or error.context_mark
    if mark is None:
        return Unreadable(_in_plain_words(error, 0))
    line = context.line + 1 if context else mark.line + 1
    if context and _UNCLOSED_QUOTE in (error.problem or ""):
        return Unreadable(_in_plain_words(error, line), line, context.column + 1)
    if text[mark.index - 1 : mark.index + 1] == "${":
        what = "not valid YAML: between brackets or braces, ${NAME} needs quotes"
    else:
        what = _in_plain_words(error, line)
    return Unreadable(what, mark.line + 1, mark.column + 1)


def _in_plain_words(error: yaml.MarkedYAMLError, line: int) -> str:
    told = f"{error.context} {error.problem}"
    for part, words in _PLAIN_WORDS:
        if part in told:
            return f"not valid YAML: {words.replace('{line}', str(line))}"
    # What PyYAML quotes may come out of the file, where a secret may stand in the wrong place.
    unquoted = re.sub(r"\s*\b(?:but )?(?:found )?(['\"]).*\1", "", error.problem or "")
    return f"not valid YAML: {unquoted.rstrip(' ,;:') or 'this cannot be read'}"
