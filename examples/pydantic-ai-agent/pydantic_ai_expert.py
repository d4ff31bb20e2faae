"""An agent of Pydantic AI with a tool. Its model reads OPENAI_API_KEY and OPENAI_BASE_URL."""

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel


def population(city: str) -> str:
    """Return the number of people in a city."""
    return {"Bonn": "330,000", "Berlin": "3,700,000"}.get(city, "unknown")


def expert() -> Agent:
    """Return the agent."""
    return Agent(
        OpenAIChatModel("gpt-5-mini"), system_prompt="You are an expert for cities.", tools=[population]
    )
