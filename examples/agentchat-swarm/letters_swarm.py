"""A swarm of AutoGen AgentChat as one agent of a team. It hands over to the desk of the team, or back to the user."""

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import HandoffTermination, TextMessageTermination
from autogen_agentchat.teams import Swarm
from autogen_ext.models.openai import OpenAIChatCompletionClient


def swarm() -> Swarm:
    """Return the swarm. Its model reads OPENAI_API_KEY and OPENAI_BASE_URL."""
    model = OpenAIChatCompletionClient(model="gpt-5-mini", stream_options={"include_usage": True})
    planner = AssistantAgent(
        "planner",
        model,
        system_message="You plan letters. Hand over to the user to ask for a recipient, and then to the writer.",
        handoffs=["writer", "user"],
        model_client_stream=True,
    )
    writer = AssistantAgent(
        "writer",
        model,
        system_message="You write letters. Hand over to the desk if the user wants anything else.",
        handoffs=["Desk"],
        model_client_stream=True,
    )
    # A swarm that is not ended runs the agent that answered again.
    answered = TextMessageTermination("planner") | TextMessageTermination("writer")
    ends = HandoffTermination("Desk") | HandoffTermination("user") | answered
    return Swarm([planner, writer], termination_condition=ends)
