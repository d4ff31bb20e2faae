"""The arguments of a Python function: their schema, read from its types, and what is wrong with a call's."""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import PydanticSerializationError, to_jsonable_python
from typing_extensions import TypedDict

from proxy.errors import ConfigurationError, ToolError
from proxy.tools.port import ToolContext

_MAX_PROBLEMS = 5


class Arguments:
    """What a function wants to be called with. ``name`` is the tool's, for messages.

    Raises:
        ConfigurationError: The signature cannot be offered to a model; the message says why.
    """

    schema: dict[str, Any]
    """JSON Schema of an object; closed."""
    context_parameters: tuple[str, ...]
    """Names of the parameters that are handed the ``ToolContext``; not in the schema."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        shown, self.context_parameters = _parameters(function, name)
        self._adapter, self.schema = _adapter(shown, name)

    def checked(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Return the arguments in the function's own types; those left out stay out.

        Raises:
            ToolError: With a sentence that names every wrong argument and says what is wanted.
        """
        try:
            # Through JSON, because only there a date, an enum or a tuple has a form that is strictly right.
            return self._adapter.validate_json(json.dumps(given))
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
            raise ToolError(_sentence(problems, given, self.schema["properties"])) from None


def unwrapped(function: Callable[..., Any]) -> Any:
    """Return what carries annotations and docstring: behind partials, and ``__call__`` of an object."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return type(function).__call__


class _Schema(GenerateJsonSchema):
    """Without the titles that pydantic makes of field names: they only cost tokens."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _parameters(function: Callable[..., Any], name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the types of the parameters the model fills in, and the names of those that get the context."""
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(unwrapped(function), include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise ConfigurationError(f"the signature of tool {name!r} cannot be read: {error}") from None
    shown: dict[str, Any] = {}
    contexts: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigurationError(
                f"parameter {parameter.name!r} of tool {name!r} cannot be given by its name"
            )
        hint = hints.get(parameter.name, parameter.empty)
        if hint is parameter.empty:
            raise ConfigurationError(f"parameter {parameter.name!r} of tool {name!r} has no type")
        if hint is ToolContext or ToolContext in typing.get_args(hint):
            contexts.append(parameter.name)
        elif parameter.default is parameter.empty:
            shown[parameter.name] = _described(hint)
        else:
            shown[parameter.name] = NotRequired[_described(hint, *_default(parameter.default))]
    return shown, tuple(contexts)


def _described(hint: Any, *further: Any) -> Any:
    """Return the hint with texts in ``Annotated`` turned into descriptions."""
    notes = list(further)
    if typing.get_origin(hint) is Annotated:
        hint, *own = typing.get_args(hint)
        notes = [Field(description=note) if isinstance(note, str) else note for note in own] + notes
    for note in notes:
        hint = Annotated[hint, note]
    return hint


def _default(value: Any) -> list[Any]:
    """A default, only shown: when an argument is left out, the function's own default holds."""
    try:
        return [Field(json_schema_extra={"default": to_jsonable_python(value)})]
    except PydanticSerializationError:
        return []


def _adapter(fields: dict[str, Any], name: str) -> tuple[TypeAdapter[dict[str, Any]], dict[str, Any]]:
    # A TypedDict, because a model's fields could not be named "schema", "copy" or "_x".
    make_type: Any = TypedDict
    arguments = make_type("arguments", fields)
    arguments.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    try:
        adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(arguments)
        schema = adapter.json_schema(schema_generator=_Schema)
    except PydanticUserError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"the parameters of tool {name!r} have no JSON form: {reason}") from None
    schema.pop("title", None)
    schema.setdefault("properties", {})
    return adapter, schema


def _sentence(problems: list[Any], given: Mapping[str, object], known: Mapping[str, object]) -> str:
    """Say in words of ours what is wrong, so that the model can mend the call."""
    said: list[str] = []
    for problem in problems:
        place = _place(problem["loc"], given, is_missing=problem["type"] == "missing")
        message = str(problem["msg"])
        match problem["type"]:
            case "missing":
                text = f"argument {place} is missing"
            case "extra_forbidden":
                text = f"there is no argument {place} (known: {', '.join(known) or 'none'})"
            case "json_invalid":
                text = "the arguments hold text that is not valid Unicode"
            case _:
                is_wish = message.startswith("Input ")
                text = f"argument {place} {message[6:]}" if is_wish else f"argument {place}: {message}"
        if text not in said:
            said.append(text)
    if len(said) > _MAX_PROBLEMS:
        said[_MAX_PROBLEMS:] = [f"and {len(said) - _MAX_PROBLEMS} more"]
    return "; ".join(said)


def _place(location: tuple[int | str, ...], given: Mapping[str, object], *, is_missing: bool) -> str:
    """Return an argument's path as its sender knows it, without the checker's marks of a union's branches."""
    path = ""
    value: object = given
    for position, key in enumerate(location):
        is_last = position == len(location) - 1
        if isinstance(value, dict) and key in value:
            value = value[key]
            path = f"{path}.{key}" if path else str(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
            path = f"{path}[{key}]"
        elif is_missing and is_last:
            path = f"{path}.{key}" if path else str(key)
    return repr(path[:100])
