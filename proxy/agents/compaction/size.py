"""Estimates of the size of messages and tools in tokens.

The unit is bytes of text divided by a low number of bytes per token, so that an estimate is rather too high. The usage
that providers report for the context so far replaces most of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from proxy.messages import (
    AssistantMessage,
    AudioPart,
    CustomToolCall,
    FilePart,
    FunctionTool,
    ImagePart,
    Item,
    Message,
    RefusalPart,
    TextPart,
)
from proxy.turns.plain_items import PlainItems

BYTES_PER_TOKEN = 3
_MESSAGE = 5
"""Tokens of a message or call in addition to its text."""
_IMAGE = 1200
_BYTES_PER_AUDIO_TOKEN = 600
"""Of base64 data."""
_BYTES_PER_FILE_TOKEN = 24


def text_tokens(text: str) -> int:
    """Return the estimate for a text."""
    size = len(text) if text.isascii() else _bytes_of(text)
    return -(-size // BYTES_PER_TOKEN)


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def message_tokens(message: Message) -> int:
    """Return the estimate for a message with its calls."""
    content = message.content
    tokens = _MESSAGE
    # ``type(…) is`` as in ``messages``: before each model call, this runs for every message of the conversation.
    if isinstance(content, str):
        tokens += (len(content) if content.isascii() else _bytes_of(content)) // BYTES_PER_TOKEN + 1
    elif content:
        for part in content:
            match part:
                case TextPart():
                    tokens += text_tokens(part.text)
                case RefusalPart():
                    tokens += text_tokens(part.refusal)
                case ImagePart():
                    tokens += _IMAGE
                case AudioPart():
                    tokens += len(part.input_audio.data) // _BYTES_PER_AUDIO_TOKEN + _MESSAGE
                case FilePart():
                    tokens += len(part.file.file_data or "") // _BYTES_PER_FILE_TOKEN + _IMAGE
    if type(message) is AssistantMessage:
        if message.refusal:
            tokens += text_tokens(message.refusal)
        for call in message.tool_calls or ():
            if isinstance(call, CustomToolCall):
                name, arguments = call.custom.name, call.custom.input
            else:
                name, arguments = call.function.name, call.function.arguments
            tokens += 3 * _MESSAGE + text_tokens(name) + text_tokens(arguments)
    return tokens


def item_tokens(item: Item) -> int:
    """Return the estimate for an item, with the provider state that is sent with it."""
    if item.state is None:
        return message_tokens(item.message)
    return message_tokens(item.message) + len(msgspec.json.encode(item.state)) // (BYTES_PER_TOKEN + 1)


def items_tokens(items: Iterable[Item]) -> int:
    """Return the sum of the estimates."""
    if type(items) is PlainItems:
        return sum(map(message_tokens, items.messages))
    return sum(map(item_tokens, items))


def tools_tokens(tools: Sequence[FunctionTool]) -> int:
    """Return the estimate for tool descriptions."""
    return len(msgspec.json.encode(tools)) // BYTES_PER_TOKEN if tools else 0
