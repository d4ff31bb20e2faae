"""The long-lived parts that routes work with, made once in ``app`` and found in the application's state."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from fastapi import Depends, Request
from starlette.responses import Response
from starlette.types import Scope

from proxy.agents.connection_check import ConnectionChecks
from proxy.agents.custom_agent_repository import CustomAgentVersion, Kind
from proxy.approvals.repository import Approvals
from proxy.auth import Keys, may_access
from proxy.conversations.repository import ConversationRepository
from proxy.errors import ConversationNotFound, InvalidRequest, ModelNotFound
from proxy.limits import Limiter
from proxy.messages import EventsMode
from proxy.routes.key_monitor import KeyMonitor
from proxy.routes.passthrough import PassthroughHandler
from proxy.routes.request_body import ClientDisconnected, authorization_of, first_of, headers_of, read_body
from proxy.service.turns import TurnService
from proxy.settings import Settings
from proxy.turns.repository import Conversation, TurnRepository
from proxy.turns.request import Clock
from proxy.wire.agents import NewAgent, NewTeam
from proxy.wire.chat.response_models import encode


@dataclass(frozen=True, slots=True)
class ListedTeam:
    """What a team is, for those who choose among models. Tools are those of the server."""

    agents: Sequence[str]
    entry: str
    tools: Sequence[str]
    takes_client_tools: bool
    events: EventsMode | None
    """What its answers tell beside the answer, when the team has a word of its own."""
    examples: Sequence[str] = ()
    """First messages that a frontend can offer."""
    accepts_images: bool = False
    is_demo: bool = False
    """Whether the entry agent's model is the scripted demonstration."""


@dataclass(frozen=True, slots=True)
class FileAgent:
    """An agent of a team file; ``handoffs`` are pairs of target and condition."""

    description: str
    instructions: str
    model: str
    tools: Sequence[str]
    handoffs: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class FileTeam:
    """A team of a team file."""

    description: str
    entry: str
    examples: Sequence[str]
    agents: Mapping[str, FileAgent]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model id as ``/v1/models`` tells it; ``created`` is in seconds since the epoch and does not change."""

    id: str
    created: int
    owned_by: str
    name: str = ""
    """For people."""
    description: str = ""
    context_length: int | None = None
    """Tokens that it can read; None when that is not known."""
    team: ListedTeam | None = None
    fingerprint: str | None = None
    """Changes when what answers under this id is set up differently."""


class MadeAgents(Protocol):
    """Agents and teams that callers make; see ``agents.made``."""

    @property
    def models(self) -> Sequence[str]:
        """The models that an agent may have."""
        ...

    @property
    def tools(self) -> Mapping[str, str]:
        """The tools that an agent may have, and what they are for."""
        ...

    async def put_agent(self, caller: str, name: str, agent: NewAgent) -> CustomAgentVersion:
        """Store a new version of an agent, or raise ``RejectedRequest``."""
        ...

    async def put_team(self, caller: str, name: str, team: NewTeam) -> CustomAgentVersion:
        """Store a new version of a team, or raise ``RejectedRequest``."""
        ...

    async def newest(self, caller: str) -> Sequence[CustomAgentVersion]:
        """Return everything of the caller's as it is now."""
        ...

    async def find(
        self, caller: str, kind: Kind, name: str, version: int | None = None
    ) -> CustomAgentVersion | None:
        """Return one of them, as it is now or in a version."""
        ...

    async def delete(self, caller: str, kind: Kind, name: str) -> bool:
        """Delete an agent or team; False if there is none. ``AgentInUse`` if another agent hands off to it."""
        ...


class Metrics(Protocol):
    """Counts for Prometheus."""

    def exposition(self) -> bytes:
        """Return everything in its text format."""
        ...


class Catalog(Protocol):
    """What can be asked for by name."""

    async def made(self, caller: str) -> Sequence[ModelFacts]:
        """Return the model ids of what the caller made, to choose from."""
        ...

    async def find_made(self, caller: str, model: str) -> ModelFacts | None:
        """Return what the caller made under this id, listed or not."""
        ...

    def models(self) -> Sequence[ModelFacts]:
        """Return the model ids to choose from: the teams in the order of their files, then what else there is."""
        ...

    def find(self, model: str) -> ModelFacts | None:
        """Return the model with this id, listed or not."""
        ...

    def file_team(self, team: str) -> FileTeam | None:
        """Return a team of the team files."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """What a route may use."""

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
    """For models that are served straight through, when there are any."""
    agents: MadeAgents | None = None
    """For agents and teams that callers make, where they may."""

    limiter: Limiter = field(default_factory=Limiter)
    metrics: Metrics | None = None
    """Where they are switched on."""

    def check_model(self, caller: str, model: str) -> None:
        """Refuse a model that the caller's key is not for, as if it did not exist.

        Raises:
            ModelNotFound: It is not.
        """
        if not self.keys.terms_of(caller).allow(model):
            raise ModelNotFound(model)

    def events_of(self, model: str, caller: str) -> EventsMode:
        """Return what answers of this model tell this caller beside the answer, where the request does not say it."""
        if (by_key := self.keys.terms_of(caller).events) is not None:
            return by_key
        facts = self.catalog.find(model)
        events = facts.team.events if facts is not None and facts.team is not None else None
        return events or self.settings.handoff_events

    def fingerprint_of(self, model: str) -> str | None:
        """Return what answers of this model tell about how it is set up."""
        facts = self.catalog.find(model)
        return facts.fingerprint if facts is not None else None


def services_of(scope: Scope) -> Services:
    """Return the services of the application that serves this request."""
    services: Services = scope["app"].state.services
    return services


def authenticate(scope: Scope, services: Services) -> str:
    """Return the caller of a request. Middleware and endpoints need it, so the scope stores it: one hash per request.

    Raises:
        Unauthorized: The request has no valid key.
    """
    state = scope.setdefault("state", {})
    caller: str | None = state.get("caller")
    if caller is None:
        caller = state["caller"] = services.keys.caller(authorization_of(scope))
    return caller


def request_context(scope: Scope) -> tuple[Services, dict[str, str], str]:
    """Return the services, the headers and the caller of a request to a plain ASGI endpoint.

    Raises:
        Unauthorized: The request has no valid key.
    """
    services = services_of(scope)
    return services, headers_of(scope), authenticate(scope, services)


def json_answer(body: Mapping[str, Any], *, conversation_id: str | None = None) -> Response:
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
    return authenticate(request.scope, services_of(request.scope))


async def _body(request: Request) -> bytes:
    settings = services_of(request.scope).settings
    try:
        return await read_body(request.receive, headers_of(request.scope), settings)
    except ClientDisconnected:
        # The client has gone, so this error is only logged.
        raise InvalidRequest("The request ended before it was whole.") from None


def _end_user(request: Request) -> str:
    return first_of(headers_of(request.scope), services_of(request.scope).settings.user_headers)


ServicesDep = Annotated[Services, Depends(_services)]
CallerDep = Annotated[str, Depends(_caller)]
"""The caller; a request without a valid key fails here with ``Unauthorized``."""
BodyDep = Annotated[bytes, Depends(_body)]
"""The body, under the size limit of all bodies."""
EndUserDep = Annotated[str, Depends(_end_user)]
"""The end user whom a request header names, or ``""``."""
