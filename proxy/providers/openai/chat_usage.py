"""The ``usage`` object of chat completions, as the different providers fill it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct, ValidationError, convert

from proxy.messages import Usage

_LARGEST = 2**53 - 1
_Total = Annotated[int, Meta(ge=0, le=_LARGEST)]
_Count = _Total | None


class _PromptDetails(Struct):
    cached_tokens: _Count = None
    audio_tokens: _Count = None


class _CompletionDetails(Struct):
    reasoning_tokens: _Count = None
    audio_tokens: _Count = None
    accepted_prediction_tokens: _Count = None
    rejected_prediction_tokens: _Count = None


class _Counts(Struct):
    prompt_tokens: _Count = None
    completion_tokens: _Count = None
    prompt_cache_hit_tokens: _Count = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class ReportedUsage(_Counts):
    """A ``usage`` object in its usual form: it has both totals, and all counts are integers >= 0."""

    prompt_tokens: _Total
    completion_tokens: _Total


_NO_PROMPT_DETAILS, _NO_COMPLETION_DETAILS = _PromptDetails(), _CompletionDetails()


def clean_usage(usage: object) -> Usage | None:
    """Return the numbers of a ``usage`` object as integers >= 0; None if it holds neither of the two totals."""
    counts = usage if type(usage) is ReportedUsage else _counts_of(usage)
    prompt, completion = counts.prompt_tokens, counts.completion_tokens
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    of_prompt = counts.prompt_tokens_details or _NO_PROMPT_DETAILS
    of_completion = counts.completion_tokens_details or _NO_COMPLETION_DETAILS
    cached = of_prompt.cached_tokens or counts.prompt_cache_hit_tokens
    reasoning = of_completion.reasoning_tokens
    return Usage(
        prompt=prompt,
        completion=completion,
        cached=min(cached, prompt) if cached else 0,
        reasoning=min(reasoning, completion) if reasoning else 0,
        audio_prompt=of_prompt.audio_tokens or 0,
        audio_completion=of_completion.audio_tokens or 0,
        accepted_prediction=of_completion.accepted_prediction_tokens or 0,
        rejected_prediction=of_completion.rejected_prediction_tokens or 0,
    )


def _counts_of(usage: object) -> _Counts:
    if not isinstance(usage, dict):
        return _Counts()
    try:
        return convert(usage, _Counts)
    except ValidationError:
        return _valid_counts(usage)


def _valid_counts(usage: dict[str, object]) -> _Counts:
    """Return the numbers of an object that has anything else too."""
    prompt, completion, hit = _numbers(usage, *_Counts.__struct_fields__[:3])
    of_prompt = _numbers(usage.get("prompt_tokens_details"), *_PromptDetails.__struct_fields__)
    of_completion = _numbers(usage.get("completion_tokens_details"), *_CompletionDetails.__struct_fields__)
    return _Counts(prompt, completion, hit, _PromptDetails(*of_prompt), _CompletionDetails(*of_completion))


def _numbers(holder: object, *names: str) -> list[int | None]:
    if not isinstance(holder, dict):
        return [None] * len(names)
    counts: list[int | None] = []
    for name in names:
        value = holder.get(name)
        if type(value) is not int and (isinstance(value, bool) or not isinstance(value, int | float)):
            value = None
        counts.append(int(value) if value is not None and 0 <= value <= _LARGEST else None)
    return counts
