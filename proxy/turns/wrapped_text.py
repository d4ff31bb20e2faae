"""The user's own text in a message that a frontend has wrapped in a template with files or search results.

Open WebUI (backend/open_webui/utils/middleware.py, ``apply_source_context_to_messages``) puts such a template before
the newest user message, and sends the message without it in every later request. The template has a ``<context>``
block of ``<source>`` elements; older versions repeat the user's text behind it, in ``<user_query>``.
"""

from __future__ import annotations

_START, _END = "<context>", "</context>"
_QUERY, _QUERY_END = "<user_query>", "</user_query>"


def unwrapped_text(text: str) -> str:
    """Return the user's text behind a block of sources; the whole text if there is no such block."""
    start = text.find(_START)
    if start < 0:
        return text
    end = text.rfind(_END)
    if end < start or text.find("<source", start, end) < 0:
        return text
    own = text[end + len(_END) :].strip()
    if own.startswith(_QUERY):
        query, closing, behind = own.removeprefix(_QUERY).partition(_QUERY_END)
        # Versions that repeat the text in the template and append the message too.
        own = (behind if closing and behind.strip() else query).strip()
    return own or text
