"""Streams of the Responses API, read with the official SDK's types as the judge."""

from __future__ import annotations

import json
from typing import Any, get_args

from openai._models import BaseModel
from openai.types.responses import Response, ResponseStreamEvent

_UNION = get_args(ResponseStreamEvent)[0]
TYPES: dict[str, type[BaseModel]] = {
    get_args(one.model_fields["type"].annotation)[0]: one for one in get_args(_UNION)
}
"""The official events by their type."""

Event = dict[str, Any]


def events_in(stream: str) -> list[Event]:
    """The events of a stream, each with its name, and of an official type."""
    found = []
    for frame in stream.removesuffix("\n\n").split("\n\n") if stream else []:
        name, data = (line for line in frame.split("\n") if not line.startswith(":"))
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(judged(event))
    return found


def judged(event: Event) -> Event:
    """The event, if the SDK's strict type takes it and no field of its Response is left out."""
    TYPES[event["type"]].model_validate_json(json.dumps(event), strict=True)
    if "response" in event:
        judged_response(event["response"])
    return event


def judged_response(body: Any) -> Response:
    """The Response, if the SDK's strict type takes it and no field is left out."""
    left_out = {field.alias or name for name, field in Response.model_fields.items()} - body.keys()
    assert not left_out
    return Response.model_validate_json(json.dumps(body), strict=True)


def steps(events: list[Event]) -> list[str]:
    """The types without their common prefix; equal ones in a row once."""
    names = [event["type"].removeprefix("response.") for event in events]
    return [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]
