"""The ``usage`` object of chat completions, as the different providers fill it."""

from __future__ import annotations

from proxy.messages import Usage

_LARGEST = 2**53 - 1


def clean_usage(usage: object) -> Usage | None:
    """Return the numbers of a ``usage`` object as integers >= 0; None if it holds neither of the two totals."""
    if not isinstance(usage, dict):
        return None
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if prompt is None and completion is None:
        return None
    read, written = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    cached = _count(read, "cached_tokens") or _count(usage, "prompt_cache_hit_tokens") or 0
    return Usage(
        prompt=prompt or 0,
        completion=completion or 0,
        cached=min(cached, prompt or 0),
        reasoning=min(_count(written, "reasoning_tokens") or 0, completion or 0),
        audio_prompt=_count(read, "audio_tokens") or 0,
        audio_completion=_count(written, "audio_tokens") or 0,
        accepted_prediction=_count(written, "accepted_prediction_tokens") or 0,
        rejected_prediction=_count(written, "rejected_prediction_tokens") or 0,
    )


def _count(holder: object, name: str) -> int | None:
    if not isinstance(holder, dict) or (value := holder.get(name)) is None:
        return None
    if type(value) is int and 0 <= value <= _LARGEST:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
        return None
    return int(value)
