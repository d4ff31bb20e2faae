"""A graph of LangGraph with a tool, and a tool that hands over to another agent of the team."""

from typing import Annotated, Any

from langchain.agents import create_agent
from langchain_core.messages import ToolMessage
from langchain_core.tools import InjectedToolCallId, tool
from langchain_openai import ChatOpenAI
from langgraph.types import Command


@tool
def population(city: str) -> str:
    """Return the number of people in a city."""
    return {"Bonn": "330,000", "Berlin": "3,700,000"}.get(city, "unknown")


@tool
def transfer_to_desk(tool_call_id: Annotated[str, InjectedToolCallId], reason: str = "") -> Command:
    """Hand the conversation over to the desk, for questions about anything but cities."""
    done = ToolMessage("transferred", tool_call_id=tool_call_id)
    return Command(goto="Desk", graph=Command.PARENT, update={"messages": [done]})


def expert() -> Any:
    """Return the graph. Its model reads OPENAI_API_KEY and OPENAI_BASE_URL."""
    return create_agent(
        ChatOpenAI(model="gpt-5-mini", stream_usage=True),
        tools=[population, transfer_to_desk],
        system_prompt="You are an expert for cities.",
    )
