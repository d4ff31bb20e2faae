"""The tasks that run as long as the process: a task among them that ends is reported by the readiness check."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence

logger = logging.getLogger(__name__)


class BackgroundTasks:
    """Watches tasks until they are cancelled; there is one instance for the process."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Start a task and watch it."""
        task = asyncio.create_task(work, name=name)
        self.watch(task)
        return task

    def watch(self, task: asyncio.Task[None]) -> None:
        """Watch a task by its name."""
        self._tasks[task.get_name()] = task
        task.add_done_callback(_report)

    @property
    def ended(self) -> Sequence[str]:
        """The names of the tasks that ended by themselves."""
        return [name for name, task in self._tasks.items() if task.done() and not task.cancelled()]


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        logger.error("background task ended", exc_info=task.exception(), extra={"task": task.get_name()})
