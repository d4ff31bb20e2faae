"""Connection check: call each model of a team once, with one short message, and report whether it answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from proxy.agents.agent import Agent
from proxy.agents.registry import Registry
from proxy.agents.team import AgentTeam
from proxy.errors import ModelNotFound, UpstreamFailed, UpstreamTimeout
from proxy.messages import Usage, UserMessage
from proxy.providers.model import Finished, ModelRequest, UsagePiece

TIME_LIMIT = 30.0
"""Seconds for one model, retries and fallbacks included."""
MAX_TOKENS = 16
"""The smallest limit that all providers accept."""
PARALLEL = 4
"""Models of one check that are called concurrently."""
PROMPT = "Reply with OK."


class ModelCheck(msgspec.Struct, frozen=True):
    """The result for one model. ``agents`` use it; ``answered_by`` is the fallback that answered in its place."""

    model: str
    agents: Sequence[str]
    seconds: float
    answered_by: str | None = None
    error: UpstreamFailed | None = None


class CustomTeamFinder(Protocol):
    """Teams that callers created."""

    async def find_team(self, caller: str, model: str) -> tuple[AgentTeam, bool]:
        """Return the team with this model id; raises ``ModelNotFound``."""
        ...


class ConnectionChecks:
    """Checks the models of served teams."""

    def __init__(
        self,
        registry: Registry,
        custom: CustomTeamFinder | None,
        *,
        record_usage: Callable[[str, str, Usage | None], object],
        time_limit: float = TIME_LIMIT,
    ) -> None:
        """``record_usage`` receives the caller, the model and the usage of each call that a model answered."""
        self._registry = registry
        self._custom = custom
        self._record_usage = record_usage
        self.time_limit = time_limit

    async def check(self, caller: str, model: str) -> Sequence[ModelCheck]:
        """Call the models of the team ``model``, in the order of its agents.

        Raises:
            ModelNotFound: The caller has no such team.
        """
        team = await self._find(caller, model)
        by_model: dict[str, list[Agent]] = {}
        for agent in team.agents.values():
            if agent.member is not None:
                continue
            by_model.setdefault(agent.model.name, []).append(agent)
        slots = asyncio.Semaphore(PARALLEL)
        async with asyncio.TaskGroup() as group:
            checks = [
                group.create_task(self._check_model(caller, team, agents, slots), name=f"check {name}")
                for name, agents in by_model.items()
            ]
        return [check.result() for check in checks]

    async def _find(self, caller: str, model: str) -> AgentTeam:
        try:
            return self._registry.find(model)[0]
        except ModelNotFound:
            if self._custom is None:
                raise
        team, _ = await self._custom.find_team(caller, model)
        return team

    async def _check_model(
        self, caller: str, team: AgentTeam, agents: Sequence[Agent], slots: asyncio.Semaphore
    ) -> ModelCheck:
        first = agents[0]
        name = first.model.name
        names = [agent.name for agent in agents]
        answered_by: str | None = None
        error: UpstreamFailed | None = None
        async with slots:
            began = time.monotonic()
            try:
                async with asyncio.timeout(self.time_limit):
                    answered_by = await self._call(caller, team, first)
            except UpstreamFailed as failure:
                error = failure
            except TimeoutError:
                error = UpstreamTimeout("timeout")
        return ModelCheck(name, names, time.monotonic() - began, answered_by, error)

    async def _call(self, caller: str, team: AgentTeam, agent: Agent) -> str | None:
        """Call the model of an agent with the agent's parameters; return the name of a fallback that answered."""
        parameters = msgspec.structs.replace(
            agent.parameters, max_tokens=None, max_completion_tokens=MAX_TOKENS, response_format=None
        )
        request = ModelRequest(
            [UserMessage(PROMPT)], parameters=parameters, team=team.facts.part_of or team.name, agent="side"
        )
        usage: Usage | None = None
        answered_by: str | None = None
        async with agent.model.stream(request) as batches:
            async for batch in batches:
                for delta in batch:
                    if isinstance(delta, Finished):
                        usage, answered_by = delta.usage, delta.model
                    elif isinstance(delta, UsagePiece):
                        usage = delta.usage
        self._record_usage(caller, answered_by or agent.model.name, usage)
        return answered_by if answered_by != agent.model.name else None
