"""``docs/architecture.md`` names every package and module at the top level, and nothing that does not exist.

Names of public classes are unique, so that a name leads to one definition.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/architecture.md").read_text("utf-8")
DIAGRAM, PACKAGES = (
    TEXT.split("```text\n")[1].split("```")[0],
    TEXT.split("## Packages")[1].split("\n\nA module")[0],
)
ROWS = [line.split("|")[1:3] for line in PACKAGES.splitlines() if line.startswith("| `")]
LISTED = [name for names, _ in ROWS for name in re.findall(r"`([\w.]+)`", names)]
PARTS = sorted(
    path.stem
    for path in (ROOT / "proxy").iterdir()
    if path.suffix == ".py" or (path / "__init__.py").exists() or path.name == "web"
)


def _names(text: str) -> list[str]:
    """Return the dotted names in a text that begin with a part of the proxy."""
    return [
        name
        for name in re.findall(r"(?<![\w./-])\w+(?:\.\w+)+(?![\w.])", text)
        if name.split(".")[0] in PARTS and not name.endswith(".md")
    ]


def _exists(name: str) -> bool:
    """Whether a dotted name is a module of the proxy, or something in one."""
    parts = name.split(".")
    for size in range(len(parts), 0, -1):
        path = ROOT / "proxy" / Path(*parts[:size])
        if path.with_suffix(".py").exists() or path.is_dir():
            rest = parts[size:]
            if not rest:
                return True
            module = importlib.import_module(".".join(("proxy", *parts[:size])))
            return len(rest) == 1 and hasattr(module, rest[0])
    return False


def test_table_of_packages_has_every_part_of_the_proxy_once() -> None:
    assert sorted(LISTED) == [name for name in PARTS if name != "__init__"]


@pytest.mark.parametrize("name", sorted({*_names(DIAGRAM), *_names(" ".join(re.findall(r"`[^`]+`", TEXT)))}))
def test_documented_module_exists(name: str) -> None:
    assert _exists(name)


def test_documented_modules_of_services_exist() -> None:
    duty = next(duty for names, duty in ROWS if "`service`" in names)

    missing = [name for name in re.findall(r"`(\w+)`", duty) if not _exists(f"service.{name}")]

    assert missing == []


def test_names_of_public_classes_are_unique() -> None:
    names = Counter(
        node.name
        for path in (ROOT / "proxy").rglob("*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )

    assert [name for name, count in names.items() if count > 1] == []
