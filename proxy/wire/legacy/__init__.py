"""Formats of the legacy endpoints."""
