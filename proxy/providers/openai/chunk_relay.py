"""Find the texts in reads that hold nothing but repeated frames, each in an HTTP chunk, and pass them to a relay.

Neither the HTTP parser nor the parser of events runs. A read is passed on only if it is exactly what these would read
as texts (``repeated_frame`` has the conditions on an event), and the HTTP parser is between two chunks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from io import BytesIO

from proxy.providers.openai.repeated_frame import RepeatedFrame, plain_text, plain_texts
from proxy.providers.timeouts import Alarm
from proxy.turns.text_relay import TextRelay
from proxy.wire.chunk_sizes import SizeLines, lines_of_chunks

Process = Callable[[bytes], None]
"""Processes a read."""


def chunk_relay(
    frame: RepeatedFrame, relay: TextRelay, alarm: Alarm, idle: float, max_bytes: int, usual: Process
) -> Process:
    """Return a function for the reads of a connection that begin between two chunks.

    ``alarm`` rings after ``idle`` seconds without data. ``usual`` gets reads with anything else, and those after
    ``max_bytes``.
    """
    head, tail = frame.head, frame.tail + b"\r\n"
    head_size, tail_size = len(head), len(tail)
    # Fewer bytes are one chunk at most.
    size_of_two = 2 * (head_size + tail_size) if frame.has_text_only else 0
    texts, times, write, is_reader_gone = relay.texts, relay.times, relay.write, relay.is_reader_gone
    now = asyncio.get_running_loop().time
    left = max_bytes

    def pass_on(received: bytes) -> None:
        """Pass on the text of the only chunk. The usual case takes as few functions as possible, see ``text_relay``."""
        nonlocal left
        size = len(received)
        left -= size
        if left >= 0 and not is_reader_gone():
            if size < size_of_two:
                line = lines_of_chunks[size]
                encoded = received[len(line) + head_size : -tail_size]
                if line and line + head + encoded + tail == received:
                    text = plain_text(encoded)
                    if text is not None and write(encoded):
                        texts.append(text)
                        times.append(at := now())
                        alarm.deadline = at + idle
                        return
            elif pass_on_several(received):
                return
        usual(received)

    size_lines = SizeLines(frame.size_without_data)
    step = 1 + frame.line_count + 1

    def pass_on_several(received: bytes) -> bool:
        # Of each chunk the line with its size, the lines of its event, and a blank one.
        lines = BytesIO(received).readlines()
        sizes, ends = lines[::step], lines[step - 1 :: step]
        # What remains are the lines of the events.
        del lines[step - 1 :: step], lines[:: step - 1]
        data = frame.data_lines(lines)
        if (
            not data
            or [*map(size_lines.__getitem__, map(len, data))] != sizes
            or ends.count(b"\r\n") != len(data)
        ):
            return False
        encoded = frame.line.encoded(data)
        found = plain_texts(encoded) if encoded is not None else None
        if encoded is None or found is None or not write(relay.between.join(encoded)):
            return False
        at = now()
        texts.extend(found)
        times.extend([at] * len(found))
        alarm.deadline = at + idle
        return True

    return pass_on
