"""Open the long-lived services when the application starts, and close them in reverse order when it stops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from proxy.auth import Keys
from proxy.background_tasks import BackgroundTasks
from proxy.conversations.retention import delete_expired
from proxy.limits import Limiter
from proxy.loop_watchdog import LoopWatchdog
from proxy.memory import available_memory
from proxy.routes.dependencies import Services
from proxy.routes.key_monitor import KeyMonitor
from proxy.routes.middleware.rate_limit import limits_of
from proxy.service.event_log import EventLog
from proxy.service.team_lookup import TeamLookup
from proxy.service.turns import Policy, TurnService
from proxy.settings import Settings
from proxy.store.turns import SqlHistory, open_history
from proxy.team_set import Parts, TeamReload, open_team_set
from proxy.teamfiles.definitions import ModelDefinition, OpenAIModel
from proxy.teamfiles.loader import LoadedTeams
from proxy.tools.builtin import builtin_names
from proxy.trace_export import open_tracing
from proxy.tracing import Tracing
from proxy.turns.worker_messages import WorkerMessages
from proxy.usage import UsageRecorder

if TYPE_CHECKING:
    from proxy.metrics import Metrics


@asynccontextmanager
async def open_services(parts: Parts, publish: Callable[[Services], None]) -> AsyncIterator[TeamReload]:
    """Open the services and ``publish`` them; close them when the block ends. Gives the reload of the team files."""
    settings, metrics = parts.settings, parts.metrics
    async with AsyncExitStack() as stack:
        stack.callback(parts.threads.close)
        background = BackgroundTasks()
        history = open_history(settings.database)
        stack.push_async_callback(history.close)
        background.watch(history.writer_task)
        await parts.dispatcher.start()
        stack.push_async_callback(parts.dispatcher.close)
        keys = await _open_keys(parts, history)
        tracing = None
        if settings.tracing:
            tracing = await stack.enter_async_context(open_tracing(with_content=settings.tracing_content))
        redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
        limiter = Limiter(redis_url)
        stack.push_async_callback(limiter.close)
        usage_recorder = UsageRecorder(limiter, partial(limits_of, keys, settings), metrics)
        stack.push_async_callback(usage_recorder.close)
        record_usage = usage_recorder.record_passthrough
        teams = await open_team_set(parts, parts.loaded, history, record_usage)
        closing = await stack.enter_async_context(AsyncExitStack())
        closing.push_async_callback(teams.close)
        messages = history.messages(redis_url, workers=settings.workers)
        stack.push_async_callback(messages.close)
        services = Services(
            settings=settings,
            keys=keys,
            key_monitor=KeyMonitor(keys),
            turns=await _turn_service(
                settings, teams.lookup, history, usage_recorder, tracing, background, messages
            ),
            history=history,
            library=history.library,
            approvals=history.approvals,
            catalog=teams.catalog,
            connection_checks=teams.connection_checks,
            version=parts.version,
            passing=teams.passing,
            agents=teams.custom_agents,
            limiter=limiter,
            metrics=metrics,
            background=background,
            record_usage=record_usage,
        )
        reload = TeamReload(parts, history, teams, services, record_usage=record_usage, publish=publish)
        # Instead of the first set: the present one.
        closing.pop_all()
        closing.push_async_callback(reload.close)
        if messages.task is not None:
            background.watch(messages.task)
        _start_tasks(services, reload, metrics, stack)
        stack.callback(background.close)
        publish(services)
        yield reload


async def _open_keys(parts: Parts, history: SqlHistory) -> Keys:
    """Open the API keys, and set whether requests of browsers need one."""
    settings = parts.settings
    keys = Keys(
        (key.get_secret_value() for key in settings.api_keys),
        history.keys,
        separates_keys=settings.separate_keys,
    )
    await keys.prepare(None)
    parts.origin_policy.set_needs_keys(needs_keys=not keys.is_open)
    return keys


def _start_tasks(
    services: Services, reload: TeamReload, metrics: Metrics | None, stack: AsyncExitStack
) -> None:
    """Start the background tasks; the stack stops the turns before them."""
    settings, turns = services.settings, services.turns
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

    async def close_passing() -> None:
        passing = reload.present.passing
        if passing is not None:
            await passing.close(grace=0)

    stack.push_async_callback(close_passing)
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


async def _turn_service(
    settings: Settings,
    teams: TeamLookup,
    history: SqlHistory,
    usage_recorder: UsageRecorder,
    tracing: Tracing | None,
    background: BackgroundTasks,
    messages: WorkerMessages,
) -> TurnService:
    service = TurnService(
        teams,
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
        observer=usage_recorder,
        tracing=tracing,
        log_memory_limit=settings.max_log_bytes or _default_log_bytes(settings.workers),
        messages=messages,
        checkpoints=history.checkpoints,
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
