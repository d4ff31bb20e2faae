"""Fixtures and helpers of the tests with the packages of agent frameworks.

A test module imports the fixtures, and has ``pytestmark = FRAMEWORK_MARKS``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conftest import freeze
from tests.fakes.upstream import FakeUpstream

# LangChain shares connections between clients, so the tests of all modules run in one event loop. The HTTP clients of
# the frameworks belong to the objects of the operator, and are not closed.
FRAMEWORK_MARKS = [
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Resolved model mismatch:UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
EXAMPLES = Path(__file__).parents[2] / "examples"
PACKAGES = {
    "pydantic-ai": ["pydantic_ai"],
    "openai-agents": ["agents"],
    "agentchat": ["autogen_agentchat"],
    "agent-framework": ["agent_framework", "agent_framework_openai"],
    "langgraph": ["langgraph", "langchain", "langchain_openai"],
}
"""The packages that each example needs."""


def only(*names: str) -> pytest.MarkDecorator:
    """Skip a test if a package of these frameworks is not installed. CI installs all of them."""
    missing = [package for name in names for package in PACKAGES[name] if find_spec(package) is None]
    skips = bool(missing) and not os.environ.get("HANDOFF_TEST_REQUIRE_ALL")
    return pytest.mark.skipif(skips, reason=f"not installed: {', '.join(missing)}")


def framework(name: str) -> object:
    return pytest.param(name, marks=only(name))


@pytest_asyncio.fixture(scope="session", loop_scope="session", name="provider")
async def provider_of_frameworks() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as started:
        yield started


@pytest.fixture(name="upstream")
def upstream_of_frameworks(provider: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> FakeUpstream:
    """The provider of the frameworks' models and of the proxy's."""
    monkeypatch.setenv("OPENAI_BASE_URL", provider.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    return provider.forget()


@pytest.fixture(autouse=True)
def unclosed_clients() -> Iterator[None]:
    yield
    # A framework has a hundred thousand objects.
    freeze()


def texts(upstream: FakeUpstream, number: int = -1) -> list[str]:
    """Return the messages of a request to the model: role and text, or the names of its calls."""
    shown = []
    for message in upstream.requests[number].body["messages"]:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text", f"<{part['type']}>") for part in content)
        names = ",".join(call["function"]["name"] for call in message.get("tool_calls") or ())
        shown.append(f"{message['role']}: {content or names}")
    return shown
