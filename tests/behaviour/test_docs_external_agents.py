"""docs/external-agents.md has valid team files and the code of the examples, and describes the whole interface."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.members import port
from tests.fakes.team_files import load, write

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs" / "external-agents.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", DOC, re.MULTILINE | re.DOTALL)
YAML = [text for language, text in BLOCKS if language == "yaml"]
PYTHON = [text for language, text in BLOCKS if language == "python"]
MODULES = {file.name: file for file in ROOT.glob("examples/*-agent/*.py")}


@pytest.mark.parametrize("text", YAML)
def test_all_team_files_are_valid(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    if "pydantic_ai" in text:
        pytest.importorskip("pydantic_ai")
    if "a2a:" in text:
        pytest.importorskip("a2a")
    if "component:" in text:
        agents = pytest.importorskip("autogen_agentchat.agents")
        replay = pytest.importorskip("autogen_ext.models.openai")
        agent = agents.AssistantAgent("writer", replay.OpenAIChatCompletionClient(model="gpt-5-mini"))
        write(tmp_path, agent.dump_component().model_dump_json(), "writers.json")
    for name, file in MODULES.items():
        (tmp_path / name).symlink_to(file)

    assert load(write(tmp_path, text)).notices == ()


@pytest.mark.parametrize("text", PYTHON, ids=lambda text: text.partition("\n")[0])
def test_the_code_is_that_of_an_example(text: str) -> None:
    assert any(text in file.read_text(encoding="utf-8") for file in MODULES.values())


def test_the_page_describes_the_context_and_the_events() -> None:
    fields = set(port.MemberContext.__dataclass_fields__) - {"channel"}
    members = {name for name in vars(port.MemberContext) if not name.startswith("_")} - {"channel", "answers"}
    events = {event.__name__ for event in port.MemberEvent.__args__} - {"Text"}

    missing = {name for name in fields | members | events if not re.search(rf"[`.]{name}\b", DOC)}
    assert missing == set()
