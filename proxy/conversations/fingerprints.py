"""How a transcript is recognised: a rolling hash over what was said, in the eyes of a client.

Only the text of users and assistants counts. White space does not, nor reasoning, tool traffic, and system messages
(frontends put clocks into them). A fingerprint stands at every assistant message; it depends on the one before and on
what was said since, so the fingerprints of a list are found in one pass, and a turn's own from its parent's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from proxy.messages import AssistantMessage, FunctionCall, Message, ToolMessage, UserMessage, text_of
from proxy.turns.repository import ChainTurn

_SIZE = 16
_WHITE = b" \t\n\r\x0b\x0c"
# Some models think aloud inside of the text, and some clients cut that out before they send it back.
_THINKING_TAGS = tuple((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "reasoning"))


def scope_of(caller: str, team: str, end_user: str) -> bytes:
    """Return where a fingerprint chain begins: equal words of other callers, users or teams never meet."""
    return _digest(b"scope", *(part.encode() for part in (caller, team, end_user)))


def last_answer_of(scope: bytes, text: str) -> bytes | None:
    """Return the mark of an assistant's text by itself, without what was said before; None for an empty one."""
    said = _said(text, is_assistant=True)
    return _digest(b"answer", scope, said) if said else None


class Transcript:
    """A transcript as it grows; ``start`` is a scope, or the fingerprint of a turn to go on from."""

    __slots__ = ("_hash", "_results", "fingerprint")

    def __init__(self, start: bytes) -> None:
        self.fingerprint = start
        self._hash = blake2b(start, digest_size=_SIZE)
        self._results = 0

    def add(self, message: Message) -> bytes | None:
        """Take a message; return the fingerprint if it is one at which one stands."""
        kind = type(message)
        if kind is UserMessage:
            said = _said(text_of(message), is_assistant=False)
            if said:
                self._hash.update(b"u%d:%b" % (len(said), said))
        elif kind is ToolMessage:
            self._results += 1
        elif isinstance(message, AssistantMessage):
            return self.answer(text_of(message), is_call=bool(message.tool_calls or message.function_call))
        return None

    def answer(self, text: str, *, is_call: bool = False) -> bytes | None:
        """Take an assistant's text; an empty one counts only if it is an answer and not the frame of a call."""
        said = _said(text, is_assistant=True)
        if not said and is_call:
            return None
        self._hash.update(b"a%d:%b" % (len(said), said))
        self.fingerprint = self._hash.digest()
        self._hash = blake2b(self.fingerprint, digest_size=_SIZE)
        self._results = 0
        return self.fingerprint

    def call(self, call: FunctionCall) -> bytes:
        """Return the mark of a call made here, for calls without ids; it changes nothing.

        The same call may be made again behind its first result, so results count in it.
        """
        said = _said(call.arguments, is_assistant=False)
        return _digest(b"call", self._hash.digest(), b"%d" % self._results, call.name.encode(), said)

    def extend(self, messages: Iterable[Message]) -> None:
        """Take messages in order."""
        for message in messages:
            self.add(message)


def newest_known(chain: Sequence[ChainTurn]) -> int:
    """Return the index of the newest turn that has a fingerprint; -1 if there is none."""
    return next((at for at in range(len(chain) - 1, -1, -1) if chain[at].fingerprint is not None), -1)


def fingerprint_behind(chain: Sequence[ChainTurn], said: Iterable[Message]) -> bytes | None:
    """Return the fingerprint of what was said behind a chain, if it ends with an answer.

    None also when no turn of the chain has one to go on from: then neither the team nor the end user is known yet.
    """
    known = newest_known(chain)
    start = chain[known].fingerprint if known >= 0 else None
    if start is None:
        return None
    transcript = Transcript(start)
    for turn in chain[known + 1 :]:
        transcript.extend(item.message for item in turn.items if item.agent is None)
    fingerprint: bytes | None = None
    for message in said:
        found = transcript.add(message)
        if found is not None or isinstance(message, UserMessage):
            fingerprint = found
    return fingerprint


def words_of(text: str) -> bytes:
    """Return what counts of a user's text, for comparing two."""
    return _said(text, is_assistant=False)


def without_thinking(text: str) -> str:
    """Return the text without its closed think tags; a tag that is never closed stays.

    Each character is searched at most once per tag, so time grows linearly with the text. A regular expression with a
    lazy repetition searches to the end of the text again for every unclosed tag.
    """
    openings = {pair: at for pair in _THINKING_TAGS if (at := text.find(pair[0])) >= 0}
    pieces: list[str] = []
    done = 0
    while openings:
        pair = min(openings, key=openings.__getitem__)
        opening, closing = pair
        end = text.find(closing, openings[pair] + len(opening))
        if end < 0:
            # No later tag of this name is closed either.
            del openings[pair]
            continue
        pieces.append(text[done : openings[pair]])
        done = end + len(closing)
        for other, at in list(openings.items()):
            if at < done:
                openings[other] = text.find(other[0], done)
                if openings[other] < 0:
                    del openings[other]
    return "".join((*pieces, text[done:])) if pieces else text


def _said(text: str, *, is_assistant: bool) -> bytes:
    if is_assistant and "<" in text:
        text = without_thinking(text)
    return text.encode("utf-8", "surrogatepass").translate(None, _WHITE)


def _digest(kind: bytes, *parts: bytes) -> bytes:
    digest = blake2b(digest_size=_SIZE, person=kind)
    for part in parts:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()
