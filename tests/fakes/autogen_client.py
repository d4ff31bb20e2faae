"""An AutoGen model client that plays a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Literal

from autogen_core import CancellationToken
from autogen_core.models import ChatCompletionClient, CreateResult, LLMMessage, ModelInfo, RequestUsage
from autogen_core.tools import Tool, ToolSchema
from pydantic import BaseModel

Step = str | CreateResult | BaseException | asyncio.Event
SEES = ModelInfo(
    vision=True, function_calling=True, json_output=True, family="unknown", structured_output=True
)


class ScriptedClient(ChatCompletionClient):
    """Runs its steps at every call: yields deltas and results, raises exceptions, waits for events."""

    def __init__(self, *steps: Step, info: ModelInfo = SEES) -> None:
        self.asked: list[dict[str, Any]] = []
        self.is_closed = False
        self._steps = steps
        self._info = info

    async def create_stream(
        self,
        messages: Sequence[LLMMessage],
        *,
        tools: Sequence[Tool | ToolSchema] = (),
        tool_choice: Tool | Literal["auto", "required", "none"] = "auto",
        json_output: bool | type[BaseModel] | None = None,
        extra_create_args: Mapping[str, Any] | None = None,
        cancellation_token: CancellationToken | None = None,
    ) -> AsyncGenerator[str | CreateResult, None]:
        self.asked.append(
            {"messages": messages, "tools": tools, "tool_choice": tool_choice, "extra": extra_create_args}
        )
        for step in self._steps:
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                yield step

    async def create(self, *arguments: Any, **named: Any) -> CreateResult:
        raise NotImplementedError

    async def close(self) -> None:
        self.is_closed = True

    def actual_usage(self) -> RequestUsage:
        return RequestUsage(0, 0)

    def total_usage(self) -> RequestUsage:
        return RequestUsage(0, 0)

    def count_tokens(self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()) -> int:
        return 0

    def remaining_tokens(
        self, messages: Sequence[LLMMessage], *, tools: Sequence[Tool | ToolSchema] = ()
    ) -> int:
        return 0

    @property
    def capabilities(self) -> Any:
        return self._info

    @property
    def model_info(self) -> ModelInfo:
        return self._info
