"""Mutations of bytes, and random JSON values."""

from __future__ import annotations

import random
from typing import Any

_BYTES = (
    b"\0",
    b"\xff",
    b"\xf0\x9f",
    b"\r",
    b"\n",
    b"\n\n",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"<",
    b"data:",
)
_TEXTS = (
    "",
    "\0",
    "\ud7ff",
    "x" * 5000,
    "<think>",
    "</think>" * 50,
    "../../etc",
    "\u202e",
    "-1",
    "null",
    "1e999",
    "é" * 64,
)
_NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 1.5, -0.0, 1e308)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Change some bytes: flip, delete, insert, repeat, or cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 8, 64))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = rng.choice(_BYTES)
            case 3:
                data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
            case 4:
                data[at:at] = rng.randbytes(length)
            case _ if rng.random() < 0.2:
                del data[at:]
            case _:
                pass
    return bytes(data)


def pieces(content: bytes, rng: random.Random) -> list[bytes]:
    """Split at random places."""
    found = []
    while content:
        size = rng.choice((1, 3, 17, 100, 1000, len(content)))
        found.append(content[:size])
        content = content[size:]
    return found


def value(rng: random.Random, depth: int = 3) -> Any:
    """Return a random JSON value."""
    kind = rng.randrange(8 if depth else 5)
    match kind:
        case 0:
            return rng.choice(_TEXTS)
        case 1:
            return rng.choice(_NUMBERS)
        case 2:
            return rng.choice((None, True, False))
        case 3 | 4:
            return "".join(
                chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xD7FF))))
                for _ in range(rng.randrange(20))
            )
        case 5 | 6:
            return {str(value(rng, 0))[:100]: value(rng, depth - 1) for _ in range(rng.randrange(5))}
        case _:
            return [value(rng, depth - 1) for _ in range(rng.randrange(5))]


def changed(whole: Any, rng: random.Random) -> Any:
    """Return a JSON value with one part, at a random place, replaced, removed or added."""
    if isinstance(whole, dict) and whole:
        name = rng.choice(list(whole))
        match rng.randrange(6):
            case 0:
                return {key: inner for key, inner in whole.items() if key != name}
            case 1:
                return {**whole, str(value(rng, 0))[:100]: value(rng)}
            case 2:
                return {**whole, name: value(rng)}
            case _:
                return {**whole, name: changed(whole[name], rng)}
    if isinstance(whole, list) and whole:
        at = rng.randrange(len(whole))
        match rng.randrange(4):
            case 0:
                return whole[:at] + whole[at + 1 :]
            case 1:
                return whole + [whole[at]] * rng.choice((1, 3, 200))
            case _:
                return [changed(one, rng) if place == at else one for place, one in enumerate(whole)]
    return value(rng)
