"""Approvals of tool calls: decisions, yes/no recognition, repository port."""
