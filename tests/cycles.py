"""Objects that only the garbage collector can free, because they refer to each other."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

MODULES = ("proxy.", "uvicorn.", "httptools.")


@contextmanager
def found_cycles() -> Iterator[Counter[str]]:
    """Count by type, at the end of the block, the objects of the server that became such garbage in it."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        names = (f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)
        found.update(name for name in names if name.startswith(MODULES))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
