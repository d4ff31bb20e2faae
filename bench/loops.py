"""Event loop for all processes of a benchmark, so that the loop does not distort the comparison."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

try:
    import uvloop as fastest
except ImportError:  # not available on every platform
    import asyncio as fastest  # type: ignore[no-redef]

R = TypeVar("R")


def run(main: Coroutine[Any, Any, R]) -> R:
    """Run the coroutine in uvloop if it is installed."""
    with asyncio.Runner(loop_factory=fastest.new_event_loop) as runner:
        return runner.run(main)
