"""Find the texts in reads that hold nothing but repeated frames, each in an HTTP chunk, and pass them to a relay.

Neither the HTTP parser nor the parser of events runs. A read is passed on only if it is exactly what these would read
as texts (``repeated_frame`` has the conditions on an event), and the HTTP parser is between two chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from proxy.providers.openai.repeated_frame import RepeatedFrame, VaryingFrame, plain_text, plain_texts
from proxy.providers.timeouts import Alarm
from proxy.turns.text_relay import TextRelay
from proxy.wire.chunk_sizes import known_lines, line_of_chunk

Process = Callable[[bytes], None]
"""Processes a read."""


def chunk_relay(
    frame: RepeatedFrame,
    relay: TextRelay,
    alarm: Alarm,
    idle: float,
    max_bytes: int,
    is_over: Callable[[], bool],
    usual: Process,
) -> Process:
    """Return a function for the reads of a connection that begin between two chunks.

    ``alarm`` rings after ``idle`` seconds without data. ``usual`` gets reads with anything else, those after
    ``max_bytes``, and those that arrive when ``is_over`` returns True.
    """
    head, tail = frame.head, frame.tail + b"\r\n"
    head_size, tail_size = len(head), len(tail)
    texts, times, write, is_reader_gone = relay.texts, relay.times, relay.write, relay.is_reader_gone
    now = asyncio.get_running_loop().time
    left = max_bytes

    def pass_on(received: bytes) -> None:
        """Pass on the text of the only chunk. The usual case takes as few functions as possible, see ``text_relay``."""
        nonlocal left
        line = known_lines.get(len(received)) or line_of_chunk(len(received))
        left -= len(received)
        if line and left >= 0 and not is_over() and not is_reader_gone():
            if received.startswith(line) and received.startswith(head, len(line)) and received.endswith(tail):
                encoded = received[len(line) + head_size : -tail_size]
                text = plain_text(encoded)
                if text is not None and write(encoded):
                    texts.append(text)
                    times.append(at := now())
                    alarm.deadline = at + idle
                    return
            elif pass_on_several(received):
                alarm.deadline = times[-1] + idle
                return
        usual(received)

    def pass_on_several(received: bytes) -> bool:
        *chunks, rest = received.split(tail)
        encoded = []
        for chunk in chunks:
            length = len(chunk) + tail_size
            line = known_lines.get(length) or line_of_chunk(length)
            if not (line and chunk.startswith(line) and chunk.startswith(head, len(line))):
                return False
            encoded.append(chunk[len(line) + head_size :])
        return not rest and _passed_on(encoded, relay)

    return pass_on


def varying_chunk_relay(
    frame: VaryingFrame,
    relay: TextRelay,
    alarm: Alarm,
    idle: float,
    max_bytes: int,
    is_over: Callable[[], bool],
    usual: Process,
) -> Process:
    """Return the same function for frames with a number or padding, which passes on reads of one chunk only."""
    left = max_bytes

    def pass_on(received: bytes) -> None:
        nonlocal left
        line = known_lines.get(len(received)) or line_of_chunk(len(received))
        left -= len(received)
        if line and left >= 0 and not is_over() and not relay.is_reader_gone():
            encoded = None
            if received.startswith(line) and received.endswith(b"\r\n"):
                encoded = frame.encoded(received, len(line), len(received) - len(b"\r\n"))
            if encoded is not None and _passed_on(encoded, relay):
                alarm.deadline = relay.times[-1] + idle
                return
        usual(received)

    return pass_on


def _passed_on(encoded: Sequence[bytes], relay: TextRelay) -> bool:
    texts = plain_texts(encoded)
    if texts is None or not relay.write(relay.between.join(encoded)):
        return False
    relay.texts.extend(texts)
    relay.times.extend([asyncio.get_running_loop().time()] * len(texts))
    return True
