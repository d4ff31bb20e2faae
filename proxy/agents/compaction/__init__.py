"""Long conversations: shorten the context that a model call sees, so that it fits the context window."""
