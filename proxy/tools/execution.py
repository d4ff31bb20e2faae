"""Execute tool calls: parse the arguments, enforce the time limit, truncate the result; run several in parallel.

A call always ends, whatever the tool does: with a result, with a text for the model that starts with ``error:``, or
with the cancellation of the calling task.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn

from msgspec import Struct

from proxy.errors import ToolError
from proxy.tools.port import Tool, ToolContext
from proxy.tracing import Attribute, TraceSpan, Value, span

logger = logging.getLogger(__name__)

MAX_ARGUMENTS = 1024 * 1024
"""Maximum length of the arguments of a call, in characters."""
MAX_NESTING = 64
"""Maximum nesting of objects and arrays in arguments."""
STOP_GRACE = 1.0
"""Seconds to wait for a cancelled tool; after that it is abandoned."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
"""NUL, which PostgreSQL rejects in text, and unpaired surrogates, which UTF-8 cannot encode."""

_abandoned: set[asyncio.Task[CallResult]] = set()
"""Tasks that ignored cancellation. The event loop has only weak references to tasks (``asyncio.create_task``)."""


class CallResult(Struct, frozen=True):
    """The text for the model, whether it is an error, and the duration of the call."""

    text: str
    is_error: bool
    seconds: float


class PreparedCall(Struct, frozen=True):
    """A call with its context and limits. ``arguments`` is JSON as the model wrote it; ``time_limit`` is in seconds."""

    tool: Tool
    arguments: str
    context: ToolContext
    time_limit: float
    max_result_bytes: int
    call_id: str = ""
    """The id of the call in messages, for its span."""


async def run_calls(
    calls: Sequence[PreparedCall],
    *,
    max_parallel: int,
    on_started: Callable[[int], None],
    on_done: Callable[[int, CallResult], None],
    after: Callable[[int, CallResult], Awaitable[None]] | None = None,
) -> list[CallResult]:
    """Run calls, at most ``max_parallel`` at a time; return the results in the order of the calls.

    Calls start in order, and the time limit of a call begins at its start. The callbacks receive the index of the call;
    ``after`` is awaited after ``on_done``. On cancellation, running calls are cancelled and awaited.
    """
    slots = asyncio.Semaphore(max_parallel)

    async def run(index: int, call: PreparedCall) -> CallResult:
        async with slots:
            on_started(index)
            with _tool_span(call) as traced:
                result = await call_tool(
                    call.tool,
                    call.arguments,
                    call.context,
                    time_limit=call.time_limit,
                    max_result_bytes=call.max_result_bytes,
                )
                traced.set_content(Attribute.TOOL_ARGUMENTS, lambda: call.arguments)
                traced.set_content(Attribute.TOOL_RESULT, lambda: result.text)
                if result.is_error:
                    traced.fail("tool_error")
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
            if not task.cancelling():  # a second cancellation would interrupt the wait for the tool
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _tool_span(call: PreparedCall) -> AbstractContextManager[TraceSpan]:
    name = call.tool.spec.name
    attributes: dict[Attribute, Value] = {
        Attribute.OPERATION: "execute_tool",
        Attribute.TOOL: name,
        Attribute.TOOL_TYPE: "function",
        Attribute.TOOL_CALL_ID: call.call_id,
        Attribute.AGENT: call.context.agent,
    }
    return span(f"execute_tool {name}", attributes)


async def call_tool(
    tool: Tool, arguments_json: str, context: ToolContext, *, time_limit: float, max_result_bytes: int
) -> CallResult:
    """Call a tool and return the result for the model. Raises only ``CancelledError``, when this task is cancelled.

    The call returns at the time limit even if the tool continues: a function in a thread cannot be stopped, and a
    coroutine that ignores cancellation is abandoned after another ``STOP_GRACE`` seconds.
    """
    began = time.monotonic()
    try:
        arguments = _parse_arguments(arguments_json)
    except ToolError as error:
        return _result(f"error: {error.message}", True, began, max_result_bytes)
    # A separate task: a CancelledError of the tool is not confused with the cancellation of this task, a stray cancel
    # by the tool does not reach this task (a dropped MCP connection causes both), and the task can be abandoned.
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
        logger.warning("tool call timed out", extra=_log_fields(tool, context))
        return _result(f"error: timed out after {time_limit:g} seconds", True, began, max_result_bytes)
    if task.cancelled():
        logger.warning("tool call cancelled itself", extra=_log_fields(tool, context))
        return _result("error: the tool was cancelled", True, began, max_result_bytes)
    return task.result()


async def _run(
    tool: Tool, arguments: dict[str, object], context: ToolContext, began: float, max_result_bytes: int
) -> CallResult:
    try:
        text = await tool.call(arguments, context)
        if not isinstance(text, str):
            raise TypeError(f"a tool must return str, not {type(text).__name__}")
    except ToolError as error:
        return _result(f"error: {error.message}", True, began, max_result_bytes)
    except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException:
        # Including SystemExit, which would stop the server, and exception groups that contain a CancelledError.
        logger.exception("tool call failed", extra=_log_fields(tool, context))
        return _result("error: the tool failed", True, began, max_result_bytes)
    return _result(text, False, began, max_result_bytes)


async def _stop(task: asyncio.Task[CallResult], context: ToolContext) -> None:
    task.cancel()
    try:
        await asyncio.wait((task,), timeout=STOP_GRACE)
    finally:
        if not task.done():
            logger.warning("tool call ignored cancellation", extra={"call_key": context.call_key})
            _abandoned.add(task)
            task.add_done_callback(_abandoned.discard)


def _log_fields(tool: Tool, context: ToolContext) -> dict[str, str]:
    return {"tool": tool.spec.name, "agent": context.agent, "call_key": context.call_key}


# --- arguments ---


def find_argument_error(arguments_json: str) -> str | None:
    """Return the error in the arguments of a call that is independent of the tool; None if there is none."""
    try:
        _parse_arguments(arguments_json)
    except ToolError as error:
        return error.message
    return None


def _parse_arguments(text: str) -> dict[str, object]:
    """Parse the arguments of a call; an empty or blank text means no arguments.

    Raises:
        ToolError: The message describes the error for the model.
    """
    if len(text) > MAX_ARGUMENTS:
        raise ToolError(f"the arguments are longer than {MAX_ARGUMENTS} characters")
    if not text.strip():
        return {}
    try:
        arguments = json.loads(text, object_pairs_hook=_build_object, parse_constant=_reject_constant)
    except json.JSONDecodeError as error:
        raise ToolError(
            f"the arguments are not valid JSON ({error.msg}, line {error.lineno} column {error.colno})"
        ) from None
    except ValueError:
        raise ToolError("the arguments contain a number with too many digits") from None
    except RecursionError:
        raise ToolError("the arguments are nested too deeply") from None
    if not isinstance(arguments, dict):
        raise ToolError("the arguments must be one JSON object")
    if "\\u" in text or text.count("[") + text.count("{") > MAX_NESTING or _UNSTORABLE.search(text):
        _check_values(arguments, MAX_NESTING)
    return arguments


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ToolError(f"the arguments contain {repeated[:100]!r} more than once")
    return found


def _reject_constant(name: str) -> NoReturn:
    raise ToolError(f"the arguments contain {name}, which is not valid JSON")


def _check_values(value: object, levels: int) -> None:
    """Reject values nested deeper than ``levels`` and strings that cannot be stored."""
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            raise ToolError(
                "the arguments contain a character that is not allowed (NUL or an unpaired surrogate)"
            )
    elif isinstance(value, dict | list):
        if not levels:
            raise ToolError("the arguments are nested too deeply")
        for part in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_values(part, levels - 1)


# --- results ---


def _result(text: str, is_error: bool, began: float, max_bytes: int) -> CallResult:
    return CallResult(_truncate(text, max_bytes), is_error, time.monotonic() - began)


def _truncate(text: str, max_bytes: int) -> str:
    """Return at most ``max_bytes`` of text in UTF-8; a truncated text ends with a note."""
    # A character has at least one byte, so characters after ``max_bytes`` cannot fit.
    start = _UNSTORABLE.sub("\ufffd", text[: max_bytes + 1])
    if len(text) <= max_bytes and len(start.encode()) <= max_bytes:
        return start
    # Reserve space for the longest possible note, so that text and note together stay within the limit.
    space = max(max_bytes - len(_truncation_note(len(text)).encode()), 0)
    start = start.encode()[:space].decode(errors="ignore")
    return (start + _truncation_note(len(text) - len(start)))[:max_bytes]


def _truncation_note(characters: int) -> str:
    return f"\n[truncated: {characters} characters]"
