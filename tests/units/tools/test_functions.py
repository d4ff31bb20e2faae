"""Python functions as tools: schema, checking, results, threads, loading."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import datetime
import enum
import functools
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, assert_type

import pytest
from pydantic import BaseModel, Field

from proxy.errors import ConfigurationError
from proxy.messages import FunctionTool
from proxy.tools import Context, ToolError, tool
from proxy.tools.functions import PythonTool, function_tool, load_function, without_effects
from proxy.tools.threads import ToolThreads

CONTEXT = Context("t1:1:0", "t1", "conv_1", "ann", "SalesAgent", Path("data"))


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    street: str
    number: int


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


@pytest.fixture
def threads() -> Iterator[ToolThreads]:
    created = ToolThreads(max_threads=4)
    yield created
    created.close()


MakeTool = Callable[..., PythonTool]


@pytest.fixture
def tool_of(threads: ToolThreads) -> MakeTool:
    return functools.partial(function_tool, threads=threads)


def execute(
    product: Annotated[str, "What is ordered."],
    price: Annotated[float, Field(ge=0, description="In dollars.")],
    context: Context,
    colour: Literal["red", "blue"] = "red",
    note: str | None = None,
) -> str:
    """Order something."""
    return f"{product} for {price} in {colour}, {note}, asked by {context.caller}"


# --- the definition for the model ---


async def test_a_signature_becomes_a_closed_schema_without_the_context(tool_of: MakeTool) -> None:
    tool = tool_of(execute)

    assert tool.spec == FunctionTool(
        "execute",
        "Order something.",
        {
            "type": "object",
            "properties": {
                "product": {"type": "string", "description": "What is ordered."},
                "price": {"type": "number", "minimum": 0, "description": "In dollars."},
                "colour": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            },
            "required": ["product", "price"],
            "additionalProperties": False,
        },
    )


async def test_the_description_of_a_tool_is_created_once(tool_of: MakeTool) -> None:
    tool = tool_of(execute)

    assert tool.spec is tool.spec


async def test_a_function_without_parameters_has_an_empty_closed_schema(tool_of: MakeTool) -> None:
    def now() -> str:
        return "noon"

    tool = tool_of(now)

    assert tool.spec == FunctionTool(
        "now", None, {"type": "object", "properties": {}, "additionalProperties": False}
    )
    assert await tool.call({}, CONTEXT) == "noon"


async def test_a_tool_has_effects_unless_it_says_otherwise(tool_of: MakeTool) -> None:
    @without_effects
    def look() -> None: ...

    def act() -> None: ...

    assert (tool_of(act).has_effects, tool_of(look).has_effects) == (True, False)
    assert (tool_of(act, has_effects=False).has_effects, tool_of(look, has_effects=True).has_effects) == (
        False,
        True,
    )


async def test_tool_declares_name_description_and_effects(tool_of: MakeTool) -> None:
    @tool
    def plain(number: int, context: Context) -> int:
        """Return the number."""
        return number

    @tool(name="find-it", description="Find something.", has_effects=False)
    def find(word: str) -> str:
        """Not for the model."""
        return word

    assert_type(plain(1, CONTEXT), int)
    assert_type(find("a"), str)
    assert [tool_of(one).has_effects for one in (plain, find)] == [True, False]
    assert [(tool_of(one).spec.name, tool_of(one).spec.description) for one in (plain, find)] == [
        ("plain", "Return the number."),
        ("find-it", "Find something."),
    ]
    assert list((tool_of(plain).spec.parameters or {})["properties"]) == ["number"]


async def test_a_tool_can_be_given_another_name(tool_of: MakeTool) -> None:
    assert tool_of(execute, name="place-order").spec.name == "place-order"


async def test_parameters_can_have_names_of_pydantic_attributes(tool_of: MakeTool) -> None:
    def odd(schema: str, copy: int, _x: int, model_fields: int = 4) -> list[Any]:
        return [schema, copy, _x, model_fields]

    assert await tool_of(odd).call({"schema": "s", "copy": 2, "_x": 3}, CONTEXT) == '["s",2,3,4]'


class Greeter:
    """A greeter."""

    def __call__(self, name: str) -> str:
        """Greet."""
        return f"hello {name}"

    async def wave(self, name: str) -> str:
        """Wave."""
        return f"{name}, look"


@pytest.mark.parametrize(
    ("function", "expected", "answer"),
    [
        pytest.param(Greeter(), ("Greeter", "Greet."), "hello Ann", id="object"),
        pytest.param(Greeter().wave, ("wave", "Wave."), "Ann, look", id="bound async method"),
        pytest.param(functools.partial(Greeter().wave), ("wave", "Wave."), "Ann, look", id="partial"),
    ],
)
async def test_whatever_can_be_called_is_a_tool(
    tool_of: MakeTool, function: Callable[..., Any], expected: tuple[str, str], answer: str
) -> None:
    tool = tool_of(function)

    assert (tool.spec.name, tool.spec.description) == expected
    assert await tool.call({"name": "Ann"}, CONTEXT) == answer


def untyped(x) -> None: ...  # type: ignore[no-untyped-def]


def many(*names: str) -> None: ...


def unknown_type(x: NotThere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def shapeless(x: threading.Lock) -> None: ...


@pytest.mark.parametrize(
    ("function", "error_message"),
    [
        pytest.param(untyped, "parameter 'x' of tool 'untyped' has no type annotation", id="no type"),
        pytest.param(many, "parameter 'names' of tool 'many' cannot be passed by keyword", id="*names"),
        pytest.param(unknown_type, "'NotThere' is not defined", id="unknown type"),
        pytest.param(shapeless, "the parameters of tool 'shapeless' have no JSON Schema", id="no schema"),
        pytest.param(lambda: None, "a tool name must have 1 to 64 letters", id="no name"),
    ],
)
async def test_a_signature_that_no_model_can_fill_in_is_refused(
    tool_of: MakeTool, function: Callable[..., Any], error_message: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        tool_of(function)

    assert error_message in refused.value.message
    assert "http" not in refused.value.message


# --- arguments ---


async def test_arguments_and_the_context_reach_the_function_in_its_own_types(tool_of: MakeTool) -> None:
    seen: list[Any] = []

    def take(
        when: datetime.date,
        colour: Colour,
        to: Address,
        at: Point,
        size: tuple[int, int],
        exact: Decimal,
        c: Context,
    ) -> None:
        seen.extend([when, colour, to, at, size, exact, c])

    await tool_of(take).call(
        {
            "when": "2026-11-23",
            "colour": "blue",
            "to": {"street": "Mesa Road", "number": 7},
            "at": {"x": 1},
            "size": [2, 3],
            "exact": "1.10",
        },
        CONTEXT,
    )

    assert seen == [
        datetime.date(2026, 11, 23),
        Colour.BLUE,
        Address(street="Mesa Road", number=7),
        Point(1, 0),
        (2, 3),
        Decimal("1.10"),
        CONTEXT,
    ]


async def test_what_is_left_out_keeps_the_functions_own_default(tool_of: MakeTool) -> None:
    marker = object()

    def take(x: int | None = None, y: Any = marker) -> bool:
        return x is None and y is marker

    assert await tool_of(take).call({}, CONTEXT) == "true"


def picky(
    count: int,
    price: Annotated[float, Field(ge=0)] = 0.0,
    to: Address | None = None,
    names: list[str] | int = 0,
    colour: Literal["red", "blue"] = "red",
) -> None: ...


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "argument 'count' is missing"),
        ({"count": "3"}, "argument 'count' should be a valid integer"),
        ({"count": True}, "argument 'count' should be a valid integer"),
        ({"count": 1, "prize": 2}, "there is no argument 'prize' (known: count, price, to, names, colour)"),
        ({"count": 1, "price": -1}, "argument 'price' should be greater than or equal to 0"),
        ({"count": 1, "price": math.inf}, "argument 'price' should be a finite number"),
        ({"count": 1, "price": "free"}, "argument 'price' should be a valid number"),
        ({"count": 1, "to": {"street": "x"}}, "argument 'to.number' is missing"),
        ({"count": 1, "to": {"street": 5, "number": 1}}, "argument 'to.street' should be a valid string"),
        (
            {"count": 1, "names": ["a", 1]},
            "argument 'names[1]' should be a valid string; argument 'names' should be a valid integer",
        ),
        ({"count": 1, "colour": "pink"}, "argument 'colour' should be 'red' or 'blue'"),
        (
            {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1},
            "argument 'count' is missing; "
            + "; ".join(
                f"there is no argument '{n}' (known: count, price, to, names, colour)" for n in "abcd"
            )
            + "; and 1 more",
        ),
    ],
    ids=str,
)
async def test_an_invalid_argument_is_named_with_the_expected_format(
    tool_of: MakeTool, arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ToolError) as refused:
        await tool_of(picky).call(arguments, CONTEXT)

    assert refused.value.message == sentence


async def test_the_context_cannot_be_given_by_the_model(tool_of: MakeTool) -> None:
    with pytest.raises(ToolError, match="there is no argument 'context'"):
        await tool_of(execute).call({"product": "x", "price": 1, "context": {"caller": "eve"}}, CONTEXT)


# --- results ---


@pytest.mark.parametrize(
    ("result", "text"),
    [
        pytest.param("as it is", "as it is", id="text"),
        pytest.param(None, "null", id="nothing"),
        pytest.param({"a": [1, 2.5, True]}, '{"a":[1,2.5,true]}', id="dict"),
        pytest.param(Address(street="Straße", number=1), '{"street":"Straße","number":1}', id="model"),
        pytest.param([Point(1)], '[{"x":1,"y":0}]', id="dataclass"),
        pytest.param(
            {"on": datetime.date(2026, 1, 2), "c": Colour.RED}, '{"on":"2026-01-02","c":"red"}', id="date"
        ),
        pytest.param({"x": math.nan}, '{"x":null}', id="not a number"),
    ],
)
@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_results_become_json_text(tool_of: MakeTool, kind: str, result: Any, text: str) -> None:
    def give() -> Any:
        return result

    async def give_later() -> Any:
        return result

    assert await tool_of(give if kind == "sync" else give_later).call({}, CONTEXT) == text


@pytest.mark.parametrize("result", [object(), b"\xff", {"f": len}], ids=["object", "bytes", "function"])
async def test_a_result_that_is_not_json_is_an_error_in_a_sentence(tool_of: MakeTool, result: Any) -> None:
    def give() -> Any:
        return result

    with pytest.raises(ToolError) as refused:
        await tool_of(give).call({}, CONTEXT)

    assert refused.value.message == "the tool returned a result that cannot be encoded as JSON"


async def test_a_decorator_may_hide_that_a_function_is_async(tool_of: MakeTool) -> None:
    async def real(x: int) -> int:
        return x + 1

    @functools.wraps(real)
    def hidden(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **kwargs)

    assert await tool_of(hidden).call({"x": 1}, CONTEXT) == "2"


# --- threads ---


async def test_blocking_functions_run_in_named_threads_in_parallel(tool_of: MakeTool) -> None:
    all_there = threading.Barrier(4, timeout=10)

    def wait() -> str:
        all_there.wait()
        return threading.current_thread().name

    tool = tool_of(wait)

    names = await asyncio.gather(*(tool.call({}, CONTEXT) for _ in range(4)))

    assert sorted(names) == ["tool-1", "tool-2", "tool-3", "tool-4"]


async def test_an_async_function_runs_on_the_loop(tool_of: MakeTool) -> None:
    async def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await tool_of(where).call({}, CONTEXT) == "true"


async def test_no_more_threads_run_than_allowed_and_idle_ones_are_used_again() -> None:
    threads = ToolThreads(max_threads=2)
    running, most, lock = 0, 0, threading.Lock()
    names: set[str] = set()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            names.add(threading.current_thread().name)
        with lock:
            running -= 1

    for _ in range(5):
        await asyncio.gather(*(threads.run(work) for _ in range(20)))
    threads.close()

    assert most <= 2
    assert names <= {"tool-1", "tool-2"}


async def test_context_variables_reach_a_function_in_a_thread(tool_of: MakeTool) -> None:
    trace: contextvars.ContextVar[str] = contextvars.ContextVar("trace")

    def read() -> str:
        value = trace.get()
        trace.set("changed in the thread")
        return value

    trace.set("abc")

    assert await tool_of(read).call({}, CONTEXT) == "abc"
    assert trace.get() == "abc"


@pytest.mark.parametrize(
    "error", [ValueError("no"), StopIteration(), SystemExit(3), asyncio.CancelledError()], ids=repr
)
async def test_what_a_function_raises_in_its_thread_is_raised_where_it_is_awaited(
    threads: ToolThreads, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    async def caught() -> BaseException:
        try:
            await threads.run(fail)
        except BaseException as seen:
            return seen
        raise AssertionError("nothing was raised")

    seen = await caught()

    # A coroutine cannot let a StopIteration through; Python makes it a RuntimeError.
    assert (seen.__cause__ if isinstance(error, StopIteration) else seen) is error


async def test_a_function_whose_caller_left_before_it_had_a_thread_never_runs() -> None:
    threads = ToolThreads(max_threads=1)
    go, ran = threading.Event(), threading.Event()
    first = asyncio.create_task(threads.run(lambda: go.wait(10)))
    second = asyncio.create_task(threads.run(ran.set))
    await asyncio.sleep(0)

    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    go.set()

    assert await first
    await threads.run(lambda: None)
    threads.close()
    assert not ran.is_set()


async def test_closed_threads_take_nothing_more_and_do_not_keep_the_process_alive() -> None:
    threads = ToolThreads()
    worker = await threads.run(threading.current_thread)

    threads.close()
    threads.close()

    worker.join(10)
    assert not worker.is_alive()
    assert worker.daemon
    with pytest.raises(RuntimeError, match="closed"):
        await threads.run(lambda: None)


# --- loading ---


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    path_before, modules_before = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path_before
    for name in set(sys.modules) - modules_before:
        del sys.modules[name]


async def test_a_function_is_loaded_by_its_import_path(tool_of: MakeTool) -> None:
    assert load_function("json:dumps") is json.dumps
    assert load_function("proxy.tools.acme:look_up_item").__name__ == "look_up_item"


async def test_a_function_next_to_the_team_file_is_found_and_shadows_nothing(folder: Path) -> None:
    (folder / "our_tools.py").write_text(
        "import our_facts\ndef price() -> int:\n    return our_facts.PRICE\n"
    )
    (folder / "our_facts.py").write_text("PRICE = 7\n")
    (folder / "json.py").write_text("raise RuntimeError('shadowed')\n")

    assert load_function("our_tools:price", folder)() == 7
    assert load_function("json:dumps", folder) is json.dumps


@pytest.mark.parametrize(
    ("path", "error_message"),
    [
        ("json", "'json' is not of the form 'package.module:function'"),
        ("json:", "'json:' is not of the form 'package.module:function'"),
        ("json:dumps()", "'json:dumps()' is not of the form 'package.module:function'"),
        ("../evil:run", "'../evil:run' is not of the form 'package.module:function'"),
        ("json:dump_s", "module 'json' has no function 'dump_s'; did you mean 'dumps'?"),
        ("json:decoder.JSONDecodeErr", "did you mean 'JSONDecodeError'?"),
        ("sys:path", "'path' in module 'sys' is not a function"),
        ("no_such_package.tools:run", "module 'no_such_package' not found"),
        ("json.no_such:run", "module 'json.no_such' not found"),
        ("wants_more:run", "module 'wants_more' imports 'no_such_thing', which is not installed"),
        ("broken:run", "module 'broken' cannot be imported: ZeroDivisionError: division by zero"),
        ("unreadable:run", "module 'unreadable' cannot be imported: SyntaxError"),
    ],
)
async def test_a_path_that_leads_nowhere_is_explained(folder: Path, path: str, error_message: str) -> None:
    (folder / "wants_more.py").write_text("import no_such_thing\n")
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "unreadable.py").write_text("def\n")

    with pytest.raises(ConfigurationError) as refused:
        load_function(path, folder)

    assert error_message in refused.value.message
