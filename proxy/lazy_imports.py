"""What dependencies load although this server rarely needs it: it is loaded when first used, or not at all."""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

RARELY_USED = ("PIL.Image", "google.protobuf.any_pb2")
"""autogen-core imports both: for images in messages, and for messages between processes. 5 MB of memory."""


def postpone(names: tuple[str, ...] = RARELY_USED) -> None:
    """Let a later ``import`` of the modules load nothing until an attribute is used; one that is missing stays so."""
    for name in names:
        if name in sys.modules:
            continue
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            continue
        if spec is None or spec.loader is None:
            continue
        parent, _, child = name.rpartition(".")
        spec.loader = loader = importlib.util.LazyLoader(spec.loader)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        loader.exec_module(module)
        setattr(sys.modules[parent], child, module)


@contextmanager
def imports_of_server() -> Iterator[None]:
    """Import the server in this block, with less CPU time and memory. No code of users may be imported in it.

    - There are no garbage collections: imports create little garbage, and collections take a tenth of the time.
    - Pydantic models of dependencies are completed when they are first used, as their option ``defer_build`` does:
      FastAPI has 40 for OpenAPI documents.
    - At the end, garbage is freed, and the rest is excluded from later collections.
    """
    from pydantic import BaseModel

    gc.disable()
    BaseModel.model_config["defer_build"] = True
    try:
        with without_pydantic_v1():
            yield
        gc.collect()
        gc.freeze()
    finally:
        del BaseModel.model_config["defer_build"]
        gc.enable()


@contextmanager
def without_pydantic_v1() -> Iterator[None]:
    """Add routes to FastAPI in this block: it looks for models of Pydantic 1 among their types, and loads it for that.

    The type of no route is one.
    """
    name = "pydantic.v1"
    if name in sys.modules:
        yield
        return
    # An import fails then, which FastAPI expects of later versions of Pydantic.
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
