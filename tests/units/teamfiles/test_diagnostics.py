"""Every error in a team file is one exact line: keys, values and references."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.errors import TeamFileError
from tests.fakes.team_files import load, problems, write

BEFORE, *CASES = (Path(__file__).parent / "diagnostics.txt").read_text(encoding="utf-8").split("\n=== ")
BASES = {name: text.rstrip("\n") + "\n" for name, text in re.findall(r"\n<(.+)>\n((?:.+\n)+)", BEFORE + "\n")}
AGENT, MODEL = BASES["agent"], BASES["model"]


def case(text: str) -> object:
    """A case of the text file as a parameter: the team file and its error lines."""
    name, *lines = text.rstrip("\n").split("\n")
    expected = [f"team.yaml:{line[2:]}" for line in lines if line.startswith("> ")]
    written = "".join(f"{line}\n" for line in lines if not line.startswith("> "))
    for base, before in BASES.items():
        written = written.replace(f"<{base}>\n", before)
    return pytest.param(written, expected, id=name)


@pytest.mark.parametrize(("text", "expected"), [case(text) for text in CASES])
def test_an_error_has_location_and_suggestion(text: str, expected: list[str], tmp_path: Path) -> None:
    assert problems(write(tmp_path, text)) == expected


def test_every_case_of_the_text_file_has_errors() -> None:
    assert len(CASES) > 90
    assert all("\n> " in text for text in CASES)


def test_all_errors_are_reported_in_the_order_of_files_and_lines(tmp_path: Path) -> None:
    write(tmp_path, AGENT.replace("shop", "b").replace("entry: A", "entry: X") + "modles: {}\n", "b.yaml")
    write(tmp_path, AGENT.replace("Hi.", "5") + "        tools: [nope]\n        model: 7\n", "a.yaml")
    write(tmp_path, "models: {m: {modle: x}}\n", "c.yaml")

    assert problems(tmp_path) == [
        "a.yaml:6:23: teams.shop.agents.A.instructions: expected a string, found a number; put it in quotes",
        "a.yaml:7:17: teams.shop.agents.A.tools[0]: unknown tool 'nope'; for a Python function write "
        "package.module:function; available: 'calculate', 'execute_order', 'execute_refund', 'get_stock_price', "
        "'get_time', 'get_weather', 'look_up_item', 'query_sales', 'search_web'",
        "a.yaml:8:16: teams.shop.agents.A.model: expected a string, found a number; put it in quotes",
        "b.yaml:3:12: teams.b.entry: unknown agent 'X'; available: 'A'",
        "b.yaml:7:1: unknown key 'modles'; did you mean 'models'?",
        "c.yaml:1:10: models.m: 'model' is missing",
        "c.yaml:1:14: models.m: unknown key 'modle'; did you mean 'model'?",
    ]


def test_the_number_of_reported_errors_is_limited(tmp_path: Path) -> None:
    lines = problems(write(tmp_path, AGENT + "".join(f"wrong{index}: 1\n" for index in range(250))))

    assert len(lines) == 201
    assert lines[-1] == "… and 50 more"


def test_a_missing_path_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert problems(tmp_path / "none.yaml") == ["none.yaml: cannot be read: No such file or directory"]
    assert problems(tmp_path / "empty") == ["FOLDER: the folder has no file named *.yaml or *.yml"]


# --- secrets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param("models: {m: {model: x, api_key: ['${KEY}']}}", id="key-in-a-list"),
        pytest.param(
            "models: {m: {model: x, api_key: '${KEY}\\n', expose: '${KEY}'}}", id="key-for-a-truth-value"
        ),
        pytest.param('models: {m: {model: x, api_key: "${KEY}\\n"}}', id="key-with-a-line-break"),
        pytest.param('models: {m: {model: x, headers: {A: "b${KEY}\\n"}}}', id="header-with-a-line-break"),
        pytest.param("models: {m: {model: x, headers: '${KEY}'}}", id="headers-that-are-text"),
        pytest.param("models: {m: {model: x, base_url: '${KEY}'}}", id="address"),
        pytest.param("models: {m: {model: x, base_url: 'http://me:${KEY}@[/v1'}}", id="address-that-is-none"),
        pytest.param("models: {m: {model: x, parameters: {stop: {a: '${KEY}'}}}}", id="parameter"),
        pytest.param("models: {m: {provider: '${KEY}', config: '${KEY}'}}", id="provider"),
        pytest.param("models: {m: '${KEY}'}", id="model"),
        pytest.param("models: {m: {demo: '${KEY}'}}", id="demo"),
        pytest.param("mcp_servers: {m: {url: '${KEY}', headers: {A: ['${KEY}']}}}", id="mcp-address"),
        pytest.param(
            "mcp_servers: {m: {command: x, args: [['${KEY}']], env: {A: {b: '${KEY}'}}}}", id="mcp-program"
        ),
        pytest.param(
            "mcp_servers: {m: {command: ['${KEY}'], tools: '${KEY}', cwd: {a: '${KEY}'}}}", id="mcp-lists"
        ),
        pytest.param("        tools: ['mcp:${KEY}', 'mcp:${KEY}/${KEY}']", id="mcp-tool"),
        pytest.param("x-a: !${KEY} b", id="tag"),
        pytest.param("x-a: !hunter2! b", id="literal-tag"),
        pytest.param("x-a: !hunter2!x b", id="literal-tag-handle"),
        pytest.param("x-a: *hunter2", id="literal-alias"),
        pytest.param("x-a: [&hunter2 a, &hunter2 b]", id="literal-anchor"),
        pytest.param("x-a: @hunter2", id="literal-at"),
        pytest.param("x-a: |hunter2", id="literal-block"),
        pytest.param("x-a: 'hunter2", id="literal-open-quote"),
        pytest.param('x-a: "hunter2\\q"', id="literal-escape"),
        pytest.param("x-a: %hunter2", id="literal-percent"),
        pytest.param("x-a: [hunter2}", id="literal-bracket"),
        pytest.param("x-a: hunter2: b", id="literal-colon"),
        pytest.param("    entry: '${KEY}'", id="entry"),
        pytest.param("    on_disconnect: '${KEY}'", id="choice"),
        pytest.param("    client_tools: ['${KEY}!']", id="client-tool"),
        pytest.param("    limits: {max_handoffs: '${KEY}'}", id="limit"),
        pytest.param("    side_model: '${KEY}'", id="side-model"),
        pytest.param("    steps: ['${KEY}', '${KEY}']", id="steps"),
        pytest.param("        model: '${KEY}'", id="agents-model"),
        pytest.param("        fallbacks: ['${KEY}', '${KEY}']", id="fallbacks"),
        pytest.param("        tools: ['${KEY}']", id="tool"),
        pytest.param("        tools: ['${KEY}:find', 'os:${KEY}', '${KEY}:${KEY}']", id="function"),
        pytest.param("        handoffs: [{to: '${KEY}', tool: '${KEY}!'}]", id="handoff"),
        pytest.param(
            "        handoffs: [{to: B, tool: '${KEY}'}, {to: B, tool: '${KEY}'}]\n      B: {instructions: x}",
            id="delegates-of-one-name",
        ),
    ],
)
def test_error_messages_contain_no_variable_values_or_secrets(wrong: str, tmp_path: Path) -> None:
    text = AGENT.replace("    entry: A\n", "") if "entry" in wrong else AGENT

    lines = problems(write(tmp_path, f"{text}{wrong}\n"), environment={"KEY": "hunter2"})

    assert lines
    assert "hunter2" not in "\n".join(lines)


def test_an_error_holds_no_other_error_with_values_in_it(tmp_path: Path) -> None:
    path = write(tmp_path, MODEL.replace("api_key: k", "api_key: [hunter2]"))

    with pytest.raises(TeamFileError) as caught:
        load(path)

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "hunter2" not in repr(caught.value)


def test_definitions_do_not_show_their_keys_when_printed(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, MODEL.replace("api_key: k", "api_key: hunter2\n    headers: {A: hunter2}")))

    assert "hunter2" not in f"{loaded!r} {loaded}"
