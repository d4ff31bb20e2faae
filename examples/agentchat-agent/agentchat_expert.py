"""An agent of AutoGen AgentChat with a tool, which hands over to another agent of the team by its name."""

from autogen_agentchat.agents import AssistantAgent
from autogen_core.tools import FunctionTool, StaticWorkbench
from autogen_ext.models.openai import OpenAIChatCompletionClient

from proxy.members.agentchat import ClientTools


async def population(city: str) -> str:
    """Return the number of people in a city."""
    return {"Bonn": "330,000", "Berlin": "3,700,000"}.get(city, "unknown")


def expert() -> AssistantAgent:
    """Return the agent. Its model reads OPENAI_API_KEY and OPENAI_BASE_URL."""
    own = StaticWorkbench([FunctionTool(population, "Return the number of people in a city.")])
    return AssistantAgent(
        "Expert",
        OpenAIChatCompletionClient(model="gpt-5-mini", stream_options={"include_usage": True}),
        system_message="You are an expert for cities.",
        # The second one has the tools of the client. Without them, ``tools=[population]`` is enough.
        workbench=[own, ClientTools()],
        handoffs=["Desk"],
        max_tool_iterations=5,
        model_client_stream=True,
    )
