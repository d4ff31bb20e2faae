"""Models that are AutoGen ``ChatCompletionClient`` components."""
