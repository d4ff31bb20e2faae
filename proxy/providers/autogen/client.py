"""Any AutoGen ``ChatCompletionClient`` behind the model port. Loading one executes the code that its config
names.

The interface of these clients has limitations (list in ``docs/models.md``): tool calls arrive complete, at the end;
refusals, log probabilities and the details of usage do not arrive at all; AutoGen's OpenAI client returns a truncated
stream as if it were complete, which is detected only if a call was truncated or the response is empty.

Importing this module imports ``autogen_core``; the client's own package is imported by ``load``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from types import TracebackType
from typing import Any

from autogen_core import EVENT_LOGGER_NAME
from autogen_core.models import ChatCompletionClient
from pydantic import SecretStr

from proxy.errors import (
    ConfigurationError,
    UpstreamBadRequest,
    UpstreamFailed,
    UpstreamIncomplete,
    UpstreamResponseTooLarge,
    UpstreamTimeout,
)
from proxy.providers.autogen.arguments import offered_tools, readable_calls
from proxy.providers.autogen.component_problem import component_problem
from proxy.providers.autogen.failures import failure_of, secrets_of
from proxy.providers.autogen.http_client import (
    close_connections,
    close_responses,
    let_read,
    note_responses,
    take_hold,
)
from proxy.providers.autogen.messages import (
    Family,
    abilities_of,
    component_tool_choice,
    create_args,
    has_images,
    llm_messages,
    tool_schema,
)
from proxy.providers.autogen.result import ResultSource, rest_of
from proxy.providers.capabilities import Abilities
from proxy.providers.model import ModelDelta, ModelRequest, ToolCallPiece
from proxy.providers.think_tags import ThinkTagSplitter
from proxy.providers.timeouts import ModelLimits
from proxy.teamfiles.definitions import ComponentModel

logger = logging.getLogger(__name__)

_TO_LEAVE = 1.0
"""Seconds that a client has to stop after its task was cancelled."""
_AZURE = (
    "autogen_ext.models.openai.AzureOpenAIChatCompletionClient",
    "azure_openai_chat_completion_client",
    "AzureOpenAIChatCompletionClient",
)
"""The class, and the short names that AutoGen accepts for it."""
_OWN_RETRIES = ("OpenAIChatCompletionClient", "AnthropicChatCompletionClient", "BedrockChatCompletionClient")


class ComponentChatModel:
    """One AutoGen client as a model of the port."""

    def __init__(
        self,
        name: str,
        client: ChatCompletionClient,
        limits: ModelLimits | None = None,
        *,
        secrets: Collection[str] = (),
    ) -> None:
        """``name`` is what usage is counted under; ``secrets`` are values that must not be logged."""
        self._name = name
        self._secrets = secrets
        self._client = client
        self._limits = limits or ModelLimits()
        self._family = _family(client)
        take_hold(client)
        self._extra: dict[str, Any] = {}
        self._source: ResultSource = "ollama" if self._family == "ollama" else "other"
        if "include_usage" in inspect.signature(client.create_stream).parameters:
            self._extra["include_usage"] = True
            self._source = "reports usage"

    @classmethod
    def load(
        cls, name: str, definition: ComponentModel, limits: ModelLimits | None = None
    ) -> ComponentChatModel:
        """Import and make the client that the definition names.

        Raises:
            ConfigurationError: It cannot be imported or made; the sentence holds nothing of its config.
        """
        # AutoGen logs whole conversations as events at INFO.
        logging.getLogger(EVENT_LOGGER_NAME).setLevel(logging.CRITICAL)
        config = dict(definition.config)
        if definition.provider.endswith(_OWN_RETRIES):
            # Attempts are counted in one place, and that is not here.
            config.setdefault("max_retries", 0)
        try:
            client = _client(definition.provider, config)
        except Exception as error:  # noqa: BLE001 - the component's constructor may raise anything
            logger.debug("component not loaded", extra={"model": name, "error": type(error).__name__})
            problem = component_problem(definition.provider, error)
            raise ConfigurationError(
                f"model {name!r}: the component {definition.provider} {problem}"
            ) from None
        model = config.get("model")
        return cls(
            model if isinstance(model, str) else name, client, limits, secrets=tuple(secrets_of(config))
        )

    @property
    def name(self) -> str:
        """The model's name in the component's config, else the one in the team file."""
        return self._name

    @property
    def abilities(self) -> Abilities:
        """What AutoGen's client lets through, there and back."""
        return abilities_of(self._family, can_see=bool(self._client.model_info.get("vision")))

    def stream(
        self, request: ModelRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ModelDelta]]]:
        """Ask, and read the answer in batches inside the block."""
        return _Answer(self, request)

    async def close(self) -> None:
        """Close the client's connections."""
        try:
            await self._client.close()
            await close_connections(self._client)
        except Exception as error:  # noqa: BLE001 - a client that cannot be closed must not prevent a shutdown
            facts = {"model": self._name, "error": type(error).__name__}
            logger.warning("model component did not close", extra=facts)

    async def arguments(self, request: ModelRequest) -> dict[str, Any]:
        """Return what ``create_stream`` is called with.

        Raises:
            UpstreamBadRequest: The client cannot be asked this.
        """
        info = self._client.model_info
        shows_images = has_images(request.messages)
        if shows_images and not info.get("vision"):
            raise UpstreamBadRequest("bad_request", message="The model behind this team cannot see images.")
        takes_many = bool(info.get("multiple_system_messages"))
        if shows_images and self._family != "openai":
            messages = await asyncio.to_thread(
                llm_messages, request.messages, self._family, takes_many_system_messages=takes_many
            )
        else:
            messages = llm_messages(request.messages, self._family, takes_many_system_messages=takes_many)
        messages = readable_calls(messages, self._family)
        tools, choice = offered_tools(request.tools, request.tool_choice, messages, self._family)
        return {
            "messages": messages,
            "tools": [tool_schema(tool) for tool in tools],
            "tool_choice": component_tool_choice(choice) if tools else "auto",
            "extra_create_args": create_args(
                request.parameters, request.parallel_tool_calls if request.tools else None, self._family
            ),
            **self._extra,
        }


class _Answer:
    """One call. A separate task reads all the time, because only a cancelled read makes these clients release
    their connection.
    """

    def __init__(self, model: ComponentChatModel, request: ModelRequest) -> None:
        self._model = model
        self._request = request
        self._limits = model._limits
        self._deltas: list[ModelDelta] = []
        self._news = asyncio.Event()
        self._failure: UpstreamFailed | None = None
        self._task: asyncio.Task[None] | None = None
        self._think_tags = ThinkTagSplitter()
        self._size = 0
        self._has_said = False
        self._is_finished = False

    async def __aenter__(self) -> AsyncIterator[Sequence[ModelDelta]]:
        self._first_deadline = asyncio.get_running_loop().time() + self._limits.first_token
        self._task = asyncio.create_task(self._read(), name=f"model call {self._model.name}")
        return self

    def __aiter__(self) -> AsyncIterator[Sequence[ModelDelta]]:
        return self

    async def __anext__(self) -> Sequence[ModelDelta]:
        if not self._deltas and self._failure is None and not self._is_finished:
            await self._wait()
        if self._deltas:
            batch, self._deltas = self._deltas, []
            return batch
        if self._failure is not None:
            raise self._failure
        raise StopAsyncIteration

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        try:
            if not self._task.done():
                await let_read()
        finally:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_TO_LEAVE)

    async def _wait(self) -> None:
        deadline = self._first_deadline
        if self._has_said:
            deadline = asyncio.get_running_loop().time() + self._limits.idle
        self._news.clear()
        try:
            async with asyncio.timeout_at(deadline):
                await self._news.wait()
        except TimeoutError:
            raise UpstreamTimeout("timeout_idle" if self._has_said else "timeout_first") from None

    async def _read(self) -> None:
        responses = note_responses()
        try:
            arguments = await self._model.arguments(self._request)
            async with aclosing(self._model._client.create_stream(**arguments)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, str):
                        self._take(self._think_tags.read(piece))
                    else:
                        self._take(self._think_tags.end())
                        self._take(rest_of(piece, has_said=self._has_said, source=self._model._source))
                        self._is_finished = True
                        break
            if not self._is_finished:
                self._failure = UpstreamIncomplete("incomplete", is_retryable=True)
        except UpstreamFailed as failure:
            self._failure = failure
        except Exception as error:  # noqa: BLE001 - clients raise anything: a broken chunk is a TypeError to them
            self._failure = failure_of(error, self._request.messages, secrets=self._model._secrets)
            facts = {"model": self._model.name, "error": type(error).__name__}
            logger.info("model component raised", extra=facts)
        finally:
            if not self._is_finished and self._failure is None:
                self._failure = UpstreamFailed("broken", is_retryable=True)
            self._news.set()
            await close_responses(responses)

    def _take(self, deltas: Sequence[ModelDelta]) -> None:
        for delta in deltas:
            self._size += (
                len(delta.arguments) if isinstance(delta, ToolCallPiece) else len(getattr(delta, "text", ""))
            )
        if self._size > self._limits.answer_bytes:
            raise UpstreamResponseTooLarge("too_much")
        if deltas:
            self._has_said = True
            self._deltas.extend(deltas)
            self._news.set()


def _client(provider: str, config: dict[str, Any]) -> ChatCompletionClient:
    if provider in _AZURE and "azure_ad_token_provider" not in config:
        # Loaded as a component it imports azure-identity, which only the sign-in at Entra ID needs
        # (AzureOpenAIChatCompletionClient._from_config).
        from autogen_ext.models.openai import AzureOpenAIChatCompletionClient

        checked = AzureOpenAIChatCompletionClient.component_config_schema.model_validate(config)
        arguments = checked.model_dump(exclude_none=True)
        if isinstance(key := arguments.get("api_key"), SecretStr):
            arguments["api_key"] = key.get_secret_value()
        return AzureOpenAIChatCompletionClient(**arguments)
    return ChatCompletionClient.load_component({"provider": provider, "config": config})


def _family(client: ChatCompletionClient) -> Family:
    modules = [kind.__module__ for kind in type(client).__mro__]
    for family in ("openai", "anthropic", "ollama"):
        if any(module.startswith(f"autogen_ext.models.{family}") for module in modules):
            return family
    return "other"
