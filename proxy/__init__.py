"""An OpenAI-compatible chat completions proxy whose models are teams of agents."""
