"""Validation in a process of its own, for answers and schemas that could block the event loop.

The process has a limit of CPU time; an answer whose validation exceeds it does not match its schema.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import msgspec

from proxy.wire.schema_validator import SchemaValidator

CPU_SECONDS = 2
_WALL_SECONDS = 30
_VALID = b"valid"

executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="schema process")
"""Its threads only wait for processes: more validations wait for a free one."""


def is_valid_text(schema: bytes, text: str, *, cpu_seconds: int = CPU_SECONDS) -> bool:
    """Return whether ``text`` is JSON that matches the schema, itself JSON; blocks the thread that calls it."""
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter and this module
            [sys.executable, "-m", __name__, str(cpu_seconds)],
            input=msgspec.msgpack.encode((schema, text)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # The process needs no setting and no secret of this one.
            env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
            timeout=_WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.stdout == _VALID


def main() -> None:
    """Read a schema and a text from standard input, and write whether the text matches."""
    import resource  # not on Windows, and only this process needs it

    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    schema, text = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=tuple[bytes, str])
    try:
        if SchemaValidator(msgspec.json.decode(schema)).is_valid(msgspec.json.decode(text)):
            sys.stdout.buffer.write(_VALID)
    except (ValueError, msgspec.DecodeError, RecursionError):
        pass


if __name__ == "__main__":
    main()
