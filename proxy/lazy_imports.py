"""Modules that a dependency imports although this server rarely needs them: they are loaded when first used."""

from __future__ import annotations

import importlib.util
import sys

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
