"""Turns with tools while workers are killed at random moments."""
