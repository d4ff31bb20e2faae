"""What agents and their turns are made of: an agent ready to speak, a turn on its way, and a call that was made."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from proxy.messages import FunctionCall, FunctionTool, Parameters, ToolCall
from proxy.providers.model import Model
from proxy.teamfiles.definitions import ClientTools, Limits
from proxy.tools.port import Tool
from proxy.turns.contract import Sink, Turn
from proxy.turns.structured_output import AnswerForm


@dataclass(frozen=True, slots=True)
class Delegate:
    """A way to hand over: the tool the model sees, and who gets the floor."""

    spec: FunctionTool
    target: str


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent ready to speak: its definition with every name resolved."""

    name: str
    instructions: str
    model: Model
    tools: Mapping[str, Tool] = field(default_factory=dict)
    delegates: Mapping[str, Delegate] = field(default_factory=dict)
    client_tools: ClientTools = "auto"
    parameters: Parameters = field(default_factory=Parameters)
    max_parallel_tools: int = 8
    tool_call_timeout: float = 30.0
    approvals: Collection[str] = frozenset()
    """Names of its tools that run only when a person has approved the call."""


@dataclass(slots=True)
class Floor:
    """A turn on its way through a team: what the speakers of one turn share."""

    team: str
    turn: Turn
    sink: Sink
    limits: Limits
    data_dir: Path
    max_tool_result_bytes: int = 64 * 1024
    max_client_tools: int = 32
    handoffs: int = 0
    model_calls: int = 0
    tool_calls: int = 0
    client_calls: int = 0
    completion_tokens: int = 0
    form: AnswerForm | None = None
    """What the answer has to be, when the caller asks for structured output."""


CallKind = Literal["server", "approval", "delegate", "client", "surplus", "unknown"]
"""What becomes of a call: it is run, a person is asked about it, it hands over, or the caller runs it; or it is one too
many, or of nothing that is there."""


@dataclass(slots=True)
class Call:
    """A call as the model makes it, under an id of ours."""

    id: str
    name: str
    kind: CallKind
    client_index: int = -1
    arguments: list[str] = field(default_factory=list)


def wire_call(call: Call) -> ToolCall:
    """Return the call as it is kept: a name that every provider accepts, and arguments that are JSON.

    What was wrong with it is told in its result; sending it back as it came makes some providers refuse the chain.
    """
    arguments = "".join(call.arguments) or "{}"
    if call.kind != "client":
        try:
            msgspec.json.decode(arguments)
        except (msgspec.DecodeError, ValueError, RecursionError):
            arguments = "{}"
    return ToolCall(call.id, FunctionCall(clean_name(call.name), arguments))


def clean_name(name: str) -> str:
    """Return the name as every provider accepts it."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "unnamed"


def new_call_id() -> str:
    """Return an id that no other call has."""
    return f"call_{secrets.token_hex(12)}"
