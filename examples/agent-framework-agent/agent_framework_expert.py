"""An agent of the Microsoft Agent Framework with a tool. Its model reads OPENAI_API_KEY and OPENAI_BASE_URL."""

from agent_framework import Agent
from agent_framework.openai import OpenAIChatCompletionClient


def population(city: str) -> str:
    """Return the number of people in a city."""
    return {"Bonn": "330,000", "Berlin": "3,700,000"}.get(city, "unknown")


def expert() -> Agent:
    """Return the agent."""
    return Agent(
        OpenAIChatCompletionClient(model="gpt-5-mini"),
        instructions="You are an expert for cities.",
        name="Expert",
        tools=[population],
    )
