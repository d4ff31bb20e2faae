"""Request and response bodies of custom agents and teams.

Bodies contain no URLs, API keys, paths, classes, commands or code: models, tools and other agents are referenced by
names that exist in this server. Variables in instructions are not substituted.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from proxy.errors import InvalidRequest
from proxy.messages import HandoffHistory
from proxy.wire.chat.parameters import check_depth
from proxy.wire.schema_patterns import CHEAP_LIMITS
from proxy.wire.schema_validator import SchemaValidator, is_small
from proxy.wire.validation.body_decoder import BodyDecoder
from proxy.wire.validation.errors import invalid_value

MAX_INSTRUCTIONS = 32_768
"""Maximum length in characters."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_Name = Annotated[str, Meta(pattern=rf"^{_NAME.pattern}\Z")]
_Short = Annotated[str, Meta(max_length=500)]
_Seconds = Annotated[float, Meta(gt=0, le=600)]
_ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]


class NewHandoff(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A handoff target, when to hand over to it, and the options of handoffs in team files."""

    to: _Name
    when: _Short = ""
    tool: _ToolName | None = None
    history: HandoffHistory = "all"
    input: dict[str, Any] | None = None
    """JSON schema of the data that is handed over."""
    returns: bool = msgspec.field(default=False, name="return")


class NewLimits(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of one turn; unset limits have the defaults of team files."""

    max_handoffs: Annotated[int, Meta(ge=0, le=100)] | None = None
    max_model_calls: Annotated[int, Meta(ge=1, le=100)] | None = None
    max_messages: Annotated[int, Meta(ge=2, le=300)] | None = None
    max_tool_calls: Annotated[int, Meta(ge=0, le=200)] | None = None
    max_delegate_depth: Annotated[int, Meta(ge=0, le=10)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    turn_seconds: _Seconds | None = None


class NewDelegate(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An agent that the agent calls with a task, with the options of delegates in team files."""

    to: _Name
    when: _Short = ""
    tool: _ToolName | None = None
    context: Literal["task", "conversation"] = "task"
    seconds: _Seconds = 120.0
    limits: NewLimits | None = None


class NewAgent(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A new agent; ``name`` can be omitted if it is in the path."""

    name: _Name | None = None
    display_name: _Short = ""
    """The name that ``/v1/models`` lists for people; the id if empty."""
    description: _Short = ""
    instructions: Annotated[str, Meta(min_length=1, max_length=MAX_INSTRUCTIONS)]
    model: _Name = "default"
    tools: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=64)] = []
    handoffs: Annotated[list[NewHandoff], Meta(max_length=32)] = []
    delegates: Annotated[list[NewDelegate], Meta(max_length=32)] = []
    max_parallel_tools: Annotated[int, Meta(ge=1, le=64)] = 8
    tool_call_timeout: _Seconds = 30.0
    limits: NewLimits = NewLimits()


class TeamMember(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """An agent of a team; the team defines the limits."""

    description: _Short = ""
    instructions: Annotated[str, Meta(min_length=1, max_length=MAX_INSTRUCTIONS)]
    model: _Name = "default"
    tools: Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=64)] = []
    handoffs: Annotated[list[NewHandoff], Meta(max_length=32)] = []
    delegates: Annotated[list[NewDelegate], Meta(max_length=32)] = []
    max_parallel_tools: Annotated[int, Meta(ge=1, le=64)] = 8
    tool_call_timeout: _Seconds = 30.0


class NewTeam(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A new team with its agents."""

    name: _Name | None = None
    display_name: _Short = ""
    """The name that ``/v1/models`` lists for people; the id if empty."""
    description: _Short = ""
    entry: _Name
    agents: Annotated[dict[_Name, TeamMember], Meta(min_length=1, max_length=32)]
    limits: NewLimits = NewLimits()


NEW_AGENT = BodyDecoder(NewAgent)
NEW_TEAM = BodyDecoder(NewTeam)

_decode_agent = msgspec.json.Decoder(NewAgent).decode
_decode_team = msgspec.json.Decoder(NewTeam).decode
encode_custom = msgspec.json.Encoder().encode


RESERVED_NAMES = frozenset(("sessions", "automations", "environments"))
"""Sub-resources of ``/v1/agents`` in OpenAI's Agents API (``OpenAI-Beta: agents=v1``).

Neither team files nor callers can use them as names of teams and custom agents.
"""


def validate_name(value: str) -> str:
    """Return the name of an agent or team if it is valid.

    Raises:
        InvalidRequest: The name has an invalid format or is reserved.
    """
    if not _NAME.fullmatch(value):
        raise InvalidRequest(
            "Invalid 'name': expected 1 to 64 of the characters A-Z, a-z, 0-9, '_', '.' and '-', starting with a "
            "letter or digit.",
            param="name",
            code="invalid_value",
        )
    if value in RESERVED_NAMES:
        raise InvalidRequest(f"Invalid 'name': '{value}' is reserved.", param="name", code="invalid_value")
    return value


def validate_input_schema(schema: dict[str, Any], place: str) -> None:
    """Check the JSON schema of the data of a handoff: it is compiled and applied in the event loop.

    Raises:
        InvalidRequest: It is not the schema of an object, is invalid, or is too large.
    """
    if schema.get("type") != "object":
        raise invalid_value(place, f"Invalid '{place}': expected a JSON schema with 'type': 'object'.")
    check_depth(schema, place)
    if not is_small(msgspec.json.encode(schema)):
        raise invalid_value(place, f"Invalid '{place}': the schema is too large.")
    try:
        SchemaValidator(schema, limits=CHEAP_LIMITS)
    except ValueError:
        raise invalid_value(
            place, f"Invalid '{place}': not a valid JSON schema, or its patterns are too large."
        ) from None


def decode_stored_agent(body: bytes) -> NewAgent:
    """Decode a stored agent."""
    return _decode_agent(body)


def decode_stored_team(body: bytes) -> NewTeam:
    """Decode a stored team."""
    return _decode_team(body)


def agent_body(name: str, agent: NewAgent, *, version: int) -> dict[str, Any]:
    """Return the response object of an agent, without its timestamps."""
    return {
        "id": name,
        "object": "agent",
        "name": name,
        "version": version,
        "display_name": agent.display_name,
        **_agent_fields(agent),
        "limits": _limits(agent.limits),
    }


def team_body(name: str, team: NewTeam, *, version: int) -> dict[str, Any]:
    """Return the response object of a team, without its timestamps."""
    return {
        "id": name,
        "object": "team",
        "name": name,
        "version": version,
        "display_name": team.display_name,
        "description": team.description,
        "entry": team.entry,
        "agents": {member: _agent_fields(agent) for member, agent in team.agents.items()},
        "limits": _limits(team.limits),
    }


def deleted_body(name: str, kind: str) -> dict[str, Any]:
    """Return the deletion object, in the format of OpenAI's ``*.deleted`` objects."""
    return {"id": name, "object": f"{kind}.deleted", "deleted": True}


def _agent_fields(agent: NewAgent | TeamMember) -> dict[str, Any]:
    return {
        "description": agent.description,
        "instructions": agent.instructions,
        "model": agent.model,
        "tools": agent.tools,
        "handoffs": [_reference(one) for one in agent.handoffs],
        "delegates": [_reference(one) for one in agent.delegates],
        "max_parallel_tools": agent.max_parallel_tools,
        "tool_call_timeout": agent.tool_call_timeout,
    }


def _reference(one: NewHandoff | NewDelegate) -> dict[str, Any]:
    """Return a handoff or delegate with the options that are not the defaults."""
    return {"to": one.to, "when": one.when, **msgspec.to_builtins(one)}


def _limits(limits: NewLimits) -> dict[str, Any]:
    return {name: value for name in limits.__struct_fields__ if (value := getattr(limits, name)) is not None}
