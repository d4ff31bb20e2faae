"""Parse a team file into plain data with the source location of each key and value.

Environment variables are substituted after parsing, so that a value cannot add structure. Error messages quote the text
of the file and never the value of a variable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from proxy.teamfiles.diagnostics import Path, SourceLocation, TeamFileErrors, quote
from proxy.teamfiles.env_vars import Substitution, substitute
from proxy.teamfiles.yaml_nodes import (
    MAX_DEPTH,
    MAX_NODES,
    UnreadableFile,
    compose,
    line_and_column,
    plain_value,
    scalar,
)

MAX_BYTES = 1024 * 1024
_MAX_UNSET = 20

_CORE = "tag:yaml.org,2002:"
_SCALARS = frozenset(_CORE + name for name in ("str", "int", "float", "bool", "null", "merge"))


@dataclass(slots=True)
class Source:
    """The data of one or more files, with the locations of keys and values.

    ``is_complete`` is false if one of several files could not be read, so that names can be missing; ``has_all_teams``
    is false if it was a team file. ``invalid`` paths already have an error; further errors would be consequences and
    are not added.
    """

    errors: TeamFileErrors
    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[Path, SourceLocation] = field(default_factory=dict)
    values: dict[Path, SourceLocation] = field(default_factory=dict)
    substituted: dict[Path, str] = field(default_factory=dict)
    invalid: set[Path] = field(default_factory=set)
    is_complete: bool = True
    has_all_teams: bool = True

    def add_error(
        self, path: Path, what: str, *, at_key: bool = False, wrong: str = "", right: Iterable[str] = ()
    ) -> None:
        """Add an error for the value at ``path``, or for its key."""
        if path not in self.invalid:
            self.errors.add(self.location(path, at_key=at_key), path, what, wrong=wrong, right=right)

    def add_unknown_key(self, path: Path, what: str, right: Iterable[str]) -> None:
        """Add an error for a key that is unknown in its mapping."""
        self.errors.add(self.location(path, at_key=True), path[:-1], what, wrong=str(path[-1]), right=right)

    def location(self, path: Path, *, at_key: bool = False) -> SourceLocation:
        """Return the location of the value at ``path`` or of its key; if it has none, that of the enclosing value."""
        places = (self.keys, self.values) if at_key else (self.values, self.keys)
        while True:
            for known in places:
                if path in known:
                    return known[path]
            path = path[:-1]

    def quote_value(self, path: Path, value: str) -> str:
        """Return a string in quotes, as written in the file (before substitution)."""
        return quote(self.substituted.get(path, value))

    def value(self, path: Path) -> Any:
        """Return the value at ``path``; None if there is none."""
        value: Any = self.data
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def moved_to(self, path: Path) -> Source:
        """Return the same source with all of its data under the keys of ``path``."""
        data: dict[str, Any] = self.data
        for key in reversed(path):
            data = {str(key): data}
        top = self.values[()]
        enclosing = {path[:length]: top for length in range(len(path))}
        return Source(
            self.errors,
            data,
            keys={path[: length + 1]: top for length in range(len(path))}
            | {(*path, *inner): place for inner, place in self.keys.items()},
            values=enclosing | {(*path, *inner): place for inner, place in self.values.items()},
            substituted={(*path, *inner): raw for inner, raw in self.substituted.items()},
            invalid={(*path, *inner) for inner in self.invalid},
            is_complete=self.is_complete,
        )

    def merge_section(self, other: Source, section: str, *, replaced: Collection[str] = ()) -> None:
        """Add the names in ``section`` of ``other``, except those in ``replaced``.

        Any other name that already exists is an error.
        """
        added = other.data.get(section)
        if not isinstance(added, dict):
            return
        existing = self.data.setdefault(section, {})
        taken = set()
        for name, value in added.items():
            path = (section, name)
            if name in replaced:
                continue
            if name in existing:
                self.errors.add(other.keys[path], path, f"is already defined at {self.keys[path]}")
            else:
                existing[name] = value
                taken.add(path)
        self.keys.update((path, place) for path, place in other.keys.items() if path[:2] in taken)
        self.values.update((path, place) for path, place in other.values.items() if path[:2] in taken)
        self.substituted.update((path, raw) for path, raw in other.substituted.items() if path[:2] in taken)
        self.invalid.update(path for path in other.invalid if path[:2] in taken)


def read_source(
    file: FilePath,
    environment: Mapping[str, str],
    errors: TeamFileErrors,
    *,
    is_untyped: Callable[[Path], bool],
) -> Source | None:
    """Read a file; None if it is not a readable YAML mapping.

    If ``is_untyped`` is true for a path, an unquoted reference to a variable is converted to a number or boolean where
    its value has this format; for other paths the schema converts it.
    """
    try:
        text = _text(file)
        root = compose(text)
        if root is None or (isinstance(root, ScalarNode) and not root.value):
            raise UnreadableFile("the file is empty", 1, 1)
        if not isinstance(root, MappingNode):
            mark = root.start_mark
            raise UnreadableFile(
                "expected a mapping with 'teams' and 'models'", mark.line + 1, mark.column + 1
            )
        reader = _Reader(str(file), text, environment, Source(errors), is_untyped)
        return reader.read(root)
    except UnreadableFile as error:
        errors.add(SourceLocation(str(file), error.line, error.column), (), error.what)
        return None


def _text(file: FilePath) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise UnreadableFile(f"cannot be read: {error.strerror or 'unknown reason'}") from None
    if len(content) > MAX_BYTES:
        raise UnreadableFile(f"is larger than {MAX_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UnreadableFile("is not UTF-8 text", line, 1) from None


class _Reader:
    """Converts the nodes of one file to data; resolved aliases count towards the limit of nodes."""

    def __init__(
        self,
        file: str,
        text: str,
        environment: Mapping[str, str],
        source: Source,
        is_untyped: Callable[[Path], bool],
    ) -> None:
        self._file = file
        self._text = text
        self._environment = environment
        self._source = source
        self._is_untyped = is_untyped
        self._read = 0
        self._open: set[int] = set()
        # By id of the node or text: a long text is processed once, also if many aliases repeat it.
        self._substituted: dict[int, Substitution | None] = {}
        self._encodable: set[int] = set()
        self._reported: set[int] = set()

    def read(self, root: MappingNode) -> Source:
        self._source.values[()] = self._place(root)
        self._source.data = self._mapping(root, ())
        return self._source

    def _value(self, node: Node, path: Path) -> Any:
        self._count_node()
        if len(path) > MAX_DEPTH:
            raise self._unreadable(node, f"nested more than {MAX_DEPTH} levels deep")
        self._source.values[path] = self._place(node)
        if isinstance(node, ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node, path)
        if isinstance(node, MappingNode) and node.tag == f"{_CORE}map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == f"{_CORE}seq":
            return self._sequence(node, path)
        return self._add_invalid(path, "YAML tags are not supported; text that starts with '!' needs quotes")

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in self._pairs(node, path):
            inner = (*path, key.value)
            self._source.keys[inner] = self._place(key)
            data[key.value] = self._value(value, inner)
        return data

    def _pairs(self, node: MappingNode, path: Path) -> Iterator[tuple[ScalarNode, Node]]:
        """Yield keys and values, each key once; values of merge keys (``<<``) come after those of the mapping."""
        if id(node) in self._open:
            raise self._unreadable(node, "an alias refers to a value that contains it")
        self._open.add(id(node))
        seen: dict[str, ScalarNode] = {}
        merged: list[Node] = []
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._add(key, path, "a key must be a string")
            elif key.tag == f"{_CORE}merge":
                merged += value.value if isinstance(value, SequenceNode) else [value]
            elif key.value in seen:
                first = self._place(seen[key.value])
                self._add(key, (*path, key.value), f"is already defined in line {first.line}")
            elif self._is_encodable(key, key.value, (*path, "…")):
                seen[key.value] = key
                yield key, value
        for other in merged:
            self._count_node()
            if not isinstance(other, MappingNode):
                self._add(other, path, "'<<' merges a mapping, or a list of mappings")
                continue
            for key, value in self._pairs(other, path):
                self._count_node()
                if key.value not in seen:
                    seen[key.value] = key
                    yield key, value
        self._open.remove(id(node))

    def _sequence(self, node: SequenceNode, path: Path) -> list[Any]:
        if id(node) in self._open:
            raise self._unreadable(node, "an alias refers to a value that contains it")
        self._open.add(id(node))
        items = [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        self._open.remove(id(node))
        return items

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        if node.tag not in (f"{_CORE}str", f"{_CORE}merge"):
            try:
                return scalar(node.tag, node.value)
            except ValueError:
                return self._add_invalid(path, "is not a valid number or boolean; text needs quotes")
        if id(node) not in self._substituted:
            self._substituted[id(node)] = substitute(node.value, self._environment)
        found = self._substituted[id(node)]
        if found is None:
            text = node.value
        elif found.unset or found.has_malformed:
            if id(node) not in self._reported:
                self._add_reference_error(node, path, found.unset)
            self._reported.add(id(node))
            self._source.invalid.add(path)
            return node.value
        else:
            self._source.substituted[path] = node.value
            text = found.text
        self._is_encodable(node, text, path)
        is_open = found is not None and found.is_reference and not node.style and self._is_untyped(path)
        return plain_value(text) if is_open else text

    def _add_reference_error(self, node: ScalarNode, path: Path, unset: tuple[str, ...]) -> None:
        for name in unset[:_MAX_UNSET]:
            what = f"environment variable {name} is not set; set it or use ${{{name}:-default}}"
            self._source.errors.add(self._place(node, f"${{{name}}}"), path, what)
        if not unset:
            what = "'${' starts a variable, as in ${NAME} or ${NAME:-default}; for a literal '${' write '$${'"
            self._source.errors.add(self._place(node, "${"), path, what)

    def _is_encodable(self, node: Node, text: str, path: Path) -> bool:
        """Return whether ``text`` can be encoded as UTF-8: escapes and variables can contain unpaired surrogates."""
        if id(text) in self._encodable:
            return True
        try:
            text.encode()
        except UnicodeEncodeError:
            self._source.values.setdefault(path, self._place(node))
            self._add_invalid(path, "contains text that is not valid Unicode")
            return False
        self._encodable.add(id(text))
        return True

    def _add_invalid(self, path: Path, what: str) -> None:
        self._source.add_error(path, what)
        self._source.invalid.add(path)

    def _add(self, node: Node, path: Path, what: str) -> None:
        self._source.errors.add(self._place(node), path, what)

    def _count_node(self) -> None:
        self._read += 1
        if self._read > MAX_NODES:
            raise UnreadableFile(f"more than {MAX_NODES:,} values after resolving aliases")

    def _unreadable(self, node: Node, what: str) -> UnreadableFile:
        place = self._place(node)
        return UnreadableFile(what, place.line, place.column)

    def _place(self, node: Node, part: str = "") -> SourceLocation:
        """Return the location of a node, or of a part of its text."""
        mark = node.start_mark
        if part:
            position = self._text.find(part, mark.index, node.end_mark.index)
            if position >= 0:
                return SourceLocation(self._file, *line_and_column(self._text, position))
        return SourceLocation(self._file, mark.line + 1, mark.column + 1)
