"""A tool and an agent with an error in them."""

from __future__ import annotations


async def fail() -> str:
    """Fail with an exception that the caller must not see."""
    raise ValueError("a secret of the tool")


async def crash(messages: object, context: object) -> str:
    """Fail as an agent."""
    raise ValueError("a secret of the agent")
