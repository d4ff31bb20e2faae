"""The parts of the application that are built from the team files, and their replacement while the server runs.

A set of teams is built completely before it is used, so that an error changes nothing. Turns that run keep the set with
which they began, and its connections are closed when the last of them has ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from proxy.agents.connection_check import ConnectionChecks
from proxy.agents.custom_agents import CustomAgents
from proxy.agents.dispatch import Dispatcher
from proxy.agents.registry import Registry
from proxy.agents.team_factory import TeamFactory
from proxy.agents.team_versions import TeamVersions
from proxy.catalog import TeamCatalog
from proxy.members.port import Member
from proxy.providers.demo.client import DemoClient
from proxy.providers.factory import build_models, model_limits, provider_session
from proxy.providers.passthrough_models import PassThrough
from proxy.providers.retry import RetryPolicy
from proxy.routes.dependencies import Services
from proxy.routes.middleware.cors import OriginPolicy
from proxy.routes.passthrough import PassthroughHandler, RecordUsage
from proxy.service.team_lookup import TeamLookup
from proxy.settings import Settings
from proxy.store.turns import SqlHistory
from proxy.teamfiles.definitions import ComponentModel, ModelDefinition
from proxy.teamfiles.loader import LoadedTeams
from proxy.teamfiles.summary import models_in_use
from proxy.teamfiles.team_sources import BUNDLED
from proxy.tools.builtin import ServiceUrls, builtin_tools
from proxy.tools.port import Tool
from proxy.tools.threads import ToolThreads

if TYPE_CHECKING:
    from proxy.metrics import Metrics
    from proxy.tools.mcp.tool import McpServers

logger = logging.getLogger(__name__)


class Parts(Struct, frozen=True):
    """Parts of the application that exist before it starts."""

    settings: Settings
    loaded: LoadedTeams
    threads: ToolThreads
    dispatcher: Dispatcher
    origin_policy: OriginPolicy
    metrics: Metrics | None
    load: Callable[[], LoadedTeams]
    """Reads the team files again."""
    demo_word_delay: float
    retry_policy: RetryPolicy
    """Without ``observe``."""
    version: str


class TeamSet(Struct, frozen=True):
    """What is built from one version of the team files."""

    loaded: LoadedTeams
    custom_agents: CustomAgents | None
    lookup: TeamLookup
    catalog: TeamCatalog
    connection_checks: ConnectionChecks
    passing: PassthroughHandler | None
    resources: AsyncExitStack
    """Closes the connections of the set."""

    async def close(self) -> None:
        """Close the connections, and the agents that are Python objects, at the end of the process.

        A former set only closes its connections: the objects of Python modules are the same in all sets.
        """
        async with AsyncExitStack() as stack:
            for name, member in self.loaded.members.items():
                stack.push_async_callback(_close_member, name, member)
            await self.resources.aclose()


async def _close_member(name: str, member: Member) -> None:
    try:
        await member.close()
    except Exception:
        logger.exception("closing of a member failed", extra={"member": name})


async def open_team_set(
    parts: Parts, loaded: LoadedTeams, history: SqlHistory, record_usage: RecordUsage
) -> TeamSet:
    """Build a set and store its versions of the teams. The dispatcher has to be started before the first turn."""
    async with AsyncExitStack() as stack:
        mcp_tools = _start_mcp(mcp_servers_of(loaded), stack)
        definitions = _usable_models(parts.settings, loaded)
        factory = _team_factory(parts, loaded, definitions, mcp_tools)
        stack.push_async_callback(factory.close)
        registry = Registry(loaded.definitions, factory, models=list(definitions))
        versions = TeamVersions(registry, history.creations, time.time)
        await versions.store()
        passthrough = _passthrough(parts.settings, loaded, registry)
        await passthrough.start()
        stack.push_async_callback(passthrough.close)
        custom_agents = _custom_teams(parts.settings, registry, history, passthrough)
        return TeamSet(
            loaded=loaded,
            custom_agents=custom_agents,
            lookup=TeamLookup(registry, custom_agents, versions),
            catalog=_catalog(parts, loaded, registry, passthrough, custom_agents),
            connection_checks=ConnectionChecks(registry, custom_agents, record_usage=record_usage),
            passing=_passing(parts.settings, passthrough, record_usage),
            resources=stack.pop_all(),
        )


class TeamReload:
    """Replaces the teams of this process by those of the changed team files."""

    def __init__(
        self,
        parts: Parts,
        history: SqlHistory,
        present: TeamSet,
        services: Services,
        *,
        record_usage: RecordUsage,
        publish: Callable[[Services], None],
    ) -> None:
        """``publish`` makes new requests use other services."""
        self._parts = parts
        self._history = history
        self._present = present
        self._services = services
        self._record_usage = record_usage
        self._publish = publish
        self._lock = asyncio.Lock()
        self._retirements: set[asyncio.Task[None]] = set()

    @property
    def present(self) -> TeamSet:
        """The set that new turns use."""
        return self._present

    async def run(self) -> None:
        """Read the team files and use them for all turns that begin from now on.

        Raises:
            ConfigurationError: The team files have errors; nothing has changed.
        """
        async with self._lock:
            loaded = await asyncio.to_thread(self._parts.load)
            former = self._present
            new = await open_team_set(self._parts, loaded, self._history, self._record_usage)
            self._services = replace(
                self._services,
                catalog=new.catalog,
                agents=new.custom_agents,
                passing=new.passing,
                connection_checks=new.connection_checks,
            )
            self._present = new
            self._services.turns.use_teams(new.lookup)
            self._publish(self._services)
            task = asyncio.create_task(self._retire(former), name="former teams")
            self._retirements.add(task)
            task.add_done_callback(self._retirements.discard)
            logger.info("teams reloaded", extra={"teams": list(loaded.definitions.teams)})

    async def close(self) -> None:
        """Close the connections of all sets, after the last turn has ended."""
        for task in self._retirements:
            task.cancel()
        await asyncio.gather(*self._retirements, return_exceptions=True)
        await self._present.close()

    async def _retire(self, former: TeamSet) -> None:
        try:
            await self._services.turns.wait_for_running()
            if former.passing is not None:
                await former.passing.close(grace=self._services.settings.turn_time_limit)
        finally:
            await asyncio.shield(former.resources.aclose())


def _passing(
    settings: Settings, passthrough: PassThrough, record_usage: RecordUsage
) -> PassthroughHandler | None:
    if passthrough.is_empty:
        return None
    return PassthroughHandler(passthrough, stall=settings.stalled_client_timeout, used=record_usage)


def _catalog(
    parts: Parts,
    loaded: LoadedTeams,
    registry: Registry,
    passthrough: PassThrough,
    custom_agents: CustomAgents | None,
) -> TeamCatalog:
    return TeamCatalog(
        loaded.definitions,
        registry,
        created=_written_at(parts.settings.teams or BUNDLED),
        listed=lambda: passthrough.listed,
        custom_agents=custom_agents,
    )


def _passthrough(settings: Settings, loaded: LoadedTeams, registry: Registry) -> PassThrough:
    return PassThrough(
        loaded.definitions.models,
        lists_default=settings.pass_through,
        is_taken=registry.knows,
        limits=model_limits(settings),
        time_limit=settings.turn_time_limit,
        session=provider_session(settings),
    )


def _custom_teams(
    settings: Settings, registry: Registry, history: SqlHistory, passthrough: PassThrough
) -> CustomAgents | None:
    """Return the custom teams; None if the setting disables them."""
    if not settings.agents_over_http:
        return None

    def is_taken(name: str) -> bool:
        return registry.knows(name) or any(one.id == name for one in passthrough.listed)

    return CustomAgents(
        registry,
        history.creations,
        models=registry.models,
        tools=partial(registry.tools_named, settings.agent_tools),
        is_taken=is_taken,
        max_count=settings.max_agents,
        clock=time.time,
    )


def _usable_models(settings: Settings, loaded: LoadedTeams) -> Mapping[str, ModelDefinition]:
    """Return the models that agents can use.

    Custom agents can use any of these models. A component is loaded only if a team of the team files uses it.
    """
    in_use = models_in_use(loaded.definitions)
    return {
        name: model
        for name, model in loaded.definitions.models.items()
        if name in in_use or (settings.agents_over_http and not isinstance(model, ComponentModel))
    }


def _team_factory(
    parts: Parts,
    loaded: LoadedTeams,
    models: Mapping[str, ModelDefinition],
    mcp_tools: Mapping[str, Tool],
) -> TeamFactory:
    settings = parts.settings
    return TeamFactory(
        loaded.definitions,
        models=build_models(
            models,
            settings,
            demo=lambda name, definition: DemoClient(word_delay=parts.demo_word_delay),
            policy=replace(
                parts.retry_policy,
                observe=parts.metrics.model_attempted if parts.metrics is not None else None,
            ),
        ),
        tools=builtin_tools(parts.threads, ServiceUrls.of(settings), extra={**loaded.tools, **mcp_tools}),
        members=loaded.members,
        dispatcher=parts.dispatcher,
        data_dir=settings.data_dir,
        max_tool_result_bytes=settings.max_tool_result_bytes,
        max_client_tools=settings.max_client_tools,
        max_answer_bytes=settings.max_answer_bytes,
    )


def mcp_servers_of(loaded: LoadedTeams) -> Callable[[], McpServers] | None:
    """Return a factory of the MCP servers of the team files; None if there are none."""
    if not loaded.servers:
        return None
    # Imported here: the MCP SDK costs a second and 29 MiB, and most servers do not need it.
    from proxy.tools.mcp.tool import McpServers

    return partial(McpServers, loaded.servers, loaded.pins)


def _start_mcp(make_servers: Callable[[], McpServers] | None, stack: AsyncExitStack) -> Mapping[str, Tool]:
    """Start sessions with the MCP servers, which the stack closes, and return their tools."""
    if make_servers is None:
        return {}
    servers = make_servers()
    servers.start()
    stack.push_async_callback(servers.close)
    return servers.tools


def _written_at(teams: Path) -> int:
    """Return the modification time of the newest team file, in seconds since the epoch."""
    files = [file for file in teams.iterdir() if file.is_file()] if teams.is_dir() else [teams]
    return int(max(file.stat().st_mtime for file in files))
