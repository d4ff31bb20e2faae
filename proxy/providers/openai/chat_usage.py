"""The ``usage`` object of chat completions, as the different providers fill it."""

from __future__ import annotations

from proxy.messages import Usage

_LARGEST = 2**53 - 1


def clean_usage(usage: object) -> Usage | None:
    """Return the numbers of a ``usage`` object as integers >= 0; None if it holds neither of the two totals."""
    if not isinstance(usage, dict):
        return None
    prompt, completion, cache_hit = _counts(
        usage, "prompt_tokens", "completion_tokens", "prompt_cache_hit_tokens"
    )
    if prompt is None and completion is None:
        return None
    cached, audio_prompt = _counts(usage.get("prompt_tokens_details"), "cached_tokens", "audio_tokens")
    reasoning, audio_completion, accepted, rejected = _counts(
        usage.get("completion_tokens_details"),
        "reasoning_tokens",
        "audio_tokens",
        "accepted_prediction_tokens",
        "rejected_prediction_tokens",
    )
    return Usage(
        prompt=prompt or 0,
        completion=completion or 0,
        cached=min(cached or cache_hit or 0, prompt or 0),
        reasoning=min(reasoning or 0, completion or 0),
        audio_prompt=audio_prompt or 0,
        audio_completion=audio_completion or 0,
        accepted_prediction=accepted or 0,
        rejected_prediction=rejected or 0,
    )


def _counts(holder: object, *names: str) -> list[int | None]:
    if not isinstance(holder, dict):
        return [None] * len(names)
    counts: list[int | None] = []
    for name in names:
        value = holder.get(name)
        if type(value) is not int and (isinstance(value, bool) or not isinstance(value, int | float)):
            value = None
        counts.append(int(value) if value is not None and 0 <= value <= _LARGEST else None)
    return counts
