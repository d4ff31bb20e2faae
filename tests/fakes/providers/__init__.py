"""Providers that reject what the real ones reject; one class per family."""
