"""Endpoints of approvals: list, retrieve and decide."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from proxy.approvals.repository import Approval, ApprovalQuery
from proxy.routes.dependencies import BodyDep, CallerDep, EndUserDep, ServicesDep, json_response
from proxy.wire.approvals import (
    DECISION,
    MAX_SHOWN,
    NAMED_DECISION,
    ApprovalBody,
    ApprovalDecision,
    DecisionBody,
    status_filter,
)
from proxy.wire.conversations.objects import list_body
from proxy.wire.validation.body_decoder import read_object
from proxy.wire.validation.query_params import list_query, unknown_after

router = APIRouter(tags=["approvals"])


@router.get("/v1/approvals")
async def list_approvals(
    request: Request, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """List the approvals of the caller, newest first; ``status`` is ``pending`` by default."""
    pairs = request.query_params.multi_items()
    query = list_query(pairs, order="desc")
    conversation_id = request.query_params.get("conversation_id") or None
    wanted = ApprovalQuery(query, status_filter(pairs), conversation_id, end_user)
    page = await services.approvals.page(caller, wanted)
    if page is None:
        raise unknown_after(query.after)
    return json_response(list_body([_body(one) for one in page.data], has_more=page.has_more))


@router.post("/v1/approvals")
async def decide_named(
    services: ServicesDep, caller: CallerDep, end_user: EndUserDep, body: BodyDep
) -> Response:
    """Decide on the approval with the id in the body."""
    given = read_object(NAMED_DECISION, body)
    decision = _decision(given.approval_id, given)
    return _answer(await services.turns.decide(caller, decision, end_user=end_user))


@router.get("/v1/approvals/{approval_id}")
async def retrieve(
    approval_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep
) -> Response:
    """Return an approval."""
    return _answer(await services.turns.approval(caller, approval_id, end_user=end_user))


@router.post("/v1/approvals/{approval_id}")
async def decide(
    approval_id: str, services: ServicesDep, caller: CallerDep, end_user: EndUserDep, body: BodyDep
) -> Response:
    """Decide on an approval. After the last decision, the turn continues in the background as a new turn."""
    # Check access before the body, so that other callers always get 404.
    await services.turns.approval(caller, approval_id, end_user=end_user)
    decision = _decision(approval_id, read_object(DECISION, body))
    return _answer(await services.turns.decide(caller, decision, end_user=end_user))


def _decision(approval_id: str, given: DecisionBody) -> ApprovalDecision:
    return ApprovalDecision(approval_id, given.decision == "approve", given.reason or None)


def _answer(approval: Approval) -> Response:
    return json_response(_body(approval), conversation_id=approval.conversation_id)


def _body(approval: Approval) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(
        ApprovalBody(
            id=approval.id,
            object="approval",
            status=approval.status,
            conversation_id=approval.conversation_id,
            turn_id=approval.turn_id,
            model=approval.model,
            agent=approval.agent,
            tool=approval.tool,
            arguments=approval.arguments[:MAX_SHOWN],
            created_at=int(approval.created_at),
            decided_at=None if approval.decided_at is None else int(approval.decided_at),
            reason=approval.reason,
            resumed_turn_id=approval.resumed_turn_id,
        )
    )
    return body
