"""The public interface for agents of AutoGen AgentChat: ``from proxy.members.agentchat import ClientTools``."""

from proxy.members.adapters.agentchat_objects import ClientTools

__all__ = ["ClientTools"]
