"""Models on the OpenAI wire."""
