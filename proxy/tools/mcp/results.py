"""What a tool's server gave, as text for the model."""

from __future__ import annotations

import json
from collections.abc import Iterator

from mcp_types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

from proxy.errors import ToolError

_MAX_KIND = 100


def result_text(result: CallToolResult) -> str:
    """Return the texts of a result, a blank line between them, with a note in place of what is not text.

    Structured content counts when there is no text: a server that gives both says the same in both.

    Raises:
        ToolError: With the server's own words, when it says that the tool failed.
    """
    texts = list(_texts(result.content))
    has_text = any(isinstance(part, TextContent) for part in result.content)
    if result.structured_content is not None and not has_text:
        texts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = "\n\n".join(texts)
    if result.is_error:
        raise ToolError(text or "the tool failed and did not say why")
    return text


def _texts(content: list[ContentBlock]) -> Iterator[str]:
    for part in content:
        match part:
            case TextContent():
                yield part.text
            case ImageContent():
                yield _left_out("image", part.mime_type, part.data)
            case AudioContent():
                yield _left_out("audio", part.mime_type, part.data)
            case EmbeddedResource():
                yield _resource(part.resource)
            case ResourceLink():
                yield f"[link to a resource, {_short(part.name)}, {_short(str(part.uri))}]"


def _resource(resource: TextResourceContents | BlobResourceContents) -> str:
    if isinstance(resource, TextResourceContents):
        return resource.text
    return _left_out("resource", resource.mime_type, resource.blob)


def _left_out(what: str, kind: str | None, base64: str) -> str:
    size = len(base64) * 3 // 4
    told = f"{size} bytes" if size < 1000 else f"{size // 1000} kB"
    return f"[{what}, {_short(kind or 'of no known kind')}, {told}, left out]"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_KIND else f"{text[:_MAX_KIND]}…"
