"""Compilation and validation in a separate process, for schemas and answers that could block the event loop.

The process has a limit of CPU time. Its result for a task that exceeds the limit is None.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

import msgspec

from proxy.wire.schema_validator import SchemaCost, SchemaValidator

T = TypeVar("T")

CPU_SECONDS = 2
_WALL_SECONDS = 30

# Its threads only wait for processes: more tasks wait for a free one.
_executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="schema process")


class _Task(msgspec.Struct, array_like=True):
    kind: Literal["compile", "validate", "describe"]
    schema: bytes
    text: str = ""


async def in_process(task: Callable[..., T], *arguments: Any) -> T:
    """Return the result of a function of this module without blocking the event loop."""
    return await asyncio.get_running_loop().run_in_executor(_executor, task, *arguments)


def cost_of(schema: bytes) -> SchemaCost | None:
    """Compile a schema (JSON) and return its cost; None if it cannot be used. Blocks the thread that calls it."""
    return _run(_Task("compile", schema), SchemaCost)


def matches(schema: bytes, text: str, *, cpu_seconds: int = CPU_SECONDS) -> bool | None:
    """Return whether ``text`` matches the schema; None if that cannot be found. Blocks the thread that calls it."""
    return _run(_Task("validate", schema, text), bool, cpu_seconds)


def problems_of_text(schema: bytes, text: str) -> list[str] | None:
    """Return the validation errors of ``text``; None if they cannot be found. Blocks the thread that calls it."""
    return _run(_Task("describe", schema, text), list[str])


def _run(task: _Task, result: type[T], cpu_seconds: int = CPU_SECONDS) -> T | None:
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter and this module
            [sys.executable, "-m", __name__, str(cpu_seconds)],
            input=msgspec.msgpack.encode(task),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The process needs no setting and no secret of this one.
            env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
            timeout=_WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    return msgspec.msgpack.decode(done.stdout, type=result) if done.stdout else None


def main() -> None:
    """Read a task from standard input, and write its result, or nothing if there is none."""
    import resource  # not on Windows, and only this process needs it

    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    task = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Task)
    try:
        sys.stdout.buffer.write(msgspec.msgpack.encode(_result(task)))
    except (ValueError, msgspec.DecodeError, RecursionError):
        pass


def _result(task: _Task) -> Any:
    validator = SchemaValidator(msgspec.json.decode(task.schema))
    match task.kind:
        case "compile":
            return validator.cost
        case "validate":
            return validator.is_valid(msgspec.json.decode(task.text))
        case "describe":
            return validator.problems(msgspec.json.decode(task.text))


if __name__ == "__main__":
    main()
