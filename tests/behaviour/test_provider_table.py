"""Every family of providers in every situation in which a team calls a model, streamed and plain.

Each fake validates requests as its provider does, and compares what it issued with what comes back. All families are
served by one pair of workers over one database; a case exchanges the fake behind its family.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from tests.behaviour.chat_client import WEATHER, Messages, assistant, result, user
from tests.behaviour.raw_http import payloads
from tests.fakes.providers.chat import ANSWER, FORM_ANSWER, PLAN, SECRET, ChatProvider, Plan
from tests.fakes.providers.local import Azure, Qwen
from tests.fakes.providers.native import AnthropicMessages, NativeProvider, OllamaNative
from tests.fakes.providers.openai import Gpt55
from tests.fakes.providers.reasoning import DeepSeek, LiteLLM, OpenRouter, Unlisted
from tests.fakes.providers.rejecting import (
    Anthropic,
    AzureReasoning,
    Bedrock,
    Gemini3,
    Groq,
    Kimi,
    LmStudio,
    Mistral,
    Ollama,
    OpenAIChat,
    OpenAIReasoning,
    Vllm,
)
from tests.fakes.upstream import FakeUpstream, Received, Reply, error
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

Provider = ChatProvider | Gpt55 | NativeProvider
AZURE = "{origin}/openai/deployments/{name}?api-version=2024-10-21"
MODEL_INFO = (
    "model_info: {{vision: false, function_calling: true, json_output: false, structured_output: false, "
    "family: unknown}}"
)
COMPONENTS = {
    "component-openai": "provider: autogen_ext.models.openai.OpenAIChatCompletionClient, "
    'config: {{model: gpt-4o, base_url: "{origin}/v1", api_key: k}}',
    "component-azure": "provider: autogen_ext.models.openai.AzureOpenAIChatCompletionClient, "
    'config: {{model: gpt-4o, azure_endpoint: "{origin}", azure_deployment: component-azure, '
    'api_version: "2024-10-21", api_key: k}}',
    "component-anthropic": "provider: autogen_ext.models.anthropic.AnthropicChatCompletionClient, "
    f'config: {{{{model: component-anthropic, base_url: "{{origin}}", api_key: k, {MODEL_INFO}}}}}',
    "component-ollama": "provider: autogen_ext.models.ollama.OllamaChatCompletionClient, "
    f'config: {{{{model: component-ollama, host: "{{origin}}", {MODEL_INFO}}}}}',
}
MODELS = {
    "gpt-5.4": 'model: gpt-5.4, base_url: "{origin}/v1", parameters: {{reasoning_effort: low}}',
    "azure": f'model: azure, base_url: "{AZURE}", api_key: k',
    "o": f'model: o, base_url: "{AZURE}", api_key: azure-key',
    **COMPONENTS,
}
"""Definitions of the families that need another than the plain one."""
FAMILIES: Mapping[str, Callable[[Plan], Provider]] = {
    "gpt-5.4": lambda plan: Gpt55(plan, is_gpt54=True),
    "gpt-5.5": Gpt55,
    "o-series": OpenAIReasoning,
    "deepseek": DeepSeek,
    "gemini-3": Gemini3,
    "openrouter": OpenRouter,
    "kimi": Kimi,
    "litellm": LiteLLM,
    "unlisted": Unlisted,
    "anthropic": Anthropic,
    "bedrock": Bedrock,
    "mistral": Mistral,
    "vllm": Vllm,
    "qwen": Qwen,
    "ollama": Ollama,
    "azure": Azure,
    "o": AzureReasoning,
    "groq": Groq,
    "lm-studio": LmStudio,
    "component-openai": OpenAIChat,
    "component-azure": Azure,
    "component-anthropic": AnthropicMessages,
    "component-ollama": OllamaNative,
}
WITHOUT_FORM = {"component-anthropic", "component-ollama"}
"""Families whose AutoGen component has no way to ask for a JSON schema."""
VISIBLE_REASONING = {"deepseek", "kimi", "qwen"}
"""Families whose state is the visible reasoning as well."""
TEAM = """\
  {name}:
    entry: triage
    agents:
      triage: {{instructions: You are triage., model: {model}, fallbacks: [{fallbacks}], handoffs: [
        {{to: repairs, tool: transfer_to_repairs}}, {{to: cashier, tool: transfer_to_cashier}}]}}
      repairs: {{instructions: You are repairs., model: {model}, fallbacks: [{fallbacks}],
        tools: [look_up_item], handoffs: [{{to: triage, tool: transfer_back_to_triage}}]}}
      cashier: {{instructions: You are cashier., model: {model}, fallbacks: [{fallbacks}],
        tools: [{{name: "tests.fakes.payment_tool:pay", approval: required}}]}}
"""
FORM: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {"type": "object", "properties": {"answer": {"type": "string"}}},
    },
}


class Spare(ChatProvider):
    """The fallback of all families."""

    def text_chunks(self, text: str) -> list[dict[str, Any]]:
        return super().text_chunks("I am the spare.")


@dataclass
class Router:
    """Answers each request with the fake of its model, or with 401 while that is ``down``."""

    fakes: dict[str, Provider] = field(default_factory=dict)
    down: str = ""
    of_spare: list[Any] = field(default_factory=list)
    """The bodies that the fallback received."""

    def __call__(self, received: Received) -> Reply:
        name = received.body["model"]
        if "/deployments/" in received.path:
            name = received.path.split("/")[3]
        if name == "gpt-4o":
            name = "component-openai"
        if name == self.down:
            return error(401)
        if name == "spare":
            self.of_spare.append(received.body)
        return self.fakes[name](received)


@dataclass
class Workers:
    folder: Path
    origin: str
    router: Router
    first: Served
    second: Served
    http: httpx2.AsyncClient


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def workers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Workers]:
    folder = tmp_path_factory.mktemp("providers")
    router = Router()
    async with FakeUpstream(answer=router) as upstream:
        origin = upstream.base_url.removesuffix("/v1")
        (folder / "teams.yaml").write_text(team_file(origin))
        teams = folder / "teams.yaml"
        async with serve(folder, teams=teams) as first, serve(folder, teams=teams) as second:
            headers = {"Authorization": "Bearer k"}
            # Without reading certificates, which takes longer than a case.
            async with httpx2.AsyncClient(headers=headers, timeout=20, verify=False) as http:
                yield Workers(folder, origin, router, first, second, http)


def team_file(origin: str, families: Collection[str] = tuple(FAMILIES)) -> str:
    plain = 'model: {name}, base_url: "{origin}/v1", api_key: k'
    models = {name: MODELS.get(name, plain).format(name=name, origin=origin) for name in (*families, "spare")}
    teams = [
        TEAM.format(name=f"{name}{suffix}", model=name, fallbacks=fallbacks)
        for name in families
        for suffix, fallbacks in (("", ""), ("-or-spare", "spare"))
    ]
    lines = [f"  {name}: {{{definition}}}" for name, definition in models.items()]
    return "\n".join(["models:", *lines, "teams:", *teams])


@dataclass
class Case:
    """One family in one situation."""

    family: str
    is_streamed: bool
    workers: Workers
    received: list[str] = field(default_factory=list)
    """What the client received, as JSON."""
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    """Part of the first message, so that no other case has the same conversation."""

    @property
    def provider(self) -> Provider:
        return self.workers.router.fakes[self.family]

    def plans(self, *calls: tuple[str, Mapping[str, Any]]) -> None:
        self.workers.router.fakes[self.family] = FAMILIES[self.family](calls)

    async def ask(
        self, messages: Messages, *, served: Served | None = None, suffix: str = "", **more: Any
    ) -> Any:
        """Return the message of the answer, with ``content`` and ``tool_calls``."""
        http = self.workers.http
        url = f"{(served or self.workers.first).base_url}/chat/completions"
        requested = {
            "model": f"{self.family}{suffix}",
            "messages": messages,
            "stream": self.is_streamed,
            **more,
        }
        response = await http.post(url, json=requested)
        assert response.status_code == 200, response.text
        self.received.append(response.text)
        if not self.is_streamed:
            return response.json()["choices"][0]["message"]
        return message_of([frame for frame in payloads(response.text) if frame != "[DONE]"])

    async def is_refused(self, messages: Messages, param: str, value: Any) -> None:
        """Assert that the parameter is refused by name, and that the model is not called."""
        requested = {"model": self.family, "messages": messages, "stream": self.is_streamed, param: value}
        response = await self.workers.http.post(
            f"{self.workers.first.base_url}/chat/completions", json=requested
        )
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param
        assert isinstance(self.provider, NativeProvider)
        assert self.provider.requests == []

    async def says(self, messages: Messages, texts: str, **more: Any) -> str:
        """Add the words and the answer to the list; return the answer."""
        messages.append(user(texts if messages else f"{texts} {self.name}"))
        message = await self.ask(messages, **more)
        messages.append(assistant(message["content"]))
        return message["content"] or ""


def message_of(chunks: list[Any]) -> Any:
    """The message that the chunks of a stream add up to."""
    assert not [chunk["error"] for chunk in chunks if "error" in chunk]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    calls: list[Any] = []
    for piece in (call for delta in deltas for call in delta.get("tool_calls", ())):
        if piece["index"] == len(calls):
            calls.append({**piece, "function": {**piece["function"], "arguments": ""}})
        calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    content = "".join(delta.get("content") or "" for delta in deltas)
    return {"role": "assistant", "content": content or None, "tool_calls": calls}


async def tool_loop(case: Case) -> None:
    case.plans(PLAN[1])
    message = await case.ask([user(f"What is it? {case.name}")], suffix="/repairs")
    assert message["content"] == ANSWER


async def handoff(case: Case) -> None:
    case.plans(PLAN[0])
    assert await case.says([], "It broke") == ANSWER


async def handoff_back(case: Case) -> None:
    case.plans(*PLAN, ("transfer_back_to_triage", {"reason": "done"}))
    messages: Messages = []
    assert await case.says(messages, "It broke") == ANSWER
    assert await case.says(messages, "Thanks") == ANSWER


async def client_tool_on_another_worker(case: Case) -> None:
    case.plans(PLAN[0], ("weather", {"city": "Bonn"}), PLAN[1])
    requested = [user(f"Is it wet? {case.name}")]
    message = await case.ask(requested, tools=[WEATHER])
    call = message["tool_calls"][0]
    call.pop("index", None)
    reported = assistant(message["content"], tool_calls=[call])
    answer = await case.ask(
        [*requested, reported, result(call["id"], "rain")], tools=[WEATHER], served=case.workers.second
    )
    assert answer["content"] == ANSWER


async def approval(case: Case) -> None:
    case.plans(("transfer_to_cashier", {}), ("pay", {"to": "Ada", "amount": 5}))
    messages: Messages = []
    assert await case.says(messages, "Pay Ada") != ANSWER
    assert await case.says(messages, "yes") == ANSWER


async def restart(case: Case) -> None:
    case.plans(*PLAN)
    messages: Messages = []
    assert await case.says(messages, "It broke") == ANSWER
    teams = case.workers.folder / f"{case.family}.yaml"
    teams.write_text(team_file(case.workers.origin, [case.family]))
    async with serve(case.workers.folder, teams=teams) as restarted:
        assert await case.says(messages, "Really?", served=restarted) == ANSWER


async def edit(case: Case) -> None:
    case.plans(*PLAN)
    messages: Messages = []
    await case.says(messages, "It broke")
    first = messages[:2]
    assert await case.says(messages, "Really?") == ANSWER
    assert await case.says(first, "Truly?") == ANSWER


async def regenerate(case: Case) -> None:
    case.plans(*PLAN)
    messages: Messages = []
    await case.says(messages, "It broke")
    assert await case.says(messages, "Really?") == ANSWER
    assert (await case.ask(messages[:3]))["content"] == ANSWER
    assert (await case.ask(messages[:1]))["content"] == ANSWER


async def fallback(case: Case) -> None:
    case.plans(*PLAN)
    router = case.workers.router
    router.fakes["spare"] = Spare(())
    router.of_spare.clear()
    messages: Messages = []
    assert await case.says(messages, "It broke", suffix="-or-spare") == ANSWER
    router.down = case.family
    try:
        assert await case.says(messages, "Really?", suffix="-or-spare") == "I am the spare."
    finally:
        router.down = ""
    assert await case.says(messages, "Thanks", suffix="-or-spare") == ANSWER
    assert len(router.of_spare) == 1
    assert SECRET not in json.dumps(router.of_spare)


async def structured_output(case: Case) -> None:
    case.plans(*PLAN)
    if case.family in WITHOUT_FORM:
        await case.is_refused([user(f"It broke {case.name}")], "response_format", FORM)
        return
    message = await case.ask([user(f"It broke {case.name}")], response_format=FORM)
    assert message["content"] == FORM_ANSWER


SITUATIONS: tuple[Callable[[Case], Awaitable[None]], ...] = (
    tool_loop,
    handoff,
    handoff_back,
    client_tool_on_another_worker,
    approval,
    restart,
    edit,
    regenerate,
    fallback,
    structured_output,
)


@pytest.mark.parametrize("is_streamed", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("family", FAMILIES)
async def test_family(
    family: str, situation: Callable[[Case], Awaitable[None]], is_streamed: bool, workers: Workers
) -> None:
    case = Case(family, is_streamed, workers)

    await situation(case)

    rejections = [one for one in case.provider.rejections if one != "tool_use_failed"]
    # The form of requests is learned once per process, provider state is never missing.
    workers_of_case = 2 if situation in (restart, client_tool_on_another_worker) else 1
    assert all(rejections.count(one) <= workers_of_case for one in rejections)
    assert not [
        one for one in rejections if one.startswith(("state", "reasoning_content", "input", "results"))
    ]
    if family not in VISIBLE_REASONING:
        assert SECRET not in "".join(case.received)
