"""What dependencies load although this server rarely needs it: it is loaded when first used, or not at all."""

from __future__ import annotations

import gc
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader
from types import ModuleType
from typing import Any

RARELY_USED = ("PIL.Image", "google.protobuf.any_pb2", "html", "idna")
"""autogen-core imports the first two, for images in messages and for messages between processes: 5 MB of memory.
Starlette imports ``html`` for pages with tracebacks, and yarl ``idna`` for host names that are not ASCII: 0.7 MB."""


class _PostponedModule(ModuleType):
    """A module that is loaded when an attribute is read.

    ``importlib.util.LazyLoader`` loads it at the next ``import`` (up to Python 3.11), which reads ``__spec__``.
    """

    def __getattr__(self, name: str) -> Any:
        with _loading:
            loader: Loader | None = self.__dict__.pop(_LOADER, None)
            if loader is not None:
                loader.exec_module(self)
        if name in self.__dict__:
            return self.__dict__[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


_LOADER = "__postponed_loader__"
_loading = threading.RLock()


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
        module = _PostponedModule(name)
        module.__dict__.update(vars(importlib.util.module_from_spec(spec)))
        module.__dict__[_LOADER] = spec.loader
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
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

    postpone()
    gc.disable()
    BaseModel.model_config["defer_build"] = True
    try:
        with without_pydantic_v1():
            yield
        gc.collect()
        gc.freeze()
        # The names of all files in the folders of the packages, 330 KB. They are read again if they are needed.
        sys.path_importer_cache.clear()
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
