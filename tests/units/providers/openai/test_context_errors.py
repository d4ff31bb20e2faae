"""The errors in which providers report an exceeded context window, and the numbers in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import ContextLengthExceeded
from proxy.providers.openai.errors import refusal

Numbers = tuple[int | None, int | None]


def message(text: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": text, "type": "invalid_request_error", **more}}


FORMS: list[tuple[str, int, Any, Numbers]] = [
    (
        "openai",
        400,
        message(
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
            code="context_length_exceeded",
        ),
        (8192, 9000),
    ),
    (
        "vllm",
        400,
        message(
            "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4500 in"
        ),
        (4096, 5000),
    ),
    (
        "openrouter",
        400,
        message(
            "This endpoint's maximum context length is 131072 tokens. However, you requested about 140000 tokens"
        ),
        (131072, 140000),
    ),
    ("anthropic", 400, message("prompt is too long: 210000 tokens > 200000 maximum"), (200000, 210000)),
    (
        "gemini",
        400,
        [message("The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).")],
        (1048576, 1200000),
    ),
    (
        "mistral",
        400,
        {
            "object": "error",
            "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum "
            "context length",
            "code": "3051",
        },
        (32768, 40000),
    ),
    (
        "llama.cpp",
        400,
        message(
            "the request exceeds the available context size",
            code=400,
            type="exceed_context_size_error",
            n_prompt_tokens=5000,
            n_ctx=4096,
        ),
        (4096, 5000),
    ),
    (
        "xai",
        400,
        message("This model's maximum prompt length is 131072 but the request contains 200000 tokens."),
        (131072, 200000),
    ),
    (
        "fireworks",
        400,
        message("The prompt is too long: 9000, model maximum context length: 8191"),
        (8191, 9000),
    ),
    (
        "moonshot",
        400,
        message("Invalid request: Your request exceeded model token limit: 8192"),
        (8192, None),
    ),
    (
        "tgi",
        422,
        {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4097. Given: 5000"},
        (4097, None),
    ),
    (
        "lm studio",
        400,
        {
            "error": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded "
            "with context length of only 4096 tokens, which is not enough."
        },
        (4096, None),
    ),
    (
        "groq",
        413,
        message(
            "Request too large for model `m` on tokens per minute (TPM): Limit 6000, Requested 8000, please reduce",
            code="rate_limit_exceeded",
        ),
        (6000, 8000),
    ),
    ("bedrock", 400, message("Input is too long for requested model."), (None, None)),
    ("zhipu", 400, message("Prompt exceeds max length", code="1261"), (None, None)),
    ("groq, in words only", 400, message("Please reduce it.", code="context_length_exceeded"), (None, None)),
]


@pytest.mark.parametrize(
    ("status", "body", "numbers"), [form[1:] for form in FORMS], ids=[f[0] for f in FORMS]
)
def test_the_window_and_the_size_are_read_from_the_error(status: int, body: Any, numbers: Numbers) -> None:
    failure = refusal(status, json.dumps(body).encode(), {})

    assert isinstance(failure, ContextLengthExceeded)
    assert (failure.window, failure.tokens) == numbers
