"""Any file loads or has errors; no file blocks or crashes the loader."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.errors import TeamFileError
from proxy.teamfiles.loader import LoadedTeams
from proxy.teamfiles.source_map import MAX_BYTES
from tests.fakes.team_files import load, problems, write

AGENT = "teams:\n  shop:\n    entry: A\n    agents:\n      A:\n        instructions: Hi.\n"


def test_a_file_that_is_not_utf8_is_reported_with_the_line(tmp_path: Path) -> None:
    path = tmp_path / "team.yaml"
    path.write_bytes(b"teams:\n  \xff: x\n")

    assert problems(path) == ["team.yaml:2:1: is not UTF-8 text"]


def test_a_control_character_is_reported_by_its_code_point(tmp_path: Path) -> None:
    assert problems(write(tmp_path, "x-a:\n  b: c\x01\n")) == [
        "team.yaml:2:7: not valid YAML: the character U+0001 is not allowed"
    ]


# --- bounds --------------------------------------------------------------------------------------------------

NINE_FOLD = "".join(f"x-{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12))
NINE_MERGES = "".join(
    f"x-{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        pytest.param(
            f"x-0: &a0 [x]\n{NINE_FOLD}{AGENT}",
            ["team.yaml: more than 20,000 values after resolving aliases"],
            id="lists-of-aliases",
        ),
        pytest.param(
            f"x-0: &a0 {{k: 1}}\n{NINE_MERGES}{AGENT}",
            ["team.yaml: more than 20,000 values after resolving aliases"],
            id="merges-of-aliases",
        ),
        pytest.param(
            "".join(f"x-{level}: &a{level} [{f'*a{level - 1}' if level else 'x'}]\n" for level in range(100)),
            ["team.yaml:1:11: nested more than 40 levels deep"],
            id="a-chain-of-aliases",
        ),
        pytest.param(
            "x-a: " + "[" * 100_000, ["team.yaml:1:45: nested more than 40 levels deep"], id="brackets"
        ),
        pytest.param(
            "\n".join(" " * level + "-" for level in range(100)),
            ["team.yaml:41:41: nested more than 40 levels deep"],
            id="indentation",
        ),
        pytest.param(
            "x-a: [" + "a," * 30_000, ["team.yaml:1:40001: more than 20,000 values"], id="a-long-list"
        ),
        pytest.param("a" * (MAX_BYTES + 1), ["team.yaml: is larger than 1,048,576 bytes"], id="a-large-file"),
        pytest.param(
            AGENT + "        description: '" + "${A:-" * 100_000 + "'\n",
            [
                "team.yaml:7:23: teams.shop.agents.A.description: '${' starts a variable, as in ${NAME} or "
                "${NAME:-default}; for a literal '${' write '$${'"
            ],
            id="defaults-in-defaults",
        ),
        pytest.param(
            "x-a: &a '" + "${A:-b}" * 100_000 + "'\nx-b: [" + "*a, " * 15_000 + "]\nteam: {}\n",
            ["team.yaml:3:1: unknown key 'team'; did you mean 'teams'?"],
            id="aliases-of-a-long-text",
        ),
    ],
)
def test_a_file_made_to_exhaust_the_loader_is_refused(text: str, lines: list[str], tmp_path: Path) -> None:
    assert problems(write(tmp_path, text)) == lines


# --- whatever is written -------------------------------------------------------------------------------------

TEXT = """
    models teams shop entry A agents instructions model fallbacks tools handoffs to when tool client_tools limits
    max_handoffs provider config demo true 5 1.5 null pass default execute_order os:getcwd x-a <<
"""
_texts = st.sampled_from(TEXT.split())
_scalars = st.one_of(
    _texts,
    st.text(max_size=12),
    st.sampled_from(
        [
            "${A}",
            "${B:-x}",
            "${",
            "$${A}",
            "*a",
            "&a x",
            "!t x",
            "!!int x",
            "'",
            '"\\ud800"',
            "~",
            "---",
            "{",
            "[",
            "|",
        ]
    ),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(_scalars, inner, max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs.items()) + "}"
        ),
    ),
    max_leaves=20,
)
_lines = st.lists(
    st.tuples(st.integers(0, 5), st.booleans(), _texts, st.one_of(st.just(""), _values)), max_size=12
).map(
    lambda lines: "\n".join(
        "  " * depth + ("- " if is_item else "") + f"{key}: {value}" for depth, is_item, key, value in lines
    )
)


def outcome(path: Path, environment: dict[str, str]) -> tuple[tuple[str, ...], LoadedTeams | None]:
    """Return the error lines of a file, or the loaded teams."""
    try:
        return (), load(path, environment=environment)
    except TeamFileError as error:
        return error.problems, None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.one_of(st.text(max_size=80), _values, _lines))
def test_any_text_loads_or_raises_a_team_file_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "team.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))

    reported, loaded = outcome(path, environment={"A": "hunter2\udcff"})

    assert bool(reported) != bool(loaded)
    assert all(line.startswith(str(path)) and "\n" not in line for line in reported)
    assert "hunter2" not in "".join(reported)
    if loaded:
        assert "default" in loaded.definitions.models


_named = st.sampled_from(["A", "B", "C", "m", "default", "look_up_item", "os:getcwd", "${A}", "5", "''"])
_agents = st.fixed_dictionaries(
    {"instructions": st.just("Hi.")},
    optional={
        "model": _named,
        "fallbacks": st.lists(_named, max_size=2).map(lambda names: f"[{', '.join(map(repr, names))}]"),
        "tools": st.lists(_named, max_size=2).map(lambda names: f"[{', '.join(map(repr, names))}]"),
        "handoffs": st.lists(_named, max_size=2).map(
            lambda names: f"[{', '.join(f'{{to: {n!r}}}' for n in names)}]"
        ),
        "tool_call_timeout": _named,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entry=_named, agents=st.dictionaries(st.sampled_from(["A", "B", "C"]), _agents, max_size=3))
def test_any_team_that_loads_refers_only_to_what_exists(
    entry: str, agents: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "team.yaml"
    lines = [
        "models: {m: {model: x, api_key: k}}",
        "teams:",
        "  shop:",
        f"    entry: {entry!r}",
        "    agents:",
    ]
    for name, agent in agents.items():
        lines += [f"      {name}:", *(f"        {key}: {value}" for key, value in agent.items())]
    path.write_text("\n".join(lines))

    reported, loaded = outcome(path, environment={"A": "A"})

    assert all(line.startswith(f"{path}:") for line in reported)
    if loaded is None:
        return
    team = loaded.definitions.teams["shop"]
    assert team.entry in team.agents
    for name, definition in team.agents.items():
        assert {definition.model, *definition.fallbacks} <= {"default", "m"}
        assert {handoff.to for handoff in definition.handoffs} <= team.agents.keys() - {name}
        assert {use.name for use in definition.tools if ":" in use.name} <= loaded.tools.keys()
