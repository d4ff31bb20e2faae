"""The tools that a team file may name without an import path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proxy.tools.acme import execute_order, execute_refund, look_up_item
from proxy.tools.functions import function_tool
from proxy.tools.port import Tool
from proxy.tools.threads import ToolThreads

_FUNCTIONS: tuple[Callable[..., Any], ...] = (execute_order, look_up_item, execute_refund)


def builtin_names() -> frozenset[str]:
    """Return the names."""
    return frozenset(function.__name__ for function in _FUNCTIONS)


def builtin_tools(threads: ToolThreads) -> Mapping[str, Tool]:
    """Make all of them, by name; their functions run in ``threads``."""
    return {function.__name__: function_tool(function, threads) for function in _FUNCTIONS}
