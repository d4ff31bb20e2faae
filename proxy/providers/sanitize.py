"""Text from outside, made fit to be stored and sent on."""

from __future__ import annotations


def without_nul(text: str) -> str:
    """Replace NUL, which PostgreSQL cannot store."""
    return text.replace("\x00", "\ufffd") if "\x00" in text else text


def clean(text: str) -> str:
    """Replace NUL, join surrogate pairs, and replace the halves of pairs, which have no form in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return without_nul(text)
