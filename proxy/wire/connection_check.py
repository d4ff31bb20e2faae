"""Connection checks: the request, and the response with one entry for each model of the team."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from proxy.wire.chat.response_models import ErrorBody
from proxy.wire.validation.body_decoder import BodyDecoder

Status = Literal["ok", "failed"]


class NewConnectionCheck(Struct, frozen=True, kw_only=True):
    """The team to check, as in ``/v1/models``."""

    model: Annotated[str, Meta(min_length=1)]


NEW_CONNECTION_CHECK = BodyDecoder(NewConnectionCheck)


class ModelCheckBody(Struct, frozen=True, omit_defaults=True):
    """One model; ``seconds`` is the duration of the call with its retries."""

    model: str
    agents: list[str]
    status: Status
    seconds: float
    answered_by: str | None = None
    error: ErrorBody | None = None


class ConnectionCheckBody(Struct, frozen=True):
    """The result; ``status`` is ``ok`` if all models answered. ``demo``: scripts answer in place of models."""

    object: Literal["connection_check"]
    model: str
    demo: bool
    status: Status
    data: list[ModelCheckBody]
