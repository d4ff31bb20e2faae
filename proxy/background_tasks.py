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
        self._is_closed = False

    def start(self, work: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
        """Start a task and watch it."""
        task = asyncio.create_task(work, name=name)
        self.watch(task)
        return task

    def watch(self, task: asyncio.Task[None]) -> None:
        """Watch a task by its name."""
        self._tasks[task.get_name()] = task
        task.add_done_callback(self._report)

    @property
    def ended(self) -> Sequence[str]:
        """The names of the tasks that ended by themselves."""
        return [name for name, task in self._tasks.items() if task.done() and not task.cancelled()]

    def close(self) -> None:
        """Stop watching: from now on the tasks are expected to end."""
        self._is_closed = True

    def _report(self, task: asyncio.Task[None]) -> None:
        if not (self._is_closed or task.cancelled()):
            facts = {"task": task.get_name()}
            logger.error("background task ended", exc_info=task.exception(), extra=facts)
