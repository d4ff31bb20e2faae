"""Calls of a framework that the client or a person answers, over the turns of an exchange.

A framework ends its run with open calls: of tools of the client, and of its own tools that a person has to approve. Its
state is stored with them, and it resumes when all of them are answered. An approved call is executed by the framework
itself. Its execution is recorded before it begins and after it has ended, so that no call is executed twice: if the
server stopped in between, or the turn is repeated, the model gets the recorded result, or the text that there is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from types import TracebackType
from typing import Self

from proxy.errors import ToolError
from proxy.members.adapters.common import NOT_EXECUTED, FrameworkCall
from proxy.members.port import MemberContext, MemberEvent, ToolBegan, ToolEnded

UNREPORTED = "executed"
"""The recorded result of an approved call of which the framework reports none."""


class ExternalCalls:
    """The open calls of one run. It is a context manager, which ends the records of executed calls."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context
        self._tasks: set[asyncio.Task[str]] = set()
        self._running: dict[str, tuple[asyncio.Future[str], asyncio.Task[str]]] = {}
        """Calls that the framework may execute, by id, each with its record."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            for call_id in list(self._running):
                await self._end(call_id, UNREPORTED, is_error=False)
        # The outcome of a call whose run was interrupted is unknown, and no end is recorded.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def answers(
        self, own: Iterable[FrameworkCall], of_client: Iterable[FrameworkCall]
    ) -> dict[str, str | None]:
        """Return the results by call id; None for a call of the framework's tools that it executes now.

        The turn ends here if a call is not answered yet, so the state has to be set before.
        """
        decisions = {call.call_id: asyncio.create_task(self._decision(call)) for call in own}
        results = {call.call_id: asyncio.create_task(self._result(call)) for call in of_client}
        waiting = decisions | results
        try:
            await asyncio.gather(*waiting.values())
        finally:
            for task in waiting.values():
                task.cancel()
        # What is left belongs to calls that the framework does not wait for.
        self._context.answers()
        return {call_id: task.result() for call_id, task in waiting.items()}

    async def take(self, event: str | MemberEvent) -> bool:
        """Whether the event belongs to an approved call, whose events are already emitted by its approval."""
        if isinstance(event, ToolBegan):
            return event.call_id in self._running
        if isinstance(event, ToolEnded) and event.call_id in self._running:
            await self._end(event.call_id, event.result, is_error=event.is_error)
            return True
        return False

    async def _result(self, call: FrameworkCall) -> str:
        try:
            return await self._context.call_tool(call.name, call.arguments)
        except ToolError:
            # The request does not have the tool any more.
            return NOT_EXECUTED

    async def _decision(self, call: FrameworkCall) -> str | None:
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        begun = asyncio.Event()

        async def run() -> str:
            begun.set()
            return await ended

        approved = self._context.run_approved(call.name, call.arguments, run)
        record = asyncio.create_task(_recorded(approved), name=f"approved call {call.name}")
        self._tasks.add(record)
        beginning = asyncio.create_task(begun.wait())
        try:
            await asyncio.wait((record, beginning), return_when=asyncio.FIRST_COMPLETED)
        finally:
            beginning.cancel()
        if record.done():
            return record.result()
        self._running[call.call_id] = ended, record
        return None

    async def _end(self, call_id: str, result: str, *, is_error: bool) -> None:
        ended, record = self._running.pop(call_id)
        if is_error:
            ended.set_exception(ToolError(result))
        else:
            ended.set_result(result)
        await asyncio.wait((record,))


async def _recorded(approved: Awaitable[str]) -> str:
    """Return the result of an earlier run, or why the call is not executed."""
    try:
        return await approved
    except ToolError as refusal:
        return refusal.message
