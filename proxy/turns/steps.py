"""Steps of a running turn: what a checkpoint has to contain so that another worker continues after it."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct


class OpenCall(Struct, frozen=True):
    """A tool call of the newest model reply that has no result yet. ``kind`` is one of the agent loop."""

    id: str
    name: str
    kind: str
    client_index: int
    arguments: str


class TurnStep(Struct, frozen=True, omit_defaults=True):
    """State of a turn after a model reply, or after its tool results; then ``calls`` is empty."""

    agent: str
    model_calls: int
    tool_calls: int
    client_calls: int
    handoffs: int
    completion_tokens: int
    handed_over: tuple[str, str] = ("", "")
    ran_effects: bool = False
    ran_tools: bool = False
    calls: list[OpenCall] = []


class StepLog(Protocol):
    """Records the steps of one turn."""

    @property
    def is_needed(self) -> bool:
        """Whether another worker may have to continue the turn."""
        ...

    @property
    def is_saved(self) -> bool:
        """Whether there are checkpoints of the turn."""
        ...

    async def save(self, step: TurnStep) -> None:
        """Record a step. The items and events of the turn belong to it.

        Raises:
            StoreUnavailable: It was not recorded.
            TurnLeaseLost: Another worker continues the turn; this one must stop.
        """
        ...

    async def suspend(self) -> None:
        """Let the turn end with its worker until the next step: what runs now cannot be repeated by another one.

        Raises:
            StoreUnavailable: It was not recorded.
        """
        ...
