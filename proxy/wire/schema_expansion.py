"""Limit the expansion of a JSON Schema: count how many subschemas a validator applies, before the schema is used.

With ``$ref``, a small schema can expand exponentially: ``a1`` refers to ``a0`` twice, ``a2`` to ``a1`` twice, and so
on. The validator follows each reference again while it holds the GIL, so such a schema blocks the whole process.
Counting takes linear time in the size of the schema.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

from proxy.wire.schema_patterns import MAX_PATTERNS, objects_of

MAX_IN_PLACE = 10_000
"""Maximum number of subschemas applied to one value, with every reference followed."""
MAX_EXPANSION = 1_000_000
"""Maximum number of subschemas in total, with every reference followed until it is recursive."""
_SINGLE = ("not", "if", "then", "else")
_LISTS = ("allOf", "anyOf", "oneOf")
_MAPS = ("dependentSchemas", "dependencies")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_NAMES = ("$id", "$anchor", "$dynamicAnchor")
_DEEPER_SINGLE = (
    "additionalProperties",
    "propertyNames",
    "contains",
    "additionalItems",
    "items",
    "unevaluatedItems",
    "unevaluatedProperties",
)
_DEEPER_LISTS = ("prefixItems", "items")
_DEEPER_MAPS = ("properties", "patternProperties")
# To find unevaluated properties, jsonschema-rs applies the adjacent subschemas again: with nested ``allOf``, the
# measured time grows by a factor of 2.7 per level.
_UNEVALUATED = ("unevaluatedItems", "unevaluatedProperties")
_UNEVALUATED_FACTOR = 3

Schema = Mapping[str, Any]


class ExpansionTooLarge(Exception):
    """The schema exceeds a limit, or applies itself to the same value without end."""


def check_expansion(schema: Schema) -> bool:
    """Check the limits ``MAX_IN_PLACE`` and ``MAX_EXPANSION``; return whether the schema is recursive.

    References that cannot be resolved within the schema do not count: the validator rejects them.

    Raises:
        ExpansionTooLarge: A limit is exceeded.
    """
    graph = _Graph(schema)
    in_place = _Counter(graph.in_place, MAX_IN_PLACE, allows_cycles=False)
    for node in graph.reachable():
        in_place.count(node)
    total = _Counter(graph.children, MAX_EXPANSION, allows_cycles=True)
    total.count(schema)
    return total.has_cycle


class Applied(NamedTuple):
    """How much of a schema applies to one value, at most, with every reference followed."""

    subschemas: int
    patterns: int
    """Regular expressions for one string, or for one property name."""
    fractions: int
    """``multipleOf`` with a fraction or an exponent."""


def applied_to_one_value(schema: Schema) -> Applied:
    """Return the maximum over all places of a schema; for a schema that expands too far, the bound."""
    graph = _Graph(schema)
    subschemas = _Counter(graph.in_place, MAX_IN_PLACE, allows_cycles=False)
    patterns = _Counter(graph.in_place, MAX_IN_PLACE, allows_cycles=False, weight=_own_patterns)
    fractions = _Counter(graph.in_place, MAX_IN_PLACE, allows_cycles=False, weight=_own_fractions)
    try:
        for node in graph.reachable():
            for counter in (subschemas, patterns, fractions):
                counter.count(node)
    except ExpansionTooLarge:
        return Applied(MAX_IN_PLACE, MAX_PATTERNS, MAX_IN_PLACE)
    return Applied(subschemas.largest, patterns.largest, fractions.largest)


def _own_patterns(node: Schema) -> int:
    named = node.get("patternProperties")
    return isinstance(node.get("pattern"), str) + (len(named) if isinstance(named, Mapping) else 0)


def _own_fractions(node: Schema) -> int:
    return isinstance(node.get("multipleOf"), float)


def _one(node: Schema) -> int:
    return 1


def check_references(schema: Schema) -> None:
    """Check that every reference is ``#`` or a JSON pointer to a subschema, as in structured outputs of OpenAI.

    Names (``$id``, ``$anchor``, ``$dynamicAnchor``; in older drafts ``id`` and ``$id: "#name"``) have rules that differ
    between drafts. A reference that the validator resolves and this module does not would have no limit.

    Raises:
        ValueError: A subschema has a name, or a reference is not of this form or refers to nothing.
    """
    words: tuple[str, ...] = _NAMES
    for node in objects_of(schema):
        if isinstance(draft := node.get("$schema"), str) and "draft-04" in draft:
            words = (*_NAMES, "id")
    for node in objects_of(schema):
        if node is not schema and any(isinstance(node.get(word), str) for word in words):
            raise ValueError("a subschema has a name")
    for node in _Graph(schema).reachable():
        for word in _REFERENCES:
            if not _refers_to_subschema(schema, node.get(word)):
                raise ValueError("unsupported reference")


def _refers_to_subschema(schema: Schema, reference: object) -> bool:
    if reference is None or reference == "#":
        return True
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return False
    pointer = unquote(reference[1:], errors="strict")
    # Decoded once here; a validator that decodes again would find something else.
    return "%" not in pointer and isinstance(_resolve_pointer(schema, pointer), Mapping | bool)


class _Counter:
    """Counts paths in a graph of schemas; each node is visited once."""

    def __init__(
        self,
        children: Callable[[Schema], Sequence[Schema]],
        limit: int,
        *,
        allows_cycles: bool,
        weight: Callable[[Schema], int] = _one,
    ) -> None:
        self._children = children
        self._weight = weight
        self._limit = limit
        self._allows_cycles = allows_cycles
        self._counts: dict[int, int] = {}
        self.has_cycle = False

    @property
    def largest(self) -> int:
        """The largest count of a node so far."""
        return max(self._counts.values(), default=0)

    def count(self, start: Schema) -> None:
        """Count the nodes of the tree that results from following every edge from ``start``.

        Raises:
            ExpansionTooLarge: The count exceeds the limit, or there is a cycle that is not allowed.
        """
        counts = self._counts
        in_progress: set[int] = set()
        pending = [start]
        # Iterative: a chain of references can be as long as the schema, and would exceed the recursion limit.
        while pending:
            node = pending[-1]
            key = id(node)
            if key in in_progress:
                pending.pop()
                in_progress.remove(key)
                factor = _UNEVALUATED_FACTOR if any(word in node for word in _UNEVALUATED) else 1
                weight = self._weight(node)
                counts[key] = weight + factor * sum(
                    counts.get(id(child), 1) for child in self._children(node)
                )
                if counts[key] > self._limit:
                    raise ExpansionTooLarge
            elif key in counts:
                pending.pop()
            else:
                in_progress.add(key)
                for child in self._children(node):
                    if id(child) not in counts and id(child) not in in_progress:
                        pending.append(child)
                    elif id(child) in in_progress:
                        self.has_cycle = True
                        if not self._allows_cycles:
                            raise ExpansionTooLarge


class _Graph:
    """The subschemas of a schema, with an edge for each application of one by another."""

    def __init__(self, schema: Schema) -> None:
        self._root = schema
        self._bases: dict[int, str] = {}
        self._resources: dict[str, Any] = {}
        self._anchors: dict[tuple[str, str], Schema] = {}
        self._dynamic: dict[str, list[Schema]] = {}
        self._found: dict[int, tuple[list[Schema], list[Schema]]] = {}
        self._index()

    def in_place(self, node: Schema) -> Sequence[Schema]:
        """Return the subschemas applied to the same value."""
        return self._edges(node)[0]

    def children(self, node: Schema) -> Sequence[Schema]:
        """Return the subschemas applied to the same value or to a part of it."""
        return self._edges(node)[1]

    def reachable(self) -> Iterator[Schema]:
        """Yield every subschema that is applied, once."""
        seen = {id(self._root)}
        pending = [self._root]
        while pending:
            node = pending.pop()
            yield node
            for child in self.children(node):
                if id(child) not in seen:
                    seen.add(id(child))
                    pending.append(child)

    def _index(self) -> None:
        """Index the base URI of every object, and what ``$id`` and the anchors name (JSON Schema Core, section 8.2)."""
        self._resources[""] = self._root
        pending: list[tuple[Any, str]] = [(self._root, "")]
        while pending:
            value, base = pending.pop()
            if isinstance(value, Mapping):
                if isinstance(name := value.get("$id"), str):
                    base = _resolve_uri(base, name)
                    self._resources.setdefault(base, value)
                for word in ("$anchor", "$dynamicAnchor"):
                    if isinstance(name := value.get(word), str):
                        self._anchors.setdefault((base, name), value)
                        if word == "$dynamicAnchor":
                            self._dynamic.setdefault(name, []).append(value)
                self._bases[id(value)] = base
                pending.extend((inner, base) for inner in value.values())
            elif isinstance(value, list):
                pending.extend((inner, base) for inner in value)

    def _edges(self, node: Schema) -> tuple[list[Schema], list[Schema]]:
        found = self._found.get(id(node))
        if found is None:
            in_place = list(_subschemas(node, _SINGLE, _LISTS, _MAPS))
            in_place += (target for word in _REFERENCES for target in self._targets(node, word))
            deeper = _subschemas(node, _DEEPER_SINGLE, _DEEPER_LISTS, _DEEPER_MAPS)
            found = self._found[id(node)] = (in_place, [*in_place, *deeper])
        return found

    def _targets(self, node: Schema, word: str) -> Iterator[Schema]:
        reference = node.get(word)
        if not isinstance(reference, str):
            return
        base = self._bases.get(id(node), "")
        if reference.startswith("#") and not base:
            uri, fragment = "", reference[1:]  # the usual case; joining URIs takes ten times as long
        else:
            uri, fragment = urldefrag(_resolve_uri(base, reference))
        fragment = unquote(fragment)
        if word == "$dynamicRef" and fragment in self._dynamic:
            # The target depends on the dynamic scope (JSON Schema Core, 8.2.3.2): count all candidates.
            yield from self._dynamic[fragment]
        elif fragment.startswith("/") or not fragment:
            target = _resolve_pointer(self._resources.get(uri), fragment)
            if isinstance(target, Mapping):
                yield target
        elif (uri, fragment) in self._anchors:
            yield self._anchors[uri, fragment]


def _resolve_uri(base: str, reference: str) -> str:
    try:
        return urljoin(base, reference)
    except ValueError:
        return reference


def _subschemas(
    node: Schema, single: Sequence[str], lists: Sequence[str], maps: Sequence[str]
) -> Iterator[Schema]:
    for word in single:
        if isinstance(value := node.get(word), Mapping):
            yield value
    for word in lists:
        if isinstance(value := node.get(word), list):
            yield from (one for one in value if isinstance(one, Mapping))
    for word in maps:
        if isinstance(value := node.get(word), Mapping):
            yield from (one for one in value.values() if isinstance(one, Mapping))


def _resolve_pointer(value: Any, pointer: str) -> Any:
    """Return the value at a JSON pointer (RFC 6901); None if there is none."""
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and len(name) < 9 and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value
