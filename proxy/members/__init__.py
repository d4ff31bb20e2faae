"""Agents that are not instructions and a model: functions, objects of agent frameworks, and remote agents."""
