"""Dependencies of the routes. ``app`` creates ``Services`` once and stores it in the application's state."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request
from msgspec import Struct, field
from starlette.datastructures import State
from starlette.responses import Response
from starlette.types import Scope

from proxy.agents.connection_check import ConnectionChecks
from proxy.agents.custom_agent_repository import CustomAgentVersion, Kind
from proxy.approvals.repository import Approvals
from proxy.auth import Access, Keys, Terms, may_access
from proxy.background_tasks import BackgroundTasks
from proxy.conversations.repository import ConversationRepository
from proxy.errors import ConversationNotFound, InvalidRequest
from proxy.limits import Limiter
from proxy.messages import EventsMode, Usage
from proxy.routes.client_connection import StreamTimeouts
from proxy.routes.key_monitor import KeyMonitor
from proxy.routes.passthrough import PassthroughHandler
from proxy.routes.request_body import ClientDisconnected, authorization_of, first_of, headers_of, read_body
from proxy.service.turns import TurnService
from proxy.settings import Settings
from proxy.turns.records import Conversation
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock
from proxy.wire.agents import NewAgent, NewTeam
from proxy.wire.chat.parse import ChatRequest, decode_chat
from proxy.wire.chat.response_models import encode


class ListedTeam(Struct, frozen=True):
    """A team as ``/v1/models`` lists it. ``tools`` are tools of the server."""

    agents: Sequence[str]
    entry: str
    tools: Sequence[str]
    takes_client_tools: bool
    events: EventsMode | None
    """Default of ``X-Handoff-Events`` for this team; None if the team file does not set it."""
    examples: Sequence[str] = ()
    """First user messages that a frontend can suggest."""
    accepts_images: bool = False
    is_demo: bool = False
    """Whether the entry agent's model is the scripted demonstration."""


class FileAgent(Struct, frozen=True):
    """An agent of a team file; ``handoffs`` are pairs of target and condition."""

    description: str
    instructions: str
    model: str
    tools: Sequence[str]
    handoffs: Sequence[tuple[str, str]]


class FileTeam(Struct, frozen=True):
    """A team of a team file."""

    display_name: str
    description: str
    entry: str
    examples: Sequence[str]
    agents: Mapping[str, FileAgent]


class ModelFacts(Struct, frozen=True):
    """A model of ``/v1/models``; ``created`` is in seconds since the epoch and does not change."""

    id: str
    created: int
    owned_by: str
    name: str = ""
    """Display name."""
    description: str = ""
    context_length: int | None = None
    """Context window in tokens; None if it is not known."""
    team: ListedTeam | None = None
    fingerprint: str | None = None
    """``system_fingerprint`` of responses; changes with the configuration of the model or team."""


class CustomAgentService(Protocol):
    """Custom agents and teams of callers."""

    @property
    def models(self) -> Sequence[str]:
        """The models that a custom agent can use."""
        ...

    @property
    def tools(self) -> Mapping[str, str]:
        """The tools that a custom agent can use, with their descriptions."""
        ...

    async def put_agent(self, caller: str, name: str, agent: NewAgent) -> CustomAgentVersion:
        """Store a new version of an agent.

        Raises:
            RejectedRequest: The agent is not valid.
        """
        ...

    async def put_team(self, caller: str, name: str, team: NewTeam) -> CustomAgentVersion:
        """Store a new version of a team.

        Raises:
            RejectedRequest: The team is not valid.
        """
        ...

    async def newest(self, caller: str) -> Sequence[CustomAgentVersion]:
        """Return the newest version of each agent and team of the caller."""
        ...

    async def find(
        self, caller: str, kind: Kind, name: str, version: int | None = None
    ) -> CustomAgentVersion | None:
        """Return the newest version of an agent or team, or the given version; None if it does not exist."""
        ...

    async def delete(self, caller: str, kind: Kind, name: str) -> bool:
        """Delete an agent or team; return False if it does not exist.

        Raises:
            AgentInUse: Another agent hands off to it.
        """
        ...


class RequestMetrics(Protocol):
    """Prometheus metrics."""

    def exposition(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        ...


class Catalog(Protocol):
    """The models that requests can name."""

    async def custom(self, caller: str) -> Sequence[ModelFacts]:
        """Return the custom agents and teams of a caller, in the order of their creation."""
        ...

    async def find_custom(self, caller: str, model: str) -> ModelFacts | None:
        """Return a custom agent or team of the caller, also one that ``custom`` does not list."""
        ...

    def models(self) -> Sequence[ModelFacts]:
        """Return the listed models: the teams in the order of their files, then agents and passthrough models."""
        ...

    def find(self, model: str) -> ModelFacts | None:
        """Return the model with this id, also one that ``models`` does not list."""
        ...

    def file_team(self, team: str) -> FileTeam | None:
        """Return a team of the team files; None if it does not exist."""
        ...


class Services(Struct, frozen=True, dict=True):
    """The long-lived objects that routes use, and what follows from the settings."""

    settings: Settings
    keys: Keys
    key_monitor: KeyMonitor
    turns: TurnService
    history: TurnRepository
    library: ConversationRepository
    approvals: Approvals
    catalog: Catalog
    connection_checks: ConnectionChecks
    version: str
    clock: Clock = time.time
    passing: PassthroughHandler | None = None
    """Handler of passthrough models; None if there are none."""
    agents: CustomAgentService | None = None
    """Custom agents and teams; None if they are disabled."""

    limiter: Limiter = field(default_factory=Limiter)
    metrics: RequestMetrics | None = None
    """None if metrics are disabled."""
    background: BackgroundTasks = field(default_factory=BackgroundTasks)
    record_usage: Callable[[str, str, Usage | None], None] | None = None
    """Records a model call outside of a turn: caller, model and usage."""

    @cached_property
    def limits_turns(self) -> bool:
        """Whether the settings limit the turns of all callers."""
        settings = self.settings
        limits = (settings.requests_per_minute, settings.tokens_per_minute, settings.max_running_turns)
        return any(limit is not None for limit in limits)

    @cached_property
    def timeouts(self) -> StreamTimeouts:
        """The time limits of streams."""
        return StreamTimeouts(self.settings.keep_alive_interval, self.settings.stalled_client_timeout)

    @cached_property
    def decode_chat(self) -> Callable[[bytes], ChatRequest]:
        """Decodes the body of a chat completion within the limits of the settings."""
        settings = self.settings
        return partial(decode_chat, max_messages=settings.max_messages, strict=settings.strict_parameters)

    def check_model(self, caller: str, model: str) -> None:
        """Check that the caller's key allows the model.

        Raises:
            ModelNotFound: It does not.
        """
        self.keys.terms_of(caller).check_model(model)

    def events_of(self, facts: ModelFacts | None, terms: Terms) -> EventsMode:
        """Return the default of ``X-Handoff-Events``: the key's, else the team's, else that of the settings."""
        by_team = facts.team.events if facts is not None and facts.team is not None else None
        return terms.events or by_team or self.settings.handoff_events


class ApplicationState(State):
    """The state of the application, with attributes instead of a dictionary: each request reads ``services``."""

    services: Services
    teams: Sequence[str]
    models: Mapping[str, str]

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def services_of(scope: Scope) -> Services:
    """Return the services of the application that serves this request."""
    services: Services = scope["app"].state.services
    return services


def access_of(scope: Scope, services: Services) -> Access:
    """Authenticate a request. Middleware and endpoints need it, so the scope stores it: one hash per request.

    Raises:
        Unauthorized: The request has no valid key.
    """
    access: Access
    try:
        access = scope["state"]["access"]
    except KeyError:
        access = services.keys.access(authorization_of(scope))
        scope.setdefault("state", {})["access"] = access
    return access


def request_context(scope: Scope) -> tuple[Services, dict[str, str], Access]:
    """Return services, headers and authentication of a request to a plain ASGI endpoint.

    Raises:
        Unauthorized: The request has no valid key.
    """
    services: Services = scope["app"].state.services
    state = scope["state"]
    try:
        # Middleware has needed both, except for requests that start no turn or have no valid key.
        return services, state["headers"], state["access"]
    except KeyError:
        return services, headers_of(scope), access_of(scope, services)


def json_response(body: Mapping[str, Any], *, conversation_id: str | None = None) -> Response:
    """Return a JSON response, with the header ``X-Conversation-Id`` if the conversation is given.

    No cache may store it: what a key may read must not stay in a browser after the key was removed.
    """
    headers = {"Cache-Control": "no-store"}
    if conversation_id:
        headers["X-Conversation-Id"] = conversation_id
    return Response(encode(body), media_type="application/json", headers=headers)


async def conversation_of(
    services: Services, caller: str, end_user: str, conversation_id: str
) -> Conversation:
    """Return the conversation.

    Raises:
        ConversationNotFound: The caller has no such conversation, or it belongs to another end user.
    """
    known = await services.history.find_conversation(caller, conversation_id)
    if known is None or not may_access(end_user, known.end_user):
        raise ConversationNotFound(conversation_id)
    return known


def _services(request: Request) -> Services:
    return services_of(request.scope)


def _caller(request: Request) -> str:
    return access_of(request.scope, services_of(request.scope)).caller


async def _body(request: Request) -> bytes:
    scope = request.scope
    try:
        return await read_body(scope, request.receive, services_of(scope).settings, headers_of(scope))
    except ClientDisconnected:
        # The client has disconnected, so this error is only logged.
        raise InvalidRequest("The request ended before it was whole.") from None


def _end_user(request: Request) -> str:
    return first_of(headers_of(request.scope), services_of(request.scope).settings.user_headers)


ServicesDep = Annotated[Services, Depends(_services)]
CallerDep = Annotated[str, Depends(_caller)]
"""The caller; a request without a valid key fails here with ``Unauthorized``."""
BodyDep = Annotated[bytes, Depends(_body)]
"""The body, under the size limit of all bodies."""
EndUserDep = Annotated[str, Depends(_end_user)]
"""The end user of a request header, or ``""``."""
