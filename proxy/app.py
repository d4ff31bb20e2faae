"""Build the application: routes, middleware and the parts that exist before it starts.

``lifespan`` opens the rest. These two modules are the composition root: only they select implementations.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cache, partial
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp

from proxy.agents.dispatch import AutoGenDispatcher, Dispatcher
from proxy.agents.queued_dispatch import QueuedDispatcher
from proxy.errors import ConfigurationError
from proxy.lazy_imports import without_pydantic_v1
from proxy.lifespan import metrics_of, open_services
from proxy.providers.retry import RetryPolicy
from proxy.routes import (
    agents,
    approvals,
    connection_checks,
    context_sizes,
    conversations,
    error_handlers,
    health,
    models,
    openapi,
    responses,
    stored_completions,
    turns,
)
from proxy.routes.application import Application
from proxy.routes.chat_completions import ChatCompletions, ResumedStream
from proxy.routes.conversation_events import ConversationEvents
from proxy.routes.dependencies import ApplicationState, Services
from proxy.routes.error_handlers import PlainEndpoint
from proxy.routes.legacy.router import legacy_routes
from proxy.routes.metrics import router as metrics_router
from proxy.routes.middleware.compression import Compression
from proxy.routes.middleware.cors import CorsMiddleware, OriginPolicy
from proxy.routes.middleware.path_normalization import PathNormalizationMiddleware
from proxy.routes.middleware.rate_limit import RateLimitMiddleware
from proxy.routes.middleware.request_log import RequestContext
from proxy.routes.responses import Responses, StoredResponse
from proxy.routes.ui import has_libraries, page_routes
from proxy.routes.websocket import turn_socket
from proxy.settings import Settings
from proxy.settings_check import create_data_dir, exposure_problems, team_problems
from proxy.start_check import check_settings
from proxy.store.engine.migrations import migrate, prepare_schema
from proxy.team_check import load_component
from proxy.team_set import Parts
from proxy.teamfiles.loader import LoadedTeams, load_teams
from proxy.teamfiles.summary import models_in_use
from proxy.teamfiles.team_sources import TeamSources
from proxy.tools.threads import ToolThreads
from proxy.wire.responses.errors import problem_of_response

VERSION = version("handoff-proxy")
logger = logging.getLogger(__name__)


def prepare(settings: Settings) -> None:
    """Check the settings, create the data directory and migrate the database, before the server starts.

    Raises:
        ConfigurationError: The server would accept requests without a key from other machines, a file or directory
            cannot be used, or the schema of the database is newer than this version.
    """
    check_settings(settings)
    create_data_dir(settings)
    asyncio.run(prepare_schema(settings.database))
    if problems := [*exposure_problems(settings, reads_database=True)]:
        raise ConfigurationError("\n".join(problems))


def migrate_database(settings: Settings) -> None:
    """Migrate the database to the schema of this version.

    Raises:
        ConfigurationError: The schema is newer than this version, or the database is not available.
    """
    asyncio.run(migrate(settings.database))


def create_app(
    settings: Settings,
    *,
    environment: Mapping[str, str] = os.environ,
    dispatcher: Dispatcher | None = None,
    demo_word_delay: float = 0.015,
    retry_policy: RetryPolicy | None = None,
) -> FastAPI:
    """Return the application. Team files are read here; connections are opened when the application starts.

    ``app.state.teams`` has the names of the teams, ``app.state.models`` the models in use by name, and, once the
    application has started, ``app.state.reload`` the ``TeamReload``. ``retry_policy`` applies to all models.

    Raises:
        ConfigurationError: A team file has errors, or a setting does not match the team files.
    """
    threads = ToolThreads()
    loaded = _load(settings, environment, threads)
    parts = Parts(
        settings=settings,
        loaded=loaded,
        threads=threads,
        dispatcher=dispatcher
        or (QueuedDispatcher() if settings.agent_runtime == "queued" else AutoGenDispatcher()),
        origin_policy=OriginPolicy.of(settings),
        metrics=metrics_of(loaded) if settings.metrics else None,
        load=partial(_load, settings, environment, threads),
        demo_word_delay=demo_word_delay,
        retry_policy=retry_policy or RetryPolicy(),
        version=VERSION,
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        def publish(services: Services) -> None:
            app.state.services = services

        async with open_services(parts, publish) as reload:
            app.state.reload = reload
            yield

    with without_pydantic_v1():
        return _application(parts, lifespan)


def _application(
    parts: Parts, lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]]
) -> Application:
    state = ApplicationState()
    app = Application(
        state,
        around=[*_outer(parts), PathNormalizationMiddleware, partial(RateLimitMiddleware, state=state)],
        # The paths of direct endpoints need no change, and each of their requests starts a turn.
        around_direct=[*_outer(parts), partial(RateLimitMiddleware, state=state, counts_all=True)],
        title="handoff-proxy",
        version=VERSION,
        lifespan=lifespan,
        # The framework's documentation pages load their scripts from a public network.
        docs_url=None,
        redoc_url=None,
        # ``routes.openapi`` serves it to authorised callers only.
        openapi_url=None,
        # The framework would record exception messages and bodies that fail validation. ``tracing`` has spans of turns.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        redirect_slashes=False,
    )
    app.state.teams = list(parts.loaded.definitions.teams)
    app.state.models = models_in_use(parts.loaded.definitions)
    error_handlers.install(app)
    app.add_middleware(Compression)
    _add_routes(app, has_metrics=parts.metrics is not None)
    return app


def _load(settings: Settings, environment: Mapping[str, str], threads: ToolThreads) -> LoadedTeams:
    loaded = load_teams(TeamSources.of(settings, environment, threads, check_component=load_component))
    if problems := [*team_problems(settings, loaded)]:
        raise ConfigurationError("\n".join(problems))
    if not has_libraries():
        logger.warning(
            "libraries of the page are missing: it shows plain text until `make install` downloads them"
        )
    for notice in loaded.notices:
        logger.warning("team file notice", extra={"notice": notice})
    return loaded


def _outer(parts: Parts) -> Sequence[Callable[[ASGIApp], ASGIApp]]:
    """Return the middleware around everything, outermost first."""
    metrics = parts.metrics
    return [
        partial(
            RequestContext,
            ended=metrics.request_ended if metrics is not None else None,
            is_traced=parts.settings.tracing,
        ),
        partial(CorsMiddleware, policy=parts.origin_policy),
    ]


def _add_routes(app: Application, *, has_metrics: bool) -> None:
    chat, create_response = PlainEndpoint(ChatCompletions()), PlainEndpoint(Responses(), problem_of_response)
    app.add_direct_endpoint("POST", "/v1/chat/completions", chat)
    app.add_direct_endpoint("POST", "/v1/responses", create_response)
    app.router.routes += [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        *legacy_routes(chat),
        Route("/v1/chat/completions/{completion_id}/stream", PlainEndpoint(ResumedStream()), methods=["GET"]),
        WebSocketRoute("/v1/ws", turn_socket),
        Route("/v1/turns/{turn_id}/events", PlainEndpoint(turns.TurnEvents()), methods=["GET"]),
        Route(
            "/v1/conversations/{conversation_id}/events", PlainEndpoint(ConversationEvents()), methods=["GET"]
        ),
        Route("/v1/responses", create_response, methods=["POST"]),
        Route("/v1/responses/{response_id}", PlainEndpoint(StoredResponse()), methods=["GET"]),
    ]
    app.router.routes.extend(_resource_routes(has_metrics=has_metrics))
    app.router.routes.extend(page_routes())


@cache
def _resource_routes(*, has_metrics: bool) -> Sequence[BaseRoute]:
    """Return the routes of the resources, which all applications of a process share: they take 15 ms."""
    router = APIRouter(redirect_slashes=False)
    for resource in (
        context_sizes,
        responses,
        stored_completions,
        conversations,
        turns,
        approvals,
        connection_checks,
        models,
        agents,
        health,
        openapi,
    ):
        router.include_router(resource.router)
    if has_metrics:
        router.include_router(metrics_router)
    # FastAPI completes the routes of routers at the first request, which would wait for it and block the others.
    for route in router.routes:
        route.matches({"type": "http", "method": "GET", "path": "/\0", "root_path": ""})
    return router.routes
