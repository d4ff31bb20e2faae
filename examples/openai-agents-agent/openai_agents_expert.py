"""An agent of the OpenAI Agents SDK with a tool, and a second one to which it hands over by itself."""

from agents import Agent, OpenAIChatCompletionsModel, function_tool
from openai import AsyncOpenAI


@function_tool
def population(city: str) -> str:
    """Return the number of people in a city."""
    return {"Bonn": "330,000", "Berlin": "3,700,000"}.get(city, "unknown")


def expert() -> Agent:
    """Return the agent. Its model reads OPENAI_API_KEY and OPENAI_BASE_URL."""
    model = OpenAIChatCompletionsModel("gpt-5-mini", AsyncOpenAI())
    historian = Agent(name="Historian", instructions="You know the history of cities.", model=model)
    return Agent(
        name="Expert",
        instructions="You are an expert for cities.",
        model=model,
        tools=[population],
        handoffs=[historian],
    )
