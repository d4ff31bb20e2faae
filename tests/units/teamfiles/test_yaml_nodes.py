"""How a team file's YAML is read: variables, anchors, and plain words and numbers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from pydantic import SecretStr
from yaml.nodes import MappingNode, Node, ScalarNode

from proxy.teamfiles import yaml_nodes
from proxy.teamfiles.definitions import AgentDefinition, Limits, OpenAIModel
from tests.fakes import team_files
from tests.fakes.team_files import load

Write = Callable[..., Path]

SHOP = """
teams:
  shop:
    entry: Clerk
    agents:
      Clerk: {instructions: Be kind.}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    return partial(team_files.write, tmp_path)


# --- variables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param("${A}", "alpha", id="whole"),
        pytest.param("a ${A} and ${B}.", "a alpha and beta.", id="inside-a-text"),
        pytest.param("${UNSET:-fallback}", "fallback", id="default"),
        pytest.param("${EMPTY:-fallback}", "fallback", id="default-for-empty"),
        pytest.param("${A:-fallback}", "alpha", id="default-not-needed"),
        pytest.param("x${UNSET:-}y", "xy", id="empty-default"),
        pytest.param("x${EMPTY}y", "xy", id="empty"),
        pytest.param("$${A}", "${A}", id="escaped"),
        pytest.param("$A and $ {A} and {A} and 5$", "$A and $ {A} and {A} and 5$", id="other-dollars"),
        pytest.param("'${A}'", "alpha", id="single-quotes"),
        pytest.param('"${A}\\n"', "alpha\n", id="double-quotes"),
        pytest.param("|\n          ${A}\n          ${B}\n", "alpha\nbeta\n", id="block"),
        pytest.param("${YAML}", "x: [1, *y]\n- 'z", id="yaml-in-a-value-stays-text"),
        pytest.param("${NESTED}", "${A}", id="values-are-not-read-again"),
    ],
)
def test_variables_are_replaced_in_values(write: Write, written: str, read: str) -> None:
    environment = {"A": "alpha", "B": "beta", "EMPTY": "", "YAML": "x: [1, *y]\n- 'z", "NESTED": "${A}"}
    path = write(
        f"teams:\n  shop:\n    entry: Clerk\n    agents:\n      Clerk:\n        instructions: {written}\n"
    )

    assert load(path, environment=environment).definitions.teams["shop"].agents["Clerk"].instructions == read


def test_variables_become_numbers_where_numbers_are_wanted_and_nowhere_else(write: Write) -> None:
    models = "models:\n  m:\n    model: ${N}\n    api_key: ${N}\n    parameters:\n      seed: ${N}"
    path = write(f"{models}{SHOP}    limits: {{max_handoffs: '${{N}}'}}\n")

    definitions = load(path, environment={"N": "7"}).definitions

    assert definitions.models["m"] == OpenAIModel(model="7", api_key=SecretStr("7"), parameters={"seed": 7})
    assert definitions.teams["shop"].limits == Limits(max_handoffs=7)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("true", True),
        ("false", False),
        ("-3", -3),
        ("1e3", 1000.0),
        ("007x", "007x"),
        ("~", "~"),
        ("", ""),
        ("1e999", "1e999"),
    ],
)
def test_an_unquoted_variable_in_an_open_place_is_read_as_it_looks(
    write: Write, value: str, read: object
) -> None:
    path = write(f"models:\n  m:\n    model: x\n    extra_body:\n      k: ${{V}}\n      q: '${{V}}'\n{SHOP}")

    model = load(path, environment={"V": value}).definitions.models["m"]

    assert isinstance(model, OpenAIModel)
    assert model.extra_body == {"k": read, "q": value}


# --- YAML ----------------------------------------------------------------------------------------------------


def test_anchors_and_merge_keys_work_and_a_mappings_own_keys_win(write: Write) -> None:
    path = write(
        """
x-shared:
  base: &base {instructions: Be kind., tool_call_timeout: 5, max_parallel_tools: 2}
  quick: &quick {tool_call_timeout: 1}
teams:
  shop:
    entry: A
    agents:
      A: *base
      B: {<<: *base, instructions: Be brief.}
      C:
        <<: [*quick, *base]
"""
    )

    agents = load(path).definitions.teams["shop"].agents

    assert agents == {
        "A": AgentDefinition(instructions="Be kind.", tool_call_timeout=5, max_parallel_tools=2),
        "B": AgentDefinition(instructions="Be brief.", tool_call_timeout=5, max_parallel_tools=2),
        "C": AgentDefinition(instructions="Be kind.", tool_call_timeout=1, max_parallel_tools=2),
    }


def test_scalars_are_read_as_yaml_1_2_reads_them(write: Write) -> None:
    path = write(
        """
models:
  m:
    model: no
    extra_body: {a: on, b: 010, c: 12:30, d: 1e3, e: 2026-01-02, f: null, g: True, h: 1_000, i: .5}
"""
        + SHOP
    )

    model = load(path).definitions.models["m"]

    assert isinstance(model, OpenAIModel)
    assert model.model == "no"
    assert model.extra_body == {
        "a": "on", "b": 10, "c": "12:30", "d": 1000.0, "e": "2026-01-02", "f": None, "g": True, "h": "1_000", "i": 0.5,
    }  # fmt: skip


def test_a_byte_order_mark_and_windows_lines_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "team.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SHOP.replace("\n", "\r\n").encode())

    assert list(load(path).definitions.teams) == ["shop"]


def positions(node: Node) -> list[tuple[object, ...]]:
    """Return what later steps read of a node and of all nodes below it."""
    marks = [(mark.line, mark.column, mark.index) for mark in (node.start_mark, node.end_mark)]
    facts = [(type(node).__name__, node.tag, *marks, getattr(node, "style", None) or None)]
    if isinstance(node, ScalarNode):
        return [*facts, (node.value,)]
    children = (part for pair in node.value for part in (pair if isinstance(node, MappingNode) else [pair]))
    return [*facts, *(fact for child in children for fact in positions(child))]


def test_libyaml_gives_the_nodes_and_positions_of_pyyaml() -> None:
    folder = Path(yaml_nodes.__file__).parent.parent
    files = [*folder.glob("teams/*.yaml"), *Path("docs").glob("*.md")]
    examples = (re.findall(r"```ya?ml\n(.*?)```", file.read_text("utf-8"), re.DOTALL) for file in files)
    texts = [
        *itertools.chain.from_iterable(examples),
        *(file.read_text("utf-8") for file in files if file.suffix == ".yaml"),
    ]

    fast = {text: yaml_nodes.compose_fast(text) for text in texts}

    pairs = [(node, yaml_nodes.compose_slowly(text)) for text, node in fast.items() if node is not None]
    assert len(pairs) > len(texts) // 2
    assert all(slow is not None and positions(node) == positions(slow) for node, slow in pairs)


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "",
        "a: &x 1\nb: *y\n",
        "a:\n",
        "- " * 100 + "x",
        "- " * 200_000,
        "a: \tb: c",
        "a: 1\n---\nb: 2",
    ],
)
def test_libyaml_leaves_invalid_and_deep_files_to_pyyaml(text: str) -> None:
    assert yaml_nodes.compose_fast(text) is None
