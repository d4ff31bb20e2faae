"""What a team file may say: closed, frozen schemas of plain data.

Names are checked here one by one; whether they exist (a handoff's target, a model, a tool) is checked by
``agents.loading``, which also knows file and line.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, StringConstraints
from pydantic_core import PydanticCustomError

from proxy.messages import EventsMode, Usage


def _no_truth_value(value: Any) -> Any:
    # pydantic takes true for 1, and in a file that is a slip.
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth_value)]
Real = Annotated[float, BeforeValidator(_no_truth_value)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
ServerName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")]
"""Of an MCP server; the names of its tools, as models see them, begin with it."""
ToolName = Annotated[str, StringConstraints(min_length=1, max_length=128)]
"""Of a tool, as its MCP server calls it."""
ClientTools = Literal["auto", "pass", "ignore"] | tuple[FunctionName, ...]
"""Which of the caller's own tools an agent is offered: ``auto`` (all, unless there are so many that they were not
meant for a team, see ``PROXY_MAX_CLIENT_TOOLS``), all, none, or those named."""


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Limits(_Closed):
    """Bounds of one turn; counts, and seconds where the name says so."""

    max_handoffs: Annotated[Whole, Field(ge=0, le=100)] = 10
    """After so many, delegates are withheld and the active agent has to answer itself."""
    max_model_calls: Annotated[Whole, Field(ge=1, le=1000)] = 25
    max_tool_calls: Annotated[Whole, Field(ge=0, le=1000)] = 50
    """After so many, further calls get a result that says so."""
    max_output_tokens: Annotated[Whole, Field(ge=1)] | None = None
    """Completion tokens of the whole turn; when used up, the turn ends with ``length``."""
    turn_seconds: Annotated[Real, Field(gt=0, allow_inf_nan=False)] | None = None
    """Overrides ``PROXY_TURN_TIME_LIMIT`` for this team."""


class Price(_Closed):
    """What a model costs for each million tokens, in the operator's currency."""

    prompt: Annotated[Real, Field(ge=0, allow_inf_nan=False)]
    completion: Annotated[Real, Field(ge=0, allow_inf_nan=False)]
    cached: Annotated[Real, Field(ge=0, allow_inf_nan=False)] | None = None
    """For tokens of the prompt that the provider had in its cache; ``prompt`` when unset."""

    def cost(self, usage: Usage) -> float:
        """Return what so many tokens cost."""
        cached = self.prompt if self.cached is None else self.cached
        prompt = (usage.prompt - usage.cached) * self.prompt + usage.cached * cached
        return (prompt + usage.completion * self.completion) / 1_000_000


ContextLength = Annotated[Whole, Field(ge=1)]
"""Tokens that a model can read at once, told in ``/v1/models``."""


class OpenAIModel(_Closed):
    """A model that speaks the OpenAI wire."""

    model: Annotated[str, StringConstraints(min_length=1)]
    base_url: Annotated[str, StringConstraints(pattern=r"^https?://")] = "https://api.openai.com/v1"
    api_key: SecretStr | None = None
    auth: Literal["key", "entra"] = "key"
    """``entra``: sign in at Microsoft Entra ID instead of sending an API key."""
    headers: dict[str, SecretStr] = {}
    parameters: dict[str, Any] = {}
    """Sent with every request unless the agent or the caller says otherwise."""
    extra_body: dict[str, Any] = {}
    """Further keys for the body, for providers with fields of their own."""
    wire: Literal["auto", "chat", "responses"] = "auto"
    """The API of the provider that is called."""
    price: Price | None = None
    context_length: ContextLength | None = None
    expose: bool = False


class ComponentModel(_Closed):
    """Any AutoGen ``ChatCompletionClient`` component. Loading one executes the code it names."""

    provider: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][\w.]*$")]
    config: dict[str, Any] = {}
    price: Price | None = None
    context_length: ContextLength | None = None
    expose: bool = False


class DemoModel(_Closed):
    """The offline demonstration."""

    demo: Literal[True]


ModelDefinition = OpenAIModel | ComponentModel | DemoModel


class HandoffDefinition(_Closed):
    """Whom an agent may hand over to, and when."""

    to: Name
    when: str = ""
    """Told to the model as the description of the delegate tool."""
    tool: FunctionName | None = None
    """The delegate's name; ``transfer_to_<target in snake case>`` when unset."""

    @property
    def tool_name(self) -> str:
        """The name under which the model sees the delegate."""
        return self.tool or f"transfer_to_{snake_case(self.to)}"


class ToolUse(_Closed):
    """A tool of an agent. Its name alone stands for one without further terms."""

    name: str
    """A built-in name, the import path of a Python function (``package.module:function``), or tools of an MCP server
    (``mcp:server/tool``, or ``mcp:server`` for all of them)."""
    approval: Literal["required"] | None = None
    """Whether a person has to approve each call before it is run."""


def _tool_use(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class AgentDefinition(_Closed):
    """One agent of a team; its name is its key in the file."""

    instructions: Annotated[str, StringConstraints(min_length=1)]
    description: str = ""
    model: Name = "default"
    fallbacks: tuple[Name, ...] = ()
    """Models asked in turn when the one before fails before it said anything."""
    tools: tuple[Annotated[ToolUse, BeforeValidator(_tool_use)], ...] = ()
    handoffs: tuple[HandoffDefinition, ...] = ()
    client_tools: ClientTools | None = None
    """Overrides the team's."""
    parameters: dict[str, Any] = {}
    max_parallel_tools: Annotated[Whole, Field(ge=1, le=64)] = 8
    tool_call_timeout: Annotated[Real, Field(gt=0, le=3600)] = 30.0


class TeamDefinition(_Closed):
    """Named agents, one of them the entry."""

    description: str = ""
    entry: Name
    agents: dict[Name, AgentDefinition]
    limits: Limits = Limits()
    client_tools: ClientTools = "auto"
    side_model: Name | None = None
    """Answers titles and other side requests; the entry agent's model when unset."""
    on_disconnect: Literal["cancel", "detach"] | None = None
    """What happens to a turn whose client leaves; the setting when unset."""
    events: EventsMode | None = None
    """What answers tell beside the answer, when the request does not say it; the setting when unset."""
    steps: tuple[Name, ...] = ()
    """Agents whose work its turns are made of, one after the other; told as progress."""
    examples: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=300)], ...], Field(max_length=8)
    ] = ()
    """First messages that a frontend can offer."""


class _McpServer(_Closed):
    """What is the same for every MCP server, however it is reached."""

    tools: tuple[ToolName, ...] | None = None
    """The tools that agents may have, by their names at the server; all of them when unset."""
    without_effects: tuple[ToolName, ...] | None = None
    """Those that change nothing; when unset, those of which the server said so when it was pinned."""
    connect_timeout: Annotated[Real, Field(gt=0, le=300)] = 30.0
    """Seconds until the server has to have told its tools."""
    call_timeout: Annotated[Real, Field(gt=0, le=3600)] | None = None
    """Seconds for one call; the agent's ``tool_call_timeout`` holds too."""
    max_answer_bytes: Annotated[Whole, Field(ge=1024, le=16 * 1024 * 1024)] = 1024 * 1024
    """How long one message of the server may be."""


class StdioServer(_McpServer):
    """An MCP server that is a program: started by this one, spoken to over its standard input and output."""

    command: Annotated[str, StringConstraints(min_length=1)]
    args: tuple[SecretStr, ...] = ()
    env: dict[str, SecretStr] = {}
    """Added to the few variables that it is given anyway."""
    cwd: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Relative to the folder of the team files, which is also where it runs when this is unset."""


class HttpServer(_McpServer):
    """An MCP server that is asked over streamable HTTP."""

    url: SecretStr
    headers: dict[str, SecretStr] = {}


McpServerDefinition = StdioServer | HttpServer


class TeamsFile(_Closed):
    """A whole team file; a folder's files are merged into one."""

    models: dict[Name, ModelDefinition] = {}
    teams: dict[Name, TeamDefinition] = {}
    mcp_servers: dict[ServerName, McpServerDefinition] = {}


def snake_case(name: str) -> str:
    """``IssuesAndRepairs`` → ``issues_and_repairs``; anything but letters, digits and ``_`` becomes ``_``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return re.sub(r"[^a-z0-9_]+", "_", spaced.lower()).strip("_")
