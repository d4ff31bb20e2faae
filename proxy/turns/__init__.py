"""Turns: request, contract with teams, event log, records and repository protocol."""
