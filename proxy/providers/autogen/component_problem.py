"""Why an AutoGen component cannot be loaded, in words that hold nothing of the values of its config."""

from __future__ import annotations

import sys
from contextlib import suppress
from difflib import get_close_matches

from autogen_core import is_component_class
from autogen_core.models import ChatCompletionClient
from pydantic import ValidationError

_EXTRAS = ("anthropic", "azure", "ollama")
"""Packages that an extra of handoff-proxy with the same name installs."""
_MAX_PLACES = 5


def component_problem(provider: str, error: Exception) -> str:
    """Return what follows the name of the component in an error message, for the error of loading it."""
    if isinstance(error, ImportError):
        return f"cannot be imported{_reason(error)}"
    if type(error) is ValueError and "." not in provider:
        return "is not the name of a class, as in package.module.Class"
    if problem := _problem_of_class(provider):
        return problem
    reason = type(error).__name__
    if isinstance(error, ValidationError):
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        places = dict.fromkeys(".".join(map(str, one["loc"])) for one in errors if one["loc"])
        if places:
            reason = f"invalid or missing: {', '.join([*places][:_MAX_PLACES])}"
    return f"cannot be made from its config ({reason})"


def _reason(error: ImportError) -> str:
    if not error.name:
        return ""
    package, parent = error.name.partition(".")[0], error.name.rpartition(".")[0]
    if package in _EXTRAS:
        return f" ({error.name} is not installed; install handoff-proxy[{package}])"
    if isinstance(error, ModuleNotFoundError) and parent in sys.modules:
        return f" (there is no module {error.name})"
    return f" ({error.name} is not installed)"


def _problem_of_class(provider: str) -> str | None:
    """Return what is wrong with the name itself; None if it is the name of a model client, or an alias of AutoGen."""
    path, _, name = provider.rpartition(".")
    module = sys.modules.get(path)
    if module is None:
        return None
    found: object = None
    # A module can import its classes when they are used.
    with suppress(ImportError):
        found = getattr(module, name, None)
    if found is None:
        classes = [one for one, value in vars(module).items() if isinstance(value, type)]
        near = get_close_matches(name, classes, n=1)
        return f"does not exist: {path} has no {name}" + (f", did you mean {near[0]}?" if near else "")
    if not (
        isinstance(found, type) and issubclass(found, ChatCompletionClient) and is_component_class(found)
    ):
        return "is not a component of AutoGen with the type ChatCompletionClient"
    return None
