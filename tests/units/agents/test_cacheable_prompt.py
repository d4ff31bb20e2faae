"""The prompt of ``prompt_cache``: one beginning for all agents, and which agent is active."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.agents.agent import Agent, HandoffTarget
from proxy.agents.cacheable_prompt import CacheablePrompt
from proxy.agents.compaction.context_view import ContextView
from proxy.messages import (
    AssistantMessage,
    FunctionCall,
    FunctionTool,
    Item,
    Message,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from proxy.tools.handoff_tools import handoff_result, handoff_tool_spec
from proxy.turns.turn import Turn
from tests.fakes.models import ScriptedModel

MODEL = ScriptedModel()
MENU = FunctionTool("menu")


def agent(name: str, **handoffs: tuple[str, str]) -> Agent:
    """An agent whose handoffs are named tools with a target and when to use them."""
    targets = {
        tool: HandoffTarget(handoff_tool_spec(tool, target, when), target)
        for tool, (target, when) in handoffs.items()
    }
    return Agent(name, f"You are {name}.", MODEL, handoff_targets=targets)


def prompt_of(*agents: Agent) -> CacheablePrompt | None:
    return CacheablePrompt.of(agents[0].name, {one.name: one for one in agents})


def turn(active: str, context: Sequence[Item], *, overlay: str = "", items: Sequence[Item] = ()) -> Turn:
    instructions = [SystemMessage(overlay)] if overlay else []
    return Turn("t", "c", "caller", active, context, instructions, items=list(items))


def handed_off(source: str, target: str) -> list[Item]:
    call = ToolCall("c1", FunctionCall(f"to_{target}", "{}"))
    result = ToolMessage("c1", handoff_result(target))
    return [Item(AssistantMessage(None, tool_calls=[call]), agent=source), Item(result, agent=source)]


TRIAGE = agent("triage", to_sales=("sales", "to buy"))
SALES = agent("sales", to_triage=("triage", "anything else"))


def messages(prompt: CacheablePrompt | None, active: Agent, of_turn: Turn) -> list[Message]:
    assert prompt is not None
    return list(prompt.layout(active, of_turn, ContextView(of_turn.context, of_turn.items), ()).messages)


def test_the_first_message_has_the_instructions_and_tools_of_all_agents() -> None:
    first, *rest = messages(prompt_of(TRIAGE, SALES), TRIAGE, turn("triage", [Item(UserMessage("Hi"))]))

    assert isinstance(first, SystemMessage)
    assert isinstance(first.content, str)
    assert "At the beginning you are triage." in first.content
    assert "# sales\n\nYou are sales.\n\nTools of sales: to_triage" in first.content
    assert rest == [UserMessage("Hi")]


def test_the_result_of_a_handoff_says_which_agent_is_active() -> None:
    prompt = prompt_of(TRIAGE, SALES)
    context = [Item(UserMessage("Hi"))]
    items = handed_off("triage", "sales")

    before = messages(prompt, TRIAGE, turn("triage", context))
    after = messages(prompt, SALES, turn("sales", context, items=items))

    assert after == [*before, *(item.message for item in items)]


def test_another_active_agent_without_a_handoff_is_named() -> None:
    context = [
        Item(UserMessage("Hi")),
        Item(AssistantMessage("Hello"), agent="triage"),
        Item(UserMessage("Buy")),
    ]

    found = messages(prompt_of(TRIAGE, SALES), SALES, turn("sales", context))

    assert found[1:] == [*(i.message for i in context), SystemMessage("From here on you are sales.")]


def test_messages_of_the_client_are_before_the_newest_user_message() -> None:
    context = [
        Item(UserMessage("Hi")),
        Item(AssistantMessage("Hello"), agent="triage"),
        Item(UserMessage("Buy")),
    ]
    items = handed_off("triage", "sales")
    of_turn = turn("sales", context, overlay="It is noon.", items=items)

    found = messages(prompt_of(TRIAGE, SALES), SALES, of_turn)

    texts = [message.content for message in found[1:5]]
    assert texts == ["Hi", "Hello", "It is noon.", "Buy"]


def test_tools_are_the_same_for_all_agents() -> None:
    prompt = prompt_of(TRIAGE, SALES)
    assert prompt is not None
    layouts = [prompt.layout(one, turn(one.name, []), ContextView((), ()), [MENU]) for one in (TRIAGE, SALES)]

    names = [[tool.name for tool in layout.tools] for layout in layouts]
    assert names == [["to_sales", "to_triage", "menu"]] * 2


def test_a_handoff_that_agents_use_differently_is_described_in_their_instructions() -> None:
    one = agent("one", back=("home", "it is late"))
    two = agent("two", back=("home", "it is early"))
    prompt = prompt_of(one, two, agent("home"))

    assert prompt is not None
    (tool,) = prompt.handoffs
    assert tool == handoff_tool_spec("back", "home")
    assert "it is late" in prompt.instructions
    assert "it is early" in prompt.instructions


def test_one_name_for_handoffs_to_different_agents_has_no_such_prompt() -> None:
    one = agent("one", on=("two", ""))
    two = agent("two", on=("one", ""))

    assert prompt_of(one, two) is None


def test_the_instructions_of_a_single_agent_are_unchanged() -> None:
    prompt = prompt_of(agent("alone"))

    assert prompt is not None
    assert prompt.instructions == "You are alone."
