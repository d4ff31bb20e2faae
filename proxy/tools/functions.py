"""Python functions as tools: validate the arguments, encode the result as JSON.

AutoGen's ``FunctionTool`` is not used: it drops metadata in ``Annotated`` other than strings, converts arguments ("3"
to 3), ignores unknown arguments, logs arguments and results, and blocks threads of the loop's default executor.
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
from typing import Any, TypeVar, overload

from msgspec import Struct
from pydantic_core import PydanticSerializationError, to_json

from proxy.errors import ConfigurationError, ToolError
from proxy.messages import FunctionTool
from proxy.tools.arguments import Arguments, unwrapped
from proxy.tools.port import ToolContext
from proxy.tools.threads import ToolThreads

Function = TypeVar("Function", bound=Callable[..., Any])

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ToolOptions(Struct, frozen=True):
    """What ``tool`` declares about a function; None stands for what the function itself says."""

    name: str | None = None
    description: str | None = None
    has_effects: bool = True


@overload
def tool(function: Function, /) -> Function: ...


@overload
def tool(
    *, name: str | None = None, description: str | None = None, has_effects: bool = True
) -> Callable[[Function], Function]: ...


def tool(
    function: Function | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    has_effects: bool = True,
) -> Function | Callable[[Function], Function]:
    """Declare a function, sync or async, as a tool; the function itself is unchanged.

    Args:
        function: The function, if the decorator is used without parentheses.
        name: The name that the model sees, 1 to 64 letters, digits, ``_`` or ``-``; by default that of the function.
        description: What the model reads about the tool; by default the docstring.
        has_effects: False if a call changes nothing. A turn that called only such tools can be repeated safely.
    """

    def declare(function: Function) -> Function:
        function.__tool__ = ToolOptions(name, description, has_effects)  # type: ignore[attr-defined]
        return function

    return declare if function is None else declare(function)


def options_of(function: object) -> ToolOptions:
    """Return what ``tool`` declared about a function."""
    options: ToolOptions = getattr(function, "__tool__", ToolOptions())
    return options


def without_effects(function: Function) -> Function:
    """Declare a tool without effects; the earlier form of ``tool(has_effects=False)``."""
    return tool(has_effects=False)(function)


class PythonTool:
    """A tool that calls a Python function; created by ``function_tool``."""

    def __init__(
        self,
        function: Callable[..., Any],
        threads: ToolThreads,
        *,
        name: str,
        description: str | None,
        has_effects: bool,
        arguments: Arguments | None = None,
    ) -> None:
        self._function = function
        self._threads = threads
        self._has_effects = has_effects
        self._arguments = arguments or Arguments(function, name)
        self._spec = FunctionTool(name, description, self._arguments.schema)
        self._is_async = _is_async(function)

    @property
    def spec(self) -> FunctionTool:
        """The function definition for the model."""
        return self._spec

    @property
    def has_effects(self) -> bool:
        """Whether a call can have side effects."""
        return self._has_effects

    async def call(self, arguments: dict[str, object], context: ToolContext) -> str:
        """Validate the arguments, run the function and return its result: a string unchanged, other values as JSON.

        A function that is not ``async`` runs in a thread, which cannot be stopped: after cancellation it continues
        to its end, and the result is discarded.
        """
        given = self._arguments.validate(arguments)
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
    arguments: Arguments | None = None,
) -> PythonTool:
    """Create a tool from a function, sync or async, with annotated parameters.

    The docstring is the description of the tool, and ``Annotated[..., "text"]`` describes a parameter. A parameter
    annotated with ``ToolContext`` receives the context and is not in the schema. ``tool`` declares other names,
    descriptions, and functions without effects. Without ``arguments``, they are derived from the signature.

    Raises:
        ConfigurationError: The name is invalid or the signature has no JSON Schema; the message gives the reason.
    """
    options = options_of(function)
    name = name or options.name or _name_of(function)
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"a tool name must have 1 to 64 letters, digits, '_' or '-'; got {name[:80]!r}"
        )
    if has_effects is None:
        has_effects = options.has_effects
    description = options.description or inspect.cleandoc(unwrapped(function).__doc__ or "") or None
    return PythonTool(
        function, threads, name=name, description=description, has_effects=has_effects, arguments=arguments
    )


def load_function(path: str, search: Path | None = None) -> Callable[..., Any]:
    """Import ``package.module:function``; the folder ``search`` is searched after ``sys.path``.

    Importing executes the module, so ``path`` must come from a file of the operator.

    Raises:
        ConfigurationError: The import failed; the message gives the reason and suggests a similar name.
    """
    found = load_object(path, search)
    if not callable(found):
        module_name, _, attribute = path.partition(":")
        raise ConfigurationError(f"{attribute!r} in module {module_name!r} is not a function")
    return found  # type: ignore[no-any-return]


def load_object(path: str, search: Path | None = None, *, kind: str = "function") -> Any:
    """Import the object ``package.module:name`` as ``load_function`` does; ``kind`` is what errors call it.

    Raises:
        ConfigurationError: The import failed; the message gives the reason and suggests a similar name.
    """
    module_name, separator, attribute = path.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not separator or not all(part.isidentifier() for part in parts):
        raise ConfigurationError(f"{path[:200]!r} is not of the form 'package.module:{kind}'")
    if search is not None and (folder := str(search.resolve())) not in sys.path:
        # Not removed again, because a tool can import other modules when called; last, so that it shadows no package.
        sys.path.append(folder)
    importlib.invalidate_caches()
    found: Any = _import(module_name)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            near = get_close_matches(part, [name for name in dir(found) if not name.startswith("_")], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(f"module {module_name!r} has no {kind} {attribute!r}{hint}") from None
    return found


def _import(module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"module {error.name!r} not found") from None
        raise ConfigurationError(
            f"module {module_name!r} imports {error.name!r}, which is not installed"
        ) from error
    except Exception as error:
        raise ConfigurationError(f"module {module_name!r} cannot be imported: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Return the type and the first line of an exception of the operator's code, up to 200 characters of it."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def _name_of(function: Callable[..., Any]) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(unwrapped(function))


def _text_unless_awaitable(result: Any) -> Any:
    # Encode in the thread: a large result would block the event loop. A decorator can hide an async function, whose
    # awaitable is awaited in the loop.
    return result if inspect.isawaitable(result) else _result_text(result)


def _result_text(result: Any) -> str:
    if isinstance(result, str):
        return str(result)
    try:
        return to_json(result, inf_nan_mode="null").decode()
    except PydanticSerializationError as error:
        raise ToolError("the tool returned a result that cannot be encoded as JSON") from error
