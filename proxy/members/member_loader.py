"""Load the member that ``python: package.module:object`` names: a function, or an object of an agent framework."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from proxy.errors import ConfigurationError
from proxy.members.port import Member
from proxy.members.python import python_member
from proxy.tools.functions import load_object, reason_of
from proxy.tools.threads import ToolThreads

COMPONENT = "component "
"""Before the name of a file with a component, instead of an import path."""
_ADAPTERS: Mapping[str, str] = {
    "agent_framework": "agent_framework",
    "agents": "openai_agents",
    "autogen_agentchat": "agentchat",
    "langgraph": "langgraph",
    "pydantic_ai": "pydantic_ai",
}
"""Adapter modules by the package of the object's class. They are imported for such an object only."""


def load_member(path: str, folder: Path | None, threads: ToolThreads) -> Member:
    """Import ``package.module:object`` and return it as a member; ``folder`` is searched after ``sys.path``.

    A function without parameters is a factory: the object that it returns is the member. ``COMPONENT`` and the name of
    a file is a component of AutoGen.

    Raises:
        ConfigurationError: The import failed, or the object cannot be a member; the message gives the reason.
    """
    if path.startswith(COMPONENT):
        return _component(path.removeprefix(COMPONENT), folder or Path())
    found = load_object(path, folder, kind="object")
    if not _is_factory(found):
        return member_of(found, threads)
    try:
        made = found()
    except Exception as error:
        name = path.partition(":")[2]
        raise ConfigurationError(f"the function {name!r} failed: {reason_of(error)}") from error
    return member_of(made, threads, make=found)


def member_of(found: Any, threads: ToolThreads, *, make: Callable[[], Any] | None = None) -> Member:
    """Return an object as a member; ``make`` returns further objects like it.

    Raises:
        ConfigurationError: It cannot be a member.
    """
    for base in type(found).__mro__:
        adapter = _ADAPTERS.get(base.__module__.partition(".")[0])
        if adapter is not None:
            module = importlib.import_module(f"proxy.members.adapters.{adapter}")
            member: Member | None = module.adapted(found, make)
            if member is not None:
                return member
    return python_member(found, threads)


def _component(name: str, folder: Path) -> Member:
    try:
        from proxy.members.adapters.agentchat import component_member
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"a component needs the extra 'agentchat' ({error.name} is not installed)"
        ) from None
    return component_member(folder / name)


def _is_factory(found: Any) -> bool:
    is_plain = inspect.isfunction(found) and not inspect.iscoroutinefunction(found)
    return is_plain and not inspect.isasyncgenfunction(found) and not inspect.signature(found).parameters
