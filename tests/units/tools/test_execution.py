"""One tool call, checked, timed and cut to size; and several at once."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import ConversationBusy, ToolError
from proxy.messages import FunctionTool
from proxy.tools import execution
from proxy.tools.execution import CallResult, PreparedCall, call_tool, run_calls
from proxy.tools.functions import function_tool
from proxy.tools.port import Tool, ToolContext
from proxy.tools.threads import ToolThreads

CONTEXT = ToolContext("t1:1:0", "t1", "conv_1", "ann", "SalesAgent", Path("data"))

Body = Callable[[dict[str, object]], Awaitable[str]]


class FakeTool:
    """A tool that does what it is given."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self.spec = FunctionTool("fake")
        self.has_effects = True
        self.calls: list[dict[str, object]] = []

    async def call(self, arguments: dict[str, object], context: ToolContext) -> str:
        self.calls.append(arguments)
        return await self._body(arguments)


async def echo(arguments: dict[str, object]) -> str:
    return json.dumps(arguments)


async def called(
    body: Body, arguments: str = "{}", *, time_limit: float = 10, max_result_bytes: int = 1000
) -> tuple[str, bool]:
    result = await call_tool(
        FakeTool(body), arguments, CONTEXT, time_limit=time_limit, max_result_bytes=max_result_bytes
    )
    return result.text, result.is_error


def failing(error: BaseException) -> Body:
    async def body(_: dict[str, object]) -> str:
        raise error

    return body


# --- arguments ---


@pytest.mark.parametrize("text", ["", "  ", "{}"])
async def test_no_arguments_are_an_empty_object(text: str) -> None:
    assert await called(echo, text) == ("{}", False)


async def test_arguments_are_read_as_json() -> None:
    assert await called(echo, '{"a": [1, "\\u00e9\\\\u0000"]}') == ('{"a": [1, "\\u00e9\\\\u0000"]}', False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            '{"price": 1,',
            "the arguments are not valid JSON "
            "(Expecting property name enclosed in double quotes, line 1 column 13)",
            id="cut",
        ),
        pytest.param(
            "price=1", "the arguments are not valid JSON (Expecting value, line 1 column 1)", id="no json"
        ),
        pytest.param("[1]", "the arguments must be one JSON object", id="list"),
        pytest.param("null", "the arguments must be one JSON object", id="null"),
        pytest.param(
            '{"a": 1, "b": {"x": 1, "x": 2}}', "the arguments contain 'x' more than once", id="twice"
        ),
        pytest.param('{"a": NaN}', "the arguments contain NaN, which is not valid JSON", id="NaN"),
        pytest.param(
            '{"a": -Infinity}', "the arguments contain -Infinity, which is not valid JSON", id="infinity"
        ),
        pytest.param(
            '{"a": ' + "9" * 5000 + "}",
            "the arguments contain a number with too many digits",
            id="long number",
        ),
        pytest.param(
            '{"a": ' + "[" * 64 + "]" * 64 + "}", "the arguments are nested too deeply", id="65 levels"
        ),
        pytest.param(
            '{"a":' + "[" * 99_999 + "]" * 99_999 + "}",
            "the arguments are nested too deeply",
            id="many levels",
        ),
        pytest.param(
            '{"a": "' + "x" * execution.MAX_ARGUMENTS + '"}',
            "the arguments are longer than 1048576 characters",
            id="long",
        ),
        *(
            pytest.param(
                text,
                "the arguments contain a character that is not allowed (NUL or an unpaired surrogate)",
                id=name,
            )
            for name, text in {
                "half a pair": '{"a": "\\ud83d"}',
                "half a pair in a name": '{"\\udc00": 1}',
                "half a pair, raw": '{"a": ["\ud83d"]}',
                "nul": '{"a": {"b": "\\u0000"}}',
            }.items()
        ),
    ],
)
async def test_invalid_arguments_are_reported_and_the_tool_does_not_run(text: str, expected: str) -> None:
    tool = FakeTool(echo)

    result = await call_tool(tool, text, CONTEXT, time_limit=1, max_result_bytes=1000)

    assert (result.text, result.is_error) == (f"error: {expected}", True)
    assert tool.calls == []


async def test_a_whole_surrogate_pair_and_64_levels_are_fine() -> None:
    deep = '{"a": ' + "[" * 63 + '"\\ud83d\\ude00"' + "]" * 63 + "}"

    assert await called(echo, deep) == (deep, False)


# --- what tools do ---


async def test_a_result_comes_with_the_time_it_took() -> None:
    async def slow(_: dict[str, object]) -> str:
        await asyncio.sleep(0.02)
        return "done"

    result = await call_tool(FakeTool(slow), "{}", CONTEXT, time_limit=10, max_result_bytes=100)

    assert (result.text, result.is_error) == ("done", False)
    assert 0.02 <= result.seconds < 5


async def test_a_tools_own_sentence_reaches_the_model() -> None:
    assert await called(failing(ToolError("sold out"))) == ("error: sold out", True)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("secret internals"),
        ConversationBusy(),
        RecursionError(),
        StopAsyncIteration(),
        SystemExit("secret internals"),
        BaseExceptionGroup("secret internals", [asyncio.CancelledError()]),
    ],
    ids=repr,
)
async def test_other_failures_are_reported_without_internals_and_logged_without_arguments(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    result = await called(failing(error), '{"card": "4111-1111"}')

    assert result == ("error: the tool failed", True)
    (record,) = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "tool call failed")
    assert (record.__dict__["tool"], record.__dict__["call_key"]) == ("fake", "t1:1:0")
    assert record.exc_info is not None
    assert "4111-1111" not in caplog.text


async def test_a_tool_that_returns_no_text_has_failed() -> None:
    async def number(_: dict[str, object]) -> Any:
        return 7

    assert await called(number) == ("error: the tool failed", True)


async def test_a_tool_that_cancels_itself_is_an_error_and_does_not_stop_the_caller() -> None:
    async def cancels_its_task(_: dict[str, object]) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(10)
        return "never"

    assert await called(failing(asyncio.CancelledError())) == ("error: the tool was cancelled", True)
    assert await called(cancels_its_task) == ("error: the tool was cancelled", True)
    me = asyncio.current_task()
    assert me is not None
    assert me.cancelling() == 0


# --- time ---


async def test_a_tool_that_takes_too_long_is_cancelled() -> None:
    stopped = asyncio.Event()

    async def hang(_: dict[str, object]) -> str:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return "never"

    assert await called(hang, time_limit=0.05) == ("error: timed out after 0.05 seconds", True)
    assert stopped.is_set()


async def test_a_result_that_comes_while_the_tool_is_cancelled_is_too_late() -> None:
    async def finishes_anyway(_: dict[str, object]) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "late"
        return "never"

    assert await called(finishes_anyway, time_limit=0.05) == ("error: timed out after 0.05 seconds", True)


async def test_a_tool_that_ignores_its_cancellation_is_left_alone() -> None:
    go = asyncio.Event()

    async def stubborn(_: dict[str, object]) -> str:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue
        return "at last"

    assert await called(stubborn, time_limit=0.01) == ("error: timed out after 0.01 seconds", True)
    (left,) = [task for task in asyncio.all_tasks() if task.get_name() == "tool fake"]
    go.set()
    assert (await left).text == "at last"


async def test_the_call_of_a_function_that_hangs_in_its_thread_ends_at_the_limit() -> None:
    threads = ToolThreads()
    go = threading.Event()

    def hang() -> None:
        go.wait(30)

    result = await call_tool(
        function_tool(hang, threads), "{}", CONTEXT, time_limit=0.05, max_result_bytes=100
    )
    go.set()
    threads.close()

    assert result.text == "error: timed out after 0.05 seconds"
    assert result.seconds < 5


async def test_cancelling_the_caller_stops_the_tool_and_waits_for_it() -> None:
    running, stopped = asyncio.Event(), asyncio.Event()

    async def tidy(_: dict[str, object]) -> str:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            stopped.set()
        return "never"

    caller = asyncio.create_task(called(tidy))
    await running.wait()

    caller.cancel()

    with pytest.raises(asyncio.CancelledError):
        await caller
    assert stopped.is_set()


# --- size ---


@pytest.mark.parametrize(
    ("text", "limit", "result"),
    [
        pytest.param("x" * 100, 100, "x" * 100, id="fits"),
        pytest.param("x" * 1000, 100, "x" * 71 + "\n[truncated: 929 characters]", id="ascii"),
        pytest.param("é" * 60, 100, "é" * 36 + "\n[truncated: 24 characters]", id="two bytes"),
        pytest.param("€" * 1000, 101, "€" * 24 + "\n[truncated: 976 characters]", id="three bytes"),
        pytest.param("x" * 1000, 10, "\n[truncate", id="no room for the note"),
        pytest.param("a\x00b\ud800c", 100, "a\ufffdb\ufffdc", id="what cannot be stored"),
    ],
)
async def test_results_are_cut_between_characters_and_say_so(text: str, limit: int, result: str) -> None:
    async def give(_: dict[str, object]) -> str:
        return text

    assert await called(give, max_result_bytes=limit) == (result, False)
    assert len(result.encode()) <= limit


async def test_a_long_error_is_cut_too() -> None:
    text, is_error = await called(failing(ToolError("no " * 1000)), max_result_bytes=100)

    assert is_error
    assert len(text.encode()) <= 100


# --- several ---


def prepared(tool: Tool, arguments: str = "{}") -> PreparedCall:
    return PreparedCall(tool, arguments, CONTEXT, time_limit=10, max_result_bytes=1000)


def nothing(*_: object) -> None: ...


async def test_results_keep_the_order_of_the_calls_whatever_ends_first() -> None:
    gates = [asyncio.Event() for _ in range(3)]
    seen: list[str] = []

    async def wait(arguments: dict[str, object]) -> str:
        index = arguments["n"]
        assert isinstance(index, int)
        await gates[index].wait()
        return f"r{index}"

    def done(index: int, result: CallResult) -> None:
        seen.append(f"done {index} {result.text}")
        if index:
            gates[index - 1].set()

    gates[2].set()
    results = await run_calls(
        [prepared(FakeTool(wait), json.dumps({"n": n})) for n in range(3)],
        max_parallel=3,
        on_started=lambda index: seen.append(f"started {index}"),
        on_done=done,
    )

    assert [result.text for result in results] == ["r0", "r1", "r2"]
    assert seen == ["started 0", "started 1", "started 2", "done 2 r2", "done 1 r1", "done 0 r0"]


async def test_no_more_calls_run_at_once_than_allowed() -> None:
    running, most = 0, 0

    async def count(_: dict[str, object]) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return "ok"

    results = await run_calls(
        [prepared(FakeTool(count)) for _ in range(20)], max_parallel=8, on_started=nothing, on_done=nothing
    )

    assert [result.text for result in results] == ["ok"] * 20
    assert most == 8


async def test_one_failing_call_leaves_the_others_alone() -> None:
    results = await run_calls(
        [
            prepared(FakeTool(failing(ToolError("no")))),
            prepared(FakeTool(echo)),
            prepared(FakeTool(echo), "oops"),
        ],
        max_parallel=1,
        on_started=nothing,
        on_done=nothing,
    )

    assert [result.is_error for result in results] == [True, False, True]


async def test_no_calls_have_no_results() -> None:
    assert await run_calls([], max_parallel=1, on_started=nothing, on_done=nothing) == []


async def test_cancelling_stops_all_calls_waits_for_them_and_starts_no_more() -> None:
    both_run = asyncio.Barrier(3)  # the two that may run, and this test
    started: list[int] = []
    ended: list[int] = []
    stopped = 0

    async def hang(_: dict[str, object]) -> str:
        nonlocal stopped
        await both_run.wait()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            stopped += 1
        return "never"

    running = run_calls(
        [prepared(FakeTool(hang)) for _ in range(5)],
        max_parallel=2,
        on_started=started.append,
        on_done=lambda index, _: ended.append(index),
    )
    task = asyncio.create_task(running)
    await both_run.wait()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert (started, ended, stopped) == ([0, 1], [], 2)


async def test_an_error_in_a_callback_is_raised_and_stops_the_calls() -> None:
    stopped = asyncio.Event()
    running = asyncio.Event()

    async def hang(_: dict[str, object]) -> str:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return "never"

    async def after_the_other(_: dict[str, object]) -> str:
        await running.wait()
        return "ok"

    def refuse(index: int, result: CallResult) -> None:
        raise LookupError(result.text)

    with pytest.raises(LookupError, match="ok"):
        await run_calls(
            [prepared(FakeTool(hang)), prepared(FakeTool(after_the_other))],
            max_parallel=2,
            on_started=nothing,
            on_done=refuse,
        )
    assert stopped.is_set()
