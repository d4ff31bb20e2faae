"""Turns: request, contract with teams, live log, records and repository port."""
