"""The conversations wire."""
