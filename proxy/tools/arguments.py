"""Derive the JSON Schema of a Python function's arguments from its signature, and validate calls against it."""

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
    """The argument schema of a function; ``name`` is the tool name for error messages.

    Raises:
        ConfigurationError: The signature has no JSON Schema; the message gives the reason.
    """

    schema: dict[str, Any]
    """JSON Schema of an object, with ``additionalProperties: false``."""
    context_parameters: tuple[str, ...]
    """Names of the parameters that receive the ``ToolContext``; not in the schema."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        parameters, self.context_parameters = _parameters(function, name)
        self._adapter, self.schema = _adapter(parameters, name)

    def validate(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Return the arguments converted to the annotated types; omitted arguments stay omitted.

        Raises:
            ToolError: The message names each invalid argument and the expected value.
        """
        try:
            # Strict mode accepts a date, enum or tuple in JSON form only when it parses JSON (pydantic, "Strict mode").
            return self._adapter.validate_json(json.dumps(given))
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
            raise ToolError(_error_message(problems, given, self.schema["properties"])) from None


def unwrapped(function: Callable[..., Any]) -> Any:
    """Return the object with the annotations and docstring: the function of a partial, ``__call__`` of an instance."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.isroutine(function) or inspect.isclass(function):
        return function
    return type(function).__call__


class _Schema(GenerateJsonSchema):
    """Omit the titles that pydantic derives from field names: they repeat the names and cost tokens."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _parameters(function: Callable[..., Any], name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the types of the parameters in the schema, and the names of those that receive the context."""
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(unwrapped(function), include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise ConfigurationError(f"the signature of tool {name!r} cannot be read: {error}") from None
    in_schema: dict[str, Any] = {}
    contexts: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigurationError(
                f"parameter {parameter.name!r} of tool {name!r} cannot be passed by keyword"
            )
        hint = hints.get(parameter.name, parameter.empty)
        if hint is parameter.empty:
            raise ConfigurationError(f"parameter {parameter.name!r} of tool {name!r} has no type annotation")
        if hint is ToolContext or ToolContext in typing.get_args(hint):
            contexts.append(parameter.name)
        elif parameter.default is parameter.empty:
            in_schema[parameter.name] = _describe(hint)
        else:
            in_schema[parameter.name] = NotRequired[_describe(hint, *_default(parameter.default))]
    return in_schema, tuple(contexts)


def _describe(hint: Any, *extra: Any) -> Any:
    """Return the hint with strings in ``Annotated`` converted to descriptions, and the extra metadata added."""
    metadata = list(extra)
    if typing.get_origin(hint) is Annotated:
        hint, *given = typing.get_args(hint)
        metadata = [Field(description=item) if isinstance(item, str) else item for item in given] + metadata
    for item in metadata:
        hint = Annotated[hint, item]
    return hint


def _default(value: Any) -> list[Any]:
    """Return the default for the schema only: for an omitted argument Python applies the default of the function."""
    try:
        return [Field(json_schema_extra={"default": to_jsonable_python(value)})]
    except PydanticSerializationError:
        return []


def _adapter(fields: dict[str, Any], name: str) -> tuple[TypeAdapter[dict[str, Any]], dict[str, Any]]:
    # A TypedDict: fields of a pydantic model cannot be named "schema", "copy" or "_x".
    make_type: Any = TypedDict
    arguments = make_type("arguments", fields)
    arguments.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    try:
        adapter: TypeAdapter[dict[str, Any]] = TypeAdapter(arguments)
        schema = adapter.json_schema(schema_generator=_Schema)
    except PydanticUserError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"the parameters of tool {name!r} have no JSON Schema: {reason}") from None
    schema.pop("title", None)
    schema.setdefault("properties", {})
    return adapter, schema


def _error_message(problems: list[Any], given: Mapping[str, object], known: Mapping[str, object]) -> str:
    """Describe at most ``_MAX_PROBLEMS`` validation errors so that the model can correct the call."""
    messages: list[str] = []
    for problem in problems:
        place = _place(problem["loc"], given, is_missing=problem["type"] == "missing")
        message = str(problem["msg"])
        match problem["type"]:
            case "missing":
                text = f"argument {place} is missing"
            case "extra_forbidden":
                text = f"there is no argument {place} (known: {', '.join(known) or 'none'})"
            case "json_invalid":
                text = "the arguments contain text that is not valid Unicode"
            case _:
                # pydantic: "Input should be a valid integer" and the like
                starts_with_input = message.startswith("Input ")
                text = (
                    f"argument {place} {message[6:]}" if starts_with_input else f"argument {place}: {message}"
                )
        if text not in messages:
            messages.append(text)
    if len(messages) > _MAX_PROBLEMS:
        messages[_MAX_PROBLEMS:] = [f"and {len(messages) - _MAX_PROBLEMS} more"]
    return "; ".join(messages)


def _place(location: tuple[int | str, ...], given: Mapping[str, object], *, is_missing: bool) -> str:
    """Return the path of an argument in the call; pydantic's location also names the branches of unions."""
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
