"""The pages of docs/providers: each models file serves a bundled team on a server that behaves as the provider does."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from yarl import URL

from proxy.settings import load_settings
from proxy.teamfiles.definitions import OpenAIModel
from proxy.teamfiles.team_sources import default_model
from tests.behaviour.chat_client import Caller, user
from tests.fakes.providers.chat import ANSWER, ChatProvider, Plan
from tests.fakes.providers.entra import SECRET, identity_endpoint
from tests.fakes.providers.local import Azure
from tests.fakes.providers.openai import Gpt55
from tests.fakes.providers.reasoning import DeepSeek, OpenRouter
from tests.fakes.providers.rejecting import Anthropic, Gemini3, Groq, LmStudio, Mistral, Ollama, Vllm
from tests.fakes.team_files import load, write
from tests.fakes.upstream import FakeUpstream
from tests.server import serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

FOLDER = Path(__file__).parents[2] / "docs" / "providers"
PLAN: Plan = (
    ("transfer_to_issues_and_repairs", {"reason": "broken"}),
    ("look_up_item", {"search_query": "rocket"}),
)
KEY = "key-of-the-test"
Provider = ChatProvider | Gpt55
RECIPES: dict[str, Callable[[], Provider]] = {
    "openai": lambda: Gpt55(PLAN, key=KEY, path="/v1"),
    "azure": lambda: Gpt55(PLAN, key=KEY, path="/openai/v1"),
    "azure 2": lambda: Azure(PLAN, key=KEY, path=Azure.path),
    "azure 3": lambda: Gpt55(PLAN, key=KEY, path="/openai/v1"),
    "anthropic": lambda: Anthropic(PLAN, key=KEY, path="/v1/chat/completions"),
    "gemini": lambda: Gemini3(PLAN, key=KEY, path=Gemini3.path),
    "mistral": lambda: Mistral(PLAN, key=KEY, path="/v1/chat/completions"),
    "deepseek": lambda: DeepSeek(PLAN, key=KEY, path=DeepSeek.path),
    "openrouter": lambda: OpenRouter(PLAN, key=KEY, path=OpenRouter.path),
    "groq": lambda: Groq(PLAN, key=KEY, path=Groq.path),
    "ollama": lambda: Ollama(PLAN, path="/v1/chat/completions"),
    "vllm": lambda: Vllm(PLAN, path="/v1/chat/completions"),
    "lm-studio": lambda: LmStudio(PLAN, path="/v1/chat/completions"),
}


def blocks(name: str, language: str) -> str:
    """The block of a page; ``name 2`` is the second one."""
    page, _, number = name.partition(" ")
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(found[int(number or 1) - 1])


def at_fake(text: str, upstream: FakeUpstream) -> str:
    """The block with the address of the fake in place of the provider's host; path and query are as on the page."""
    return re.sub(r"https?://[^/\s]+", str(URL(upstream.base_url).origin()), text, count=1)


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in re.findall(r"\$\{(\w+)\}", "".join(blocks(one, "yaml") for one in RECIPES)):
        monkeypatch.setenv(name, KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.mark.parametrize("name", RECIPES)
async def test_the_models_file_of_the_page_serves_the_bundled_team(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "entra" in blocks(name, "yaml") and find_spec("azure") is None:
        pytest.skip("needs azure-identity")
    provider = RECIPES[name]()
    async with FakeUpstream(answer=provider) as upstream, identity_endpoint(KEY) as identity:
        monkeypatch.setenv("IDENTITY_ENDPOINT", identity.url)
        monkeypatch.setenv("IDENTITY_HEADER", SECRET)
        file = write(tmp_path, at_fake(blocks(name, "yaml"), upstream), "models.yaml")
        async with serve(tmp_path, models=file) as served:
            caller = Caller(served)
            requested = [user("My rocket exploded.")]
            answer = await caller.ask(requested, model="acme-support")
            signed_in = identity.issued

    assert answer == ANSWER
    assert len(upstream.requests) - len(provider.rejections) >= len(PLAN) + 1
    assert signed_in == (1 if name == "azure 3" else 0)


@pytest.mark.parametrize("name", RECIPES)
async def test_the_variables_of_the_page_define_the_same_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "entra" in blocks(name, "yaml") and find_spec("azure") is None:
        pytest.skip("needs azure-identity")
    yaml_block = blocks(name, "yaml")
    given: dict[str, str] = dict(re.findall(r"^export (\w+)=(\S+)$", blocks(name, "sh"), re.MULTILINE))
    variables: dict[str, str] = dict.fromkeys(
        re.findall(r"\$\{(\w+)\}", yaml_block), given.get("OPENAI_API_KEY", "")
    )
    for variable in ("OPENAI_API_KEY", "OPENAI_MODEL", "OPENAI_AUTH"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    file = write(tmp_path, yaml_block, "models.yaml")

    from_file = load(None, environment=variables, models_file=file).definitions.models["default"]
    from_variables = default_model(load_settings(env_file=None))

    assert isinstance(from_file, OpenAIModel)
    assert from_variables == from_file
    assert len(yaml_block.splitlines()) == 5


async def test_every_page_is_listed_and_tried() -> None:
    pages = {file.name for file in FOLDER.glob("*.md")} - {"README.md"}

    assert set(re.findall(r"\((\w[\w-]*\.md)\)", (FOLDER / "README.md").read_text())) == pages
    assert {f"{name.partition(' ')[0]}.md" for name in RECIPES} == pages


@pytest.mark.parametrize(
    ("page", "number"), [("README", 1), ("azure", 4)], ids=["OpenAI", "Azure with an API key"]
)
async def test_a_model_config_of_autogen_serves_the_bundled_team(
    page: str, number: int, tmp_path: Path
) -> None:
    text = blocks(f"{page} {number}", "yaml").replace("gpt-5-mini", "gpt-4o")
    provider = Azure(PLAN, key=KEY) if page == "azure" else ChatProvider(PLAN, key=KEY)
    async with FakeUpstream(answer=provider) as upstream:
        text = at_fake(text, upstream)
        if page == "README":
            text += f"  base_url: {upstream.base_url}\n"
        file = write(tmp_path, text, "model_config.yaml")
        async with serve(tmp_path, models=file) as served:
            answer = await Caller(served).ask([user("My rocket exploded.")], model="acme-support")

    assert answer == ANSWER
    assert provider.rejections == []
