"""One tool call, checked, timed and cut to size; and several at once.

Whatever a tool does, the call ends: in a result, in a sentence for the model that begins with ``error:``, or,
when the task that makes the call is cancelled, in its cancellation.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from proxy.errors import ToolError
from proxy.tools.port import Tool, ToolContext

logger = logging.getLogger(__name__)

MAX_ARGUMENTS = 1024 * 1024
"""Characters of arguments that are read at all."""
MAX_NESTING = 64
"""Levels of objects and lists in arguments."""
STOP_GRACE = 1.0
"""Seconds that a tool has to end when it is cancelled; after that, nobody waits for it."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL and halves of surrogate pairs: databases and UTF-8 refuse them."""

_left_alone: set[asyncio.Task[CallResult]] = set()
"""Tools that did not stop when cancelled; kept here so that their tasks are not collected under way."""


@dataclass(frozen=True, slots=True)
class CallResult:
    """What the model is told, whether it is an error, and how long the call took."""

    text: str
    is_error: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """A call with its circumstances. ``arguments`` is what the model wrote; the time limit is in seconds."""

    tool: Tool
    arguments: str
    context: ToolContext
    time_limit: float
    max_result_bytes: int


async def run_calls(
    calls: Sequence[PreparedCall],
    *,
    max_parallel: int,
    on_started: Callable[[int], None],
    on_done: Callable[[int, CallResult], None],
    after: Callable[[int, CallResult], Awaitable[None]] | None = None,
) -> list[CallResult]:
    """Run calls, at most ``max_parallel`` at once, started in order; return their results in the same order.

    The callbacks get the call's index; ``after`` is awaited behind ``on_done``. A call's time limit begins when it is
    started. Cancelled, this cancels what runs and waits for it.
    """
    places = asyncio.Semaphore(max_parallel)

    async def run(index: int, call: PreparedCall) -> CallResult:
        async with places:
            on_started(index)
            result = await call_tool(
                call.tool,
                call.arguments,
                call.context,
                time_limit=call.time_limit,
                max_result_bytes=call.max_result_bytes,
            )
            on_done(index, result)
            if after is not None:
                await after(index, result)
            return result

    tasks = [
        asyncio.create_task(run(index, call), name=f"tool call {call.context.call_key}")
        for index, call in enumerate(calls)
    ]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            if not task.cancelling():  # a second cancellation would end its waiting for the tool
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def call_tool(
    tool: Tool, arguments_json: str, context: ToolContext, *, time_limit: float, max_result_bytes: int
) -> CallResult:
    """Call a tool, and return what the model is told. Raises nothing but this task's own cancellation.

    The call returns at the time limit even if the tool goes on: a function in a thread cannot be stopped, and
    a coroutine that ignores its cancellation is left alone after ``STOP_GRACE`` seconds more.
    """
    began = time.monotonic()
    try:
        arguments = _arguments(arguments_json)
    except ToolError as error:
        return _result(f"error: {error.message}", True, began, max_result_bytes)
    # In a task of its own: there a tool's CancelledError cannot be mistaken for ours, nor can its stray
    # cancellations hit us (a dropped MCP connection makes both), and it can be left alone if it goes on.
    task = asyncio.create_task(
        _run(tool, arguments, context, began, max_result_bytes), name=f"tool {tool.spec.name}"
    )
    try:
        await asyncio.wait((task,), timeout=time_limit)
    finally:
        is_late = not task.done()
        if is_late:
            await _stop(task, context)
    if is_late:
        logger.warning("a tool ran out of time", extra=_facts(tool, context))
        return _result(f"error: timed out after {time_limit:g} seconds", True, began, max_result_bytes)
    if task.cancelled():
        logger.warning("a tool cancelled itself", extra=_facts(tool, context))
        return _result("error: the tool was cancelled", True, began, max_result_bytes)
    return task.result()


async def _run(
    tool: Tool, arguments: dict[str, object], context: ToolContext, began: float, max_result_bytes: int
) -> CallResult:
    try:
        text = await tool.call(arguments, context)
        if not isinstance(text, str):
            raise TypeError(f"a tool has to return text, not {type(text).__name__}")
    except ToolError as error:
        return _result(f"error: {error.message}", True, began, max_result_bytes)
    except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException:
        # Also SystemExit, which would end the server, and groups that hold a CancelledError.
        logger.exception("a tool failed", extra=_facts(tool, context))
        return _result("error: the tool failed", True, began, max_result_bytes)
    return _result(text, False, began, max_result_bytes)


async def _stop(task: asyncio.Task[CallResult], context: ToolContext) -> None:
    task.cancel()
    try:
        await asyncio.wait((task,), timeout=STOP_GRACE)
    finally:
        if not task.done():
            logger.warning("a tool did not stop when cancelled", extra={"call_key": context.call_key})
            _left_alone.add(task)
            task.add_done_callback(_left_alone.discard)


def _facts(tool: Tool, context: ToolContext) -> dict[str, str]:
    return {"tool": tool.spec.name, "agent": context.agent, "call_key": context.call_key}


# --- arguments ---


def mistake_in(arguments_json: str) -> str | None:
    """Return what is wrong with the arguments of a call, whatever the tool; None when nothing is."""
    try:
        _arguments(arguments_json)
    except ToolError as error:
        return error.message
    return None


def _arguments(text: str) -> dict[str, object]:
    """Read the arguments of a call; nothing at all counts as no arguments.

    Raises:
        ToolError: With what is wrong and what is wanted.
    """
    if len(text) > MAX_ARGUMENTS:
        raise ToolError(f"the arguments are longer than {MAX_ARGUMENTS} characters")
    if not text.strip():
        return {}
    try:
        arguments = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ToolError(
            f"the arguments are not valid JSON ({error.msg}, line {error.lineno} column {error.colno})"
        ) from None
    except ValueError:
        raise ToolError("the arguments hold a number that is too long") from None
    except RecursionError:
        raise ToolError("the arguments are nested too deeply") from None
    if not isinstance(arguments, dict):
        raise ToolError("the arguments have to be one JSON object")
    if "\\u" in text or text.count("[") + text.count("{") > MAX_NESTING or _UNSTORABLE.search(text):
        _look_through(arguments, MAX_NESTING)
    return arguments


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ToolError(f"the arguments name {repeated[:100]!r} more than once")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ToolError(f"the arguments hold {name}, which is not JSON")


def _look_through(value: object, levels: int) -> None:
    """Refuse what lies deeper than ``levels``, and texts that cannot be stored."""
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            raise ToolError(
                "the arguments hold a character that is not allowed (NUL or half a surrogate pair)"
            )
    elif isinstance(value, dict | list):
        if not levels:
            raise ToolError("the arguments are nested too deeply")
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            _look_through(part, levels - 1)


# --- results ---


def _result(text: str, is_error: bool, began: float, max_bytes: int) -> CallResult:
    return CallResult(_cut(text, max_bytes), is_error, time.monotonic() - began)


def _cut(text: str, max_bytes: int) -> str:
    """Return at most ``max_bytes`` of text as UTF-8, with a note in place of what is left out."""
    # A character is a byte or more: what is behind so many characters need not be looked at.
    kept = _UNSTORABLE.sub("\ufffd", text[: max_bytes + 1])
    if len(text) <= max_bytes and len(kept.encode()) <= max_bytes:
        return kept
    # The note is reckoned at its longest, so that text and note together are within the limit.
    room = max(max_bytes - len(_note(len(text)).encode()), 0)
    kept = kept.encode()[:room].decode(errors="ignore")
    return (kept + _note(len(text) - len(kept)))[:max_bytes]


def _note(characters: int) -> str:
    return f"\n[cut: {characters} more characters are left out]"
