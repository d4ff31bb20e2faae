"""What the span of a model call says about the provider."""

from __future__ import annotations

from proxy.tracing import Attribute, Value, current_span

_PROVIDERS = {
    "api.openai.com": "openai",
    "openai.azure.com": "azure.ai.openai",
    "services.ai.azure.com": "azure.ai.inference",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gcp.gemini",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "amazonaws.com": "aws.bedrock",
    "api.mistral.ai": "mistral_ai",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.x.ai": "x_ai",
    "api.moonshot.ai": "moonshot_ai",
    "api.moonshot.cn": "moonshot_ai",
    "api.perplexity.ai": "perplexity",
    "api.cohere.com": "cohere",
}
"""Values of ``gen_ai.provider.name`` that the semantic conventions define, by host or parent domain."""


def provider_name(host: str) -> str:
    """Return the name of the provider at a host: one of the conventions, or the host."""
    labels = host.split(".")
    parents = (".".join(labels[start:]) for start in range(len(labels)))
    return next((_PROVIDERS[parent] for parent in parents if parent in _PROVIDERS), host)


def record_attempt(host: str, address: str, attempt: int, failure: str | None) -> None:
    """Set the provider of the last attempt, and add an event for a failed one; ``failure`` is its label."""
    traced = current_span()
    if not traced.is_recording:
        return
    traced.set(Attribute.ATTEMPT, attempt)
    if host:
        traced.set(Attribute.PROVIDER, provider_name(host))
        traced.set(Attribute.SERVER_ADDRESS, host)
        port = address.rpartition(":")[2]
        if address != host and port.isdecimal():
            traced.set(Attribute.SERVER_PORT, int(port))
    if failure is not None:
        attributes: dict[Attribute, Value] = {Attribute.ATTEMPT: attempt, Attribute.ERROR_TYPE: failure}
        traced.add_event("attempt failed", attributes)


def record_first_chunk(seconds: float) -> None:
    """Set the time from the request to the first part of the answer."""
    current_span().set(Attribute.TIME_TO_FIRST_CHUNK, seconds)
