"""Builds the application: the one place where concrete parts are chosen."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.routing import Route, WebSocketRoute

from proxy.agents.custom_agents import MadeTeams
from proxy.agents.dispatch import AutoGenDispatcher, Dispatcher
from proxy.agents.registry import Registry
from proxy.auth import Keys, check_exposure, is_this_machine
from proxy.catalog import TeamCatalog
from proxy.checking import load_component
from proxy.conversations.retention import keep_to_retention
from proxy.errors import ConfigurationError
from proxy.limits import Limiter
from proxy.loop_watchdog import LoopWatchdog
from proxy.memory import available_memory
from proxy.metrics import Metrics
from proxy.providers.demo.client import DemoModel
from proxy.providers.factory import build_models, model_limits
from proxy.providers.passthrough_models import PassThrough
from proxy.routes import (
    agents,
    approvals,
    conversation_tree,
    conversations,
    error_handlers,
    health,
    models,
    openapi_parts,
    responses,
    stored_completions,
    turns,
)
from proxy.routes.application import Application
from proxy.routes.chat_completions import ChatCompletions, ResumedStream
from proxy.routes.conversation_events import ConversationEvents
from proxy.routes.dependencies import Services
from proxy.routes.legacy.router import older_routes
from proxy.routes.metrics import router as metrics_router
from proxy.routes.middleware.compression import Compression
from proxy.routes.middleware.cors import Browsers, Visitors
from proxy.routes.middleware.path_normalization import Paths
from proxy.routes.middleware.rate_limit import Gate, bounds_of
from proxy.routes.middleware.request_log import RequestContext
from proxy.routes.middleware.unserved_paths import UnservedPaths
from proxy.routes.passthrough import Passing
from proxy.routes.responses import KeptResponse, Responses
from proxy.routes.ui import has_libraries, page_routes
from proxy.routes.websocket import turn_socket
from proxy.service.event_log import EventLog
from proxy.service.turns import Exchange, Policy
from proxy.settings import Settings
from proxy.store.engine.migrations import migrate, prepare_schema
from proxy.store.turns import SqlHistory, open_history
from proxy.teamfiles.definitions import ComponentModel, ModelDefinition, OpenAIModel
from proxy.teamfiles.loading import BUNDLED, LoadedTeams, default_model, load_teams, python_tools
from proxy.teamfiles.summary import models_in_use
from proxy.tools.builtin import Addresses, builtin_names, builtin_tools
from proxy.tools.port import Tool
from proxy.tools.threads import ToolThreads
from proxy.usage import Meter

if TYPE_CHECKING:
    from proxy.tools.mcp.tool import McpServers

VERSION = version("handoff-proxy")
logger = logging.getLogger(__name__)


def prepare(settings: Settings) -> None:
    """Make ready what has to be there before the first request: the data folder and the database's schema.

    Raises:
        ConfigurationError: The server would be open to others, the folder cannot be made, or the schema of the
            database does not fit this version.
    """
    has_keys = bool(settings.api_keys) or is_this_machine(settings.host) or _has_kept_keys(settings)
    check_exposure(settings.host, has_keys=has_keys, allow_open=settings.allow_open)
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"PROXY_DATA_DIR: {settings.data_dir} cannot be made ({error.strerror})"
        ) from None
    asyncio.run(prepare_schema(settings.database))


def _has_kept_keys(settings: Settings) -> bool:
    """Whether there are keys in the database, if there is one; a server that is refused makes none."""
    if settings.database_url is None and not settings.database_file.exists():
        return False

    async def look() -> bool:
        await prepare_schema(settings.database)
        history = open_history(settings.database)
        try:
            return await history.keys.has_any()
        finally:
            await history.close()

    return asyncio.run(look())


def migrate_database(settings: Settings) -> None:
    """Bring the schema of the database to this version.

    Raises:
        ConfigurationError: The database was made by a newer version, or cannot be reached.
    """
    asyncio.run(migrate(settings.database))


def create_app(
    settings: Settings,
    *,
    environment: Mapping[str, str] = os.environ,
    dispatcher: Dispatcher | None = None,
    demo_word_delay: float = 0.015,
) -> FastAPI:
    """Return the application; team files are read here, connections are opened when it starts.

    ``app.state.teams`` and ``app.state.models`` tell what is served: names, and models in use by name.

    Raises:
        ConfigurationError: A team file has mistakes.
    """
    threads = ToolThreads()
    loaded = load_teams(
        settings.teams,
        environment=environment,
        default=default_model(settings),
        known_tools=builtin_names(),
        import_tool=python_tools(threads),
        check_component=load_component,
    )
    _check_older_teams(settings, loaded)
    if not has_libraries():
        logger.warning(
            "the libraries of the page are not there: it shows plain text until `make install` fetches them"
        )
    for notice in loaded.notices:
        logger.warning("a team file may not say what is meant", extra={"notice": notice})

    mcp_servers = _mcp_servers(loaded)
    visitors = Visitors.of(settings)
    metrics = _metrics(loaded) if settings.metrics else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(threads.close)
            mcp_tools = _started(mcp_servers, stack)
            history = open_history(settings.database)
            stack.push_async_callback(history.close)
            registry = _registry(
                settings, loaded, threads, mcp_tools, dispatcher or AutoGenDispatcher(), demo_word_delay
            )
            await registry.start()
            stack.push_async_callback(registry.close)
            straight = _straight(settings, loaded, registry)
            await straight.start()
            stack.push_async_callback(straight.close)
            made = _made_teams(settings, registry, history, straight)
            catalog = TeamCatalog(
                loaded.definitions,
                registry,
                created=_written_at(settings.teams or BUNDLED),
                listed=lambda: straight.listed,
                made=made,
            )
            keys = Keys((key.get_secret_value() for key in settings.api_keys), history.keys)
            await keys.prepare(None)
            visitors.learn(needs_keys=not keys.is_open)
            limiter = Limiter(settings.redis_url.get_secret_value() if settings.redis_url else None)
            stack.push_async_callback(limiter.close)
            meter = Meter(limiter, partial(bounds_of, keys, settings), metrics)
            stack.push_async_callback(meter.close)
            stall = settings.stalled_client_timeout
            passing = None if straight.is_empty else Passing(straight, stall=stall, used=meter.passed_on)
            exchange = await _exchange(settings, registry, history, made, meter)
            services = Services(
                settings=settings,
                keys=keys,
                exchange=exchange,
                history=history,
                library=history.library,
                approvals=history.approvals,
                catalog=catalog,
                version=VERSION,
                passing=passing,
                agents=made,
                limiter=limiter,
                metrics=metrics,
            )
            if metrics is not None:
                metrics.watch_running(lambda: exchange.running)
                metrics.watch_log_bytes(lambda: exchange.log_bytes)
                stack.push_async_callback(_stop, asyncio.create_task(metrics.watch_loop(), name="loop lag"))
            if settings.retention_days is not None:
                retention = keep_to_retention(history.library, days=settings.retention_days, clock=time.time)
                stack.push_async_callback(_stop, asyncio.create_task(retention, name="retention"))
            # After the grace time that the server gave them, turns have none left.
            stack.push_async_callback(partial(services.exchange.close, grace=0))
            if passing is not None:
                stack.push_async_callback(partial(passing.close, grace=0))
            app.state.services = services
            # Last: what blocks during the start delays nobody.
            watchdog = LoopWatchdog(on_blocked=metrics.loop_blocked if metrics is not None else None)
            watchdog.start()
            stack.callback(watchdog.close)
            yield

    app: Application = Application(
        around=[
            partial(RequestContext, ended=metrics.request_ended if metrics is not None else None),
            partial(Browsers, visitors=visitors),
            Paths,
            UnservedPaths,
            partial(Gate, services=lambda: app.state.services),
        ],
        title="handoff-proxy",
        version=VERSION,
        lifespan=lifespan,
        # Both of the framework's pages load their scripts from a public network.
        docs_url=None,
        redoc_url=None,
        # Ours asks for a key.
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.teams = list(loaded.definitions.teams)
    app.state.models = models_in_use(loaded.definitions)
    error_handlers.install(app)
    app.add_middleware(Compression)
    chat = ChatCompletions()
    app.shorten("POST", "/v1/chat/completions", chat)
    app.router.routes.append(Route("/v1/chat/completions", chat, methods=["POST"]))
    app.router.routes.extend(older_routes(chat))
    app.router.routes.append(
        Route("/v1/chat/completions/{completion_id}/stream", ResumedStream(), methods=["GET"])
    )
    app.router.routes.append(WebSocketRoute("/v1/ws", turn_socket))
    app.router.routes.append(Route("/v1/turns/{turn_id}/events", turns.TurnEvents(), methods=["GET"]))
    events_path = "/v1/conversations/{conversation_id}/events"
    app.router.routes.append(Route(events_path, ConversationEvents(), methods=["GET"]))
    make_response = Responses()
    app.shorten("POST", "/v1/responses", make_response)
    app.router.routes.append(Route("/v1/responses", make_response, methods=["POST"]))
    app.router.routes.append(Route("/v1/responses/{response_id}", KeptResponse(), methods=["GET"]))
    app.include_router(responses.router)
    app.include_router(stored_completions.router)
    app.include_router(conversations.router)
    app.include_router(conversation_tree.router)
    app.include_router(turns.router)
    app.include_router(approvals.router)
    app.include_router(models.router)
    app.include_router(agents.router)
    app.include_router(health.router)
    app.include_router(openapi_parts.router)
    if metrics is not None:
        app.include_router(metrics_router)
    app.router.routes.extend(page_routes())
    return app


def _registry(
    settings: Settings,
    loaded: LoadedTeams,
    threads: ToolThreads,
    mcp_tools: Mapping[str, Tool],
    dispatcher: Dispatcher,
    demo_word_delay: float,
) -> Registry:
    demo = partial(DemoModel, word_delay=demo_word_delay)
    in_use = models_in_use(loaded.definitions)
    # Agents of callers may choose any, but a component that nobody of the operator's uses is not loaded for them.
    definitions = {
        name: model
        for name, model in loaded.definitions.models.items()
        if name in in_use or (settings.agents_over_http and not isinstance(model, ComponentModel))
    }
    return Registry(
        loaded.definitions,
        model_names=list(definitions),
        models=build_models(definitions, settings, demo=lambda name, definition: demo()),
        tools=builtin_tools(threads, Addresses.of(settings), beside={**loaded.tools, **mcp_tools}),
        dispatcher=dispatcher,
        data_dir=settings.data_dir,
        max_tool_result_bytes=settings.max_tool_result_bytes,
        max_client_tools=settings.max_client_tools,
    )


def _mcp_servers(loaded: LoadedTeams) -> Callable[[], McpServers] | None:
    """Return what makes the MCP servers of the team files, when there are any."""
    if not loaded.servers:
        return None
    # Here, because the SDK takes a second and 29 MiB, which most servers need not spend.
    from proxy.tools.mcp.tool import McpServers

    return partial(McpServers, loaded.servers, loaded.pins)


def _started(make_servers: Callable[[], McpServers] | None, stack: AsyncExitStack) -> Mapping[str, Tool]:
    """Begin sessions with the MCP servers, to be ended with the stack, and return their tools."""
    if make_servers is None:
        return {}
    servers = make_servers()
    servers.start()
    stack.push_async_callback(servers.close)
    return servers.tools


def _straight(settings: Settings, loaded: LoadedTeams, registry: Registry) -> PassThrough:
    return PassThrough(
        loaded.definitions.models,
        lists_default=settings.pass_through,
        is_taken=registry.knows,
        limits=model_limits(settings),
        time_limit=settings.turn_time_limit,
    )


def _check_older_teams(settings: Settings, loaded: LoadedTeams) -> None:
    """Refuse a team for older clients that is not served."""
    for name in ("older_team", "older_chat_team", "older_ask_team"):
        team = getattr(settings, name)
        if team is not None and team not in loaded.definitions.teams:
            served = ", ".join(loaded.definitions.teams)
            raise ConfigurationError(f"PROXY_{name.upper()}: no team is called '{team}'; there are {served}")


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _made_teams(
    settings: Settings, registry: Registry, history: SqlHistory, straight: PassThrough
) -> MadeTeams | None:
    """Return what callers make, where they may."""
    if not settings.agents_over_http:
        return None

    registry.check_tools(settings.agent_tools or ())

    def is_taken(name: str) -> bool:
        return registry.knows(name) or any(one.id == name for one in straight.listed)

    return MadeTeams(
        registry,
        history.creations,
        models=registry.models,
        tools=partial(registry.tools_named, settings.agent_tools),
        is_taken=is_taken,
        most=settings.max_agents,
        clock=time.time,
    )


async def _exchange(
    settings: Settings, registry: Registry, history: SqlHistory, made: MadeTeams | None, meter: Meter
) -> Exchange:
    exchange = Exchange(
        registry,
        history,
        approvals=history.approvals,
        policy=Policy(turn_time_limit=settings.turn_time_limit, on_disconnect=settings.on_disconnect),
        clock=time.time,
        event_log=EventLog(with_text=settings.stream_events_text),
        made=made,
        watcher=meter,
        log_memory_limit=settings.max_log_bytes or _default_log_bytes(),
    )
    await exchange.start()
    return exchange


def _default_log_bytes() -> int | None:
    memory = available_memory()
    return max(memory // 4, 1) if memory is not None else None


def _metrics(loaded: LoadedTeams) -> Metrics:
    """Return counts with the names of the files as labels."""
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
    """Return when the newest of the team files was written, in seconds since the epoch."""
    files = [file for file in teams.iterdir() if file.is_file()] if teams.is_dir() else [teams]
    return int(max(file.stat().st_mtime for file in files))
