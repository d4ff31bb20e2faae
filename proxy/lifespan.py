"""Open the long-lived services when the application starts, and close them in reverse order when it stops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.agents.connection_check import ConnectionChecks
from proxy.agents.custom_agents import CustomAgents
from proxy.agents.dispatch import Dispatcher
from proxy.agents.registry import Registry
from proxy.auth import Keys
from proxy.background_tasks import BackgroundTasks
from proxy.catalog import TeamCatalog
from proxy.conversations.retention import delete_expired
from proxy.limits import Limiter
from proxy.loop_watchdog import LoopWatchdog
from proxy.memory import available_memory
from proxy.providers.demo.client import DemoModel
from proxy.providers.factory import build_models, model_limits
from proxy.providers.passthrough_models import PassThrough
from proxy.routes.dependencies import Services
from proxy.routes.key_monitor import KeyMonitor
from proxy.routes.middleware.cors import OriginPolicy
from proxy.routes.middleware.rate_limit import limits_of
from proxy.routes.passthrough import PassthroughHandler
from proxy.service.event_log import EventLog
from proxy.service.turns import Policy, TurnService
from proxy.settings import Settings
from proxy.store.turns import SqlHistory, open_history
from proxy.teamfiles.definitions import ComponentModel, ModelDefinition, OpenAIModel
from proxy.teamfiles.loading import BUNDLED, LoadedTeams
from proxy.teamfiles.summary import models_in_use
from proxy.tools.builtin import ServiceUrls, builtin_names, builtin_tools
from proxy.tools.port import Tool
from proxy.tools.threads import ToolThreads
from proxy.trace_export import open_tracing
from proxy.tracing import Tracing
from proxy.turns.worker_messages import WorkerMessages
from proxy.usage import UsageRecorder

if TYPE_CHECKING:
    from proxy.metrics import Metrics
    from proxy.tools.mcp.tool import McpServers


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of the application that exist before it starts."""

    settings: Settings
    loaded: LoadedTeams
    threads: ToolThreads
    dispatcher: Dispatcher
    origin_policy: OriginPolicy
    metrics: Metrics | None
    make_mcp_servers: Callable[[], McpServers] | None
    demo_word_delay: float
    version: str


@asynccontextmanager
async def open_services(parts: Parts) -> AsyncIterator[Services]:
    """Open the services; close them when the block ends."""
    settings, metrics = parts.settings, parts.metrics
    async with AsyncExitStack() as stack:
        stack.callback(parts.threads.close)
        background = BackgroundTasks()
        mcp_tools = _start_mcp(parts.make_mcp_servers, stack)
        history = open_history(settings.database)
        stack.push_async_callback(history.close)
        background.watch(history.writer_task)
        registry = _registry(parts, mcp_tools)
        await registry.start()
        stack.push_async_callback(registry.close)
        passthrough = _passthrough(settings, parts.loaded, registry)
        await passthrough.start()
        stack.push_async_callback(passthrough.close)
        custom_agents = _custom_teams(settings, registry, history, passthrough)
        keys = Keys(
            (key.get_secret_value() for key in settings.api_keys),
            history.keys,
            separates_keys=settings.separate_keys,
        )
        await keys.prepare(None)
        parts.origin_policy.set_needs_keys(needs_keys=not keys.is_open)
        tracing = (
            await stack.enter_async_context(open_tracing(with_content=settings.tracing_content))
            if settings.tracing
            else None
        )
        limiter = Limiter(settings.redis_url.get_secret_value() if settings.redis_url else None)
        stack.push_async_callback(limiter.close)
        usage_recorder = UsageRecorder(limiter, partial(limits_of, keys, settings), metrics)
        stack.push_async_callback(usage_recorder.close)
        messages = history.messages(settings.redis_url.get_secret_value() if settings.redis_url else None)
        stack.push_async_callback(messages.close)
        services = Services(
            settings=settings,
            keys=keys,
            key_monitor=KeyMonitor(keys),
            turns=await _turn_service(
                settings, registry, history, custom_agents, usage_recorder, tracing, background, messages
            ),
            history=history,
            library=history.library,
            approvals=history.approvals,
            catalog=_catalog(parts, registry, passthrough, custom_agents),
            connection_checks=ConnectionChecks(
                registry, custom_agents, record_usage=usage_recorder.record_passthrough
            ),
            version=parts.version,
            passing=_passing(settings, passthrough, usage_recorder),
            agents=custom_agents,
            limiter=limiter,
            metrics=metrics,
            background=background,
            record_usage=usage_recorder.record_passthrough,
        )
        if messages.task is not None:
            background.watch(messages.task)
        _start_tasks(services, metrics, stack)
        stack.callback(background.close)
        yield services


def _start_tasks(services: Services, metrics: Metrics | None, stack: AsyncExitStack) -> None:
    """Start the background tasks; the stack stops the turns before them."""
    settings, turns, passing = services.settings, services.turns, services.passing
    if metrics is not None:
        metrics.watch_running(lambda: turns.running)
        metrics.watch_log_bytes(lambda: turns.log_bytes)
        _start_task(services, metrics.watch_loop(), "loop lag", stack)
    _start_task(services, services.key_monitor.run(), "key monitor", stack)
    if settings.retention_days is not None:
        retention = delete_expired(services.library, days=settings.retention_days, clock=time.time)
        _start_task(services, retention, "retention", stack)
    # The server has already waited for the turns, for as long as its grace time allows.
    stack.push_async_callback(partial(turns.close, grace=0))
    if passing is not None:
        stack.push_async_callback(partial(passing.close, grace=0))
    # Last: blocking calls during the start delay no request.
    watchdog = LoopWatchdog(on_blocked=metrics.loop_blocked if metrics is not None else None)
    watchdog.start()
    stack.callback(watchdog.close)


def _start_task(
    services: Services, work: Coroutine[None, None, None], name: str, stack: AsyncExitStack
) -> None:
    task = services.background.start(work, name)

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(stop)


def _catalog(
    parts: Parts, registry: Registry, passthrough: PassThrough, custom_agents: CustomAgents | None
) -> TeamCatalog:
    return TeamCatalog(
        parts.loaded.definitions,
        registry,
        created=_written_at(parts.settings.teams or BUNDLED),
        listed=lambda: passthrough.listed,
        custom_agents=custom_agents,
    )


def _passing(
    settings: Settings, passthrough: PassThrough, usage_recorder: UsageRecorder
) -> PassthroughHandler | None:
    if passthrough.is_empty:
        return None
    return PassthroughHandler(
        passthrough, stall=settings.stalled_client_timeout, used=usage_recorder.record_passthrough
    )


def _registry(parts: Parts, mcp_tools: Mapping[str, Tool]) -> Registry:
    settings, loaded = parts.settings, parts.loaded
    demo = partial(DemoModel, word_delay=parts.demo_word_delay)
    in_use = models_in_use(loaded.definitions)
    # Custom agents can use any of these models. A component is loaded only if a team of the team files uses it.
    definitions = {
        name: model
        for name, model in loaded.definitions.models.items()
        if name in in_use or (settings.agents_over_http and not isinstance(model, ComponentModel))
    }
    return Registry(
        loaded.definitions,
        model_names=list(definitions),
        models=build_models(
            definitions,
            settings,
            demo=lambda name, definition: demo(),
            observe=parts.metrics.model_attempted if parts.metrics is not None else None,
        ),
        tools=builtin_tools(parts.threads, ServiceUrls.of(settings), extra={**loaded.tools, **mcp_tools}),
        members=loaded.members,
        dispatcher=parts.dispatcher,
        data_dir=settings.data_dir,
        max_tool_result_bytes=settings.max_tool_result_bytes,
        max_client_tools=settings.max_client_tools,
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


def _passthrough(settings: Settings, loaded: LoadedTeams, registry: Registry) -> PassThrough:
    return PassThrough(
        loaded.definitions.models,
        lists_default=settings.pass_through,
        is_taken=registry.knows,
        limits=model_limits(settings),
        time_limit=settings.turn_time_limit,
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


async def _turn_service(
    settings: Settings,
    registry: Registry,
    history: SqlHistory,
    custom_agents: CustomAgents | None,
    usage_recorder: UsageRecorder,
    tracing: Tracing | None,
    background: BackgroundTasks,
    messages: WorkerMessages,
) -> TurnService:
    service = TurnService(
        registry,
        history,
        approvals=history.approvals,
        policy=Policy(
            turn_time_limit=settings.turn_time_limit,
            on_disconnect=settings.on_disconnect,
            disconnect_grace=settings.disconnect_grace,
        ),
        clock=time.time,
        event_log=EventLog(
            with_text=settings.stream_events_text,
            level=logging.INFO if settings.stream_events else logging.DEBUG,
        ),
        custom_teams=custom_agents,
        observer=usage_recorder,
        tracing=tracing,
        log_memory_limit=settings.max_log_bytes or _default_log_bytes(settings.workers),
        messages=messages,
    )
    await service.start(background)
    return service


def _default_log_bytes(workers: int) -> int | None:
    memory = available_memory()
    return max(memory // 4 // workers, 1) if memory is not None else None


def metrics_of(loaded: LoadedTeams) -> Metrics:
    """Return the metrics; their labels are the names in the team files."""
    # Imported on demand, with prometheus_client.
    from proxy.metrics import Metrics

    definitions = loaded.definitions
    agents = [agent for team in definitions.teams.values() for agent in team.agents.values()]
    tools = {use.name for agent in agents for use in agent.tools}
    models = {name for model in definitions.models.values() for name in _names_of(model)}
    return Metrics(
        teams=definitions.teams,
        models={*definitions.models, *models},
        tools={*builtin_names(), *(name.rpartition(":")[2].rpartition(".")[2] for name in tools)},
    )


def _names_of(model: ModelDefinition) -> list[str]:
    return [model.model] if isinstance(model, OpenAIModel) else []


def _written_at(teams: Path) -> int:
    """Return the modification time of the newest team file, in seconds since the epoch."""
    files = [file for file in teams.iterdir() if file.is_file()] if teams.is_dir() else [teams]
    return int(max(file.stat().st_mtime for file in files))
