"""The event loop that every process of a run uses, so that none is ahead by its loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

try:
    import uvloop as fastest
except ImportError:  # not made for every platform
    import asyncio as fastest  # type: ignore[no-redef]

R = TypeVar("R")


def run(main: Coroutine[Any, Any, R]) -> R:
    """Run the coroutine in the fastest loop that there is."""
    with asyncio.Runner(loop_factory=fastest.new_event_loop) as runner:
        return runner.run(main)
