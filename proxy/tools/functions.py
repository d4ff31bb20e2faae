"""Python functions as tools: arguments are checked, results become JSON text.

AutoGen's ``FunctionTool`` does not serve: it drops what ``Annotated`` says besides a text, converts arguments
silently ("3" for 3), ignores unknown ones, logs arguments and results, and uses the executor of the loop.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic_core import PydanticSerializationError, to_json

from proxy.errors import ConfigurationError, ToolError
from proxy.messages import FunctionTool
from proxy.tools.arguments import Arguments, unwrapped
from proxy.tools.port import ToolContext
from proxy.tools.threads import ToolThreads

Function = TypeVar("Function", bound=Callable[..., Any])

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def without_effects(function: Function) -> Function:
    """Mark a function whose calls change nothing: a turn that ran only such tools may be run again."""
    function.has_effects = False  # type: ignore[attr-defined]
    return function


class PythonTool:
    """A Python function as a tool (see ``function_tool``)."""

    def __init__(
        self,
        function: Callable[..., Any],
        threads: ToolThreads,
        *,
        name: str,
        description: str | None,
        has_effects: bool,
    ) -> None:
        self._function = function
        self._threads = threads
        self._has_effects = has_effects
        self._arguments = Arguments(function, name)
        self._spec = FunctionTool(name, description, self._arguments.schema)
        self._is_async = _is_async(function)

    @property
    def spec(self) -> FunctionTool:
        """What the model is told."""
        return self._spec

    @property
    def has_effects(self) -> bool:
        """Whether a call changes something."""
        return self._has_effects

    async def call(self, arguments: dict[str, object], context: ToolContext) -> str:
        """Check the arguments, run the function and return its result as JSON text; a string stays as it is.

        A function that is not ``async`` runs in a thread. It cannot be stopped there: when the call is
        cancelled, the thread goes on to its end, unheard.
        """
        given = self._arguments.checked(arguments)
        given.update(dict.fromkeys(self._arguments.context_parameters, context))
        run = functools.partial(self._function, **given)
        if self._is_async:
            return _result_text(await run())
        result = await self._threads.run(lambda: _text_unless_awaitable(run()))
        return result if isinstance(result, str) else _result_text(await result)


def function_tool(
    function: Callable[..., Any],
    threads: ToolThreads,
    *,
    name: str | None = None,
    has_effects: bool | None = None,
) -> PythonTool:
    """Make a tool of a function, sync or async, with typed parameters.

    The docstring becomes the description, ``Annotated[..., "text"]`` describes a parameter, and a parameter
    annotated with ``ToolContext`` is handed the context and not shown to the model. ``has_effects`` is true
    unless said otherwise, here or by ``without_effects``.

    Raises:
        ConfigurationError: The signature cannot be offered to a model; the message says why.
    """
    name = name or _name_of(function)
    if not _NAME.fullmatch(name):
        raise ConfigurationError(f"a tool's name is 1 to 64 letters, digits, '_' or '-', not {name[:80]!r}")
    if has_effects is None:
        has_effects = bool(getattr(function, "has_effects", True))
    description = inspect.cleandoc(unwrapped(function).__doc__ or "") or None
    return PythonTool(function, threads, name=name, description=description, has_effects=has_effects)


def load_function(path: str, search: Path | None = None) -> Callable[..., Any]:
    """Import ``package.module:function``; modules in the folder ``search`` are found too, after all others.

    Importing executes the module, so paths may come from the operator's files only.

    Raises:
        ConfigurationError: With what is wrong, and the nearest right name where there is one.
    """
    module_name, separator, attribute = path.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not separator or not all(part.isidentifier() for part in parts):
        raise ConfigurationError(f"{path[:200]!r} is not of the form 'package.module:function'")
    if search is not None and (folder := str(search.resolve())) not in sys.path:
        # For good, as a tool may import its neighbours when called; at the end, so that it shadows nothing.
        sys.path.append(folder)
    importlib.invalidate_caches()
    found: Any = _import(module_name)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            near = get_close_matches(part, [name for name in dir(found) if not name.startswith("_")], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(f"module {module_name!r} has no function {attribute!r}{hint}") from None
    if not callable(found):
        raise ConfigurationError(f"{attribute!r} in module {module_name!r} is not a function")
    return found  # type: ignore[no-any-return]


def _import(module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"there is no module {error.name!r}") from None
        raise ConfigurationError(f"module {module_name!r} needs {error.name!r}, which is missing") from error
    except Exception as error:
        kind, text = type(error).__name__, str(error).partition("\n")[0][:200]
        raise ConfigurationError(f"module {module_name!r} cannot be imported: {kind}: {text}") from error


def _name_of(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(unwrapped(function))


def _text_unless_awaitable(result: Any) -> Any:
    # In the thread, so that a large result does not hold up the loop. A decorator may hide an async function.
    return result if inspect.isawaitable(result) else _result_text(result)


def _result_text(result: Any) -> str:
    if isinstance(result, str):
        return str(result)
    try:
        return to_json(result, inf_nan_mode="null").decode()
    except PydanticSerializationError as error:
        raise ToolError("the tool gave a result that cannot be written as JSON") from error
