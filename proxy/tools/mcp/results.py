"""Convert the result of an MCP tool call to text for the model."""

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
    """Return the texts of a result, separated by blank lines, with a note in place of other content.

    Structured content is used only if there is no text: servers should repeat it as text (MCP specification, Tools,
    "Structured Content").

    Raises:
        ToolError: The result has ``isError``; the message is its text.
    """
    texts = list(_texts(result.content))
    has_text = any(isinstance(part, TextContent) for part in result.content)
    if result.structured_content is not None and not has_text:
        texts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = "\n\n".join(texts)
    if result.is_error:
        raise ToolError(text or "the tool failed without an error message")
    return text


def _texts(content: list[ContentBlock]) -> Iterator[str]:
    for part in content:
        match part:
            case TextContent():
                yield part.text
            case ImageContent():
                yield _omitted("image", part.mime_type, part.data)
            case AudioContent():
                yield _omitted("audio", part.mime_type, part.data)
            case EmbeddedResource():
                yield _resource(part.resource)
            case ResourceLink():
                yield f"[link to a resource, {_short(part.name)}, {_short(str(part.uri))}]"


def _resource(resource: TextResourceContents | BlobResourceContents) -> str:
    if isinstance(resource, TextResourceContents):
        return resource.text
    return _omitted("resource", resource.mime_type, resource.blob)


def _omitted(content: str, mime_type: str | None, base64: str) -> str:
    size = len(base64) * 3 // 4
    size_text = f"{size} bytes" if size < 1000 else f"{size // 1000} kB"
    return f"[{content}, {_short(mime_type or 'unknown type')}, {size_text}, omitted]"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_KIND else f"{text[:_MAX_KIND]}…"
