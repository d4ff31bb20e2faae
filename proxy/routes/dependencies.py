"""The long-lived parts that routes work with, made once in ``app`` and found in the application's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from fastapi import Depends, Request
from starlette.types import Scope

from proxy.auth import Keys
from proxy.exchange.history import History
from proxy.exchange.service import Exchange
from proxy.settings import Settings


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model id as ``/v1/models`` tells it; ``created`` is in seconds since the epoch and does not change."""

    id: str
    created: int
    owned_by: str
    description: str = ""


class Catalog(Protocol):
    """What can be asked for by name."""

    def models(self) -> Sequence[ModelFacts]:
        """Return every model id, in the order of the team files."""
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """What a route may use."""

    settings: Settings
    keys: Keys
    exchange: Exchange
    history: History
    catalog: Catalog
    version: str


def services_of(scope: Scope) -> Services:
    """Return the services of the application that serves this request."""
    services: Services = scope["app"].state.services
    return services


def _services(request: Request) -> Services:
    return services_of(request.scope)


def _caller(request: Request) -> str:
    return services_of(request.scope).keys.caller(request.headers.get("authorization"))


ServicesDep = Annotated[Services, Depends(_services)]
CallerDep = Annotated[str, Depends(_caller)]
"""Who is calling; a request without a right to call fails here with ``Unauthorized``."""
