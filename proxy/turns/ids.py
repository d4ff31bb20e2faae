"""Ids of turns and conversations."""

from __future__ import annotations

import os
import time


def new_id(prefix: str) -> str:
    """Return the prefix with 32 hexadecimal digits: the time in milliseconds (48 bits), and 80 random bits.

    As in UUIDv7 (RFC 9562 section 5.7), ids of one time are next to each other in the database's indexes. Of random
    ones, each turn of a commit changes another page, more of them the more turns are stored.
    """
    return f"{prefix}{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
