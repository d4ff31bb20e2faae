"""The demonstration plays the bundled team: whole conversations, with the shop's real tools."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import ConfigurationError
from proxy.events import TextDelta
from proxy.messages import (
    AssistantMessage,
    FunctionCall,
    FunctionTool,
    Message,
    NamedToolChoice,
    Parameters,
    SystemMessage,
    ToolCall,
    ToolMessage,
    Usage,
    UserMessage,
)
from proxy.providers.demo.client import NOTICE, DemoClient
from proxy.providers.demo.script import Script, bundled_scripts, load_script
from proxy.providers.model import Finished, Model, ModelDelta, ModelRequest, ToolCallPiece
from proxy.teamfiles.definitions import DemoModel as DemoDefinition
from proxy.teamfiles.loader import load_teams
from proxy.teamfiles.team_sources import BUNDLED, TeamSources
from proxy.tools.builtin import builtin_names, builtin_tools
from proxy.tools.execution import call_tool
from proxy.tools.handoff_tools import handoff_reason, handoff_result, handoff_tool_spec
from proxy.tools.port import ToolContext
from proxy.tools.threads import ToolThreads

TRIAGE, SALES, REPAIRS = "TriageAgent", "SalesAgent", "IssuesAndRepairsAgent"
DELEGATES = {
    "transfer_to_sales_agent": SALES,
    "transfer_to_issues_and_repairs": REPAIRS,
    "transfer_back_to_triage": TRIAGE,
}
OFFERED = {
    TRIAGE: ["transfer_to_sales_agent", "transfer_to_issues_and_repairs"],
    SALES: ["execute_order", "transfer_back_to_triage"],
    REPAIRS: ["look_up_item", "execute_refund", "transfer_back_to_triage"],
}
UNICYCLE = "Hi, I bought a rocket-powered unicycle and it exploded. I want my money back."


async def ask(model: Model, request: ModelRequest) -> list[ModelDelta]:
    async with model.stream(request) as batches:
        return [delta async for batch in batches for delta in batch]


def text_in(deltas: Sequence[ModelDelta]) -> str:
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def calls_in(deltas: Sequence[ModelDelta]) -> list[ToolCall]:
    calls: list[list[str]] = []
    for delta in deltas:
        if isinstance(delta, ToolCallPiece):
            if delta.index == len(calls):
                calls.append([delta.call_id or "", delta.name or "", ""])
            calls[delta.index][2] += delta.arguments
    return [ToolCall(call_id, FunctionCall(name, arguments)) for call_id, name, arguments in calls]


class Stage:
    """Runs a team around the model, with tools and handoffs. ``say`` returns the events as lines."""

    def __init__(self, threads: ToolThreads, data_dir: Path) -> None:
        self.model = DemoClient(word_delay=0)
        self.agent = TRIAGE
        self.chain: list[Message] = []
        self.withheld: set[str] = set()
        self._tools = builtin_tools(threads)
        self._data_dir = data_dir
        self._calls = 0

    async def say(self, words: str) -> list[str]:
        self.chain.append(UserMessage(words))
        happened: list[str] = []
        for _ in range(20):
            deltas = await ask(self.model, self._request())
            text, calls = text_in(deltas), calls_in(deltas)
            self.chain.append(AssistantMessage(text or None, tool_calls=list(calls) or None))
            if text:
                happened.append(f"{self.agent}: {text}")
            if not calls:
                return happened
            for call in calls:
                happened.append(f"{call.function.name}({call.function.arguments})")
                self.chain.append(ToolMessage(call.id, await self._result(call)))
        raise AssertionError("the agents do not come to an end")

    def _request(self) -> ModelRequest:
        offered = [name for name in OFFERED[self.agent] if name not in self.withheld]
        specs = [
            self._tools[name].spec if name in self._tools else handoff_tool_spec(name, DELEGATES[name])
            for name in offered
        ]
        instructions = SystemMessage(f"You are {self.agent}.")
        return ModelRequest([instructions, *self.chain], specs, team="acme-support", agent=self.agent)

    async def _result(self, call: ToolCall) -> str:
        name = call.function.name
        assert name in OFFERED[self.agent]
        if name in DELEGATES:
            self.agent = DELEGATES[name]
            return handoff_result(self.agent)
        self._calls += 1
        context = ToolContext(f"t:{self._calls}", "t", "c1", "ann", self.agent, self._data_dir)
        result = await call_tool(
            self._tools[name], call.function.arguments, context, time_limit=20, max_result_bytes=9999
        )
        return result.text


@pytest.fixture
def threads() -> Iterator[ToolThreads]:
    created = ToolThreads()
    yield created
    created.close()


@pytest.fixture
def stage(threads: ToolThreads, tmp_path: Path) -> Stage:
    return Stage(threads, tmp_path)


# --- whole conversations: user messages, and the exact lines of events in order ---

STORIES = {
    "the exploded unicycle": [
        (
            UNICYCLE,
            [
                r'transfer_to_issues_and_repairs\({"reason": "The customer says: Hi, I bought a rocket-powered .*"}\)',
                r"IssuesAndRepairsAgent: .*sorry about the rocket-powered unicycle; would it help to let it cool down",
            ],
        ),
        (
            "No! I want my money back.",
            [
                r'look_up_item\({"search_query": "rocket-powered unicycle"}\)',
                r'execute_refund\({"item_id": "acme-0101", "reason": "Hi, I bought .* it exploded"}\)',
                r"IssuesAndRepairsAgent: Your refund is done, \$1,499.00 for the Rocket-Powered Unicycle is on its way",
            ],
        ),
        ("Thanks", ["IssuesAndRepairsAgent: You are welcome"]),
    ],
    "a refund only after the fix": [
        (
            "My spring-loaded welcome mat has a problem",
            [
                "transfer_to_issues_and_repairs",
                "IssuesAndRepairsAgent: .*trouble with the spring-loaded welcome mat; what exactly happened",
            ],
        ),
        ("It threw my aunt over the fence", ["IssuesAndRepairsAgent: I see; would it help to"]),
        (
            "no, already tried that",
            ["IssuesAndRepairsAgent: I see, so would you like me to refund you instead"],
        ),
        (
            "yes please",
            [
                r'look_up_item\({"search_query": "spring-loaded welcome mat"}\)',
                r'execute_refund\({"item_id": "acme-0103", "reason": "The customer is not satisfied."}\)',
                r"IssuesAndRepairsAgent: Your refund is done, \$249.00",
            ],
        ),
        ("No", ["IssuesAndRepairsAgent: Then I wish you a quiet day"]),
    ],
    "a purchase, and its return": [
        ("Hi", [r"TriageAgent: .*Welcome to ACME customer service.*what can I do for you"]),
        (
            "I want to buy something",
            [
                r'transfer_to_sales_agent\({"reason": "The customer says: I want to buy something"}\)',
                "SalesAgent: .*what trouble do you have with catching roadrunners?",
            ],
        ),
        (
            "They are too fast for me",
            ["SalesAgent: Our ACME Jet-Propelled Roller Skates would put an end to that"],
        ),
        (
            "How much is it?",
            [r"SalesAgent: .*the ACME Jet-Propelled Roller Skates is yours for \$9,999,999.99"],
        ),
        ("Hm?", [r"SalesAgent: That is already the friendly price.*\$9,999,999.99.*deal"]),
        (
            "yes",
            [r"SalesAgent: It only works as long as you never look down.*\$9,999,999.99, caveat and all"],
        ),
        ("what?", [r"SalesAgent: Just so that I get it right.*\$9,999,999.99, caveat and all"]),
        (
            "yes, order it",
            [
                r'execute_order\({"product": "ACME Jet-Propelled Roller Skates", "price": 9999999.99}\)',
                r"SalesAgent: Done, the ACME Jet-Propelled Roller Skates .*its item id is item_\w{8}\.$",
            ],
        ),
        ("thank you", ["SalesAgent: Thank you for choosing ACME"]),
        (
            "Wait, it exploded!",
            [
                "transfer_back_to_triage",
                "transfer_to_issues_and_repairs",
                "IssuesAndRepairsAgent: .*would it help to",
            ],
        ),
        (
            "I want a refund",
            [
                r'look_up_item\({"search_query": "item_\w{8}"}\)',
                r'execute_refund\({"item_id": "item_\w{8}", "reason": "Wait, it exploded"}\)',
                r"IssuesAndRepairsAgent: Your refund is done, \$9,999,999.99 for the ACME Jet-Propelled",
            ],
        ),
        (
            "I'd like to buy another one",
            ["transfer_back_to_triage", "transfer_to_sales_agent", "SalesAgent: .*catching roadrunners"],
        ),
    ],
    "a thing that nobody knows": [
        (
            "My time machine is broken",
            ["transfer_to_issues", "IssuesAndRepairsAgent: .*sorry about the time machine"],
        ),
        (
            "refund",
            [r'look_up_item\({"search_query": "time machine"}\)', "IssuesAndRepairsAgent: I cannot find it"],
        ),
        (
            "the pocket thundercloud",
            [
                r'look_up_item\({"search_query": "the pocket thundercloud"}\)',
                r'execute_refund\({"item_id": "acme-0106", "reason": "My time machine is broken"}\)',
                "IssuesAndRepairsAgent: Your refund is done",
            ],
        ),
        ("My pocket thundercloud leaks again", ["IssuesAndRepairsAgent: .*would it help to"]),
        (
            "no, money back",
            [
                r'look_up_item\({"search_query": "pocket thundercloud"}\)',
                "IssuesAndRepairsAgent: The Pocket Thundercloud was already refunded on 20",
            ],
        ),
    ],
    "no deal": [
        ("what do you sell?", ["transfer_to_sales_agent", "SalesAgent: .*roadrunners"]),
        ("They are so clever", ["SalesAgent: Our ACME Pre-Painted Pocket Tunnel"]),
        ("ok", [r"SalesAgent: .*\$9,999,999.99"]),
        ("too expensive", ["SalesAgent: Then the roadrunner wins this round"]),
        ("no", ["SalesAgent: Then good hunting"]),
        (
            "I want to talk to a human",
            [
                "transfer_back_to_triage",
                "TriageAgent: There are two departments.*sales or issues and repairs",
            ],
        ),
        ("repairs", ["transfer_to_issues_and_repairs", "IssuesAndRepairsAgent: .*which ACME product is it"]),
    ],
    "a product that the customer names": [
        ("Hello, I need some help.", ["TriageAgent: .*Welcome to ACME"]),
        (
            "I want the rocket my friend bought",
            ["transfer_to_sales_agent", "SalesAgent: .*catching roadrunners"],
        ),
        (
            "Tell me about the Giant Rubber Band",
            [r"SalesAgent: A steal, the ACME Giant Rubber Band is yours for \$9,999,999.99"],
        ),
        ("That sounds great, I'll take it!", ["SalesAgent: It only works as long as you never look down"]),
        (
            "Yes, I agree to the price and the caveat.",
            [
                r'execute_order\({"product": "ACME Giant Rubber Band", "price": 9999999.99}\)',
                "SalesAgent: Done, the ACME Giant Rubber Band is on its way",
            ],
        ),
        (
            "They are the SpaceX 3000s",
            [
                "transfer_back_to_triage",
                "transfer_to_issues_and_repairs",
                "IssuesAndRepairsAgent: .*trouble with the SpaceX 3000s; what exactly happened",
            ],
        ),
        (
            "I want refund",
            [
                r'look_up_item\({"search_query": "SpaceX 3000s"}\)',
                r'execute_refund\({"item_id": "acme-0109"',
                r"IssuesAndRepairsAgent: Your refund is done, \$3,000.00 for the SpaceX 3000 Rocket Shoes",
            ],
        ),
    ],
    "a refund for a product that is named later": [
        ("Hello, I need some help.", ["TriageAgent: .*Welcome to ACME"]),
        (
            "My shoes are broken",
            [
                "transfer_to_issues_and_repairs",
                "IssuesAndRepairsAgent: .*sorry about the shoes; would it help",
            ],
        ),
        ("They are the SpaceX 3000s", ["IssuesAndRepairsAgent: .*would you like me to refund you"]),
        (
            "I want refund",
            [
                r'look_up_item\({"search_query": "SpaceX 3000s"}\)',
                r'execute_refund\({"item_id": "acme-0109", "reason": "My shoes are broken"}\)',
                r"IssuesAndRepairsAgent: Your refund is done, \$3,000.00 for the SpaceX 3000 Rocket Shoes",
            ],
        ),
    ],
    "a refund before the product is named": [
        (
            "I want a refund",
            ["transfer_to_issues_and_repairs", "IssuesAndRepairsAgent: .*which ACME product is it"],
        ),
        (
            "They are the SpaceX 3000s",
            [
                r'look_up_item\({"search_query": "SpaceX 3000s"}\)',
                r'execute_refund\({"item_id": "acme-0109"',
                "IssuesAndRepairsAgent: Your refund is done",
            ],
        ),
    ],
    "a refund for a product that is named first": [
        (
            "They are the SpaceX 3000s",
            [
                "transfer_to_issues_and_repairs",
                "IssuesAndRepairsAgent: .*trouble with the SpaceX 3000s; what exactly happened",
            ],
        ),
        (
            "I want refund",
            [
                r'look_up_item\({"search_query": "SpaceX 3000s"}\)',
                r'execute_refund\({"item_id": "acme-0109"',
                "IssuesAndRepairsAgent: Your refund is done",
            ],
        ),
    ],
    "help from a person is not a purchase": [
        ("I need a manager", ["TriageAgent: .*There are two departments"]),
        ("I want an answer", ["TriageAgent: .*I did not quite get that"]),
    ],
    "small talk": [
        ("asdf", ["TriageAgent: .*Welcome to ACME"]),
        ("qwer", ["TriageAgent: I did not quite get that"]),
        ("who are you?", ["TriageAgent: I answer for ACME Inc."]),
        ("¿Qué?", ["TriageAgent: I did not quite get that"]),
        ("thanks", ["TriageAgent: You are welcome"]),
        ("", ["TriageAgent: Welcome to ACME"]),
    ],
    "wanting two things at once does not send anybody round in circles": [
        (
            "I want to buy a refund for my broken order",
            ["transfer_to_issues_and_repairs", "IssuesAndRepairsAgent: "],
        ),
        (
            "talk to someone else, buy, refund my order",
            [
                "transfer_back_to_triage",
                "transfer_to_issues_and_repairs",
                "IssuesAndRepairsAgent: .*name or the item id",
            ],
        ),
    ],
}


@pytest.mark.parametrize("story", STORIES.values(), ids=STORIES.keys())
async def test_the_bundled_team_plays_its_part(stage: Stage, story: list[tuple[str, list[str]]]) -> None:
    for words, expected in story:
        happened = await stage.say(words)

        assert len(happened) == len(expected), (words, happened)
        for line, pattern in zip(happened, expected, strict=True):
            assert re.match(pattern, line, re.DOTALL), (words, line, pattern)


async def test_only_the_first_answer_has_the_demo_notice(stage: Stage) -> None:
    first = await stage.say(UNICYCLE)
    second = await stage.say("no, money back!")

    assert first[-1].startswith(f"IssuesAndRepairsAgent: {NOTICE}\n\nI am sorry")
    assert all(name in NOTICE for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_MODEL", "restart"))
    assert NOTICE not in "".join(second)


def test_the_demo_notice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        DemoClient()

    (message,) = [record.getMessage() for record in caplog.records]
    assert "demonstration" in message
    assert "OPENAI_API_KEY" in message


async def test_a_long_reason_is_cut_and_stays_readable(stage: Stage) -> None:
    happened = await stage.say("It broke. " * 500)

    arguments = re.fullmatch(r"transfer_to_issues_and_repairs\((.*)\)", happened[0])
    assert arguments
    assert len(handoff_reason(arguments[1])) < 230


async def test_what_people_write_is_text_and_never_a_template(stage: Stage) -> None:
    happened = await stage.say('My {agent} "{words}\n{team}" is broken')

    assert json.loads(happened[0].removeprefix("transfer_to_issues_and_repairs(").removesuffix(")")) == {
        "reason": 'The customer says: My {agent} "{words} {team}" is broken'
    }


@pytest.mark.parametrize(
    ("agent", "words", "withheld"),
    [
        (TRIAGE, "I want a refund", "transfer_to_issues_and_repairs"),
        (TRIAGE, "I want to buy a rocket", "transfer_to_sales_agent"),
        (SALES, "I want a refund", "transfer_back_to_triage"),
        (REPAIRS, "I want to buy a rocket", "transfer_back_to_triage"),
    ],
)
async def test_a_tool_that_is_not_offered_is_not_called(
    stage: Stage, agent: str, words: str, withheld: str
) -> None:
    stage.agent = agent
    stage.withheld = {withheld}

    (line,) = await stage.say(words)

    assert line.startswith(f"{agent}: ")


async def test_a_failing_tool_is_reported_by_the_script(stage: Stage) -> None:
    call = ToolCall("c1", FunctionCall("execute_order", "{}"))
    request = ModelRequest(
        [
            UserMessage("yes"),
            AssistantMessage(None, tool_calls=[call]),
            ToolMessage("c1", "error: the tool failed"),
        ],
        [FunctionTool("execute_order")],
        team="acme-support",
        agent=SALES,
    )

    assert "Our order book is jammed" in text_in(await ask(stage.model, request))


async def test_calls_are_not_made_when_the_caller_forbids_them(stage: Stage) -> None:
    request = ModelRequest(
        [UserMessage("I want a refund")],
        [FunctionTool("transfer_to_issues_and_repairs")],
        tool_choice="none",
        team="acme-support",
        agent=TRIAGE,
    )

    deltas = await ask(stage.model, request)

    assert calls_in(deltas) == []
    assert "Welcome to ACME" in text_in(deltas)


TEAMS = ["acme-support", "assistant", "business-insights"]
WITHOUT_A_SCRIPT = {"transfer_to_data_agent", "calculate"}
"""Tools of the report's agents that only a language model finds a use for."""


@pytest.mark.parametrize("name", TEAMS)
async def test_a_script_calls_only_tools_that_the_bundled_team_has(name: str) -> None:
    def refuse(path: str, folder: Path) -> Any:
        raise AssertionError(path)

    sources = TeamSources(
        path=BUNDLED,
        environment={},
        default=DemoDefinition(demo=True),
        import_tool=refuse,
        import_member=refuse,
        known_tools=builtin_names(),
    )
    teams = load_teams(sources)
    team = teams.definitions.teams[name]
    script = bundled_scripts()[name]

    assert list(teams.definitions.teams) == TEAMS
    assert script.agents.keys() == team.agents.keys()
    for agent_name, agent in team.agents.items():
        has = {*(use.name for use in agent.tools), *(handoff.tool_name for handoff in agent.handoffs)}
        called = {call.name for rule in script.agents[agent_name].rules for call in rule.call}
        assert called <= has
        assert has - called <= (WITHOUT_A_SCRIPT if name == "business-insights" else set())
        if name == "acme-support":
            assert sorted(has) == sorted(OFFERED[agent_name])


# --- streaming ---


def simple(words: str = "Hi", **changes: Any) -> ModelRequest:
    earlier: list[Message] = [SystemMessage("Be kind."), UserMessage("a"), AssistantMessage("b")]
    return ModelRequest([*earlier, UserMessage(words)], team="acme-support", agent=TRIAGE, **changes)


WELCOME = "Welcome to ACME customer service, I am your first stop here; what can I do for you today?"


async def test_text_is_streamed_word_by_word_and_usage_counts_words() -> None:
    model = DemoClient(word_delay=0)

    async with model.stream(simple()) as batches:
        read = [tuple(batch) async for batch in batches]

    assert read[:3] == [(TextDelta("Welcome"),), (TextDelta(" to"),), (TextDelta(" ACME"),)]
    assert read[-1] == (Finished("stop", Usage(prompt=5, completion=18)),)
    assert len(read) == 19
    assert model.name == "demo"


async def test_a_call_comes_in_pieces_and_ends_with_tool_calls() -> None:
    request = simple("I want to buy", tools=[FunctionTool("transfer_to_sales_agent")])

    deltas = await ask(DemoClient(word_delay=0), request)

    first, *pieces, finished = deltas
    assert isinstance(first, ToolCallPiece)
    assert (first.index, first.name, first.arguments) == (0, "transfer_to_sales_agent", "")
    assert first.call_id
    assert all(isinstance(piece, ToolCallPiece) and piece.name is None for piece in pieces)
    (call,) = calls_in(deltas)
    assert json.loads(call.function.arguments) == {"reason": "The customer says: I want to buy"}
    assert finished == Finished("tool_calls", Usage(prompt=8, completion=9))


@pytest.mark.parametrize(
    ("parameters", "text", "reason"),
    [
        (Parameters(max_completion_tokens=3), "Welcome to ACME", "length"),
        (Parameters(max_tokens=3, max_completion_tokens=2), "Welcome to", "length"),
        (Parameters(max_tokens=18), WELCOME, "stop"),
        (Parameters(stop="customer"), "Welcome to ACME ", "stop"),
        (Parameters(stop=["today", " ACME", ""]), "Welcome to", "stop"),
        (Parameters(stop="Welcome"), "", "stop"),
        (Parameters(stop="never said"), WELCOME, "stop"),
        (Parameters(stop="customer", max_tokens=1), "Welcome", "length"),
    ],
    ids=str,
)
async def test_stop_sequences_and_token_limits_apply(parameters: Parameters, text: str, reason: str) -> None:
    deltas = await ask(DemoClient(word_delay=0), simple(parameters=parameters))

    finished = deltas[-1]
    assert isinstance(finished, Finished)
    assert (text_in(deltas), finished.reason) == (text, reason)


TWICE = Script.model_validate(
    {
        "team": "twice",
        "agents": {
            "A": {
                "otherwise": "nothing",
                "rules": [
                    {
                        "said": r"(?P<n>\d+)",
                        "say": "Now {n}.",
                        "call": [
                            {"name": "one", "arguments": {"n": "{n}", "flag": True}},
                            {"name": "two", "arguments": {"n": "{n}"}},
                        ],
                    }
                ],
            }
        },
    }
)
ONE = FunctionTool("one", parameters={"properties": {"n": {"type": "integer"}}})
TWO = FunctionTool("two")


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({"tools": [ONE, TWO]}, [("one", {"n": 7, "flag": True}), ("two", {"n": "7"})]),
        ({"tools": [ONE, TWO], "parallel_tool_calls": False}, [("one", {"n": 7, "flag": True})]),
        ({"tools": [ONE, TWO], "parameters": Parameters(max_tokens=1)}, []),
        ({"tools": [ONE]}, []),
        (
            {"tools": [ONE, TWO], "tool_choice": NamedToolChoice("two")},
            [("one", {"n": 7, "flag": True}), ("two", {"n": "7"})],
        ),
    ],
    ids=["both", "not in parallel", "cut before", "one is not offered", "a named choice is not heard"],
)
async def test_several_calls_after_text(changes: dict[str, Any], calls: list[tuple[str, object]]) -> None:
    model = DemoClient(word_delay=0, scripts={"twice": TWICE})
    messages: list[Message] = [AssistantMessage("before"), UserMessage("take 7")]

    deltas = await ask(model, ModelRequest(messages, team="twice", agent="A", **changes))

    assert [(c.function.name, json.loads(c.function.arguments)) for c in calls_in(deltas)] == calls


CONCURRENT = Script.model_validate(
    {
        "team": "both",
        "agents": {
            "A": {
                "otherwise": "nothing",
                "rules": [
                    {"after": "one", "also": True, "result": r"=(?P<n>[-\d.]+)", "say": "One gave {n:,}."},
                    {"after": "one", "also": True, "result": r"^error: (?P<why>.+)", "say": "No one: {why}."},
                    {"after": "two", "also": True, "result": r"(?P<all>.+)", "say": "Two gave {all:,}."},
                    {"said": "one", "also": True, "call": [{"name": "one"}]},
                    {"said": "two", "also": True, "call": [{"name": "two"}, {"name": "two"}]},
                    {"said": "one", "say": "never said extra the others"},
                    {"given_before": "=(?P<n>\\d)", "say": "Somebody found {n}."},
                    {"said": "three", "say": "Three, alone."},
                ],
            }
        },
    }
)


def parallel_results(*results: tuple[str, str], words: str = "one and two") -> ModelRequest:
    """After these calls of one reply, (name, result)."""
    calls = [ToolCall(f"c{number}", FunctionCall(name, "{}")) for number, (name, _) in enumerate(results)]
    messages: list[Message] = [AssistantMessage("before"), UserMessage(words)]
    if calls:
        messages.append(AssistantMessage(None, tool_calls=list(calls)))
    messages += [ToolMessage(f"c{number}", text) for number, (_, text) in enumerate(results)]
    return ModelRequest(messages, [FunctionTool("one"), FunctionTool("two")], team="both", agent="A")


async def test_calls_requested_in_parallel_run_in_parallel() -> None:
    model = DemoClient(word_delay=0, scripts={"both": CONCURRENT})

    calls = calls_in(await ask(model, parallel_results()))
    alone = await ask(model, parallel_results(words="three"))

    assert [call.function.name for call in calls] == ["one", "two", "two"]
    assert (text_in(alone), calls_in(alone)) == ("Three, alone.", [])


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ((("one", "n=1234.5"), ("two", "1234567")), "One gave 1,234.50.\n\nTwo gave 1,234,567."),
        ((("one", "error: too late"), ("two", "12 men")), "No one: too late.\n\nTwo gave 12 men."),
        ((("two", "a"), ("two", "b")), "Two gave a b."),
        ((("one", "?"),), "nothing"),
        ((("elsewhere", "x=7"),), "Somebody found 7."),
    ],
    ids=["both", "one failed", "the same twice", "nothing to say", "another agent's tool"],
)
async def test_all_results_of_a_reply_are_spoken_of(results: tuple[tuple[str, str], ...], text: str) -> None:
    model = DemoClient(word_delay=0, scripts={"both": CONCURRENT})
    words = "hm" if results[0][0] == "elsewhere" else "one and two"

    assert text_in(await ask(model, parallel_results(*results, words=words))) == text


async def test_a_reader_that_leaves_ends_the_answer() -> None:
    model = DemoClient(word_delay=0)

    async with model.stream(simple()) as batches:
        await anext(batches)

    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_there_is_a_pause_between_words_and_it_can_be_cancelled() -> None:
    started = asyncio.Event()

    async def read(batches: AsyncIterator[object]) -> None:
        await anext(batches)
        started.set()
        await anext(batches)

    async with DemoClient(word_delay=0.01).stream(simple()) as batches:
        began = asyncio.get_running_loop().time()
        await anext(batches)
        assert asyncio.get_running_loop().time() - began >= 0.009

    async with DemoClient(word_delay=3600).stream(simple()) as batches:
        reader = asyncio.create_task(read(batches))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert not started.is_set()


# --- other teams, side requests, and invalid scripts ---


@pytest.mark.parametrize(
    ("team", "agent"), [("weather", "Forecaster"), ("acme-support", "NewAgent"), ("", "Somebody")]
)
async def test_without_a_script_an_agent_says_what_it_is(team: str, agent: str) -> None:
    request = ModelRequest([UserMessage("Will it  rain?")], team=team, agent=agent)

    text = text_in(await ask(DemoClient(word_delay=0), request))

    assert text.startswith(f"{NOTICE}\n\nI am {agent} of the team {team}")
    assert text.endswith('"Will it rain?"')


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("Please generate a four to five word title", "Conversation"),
        (
            '### Task:\nOutput: JSON format: { "title": "your concise title here" }',
            '{"title": "Conversation"}',
        ),
        ('### Task:\nJSON format: { "follow_ups": ["Question 1?"] }', '{"follow_ups": []}'),
        ('### Task:\nJSON format: { "tags": ["tag1"] }', '{"tags": []}'),
    ],
)
@pytest.mark.parametrize("agent", ["", "side"])
async def test_side_requests_get_a_short_answer_without_the_notice(agent: str, words: str, text: str) -> None:
    request = ModelRequest([UserMessage(words)], team="acme-support", agent=agent)

    assert text_in(await ask(DemoClient(word_delay=0), request)) == text


OPEN_WEBUI_TITLE = (
    "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing the chat history.\n"
    + "### Guidelines:\n"
    + "- Use emojis and write in the primary language of the chat.\n" * 20
    + '### Output:\nJSON format: { "title": "your concise title here" }\n'
    + '### Chat History:\n<chat_history>\nUSER: My "rocket" exploded. Again!\nASSISTANT: Oh.\n</chat_history>'
)
PAGE_TITLE = "Write a title of at most six words for this conversation. Reply with the title only.\n\n"


@pytest.mark.parametrize(
    ("messages", "title"),
    [
        (
            [PAGE_TITLE + "user: My rocket-powered unicycle exploded. I want my money back.\nassistant: Oh."],
            "My rocket-powered unicycle exploded",
        ),
        ([PAGE_TITLE + "user: one two three four five six seven eight"], "one two three four five six"),
        (
            ["I want a rocket", "Please generate a four to five word title summarizing our conversation"],
            "I want a rocket",
        ),
        ([OPEN_WEBUI_TITLE], '{"title": "My"}'),
        ([OPEN_WEBUI_TITLE.replace('"rocket"', "rocket")], '{"title": "My rocket exploded"}'),
        ([OPEN_WEBUI_TITLE.replace('My "rocket"', '\n"My rocket')], '{"title": "My rocket exploded"}'),
        ([OPEN_WEBUI_TITLE.replace('My "rocket" exploded. Again!', "?!")], '{"title": "Conversation"}'),
        (
            ['### Task:\nOutput: { "tags": ["tag1"] }\n<chat_history>\nUSER: A rocket!\n</chat_history>'],
            '{"tags": ["A rocket"]}',
        ),
        (["Give the chat below a heading.\n\nHuman: I want skates.\nAI: Here."], "I want skates"),
    ],
)
async def test_title_is_created_from_the_conversation(messages: list[str], title: str) -> None:
    request = ModelRequest([UserMessage(text) for text in messages], team="acme-support", agent="side")

    assert text_in(await ask(DemoClient(word_delay=0), request)) == title


async def test_an_empty_message_is_answered_too() -> None:
    deltas = await ask(DemoClient(word_delay=0), ModelRequest([], team="acme-support", agent=SALES))

    assert "catching roadrunners" in text_in(deltas)


RULE = "team: t\nagents:\n  A:\n    otherwise: x\n    rules:\n      - "


@pytest.mark.parametrize(
    ("content", "expected_error"),
    [
        ("[1", "t.demo.yaml: "),
        ("team: t", "agents: Field required"),
        (RULE + "said: '('\n        say: x", "not a pattern"),
        (RULE + "said: '{NOT_THERE}'\n        say: x", "there is no pattern named NOT_THERE"),
        (RULE + "said: x\n        say: '{product}'", "no pattern of the rule captures product"),
        (RULE + "said: x", "a rule has to say or to call something"),
        (RULE + "sayed: x\n        say: x", "sayed: Extra inputs are not permitted"),
        ("patterns: {A: '{B}', B: '{A}'}\n" + RULE + "said: '{A}'\n        say: x", "pattern A holds itself"),
    ],
    ids=[
        "yaml",
        "no agents",
        "bad pattern",
        "unknown part",
        "unknown capture",
        "empty",
        "unknown key",
        "circle",
    ],
)
def test_an_invalid_script_is_rejected(tmp_path: Path, content: str, expected_error: str) -> None:
    path = tmp_path / "t.demo.yaml"
    path.write_text(content)

    with pytest.raises(ConfigurationError) as refused:
        load_script(path)

    assert expected_error in refused.value.message
    assert refused.value.message.startswith("t.demo.yaml: ")
