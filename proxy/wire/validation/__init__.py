"""Decoding and validation of bodies and queries."""
