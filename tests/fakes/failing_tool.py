"""A tool with an error in it."""

from __future__ import annotations


async def fail() -> str:
    """Fail with an exception that the caller must not see."""
    raise ValueError("a secret of the tool")
