"""Schema of team files: frozen pydantic models that reject unknown keys.

The models validate the format of names. ``name_checks`` validates that a name refers to something (the target of a
handoff, a model, a tool), with file and line.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, StringConstraints
from pydantic_core import PydanticCustomError

from proxy.members.member_loader import COMPONENT
from proxy.messages import EventsMode, HandoffHistory, Usage


def _reject_bool(value: Any) -> Any:
    # pydantic converts true to 1 (conversion table, bool to int); in a file it is an error.
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


Integer = Annotated[int, BeforeValidator(_reject_bool)]
Real = Annotated[float, BeforeValidator(_reject_bool)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
ServerName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
"""Name of an MCP server, which is the prefix of its tool names for models."""
ToolName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
"""Name of a tool at its MCP server."""
ClientTools = Literal["auto", "pass", "ignore"] | tuple[FunctionName, ...]
"""The client tools passed to the model of an agent: ``pass`` (all), ``ignore`` (none), the named ones, or ``auto``
(all, but none if the request has more than ``PROXY_MAX_CLIENT_TOOLS``)."""


class _StrictModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Limits(_StrictModel):
    """Limits of one turn."""

    max_handoffs: Annotated[Integer, Field(ge=0, le=100)] = 10
    """After this number of handoffs, the active agent gets no handoff tools and has to answer itself."""
    max_model_calls: Annotated[Integer, Field(ge=1, le=1000)] = 25
    """At the limit the turn ends with finish_reason ``length``."""
    max_messages: Annotated[Integer, Field(ge=2, le=2000)] | None = None
    """The user message, model replies and tool results; at the limit the turn ends with finish_reason ``length``."""
    max_tool_calls: Annotated[Integer, Field(ge=0, le=1000)] = 50
    """Further calls are not executed; their result states the limit."""
    max_delegate_depth: Annotated[Integer, Field(ge=0, le=10)] = 3
    """How many delegates can run inside of each other."""
    max_output_tokens: Annotated[Integer, Field(ge=1)] | None = None
    """Completion tokens of the whole turn; at the limit the turn ends with finish_reason ``length``."""
    turn_seconds: Annotated[Real, Field(gt=0, allow_inf_nan=False)] | None = None
    """Overrides ``PROXY_TURN_TIME_LIMIT`` for this team."""


class Price(_StrictModel):
    """Price of a model per million tokens, in the operator's currency."""

    prompt: Annotated[Real, Field(ge=0, allow_inf_nan=False)]
    completion: Annotated[Real, Field(ge=0, allow_inf_nan=False)]
    cached: Annotated[Real, Field(ge=0, allow_inf_nan=False)] | None = None
    """Price of cached prompt tokens; ``prompt`` if unset."""

    def cost(self, usage: Usage) -> float:
        """Return the cost of the tokens."""
        cached = self.prompt if self.cached is None else self.cached
        prompt = (usage.prompt - usage.cached) * self.prompt + usage.cached * cached
        return (prompt + usage.completion * self.completion) / 1_000_000


ContextWindow = Annotated[Integer, Field(ge=256)]
"""Context window of a model in tokens; from the table of known models, or learned, if unset."""


class OpenAIModel(_StrictModel):
    """A model with an OpenAI-compatible API."""

    model: Annotated[str, StringConstraints(min_length=1)]
    base_url: Annotated[str, StringConstraints(pattern=r"^https?://")] = "https://api.openai.com/v1"
    api_key: SecretStr | None = None
    auth: Literal["key", "entra"] = "key"
    """``entra``: sign in at Microsoft Entra ID instead of sending an API key."""
    headers: dict[str, SecretStr] = {}
    parameters: dict[str, Any] = {}
    """Default request parameters; parameters of the agent and of the request have precedence."""
    extra_body: dict[str, Any] = {}
    """Additional fields of the request body, for provider-specific parameters."""
    wire: Literal["auto", "chat", "responses"] = "auto"
    """The API of the provider that is called."""
    price: Price | None = None
    context_window: ContextWindow | None = None
    expose: bool = False


class ComponentModel(_StrictModel):
    """Any AutoGen ``ChatCompletionClient`` component. Loading it executes the code that it names."""

    provider: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*$")]
    config: dict[str, Any] = {}
    price: Price | None = None
    context_window: ContextWindow | None = None
    expose: bool = False


class DemoModel(_StrictModel):
    """The scripted offline model of the bundled teams."""

    demo: Literal[True]


ModelDefinition = OpenAIModel | ComponentModel | DemoModel


class RemoteAgentDefinition(_StrictModel):
    """An agent behind an OpenAI-compatible API, with its own tools and state."""

    base_url: Annotated[str, StringConstraints(pattern=r"^https?://")]
    model: Annotated[str, StringConstraints(min_length=1)]
    api_key: SecretStr | None = None
    headers: dict[str, SecretStr] = {}
    conversation_header: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{0,64}$")] = (
        "X-Conversation-Id"
    )
    """Header with the conversation id; empty for none."""
    send_end_user: bool = True
    """Whether the end user is sent as ``safety_identifier``."""
    price: Price | None = None
    context_window: ContextWindow | None = None


class A2AAgentDefinition(_StrictModel):
    """An agent of the A2A protocol; a string in the file is its address."""

    url: Annotated[str, StringConstraints(pattern=r"^https?://")]
    """The address below which ``/.well-known/agent-card.json`` is."""
    headers: dict[str, SecretStr] = {}


def _a2a_agent(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


class HandoffDefinition(_StrictModel):
    """A handoff target of an agent."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    to: Name
    when: str = ""
    """When to hand over; part of the description of the handoff tool."""
    tool: FunctionName | None = None
    """Name of the handoff tool; ``transfer_to_<target in snake case>`` if unset."""
    history: HandoffHistory = "all"
    """What the target sees of the conversation before the handoff."""
    input: dict[str, Any] | None = None
    """JSON schema of structured handover data, which the model has to give."""
    returns: bool = Field(default=False, alias="return")
    """Whether control returns when the target has answered."""

    @property
    def tool_name(self) -> str:
        """The name of the handoff tool for the model."""
        return self.tool or f"transfer_to_{snake_case(self.to)}"


class DelegateDefinition(_StrictModel):
    """An agent of the team, or another team, that an agent can call with a task."""

    to: Name | None = None
    team: Name | None = None
    when: str = ""
    """When to delegate; part of the description of the tool."""
    tool: FunctionName | None = None
    """Name of the tool; ``ask_<target in snake case>`` if unset."""
    context: Literal["task", "conversation"] = "task"
    """Whether the delegate sees only the task, or the conversation before it too."""
    seconds: Annotated[Real, Field(gt=0, le=3600, allow_inf_nan=False)] = 120.0
    """Time limit of one run."""
    limits: Limits | None = None
    """Limits of one run; those of the delegate's team if unset."""

    @property
    def name(self) -> str:
        """The name of the agent or team."""
        return self.to or self.team or ""

    @property
    def tool_name(self) -> str:
        """The name of the tool for the model."""
        return self.tool or f"ask_{snake_case(self.name)}"


class ToolUse(_StrictModel):
    """A tool of an agent; a string in the file is a tool with this name and no other options."""

    name: str
    """A built-in name, the import path of a Python function (``package.module:function``), or tools of an MCP server
    (``mcp:server/tool``, or ``mcp:server`` for all of them)."""
    approval: Literal["required"] | None = None
    """``required`` if a person has to approve each call before it is executed."""


def _tool_use(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class AgentDefinition(_StrictModel):
    """One agent of a team; its name is its key in the file."""

    instructions: Annotated[str, StringConstraints(min_length=1)] = ""
    """Empty only for an agent with its own code, which has one of the keys of ``members.KINDS`` instead."""
    python: Annotated[str, StringConstraints(min_length=1)] | None = None
    """A function or an object of an agent framework (``package.module:object``)."""
    component: Annotated[str, StringConstraints(min_length=1)] | None = None
    """A file with an agent or a team of AutoGen AgentChat, relative to the folder of the team files."""
    remote: RemoteAgentDefinition | None = None
    """An agent behind an OpenAI-compatible API."""
    a2a: Annotated[A2AAgentDefinition | None, BeforeValidator(_a2a_agent)] = None
    """An agent of the A2A protocol."""
    context_window: ContextWindow | None = None
    """Of an agent with ``python`` that gets the whole conversation."""
    description: str = ""
    model: Name = "default"
    fallbacks: tuple[Name, ...] = ()
    """Models to try in order if the previous one fails before its first delta."""
    tools: tuple[Annotated[ToolUse, BeforeValidator(_tool_use)], ...] = ()
    handoffs: tuple[HandoffDefinition, ...] = ()
    delegates: tuple[DelegateDefinition, ...] = ()
    """Agents and teams that the agent can call with a task."""
    client_tools: ClientTools | None = None
    """Overrides ``client_tools`` of the team."""
    parameters: dict[str, Any] = {}
    max_parallel_tools: Annotated[Integer, Field(ge=1, le=64)] = 8
    tool_call_timeout: Annotated[Real, Field(gt=0, le=3600)] = 30.0

    @property
    def code(self) -> str | None:
        """What an importer of members loads: an import path, or ``COMPONENT`` and a file."""
        return self.python if self.component is None else f"{COMPONENT}{self.component}"

    @property
    def member(self) -> str | None:
        """What the agent is instead of instructions and a model, in words; None for an agent with a model."""
        if self.python is not None:
            return f"python {self.python}"
        if self.component is not None:
            return f"component {self.component}"
        if self.remote is not None:
            key = "with a key" if self.remote.api_key else "without a key"
            # The host only: a URL can contain a password.
            return f"remote {self.remote.model} at {urlsplit(self.remote.base_url).hostname}, {key}"
        if self.a2a is not None:
            return f"A2A agent at {urlsplit(self.a2a.url).hostname}"
        return None


class CompactionDefinition(_StrictModel):
    """When and how the context of a long conversation is shortened; true or false in the file sets ``enabled``."""

    enabled: bool = True
    threshold: Annotated[Real, Field(ge=0.2, le=0.95, allow_inf_nan=False)] = 0.8
    """Part of the context window from which on the context is shortened."""
    model: Name | None = None
    """Model that writes summaries; the side model of the team if unset."""


def _compaction(value: Any) -> Any:
    return {"enabled": value} if isinstance(value, bool) else value


class TeamDefinition(_StrictModel):
    """A team: named agents, one of which is the entry agent."""

    display_name: Annotated[str, Field(max_length=500)] = ""
    """The name that ``/v1/models`` lists for people; the name of the team if empty."""
    description: str = ""
    entry: Name
    agents: dict[Name, AgentDefinition]
    limits: Limits = Limits()
    client_tools: ClientTools = "auto"
    side_model: Name | None = None
    """Model for side requests such as titles; the model of the entry agent if unset."""
    on_disconnect: Literal["cancel", "detach"] | None = None
    """What to do with a turn when its client disconnects; ``PROXY_ON_DISCONNECT`` if unset."""
    busy: Literal["reject", "queue", "interrupt"] = "reject"
    """What a request does while a turn of its conversation is running; ``X-Busy`` overrides it."""
    events: EventsMode | None = None
    """Default of ``X-Handoff-Events`` for this team; ``PROXY_HANDOFF_EVENTS`` if unset."""
    compaction: Annotated[CompactionDefinition, BeforeValidator(_compaction)] = CompactionDefinition()
    prompt_cache: bool = False
    """Arrange prompts so that a handoff keeps the prompt cache of the provider."""
    steps: tuple[Name, ...] = ()
    """Agents that work in this order in a turn; reported as progress."""
    examples: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=300)], ...], Field(max_length=8)
    ] = ()
    """Suggested first messages for frontends."""


class _McpServer(_StrictModel):
    """Common fields of MCP servers with any transport."""

    tools: tuple[ToolName, ...] | None = None
    """Tools that agents can use, by their names at the server; all if unset."""
    without_effects: tuple[ToolName, ...] | None = None
    """Tools without side effects; if unset, those that are pinned with ``readOnlyHint``."""
    connect_timeout: Annotated[Real, Field(gt=0, le=300)] = 30.0
    """Seconds to open a session, including the list of tools."""
    call_timeout: Annotated[Real, Field(gt=0, le=3600)] | None = None
    """Seconds for one call, in addition to the agent's ``tool_call_timeout``."""
    max_answer_bytes: Annotated[Integer, Field(ge=1024, le=16 * 1024 * 1024)] = 1024 * 1024
    """Maximum size of one message of the server."""


class StdioServer(_McpServer):
    """An MCP server with the stdio transport: a program that the proxy starts as a child process."""

    command: Annotated[str, StringConstraints(min_length=1)]
    args: tuple[SecretStr, ...] = ()
    env: dict[str, SecretStr] = {}
    """Environment variables in addition to the inherited ones (see ``tools.mcp.setup``)."""
    cwd: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Working directory, relative to the folder of the team files, which is the default."""


class HttpServer(_McpServer):
    """An MCP server with the streamable HTTP transport."""

    url: SecretStr
    headers: dict[str, SecretStr] = {}


McpServerDefinition = StdioServer | HttpServer


class TeamsFile(_StrictModel):
    """A team file, or the merged files of a folder."""

    models: dict[Name, ModelDefinition] = {}
    teams: dict[Name, TeamDefinition] = {}
    mcp_servers: dict[ServerName, McpServerDefinition] = {}


def snake_case(name: str) -> str:
    """Convert ``IssuesAndRepairs`` to ``issues_and_repairs``; other characters than a-z, 0-9 and ``_`` become ``_``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[^a-z0-9_]+", "_", spaced.lower()).strip("_")
