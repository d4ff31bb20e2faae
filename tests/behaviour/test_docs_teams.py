"""The team files of the documentation are valid; docs/teams.md has the output of its commands, and every key."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from proxy.errors import ConfigurationError
from proxy.messages import Parameters
from proxy.providers.autogen.client import ComponentChatModel
from proxy.teamfiles.definitions import (
    A2AAgentDefinition,
    AgentDefinition,
    CompactionDefinition,
    ComponentModel,
    DelegateDefinition,
    DemoModel,
    HandoffDefinition,
    HttpServer,
    Limits,
    OpenAIModel,
    Price,
    RemoteAgentDefinition,
    StdioServer,
    TeamDefinition,
    ToolUse,
)
from proxy.teamfiles.source_map import MAX_BYTES
from proxy.teamfiles.yaml_nodes import MAX_DEPTH, MAX_NODES
from tests.fakes.team_files import load, write
from tests.fork_server import fork

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "teams.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
YAML = [text for language, text in BLOCKS if language == "yaml"]
LONG = (ROOT / "docs" / "long-conversations.md").read_text(encoding="utf-8")
YAML_OF_LONG = re.findall(r"^```yaml\n(.*?)^```$", LONG, re.MULTILINE | re.DOTALL)
CONSOLE = [text for language, text in BLOCKS if language == "console"]
VARIABLES = {"OPENAI_API_KEY": "sk-example", "HOSTED_KEY": "e", "AZURE_KEY": "a", "LIBRARY_KEY": "l"}
TABLES = {
    "OpenAI-compatible model": OpenAIModel,
    "AutoGen component": ComponentModel,
    "Demo model": DemoModel,
    "Model price": Price,
    "Team": TeamDefinition,
    "Team limits": Limits,
    "Agent": AgentDefinition,
    "Remote agent": RemoteAgentDefinition,
    "A2A agent": A2AAgentDefinition,
    "Tool": ToolUse,
    "Handoff": HandoffDefinition,
    "Delegate": DelegateDefinition,
    "Compaction": CompactionDefinition,
    "MCP server over stdio": StdioServer,
    "MCP server over HTTP": HttpServer,
}


def named(text: str) -> str:
    first = text.partition("\n")[0]
    return first.removeprefix("# ") if first.startswith("# ") else " ".join(yaml.safe_load(text))


def load_unless_not_installed(name: str, model: ComponentModel) -> None:
    """Load the component unless it needs one of the packages that the page mentions."""
    try:
        ComponentChatModel.load(name, model)
    except ConfigurationError as error:
        missing = re.search(r"\((\w+)[.\w]* is not installed\)$", error.message)
        if missing is None or f"`{missing[1]}-" not in DOC:
            raise


@pytest.mark.parametrize(
    "text", [text for text in (*YAML, *YAML_OF_LONG) if "invalid.yaml" not in text], ids=named
)
def test_all_team_files_are_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "library_tools.py").symlink_to(ROOT / "docs/examples/three-agents/library_tools.py")
    (tmp_path / "library_orders.py").symlink_to(ROOT / "examples/python-agent/library_orders.py")
    write(tmp_path, text, "shown.yaml")
    if "teams" not in yaml.safe_load(text):
        write(tmp_path, "teams: {t: {entry: A, agents: {A: {instructions: Hi.}}}}", "team.yaml")

    loaded = load(tmp_path, environment=VARIABLES, check_component=load_unless_not_installed)

    assert loaded.notices == ()
    shown = yaml.safe_load(text)
    assert shown.get("teams", {}).keys() <= loaded.definitions.teams.keys()
    assert shown.get("models", {}).keys() <= loaded.definitions.models.keys()


@pytest.mark.parametrize("text", [text for text in YAML if text.startswith("# docs/")], ids=named)
def test_the_page_has_the_files_of_the_examples(text: str) -> None:
    assert (ROOT / named(text)).read_text(encoding="utf-8") == text


def test_the_page_has_the_tools_of_the_example() -> None:
    shown = [text for language, text in BLOCKS if language == "python"]

    assert shown == [(ROOT / "docs/examples/three-agents/library_tools.py").read_text(encoding="utf-8")]


@pytest.mark.parametrize("text", CONSOLE, ids=lambda text: text.partition("\n")[0])
async def test_the_commands_print_the_documented_output(text: str, tmp_path: Path) -> None:
    command, _, shown = text.removeprefix("$ ").partition("\n")
    content = shlex.split(command)
    variables = dict(word.split("=", 1) for word in content if "=" in word)
    arguments = content[content.index("handoff-proxy") + 1 :]
    # A .env in the repository could change the output.
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables}
    process = await fork("proxy.cli", *arguments, folder=tmp_path, environment=environment)
    assert process.stdout is not None
    assert process.stderr is not None
    async with asyncio.timeout(50):
        printed = [(await stream.read()).decode() for stream in (process.stdout, process.stderr)]

        assert printed == [shown, ""]
        assert await process.wait() == (1 if "invalid" in command else 0)


@pytest.mark.parametrize(("heading", "schema"), TABLES.items(), ids=TABLES)
def test_the_tables_have_every_key_with_its_default(heading: str, schema: type[BaseModel]) -> None:
    section = DOC.partition(f"### {heading}\n")[2].partition("\n#")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE))

    fields = {field.alias or key: field for key, field in schema.model_fields.items()}
    assert rows.keys() == fields.keys()
    for key, field in fields.items():
        if field.default is PydanticUndefined:
            assert rows[key] == "required"
        elif isinstance(field.default, bool):
            assert rows[key] == f"`{str(field.default).lower()}`"
        elif isinstance(field.default, int):
            assert rows[key] == f"{field.default:,}"
        elif isinstance(field.default, float):
            assert rows[key] == f"{field.default:g}"


def test_the_page_lists_every_parameter() -> None:
    row = re.search(r"^\| `parameters` \| none \| (`temp.+) \|$", DOC, re.MULTILINE)

    assert row is not None
    assert tuple(re.findall(r"`(\w+)`", row[1])) == Parameters.__struct_fields__


def test_the_page_has_the_limits_of_a_file() -> None:
    assert MAX_BYTES == 1024 * 1024
    assert f"{MAX_NODES:,} values (its aliases followed) and {MAX_DEPTH} levels" in DOC


def test_links_have_targets() -> None:
    headings = re.findall(r"^##+ (.+)$", DOC, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)]+)\)", DOC)

    assert links
    assert {link[1:] for link in links if link.startswith("#")} <= anchors
    assert all(
        (ROOT / "docs" / link.partition("#")[0]).exists() for link in links if not link.startswith("#")
    )
