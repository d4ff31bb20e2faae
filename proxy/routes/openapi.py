"""``GET /openapi.json``: FastAPI's document, extended by plain ASGI routes, bodies and errors.

The schemas of bodies are generated from the types that decode them.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from msgspec import Struct
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from proxy.routes.dependencies import CallerDep, json_response
from proxy.routes.request_body import KEY_HEADERS
from proxy.wire.agents import NewAgent, NewTeam
from proxy.wire.chat.response_models import Completion, ErrorEnvelope, ModelBody, ModelList
from proxy.wire.chat.schema import ChatBody
from proxy.wire.connection_check import ConnectionCheckBody, NewConnectionCheck
from proxy.wire.conversations.objects import NewConversation, NewItems, NewMetadata
from proxy.wire.legacy import requests as legacy
from proxy.wire.responses.schema import CompactBody, CountBody, ResponsesBody

Document = dict[str, Any]

_REQUEST_BODIES: Mapping[tuple[str, str], type[Struct]] = {
    ("post", "/v1/agents"): NewAgent,
    ("post", "/v1/agents/{name}"): NewAgent,
    ("post", "/v1/chat/completions"): ChatBody,
    ("post", "/v1/chat/completions/{completion_id}"): NewMetadata,
    ("post", "/v1/connection_checks"): NewConnectionCheck,
    ("post", "/v1/conversations"): NewConversation,
    ("post", "/v1/conversations/{conversation_id}"): NewMetadata,
    ("post", "/v1/conversations/{conversation_id}/items"): NewItems,
    ("post", "/v1/responses"): ResponsesBody,
    ("post", "/v1/responses/compact"): CompactBody,
    ("post", "/v1/responses/input_tokens"): CountBody,
    ("post", "/v1/teams"): NewTeam,
    ("post", "/v1/teams/{name}"): NewTeam,
    ("post", "/agents/{agent_name}"): legacy.LegacyAgentBody,
    ("post", "/ask-stream"): legacy.QuestionBody,
    ("post", "/chat"): legacy.LegacyChatBody,
    ("post", "/chat/stream"): legacy.LegacyChatBody,
}
_LEGACY_COMPLETIONS = (legacy.NewMessageBody, legacy.SourcesBody, ChatBody)
"""The bodies that ``POST /chat/completions`` accepts."""
_STREAMS: Mapping[tuple[str, str], str] = {
    ("post", "/ask-stream"): "text/event-stream",
    ("get", "/ask-stream/{turn_id}"): "text/event-stream",
    ("get", "/test-stream"): "text/event-stream",
    ("post", "/chat/stream"): "text/event-stream",
    ("post", "/chat/completions"): "text/plain",
}
"""Content types of the responses that are streams only."""
_RESPONSE_BODIES: Mapping[tuple[str, str], type[Struct]] = {
    ("post", "/v1/chat/completions"): Completion,
    ("get", "/v1/chat/completions/{completion_id}"): Completion,
    ("post", "/v1/connection_checks"): ConnectionCheckBody,
    ("get", "/v1/models"): ModelList,
    ("get", "/v1/models/{model}"): ModelBody,
}
router = APIRouter(include_in_schema=False)

_METHODS = ("get", "post", "put", "patch", "delete")
_REFERENCE = "#/components/schemas/{name}"


@router.get("/openapi.json")
async def openapi_document(request: Request, caller: CallerDep) -> Response:
    """Return the OpenAPI document, for authenticated callers."""
    return json_response(request.app.openapi())


def complete(document: Document, routes: Iterable[BaseRoute]) -> Document:
    """Add to FastAPI's document what it lacks; ``routes`` are the routes of the application."""
    paths: dict[str, dict[str, Any]] = document["paths"]
    for route in routes:
        if type(route) is Route and route.include_in_schema and route.path != "/metrics":
            for method in sorted({one.lower() for one in route.methods or ()} & {*_METHODS}):
                paths.setdefault(route.path, {}).setdefault(method, _operation(route))
    schemas = _schemas(
        {*_REQUEST_BODIES.values(), *_LEGACY_COMPLETIONS, *_RESPONSE_BODIES.values(), ErrorEnvelope}
    )
    for path, operations in paths.items():
        for method in operations.keys() & {*_METHODS}:
            _add_bodies(operations[method], method, path)
    known = document.setdefault("components", {})
    # FastAPI's error format is not used.
    framework_schemas = {"HTTPValidationError", "ValidationError"}
    others = {name: one for name, one in known.get("schemas", {}).items() if name not in framework_schemas}
    known["schemas"] = dict(sorted({**others, **schemas}.items()))
    known["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer"},
        **{name: {"type": "apiKey", "in": "header", "name": name} for name in KEY_HEADERS},
    }
    document["security"] = [*({name: []} for name in known["securitySchemes"]), {}]
    return document


def _operation(route: Route) -> Document:
    documentation = inspect.getdoc(route.endpoint) or ""
    names = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in route.param_convertors
    ]
    operation: Document = {
        "tags": [route.path.split("/")[2] if route.path.startswith("/v1/") else "legacy"],
        "summary": _summary(documentation),
        "responses": {"200": {"description": "Successful Response"}},
    }
    return {**operation, "parameters": names} if names else operation


def _summary(documentation: str) -> str:
    """Return the first line of a docstring, without the request that some begin with."""
    line = re.sub(r"^``[^`]*``: ", "", documentation.partition("\n")[0]).replace("``", "`")
    return line[:1].upper() + line[1:].removesuffix(".")


def _add_bodies(operation: Document, method: str, path: str) -> None:
    if request_body := _REQUEST_BODIES.get((method, path)):
        is_required = request_body is not NewConversation
        operation["requestBody"] = {"content": _content(request_body), "required": is_required}
    if (method, path) == ("post", "/chat/completions"):
        operation["requestBody"] = {"content": _content(*_LEGACY_COMPLETIONS), "required": True}
    responses = operation["responses"]
    if response_body := _RESPONSE_BODIES.get((method, path)):
        responses["200"]["content"] = _content(response_body)
    if request_body in (ChatBody, ResponsesBody):
        responses["200"].setdefault("content", {})["text/event-stream"] = {"schema": {"type": "string"}}
    if stream := _STREAMS.get((method, path)):
        responses["200"].setdefault("content", {})[stream] = {"schema": {"type": "string"}}
    responses.pop("422", None)
    responses["default"] = {"description": "An error", "content": _content(ErrorEnvelope)}


def _content(*bodies: type[Struct]) -> Document:
    references = [{"$ref": _REFERENCE.format(name=body.__name__)} for body in bodies]
    return {"application/json": {"schema": references[0] if len(references) == 1 else {"anyOf": references}}}


def _schemas(bodies: Iterable[type[Struct]]) -> dict[str, Document]:
    """Return the schemas of the bodies and their components by name."""
    _, schemas = msgspec.json.schema_components(bodies, ref_template=_REFERENCE)
    for schema in schemas.values():
        # Unknown keys are accepted and reported in a header.
        schema.pop("additionalProperties", None)
        schema["description"] = schema.get("description", "").partition(". ")[0].removesuffix(".")
    # JSON Schema patterns have no ``\Z`` (ECMA-262).
    plain = re.sub(rb"\\\\Z", b"$", msgspec.json.encode(schemas))
    return msgspec.json.decode(plain, type=dict[str, Document])
