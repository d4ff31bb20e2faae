"""Parse YAML into nodes, with limits on size and nesting and readable messages for PyYAML's errors."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent, NodeEvent, ScalarEvent
from yaml.nodes import Node

MAX_NODES = 20_000
MAX_DEPTH = 40


class UnreadableFile(Exception):
    """Reading a file failed; line and column count from 1, and line 0 means the whole file."""

    def __init__(self, what: str, line: int = 0, column: int = 0) -> None:
        super().__init__(what)
        self.what = what
        self.line = line
        self.column = column


class _Loader(yaml.SafeLoader):
    """PyYAML's composer with limits, and with plain scalars resolved as in YAML 1.2 (10.3.2, core schema).

    YAML 1.1 reads ``no`` as false, ``010`` as 8, ``12:30`` as 750 and ``1e3`` as a string.
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
            raise UnreadableFile(f"more than {MAX_NODES:,} values", mark.line + 1, mark.column + 1)
        if self._depth >= MAX_DEPTH:
            raise UnreadableFile(f"nested more than {MAX_DEPTH} levels deep", mark.line + 1, mark.column + 1)
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


class _FastLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """libyaml's composer: ten times as fast, without limits and readable messages, and optional in PyYAML."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


def compose(text: str) -> Node | None:
    """Return the root node of the only document in ``text``; None if it is empty.

    Raises:
        UnreadableFile: The text is not valid YAML, or exceeds a limit.
    """
    root = compose_fast(text)
    return root if root is not None else compose_slowly(text)


def compose_fast(text: str) -> Node | None:
    """Return the root node; None if ``compose_slowly`` has to decide or to report."""
    try:
        # libyaml's composer is recursive and not limited, so that the limits are checked first.
        if not _is_ordinary(text):
            return None
        loader = _FastLoader(text)
        try:
            root: Node | None = loader.get_single_node()
            return root
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, OverflowError):
        return None


def _is_ordinary(text: str) -> bool:
    count = depth = 0
    for event in yaml.parse(text, _FastLoader):
        if isinstance(event, CollectionEndEvent):
            depth -= 1
        elif isinstance(event, NodeEvent):
            count += 1
            depth += isinstance(event, CollectionStartEvent)
            # The scalars in a collection are one level deeper. libyaml's position of a missing value is another one.
            is_missing = isinstance(event, ScalarEvent) and not event.value and not event.style
            if count > MAX_NODES or depth >= MAX_DEPTH or is_missing:
                return False
    return True


def compose_slowly(text: str) -> Node | None:
    """``compose`` in Python."""
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
        raise UnreadableFile(
            f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed", line, column
        ) from None
    # PyYAML raises these for escapes and version numbers that are out of range.
    except (yaml.YAMLError, ValueError, OverflowError):
        raise UnreadableFile("not valid YAML: an escape or a number is out of range") from None


def plain_value(text: str) -> bool | int | float | str:
    """Convert a number or boolean as the parser does; return other text unchanged."""
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
        ValueError: The text is not valid for the tag, or the number is out of range.
    """
    match tag.removeprefix("tag:yaml.org,2002:"):
        case "bool":
            if text.lower() not in ("true", "false"):
                raise ValueError
            return text.lower() == "true"
        case "int":
            # Numbers are sent to providers as numbers, and msgspec encodes at most 64 bits.
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
    """Return line and column of a position in ``text``; both count from 1."""
    return text.count("\n", 0, position) + 1, position - text.rfind("\n", 0, position)


_UNCLOSED_QUOTE = "unexpected end of stream"
_CONTINUATION = (
    "not valid YAML: unexpected ':'; the indentation makes this line a part of the text in the line before it"
)
_MESSAGES = (
    ("but found another document", "a team file must be one YAML document; a second one starts here"),
    ("undefined alias", "this alias has no anchor; text that starts with '*' needs quotes"),
    ("duplicate anchor", "an anchor with this name already exists"),
    ("tag handle", "text that starts with '!' needs quotes"),
    (repr("\t"), "tabs are not allowed for indentation; use spaces"),
    ("cannot start any token", "text that starts with this character needs quotes"),
    ("mapping values are not allowed", "unexpected ':'; text that contains ': ' needs quotes"),
    ("could not find expected ':'", "expected 'key: value' in the line before this one"),
    (
        "expected the node content",
        "expected a value; text that starts with this character needs quotes",
    ),
    ("<document start>", "this does not match the indentation or quotes of the preceding lines"),
    ("<block end>", "this does not match the indentation or quotes of the preceding lines"),
    ("',' or ']'", "expected ',' or ']' here; the list starts in line {line}"),
    ("',' or '}'", "expected ',' or '}' here; the mapping starts in line {line}"),
    (_UNCLOSED_QUOTE, "unclosed quotation mark"),
    (
        "unknown escape character",
        "invalid escape in double quotes; use single quotes for a literal '\\'",
    ),
)


def _unreadable(error: yaml.MarkedYAMLError, text: str) -> UnreadableFile:
    context, mark = error.context_mark, error.problem_mark or error.context_mark
    if mark is None:
        return UnreadableFile(_message(error, 0))
    line = context.line + 1 if context else mark.line + 1
    if context and _UNCLOSED_QUOTE in (error.problem or ""):
        return UnreadableFile(_message(error, line), line, context.column + 1)
    if text[mark.index - 1 : mark.index + 1] == "${":
        what = "not valid YAML: between brackets or braces, ${NAME} needs quotes"
    elif "mapping values are not allowed" in (error.problem or "") and _is_key(text, mark.index):
        what = _CONTINUATION
    else:
        what = _message(error, line)
    return UnreadableFile(what, mark.line + 1, mark.column + 1)


def _is_key(text: str, colon: int) -> bool:
    """Whether a colon is the first one in its line, so that the text before it was meant as a key."""
    return ":" not in text[text.rfind("\n", 0, colon) + 1 : colon]


def _message(error: yaml.MarkedYAMLError, line: int) -> str:
    original = f"{error.context} {error.problem}"
    for part, message in _MESSAGES:
        if part in original:
            return f"not valid YAML: {message.replace('{line}', str(line))}"
    # Remove quoted text: it comes from the file and can be a misplaced secret.
    unquoted = re.sub(r"\s*\b(?:but )?(?:found )?(['\"]).*\1", "", error.problem or "")
    return f"not valid YAML: {unquoted.rstrip(' ,;:') or 'syntax error'}"
