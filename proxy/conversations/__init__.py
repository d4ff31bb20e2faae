"""Conversations: resolver, fingerprints, visible messages, tool results, retention, repository port."""
