"""A team file as plain data that remembers where each piece of it stands.

References to environment variables are replaced here, after parsing, so that no value can add structure to a file.
What is shown of a value is what the file says, never what a variable held.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from proxy.teamfiles.diagnostics import Mistakes, Path, Place, quoted
from proxy.teamfiles.env_vars import Substituted, substitute
from proxy.teamfiles.yaml_nodes import (
    MAX_DEPTH,
    MAX_NODES,
    Unreadable,
    compose,
    line_and_column,
    plain_value,
    scalar,
)

MAX_BYTES = 1024 * 1024
_MOST_TOLD = 20

_CORE = "tag:yaml.org,2002:"
_SCALARS = frozenset(_CORE + name for name in ("str", "int", "float", "bool", "null", "merge"))


@dataclass(slots=True)
class Source:
    """The data of one file or several, with the places of its keys and values.

    ``is_whole`` is false when one of several files could not be read, so that names may be missing. A ``broken``
    path was already found wrong; what else is wrong with it follows from that and is not told.
    """

    mistakes: Mistakes
    data: dict[str, Any] = field(default_factory=dict)
    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)
    substituted: dict[Path, str] = field(default_factory=dict)
    broken: set[Path] = field(default_factory=set)
    is_whole: bool = True

    def wrong(
        self, path: Path, what: str, *, at_key: bool = False, wrong: str = "", right: Iterable[str] = ()
    ) -> None:
        """Note a mistake in the value at ``path``, or in its key."""
        if path not in self.broken:
            self.mistakes.add(self.place(path, at_key=at_key), path, what, wrong=wrong, right=right)

    def unknown_key(self, path: Path, what: str, right: Iterable[str]) -> None:
        """Note a key that means nothing where it stands."""
        self.mistakes.add(self.place(path, at_key=True), path[:-1], what, wrong=str(path[-1]), right=right)

    def place(self, path: Path, *, at_key: bool = False) -> Place:
        """Return where the value at ``path`` begins, or its key; what encloses it when it stands nowhere itself."""
        places = (self.keys, self.values) if at_key else (self.values, self.keys)
        while True:
            for known in places:
                if path in known:
                    return known[path]
            path = path[:-1]

    def shown(self, path: Path, value: str) -> str:
        """Return a text value in quotes, as it stands in the file."""
        return quoted(self.substituted.get(path, value))

    def value(self, path: Path) -> Any:
        """Return the value at ``path``; None when there is none."""
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
            self.mistakes,
            data,
            keys={path[: length + 1]: top for length in range(len(path))}
            | {(*path, *inner): place for inner, place in self.keys.items()},
            values=enclosing | {(*path, *inner): place for inner, place in self.values.items()},
            substituted={(*path, *inner): raw for inner, raw in self.substituted.items()},
            broken={(*path, *inner) for inner in self.broken},
            is_whole=self.is_whole,
        )

    def adopt(self, other: Source, section: str, *, replaced: Collection[str] = ()) -> None:
        """Add what ``other`` has under ``section``, without the names in ``replaced``.

        Any other name that is already here is an error.
        """
        theirs = other.data.get(section)
        if not isinstance(theirs, dict):
            return
        ours = self.data.setdefault(section, {})
        taken = set()
        for name, value in theirs.items():
            path = (section, name)
            if name in replaced:
                continue
            if name in ours:
                self.mistakes.add(other.keys[path], path, f"is already defined at {self.keys[path]}")
            else:
                ours[name] = value
                taken.add(path)
        self.keys.update((path, place) for path, place in other.keys.items() if path[:2] in taken)
        self.values.update((path, place) for path, place in other.values.items() if path[:2] in taken)
        self.substituted.update((path, raw) for path, raw in other.substituted.items() if path[:2] in taken)
        self.broken.update(path for path in other.broken if path[:2] in taken)


def read_source(
    file: FilePath,
    environment: Mapping[str, str],
    mistakes: Mistakes,
    *,
    is_free: Callable[[Path], bool],
) -> Source | None:
    """Read a file; None when it cannot be read as a mapping at all.

    Where ``is_free`` says that the schema leaves a value's type open, an unquoted reference to a variable is read as a
    number or a truth value when it looks like one; elsewhere the schema converts it.
    """
    try:
        text = _text(file)
        root = compose(text)
        if root is None or (isinstance(root, ScalarNode) and not root.value):
            raise Unreadable("the file is empty", 1, 1)
        if not isinstance(root, MappingNode):
            mark = root.start_mark
            raise Unreadable("wanted a mapping with 'teams' and 'models'", mark.line + 1, mark.column + 1)
        reader = _Reader(str(file), text, environment, Source(mistakes), is_free)
        return reader.read(root)
    except Unreadable as error:
        mistakes.add(Place(str(file), error.line, error.column), (), error.what)
        return None


def _text(file: FilePath) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror or 'unknown reason'}") from None
    if len(content) > MAX_BYTES:
        raise Unreadable(f"is larger than {MAX_BYTES:,} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Unreadable("is not UTF-8 text", line, 1) from None


class _Reader:
    """Turns one file's nodes into data; aliases are followed within the bounds that hold for nodes."""

    def __init__(
        self,
        file: str,
        text: str,
        environment: Mapping[str, str],
        source: Source,
        is_free: Callable[[Path], bool],
    ) -> None:
        self._file = file
        self._text = text
        self._environment = environment
        self._source = source
        self._is_free = is_free
        self._read = 0
        self._open: set[int] = set()
        # By node or text, so that a long text costs its length once, however many aliases repeat it.
        self._substituted: dict[int, Substituted | None] = {}
        self._encodable: set[int] = set()
        self._refused: set[int] = set()

    def read(self, root: MappingNode) -> Source:
        self._source.values[()] = self._place(root)
        self._source.data = self._mapping(root, ())
        return self._source

    def _value(self, node: Node, path: Path) -> Any:
        self._spend()
        if len(path) > MAX_DEPTH:
            raise self._unreadable(node, f"nested more than {MAX_DEPTH} levels deep")
        self._source.values[path] = self._place(node)
        if isinstance(node, ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node, path)
        if isinstance(node, MappingNode) and node.tag == f"{_CORE}map":
            return self._mapping(node, path)
        if isinstance(node, SequenceNode) and node.tag == f"{_CORE}seq":
            return self._sequence(node, path)
        return self._break(path, "YAML tags are not understood here; text that begins with '!' needs quotes")

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in self._pairs(node, path):
            inner = (*path, key.value)
            self._source.keys[inner] = self._place(key)
            data[key.value] = self._value(value, inner)
        return data

    def _pairs(self, node: MappingNode, path: Path) -> Iterator[tuple[ScalarNode, Node]]:
        """Yield keys and values, merged ones (``<<``) after the mapping's own, each key once."""
        if id(node) in self._open:
            raise self._unreadable(node, "an alias refers to the very value that it stands in")
        self._open.add(id(node))
        seen: dict[str, ScalarNode] = {}
        merged: list[Node] = []
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._add(key, path, "a key has to be plain text")
            elif key.tag == f"{_CORE}merge":
                merged += value.value if isinstance(value, SequenceNode) else [value]
            elif key.value in seen:
                first = self._place(seen[key.value])
                self._add(key, (*path, key.value), f"is already defined in line {first.line}")
            elif self._is_text(key, key.value, (*path, "…")):
                seen[key.value] = key
                yield key, value
        for other in merged:
            self._spend()
            if not isinstance(other, MappingNode):
                self._add(other, path, "'<<' merges a mapping, or a list of mappings")
                continue
            for key, value in self._pairs(other, path):
                self._spend()
                if key.value not in seen:
                    seen[key.value] = key
                    yield key, value
        self._open.remove(id(node))

    def _sequence(self, node: SequenceNode, path: Path) -> list[Any]:
        if id(node) in self._open:
            raise self._unreadable(node, "an alias refers to the very value that it stands in")
        self._open.add(id(node))
        items = [self._value(item, (*path, index)) for index, item in enumerate(node.value)]
        self._open.remove(id(node))
        return items

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        if node.tag not in (f"{_CORE}str", f"{_CORE}merge"):
            try:
                return scalar(node.tag, node.value)
            except ValueError:
                return self._break(path, "is not a number or truth value that can be used; text needs quotes")
        if id(node) not in self._substituted:
            self._substituted[id(node)] = substitute(node.value, self._environment)
        found = self._substituted[id(node)]
        if found is None:
            text = node.value
        elif found.unset or found.has_malformed:
            if id(node) not in self._refused:
                self._refuse_reference(node, path, found.unset)
            self._refused.add(id(node))
            self._source.broken.add(path)
            return node.value
        else:
            self._source.substituted[path] = node.value
            text = found.text
        self._is_text(node, text, path)
        is_open = found is not None and found.is_reference and node.style is None and self._is_free(path)
        return plain_value(text) if is_open else text

    def _refuse_reference(self, node: ScalarNode, path: Path, unset: tuple[str, ...]) -> None:
        for name in unset[:_MOST_TOLD]:
            what = f"the environment variable {name} is not set; set it, or write ${{{name}:-default}}"
            self._source.mistakes.add(self._place(node, f"${{{name}}}"), path, what)
        if not unset:
            what = "'${' begins a variable, as in ${NAME} or ${NAME:-default}; for the two characters write '$${'"
            self._source.mistakes.add(self._place(node, "${"), path, what)

    def _is_text(self, node: Node, text: str, path: Path) -> bool:
        """Whether ``text`` can be written as UTF-8: escapes and variables may hold half characters."""
        if id(text) in self._encodable:
            return True
        try:
            text.encode()
        except UnicodeEncodeError:
            self._source.values.setdefault(path, self._place(node))
            self._break(path, "holds something that is not Unicode text")
            return False
        self._encodable.add(id(text))
        return True

    def _break(self, path: Path, what: str) -> None:
        self._source.wrong(path, what)
        self._source.broken.add(path)

    def _add(self, node: Node, path: Path, what: str) -> None:
        self._source.mistakes.add(self._place(node), path, what)

    def _spend(self) -> None:
        self._read += 1
        if self._read > MAX_NODES:
            raise Unreadable(f"more than {MAX_NODES:,} values when its aliases are followed")

    def _unreadable(self, node: Node, what: str) -> Unreadable:
        place = self._place(node)
        return Unreadable(what, place.line, place.column)

    def _place(self, node: Node, part: str = "") -> Place:
        """Return where a node begins, or where a part of its text stands."""
        mark = node.start_mark
        if part:
            position = self._text.find(part, mark.index, node.end_mark.index)
            if position >= 0:
                return Place(self._file, *line_and_column(self._text, position))
        return Place(self._file, mark.line + 1, mark.column + 1)
