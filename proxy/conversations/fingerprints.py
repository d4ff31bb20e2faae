"""Fingerprints of transcripts: a rolling hash over the messages that a client sees.

The hash includes only the text of user and assistant messages, without white space and reasoning. System messages are
excluded because frontends put the time into them. Each assistant message has a fingerprint. It depends on the previous
fingerprint and the messages since then, so one pass calculates all fingerprints of a list, and that of a new turn
follows from its parent's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b

from proxy.message_lists import TextMessages
from proxy.messages import (
    AssistantMessage,
    FunctionCall,
    Message,
    ToolMessage,
    UserMessage,
    is_instruction,
    text_of,
)
from proxy.turns.records import Branch, ChainTurn
from proxy.turns.wrapped_text import unwrapped_text

_SIZE = 16
_new_hash = blake2b(digest_size=_SIZE).copy
"""Copying an empty hash takes less time than creating one."""
_new_hash_of = {
    kind: blake2b(digest_size=_SIZE, person=kind).copy for kind in (b"scope", b"answer", b"call", b"input")
}
"""The same for digests, by what they are of."""
_WHITE = b" \t\n\r\x0b\x0c"
_MAX_HEADINGS = 1024
"""Lengths of texts whose headings are cached, 100 KB for each role: formatting one takes as long as hashing a text."""
_BETWEEN = "\0"
"""Between the texts of a list; hardly any text contains it."""
# Some models put reasoning into the text, and some clients remove it before they send the message again.
_THINKING_TAGS = tuple((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "reasoning"))


@lru_cache(maxsize=1024)
def scope_of(caller: str, team: str, end_user: str) -> bytes:
    """Return the start of a transcript: equal texts of other callers, teams or end users have other fingerprints."""
    return _digest(b"scope", caller.encode(), team.encode(), end_user.encode())


def last_answer_of(scope: bytes, text: str) -> bytes | None:
    """Return the digest of an assistant's text without the messages before it; None for an empty text."""
    data = hashed_answer(text)
    return _digest(b"answer", scope, data) if data else None


class _Headings(dict[int, bytes]):
    """What precedes a text of a role in the hash, by the length of the text in bytes."""

    def __init__(self, role: bytes) -> None:
        super().__init__()
        self._role = role

    def __missing__(self, length: int) -> bytes:
        heading = b"%b%d:" % (self._role, length)
        if length < _MAX_HEADINGS:
            self[length] = heading
        return heading


_OF_USER, _OF_ASSISTANT = _Headings(b"u"), _Headings(b"a")
_OF_PART = _Headings(b"")
"""Of the parts of a digest, which have no role."""
# Users say something: an empty text, such as a message with only an image, is left out.
_OF_USER[0] = b""


class Transcript:
    """The hash of a growing transcript; ``start`` is a scope, or the fingerprint of a turn to continue from."""

    __slots__ = ("_added", "_hash", "_results", "fingerprint")

    def __init__(self, start: bytes) -> None:
        self._begin_at(start)

    def _begin_at(self, fingerprint: bytes) -> None:
        self.fingerprint = fingerprint
        self._hash = _new_hash()
        """Of the fingerprint and what was added since."""
        self._hash.update(fingerprint)
        self._added: list[bytes] = []
        """What was added since."""
        self._results = 0

    def state(self) -> tuple[bytes, bytes, int]:
        """Return what ``restored`` needs: the fingerprint, and what was added since."""
        return self.fingerprint, b"".join(self._added), self._results

    @classmethod
    def restored(cls, fingerprint: bytes, added: bytes, results: int) -> Transcript:
        """Return the transcript with this state."""
        transcript = cls(fingerprint)
        transcript._hash.update(added)
        transcript._added.append(added)
        transcript._results = results
        return transcript

    def add(self, message: Message) -> bytes | None:
        """Add a message; return the fingerprint if it is an assistant message that has one."""
        return self.fingerprint if self.extend([message]) else None

    def extend(self, messages: Sequence[Message], *, first: int = 0) -> list[tuple[int, bytes]]:
        """Add messages in order; return the index and the fingerprint of each assistant message that has one.

        The first message has the index ``first``.
        """
        hashed = _hashed_texts(messages)
        if type(messages) is TextMessages and len(messages) > 1 and _are_pairs(messages.kinds):
            return self._extend_by_pairs(hashed, first)
        return self._extend(messages, hashed, first)

    def _extend(
        self, messages: Sequence[Message], hashed: Sequence[bytes], first: int = 0
    ) -> list[tuple[int, bytes]]:
        # A list has thousands of messages: the loop calls no Python function.
        boundaries: list[tuple[int, bytes]] = []
        fingerprint, new, added = self.fingerprint, self._hash, self._added
        for index, (message, data) in enumerate(zip(messages, hashed, strict=True), first):
            if type(message) is UserMessage:
                if data:
                    piece = _OF_USER[len(data)] + data
                    new.update(piece)
                    added.append(piece)
            elif type(message) is AssistantMessage:
                if data or not (message.tool_calls or message.function_call):
                    new.update(_OF_ASSISTANT[len(data)] + data)
                    fingerprint = new.digest()
                    boundaries.append((index, fingerprint))
                    new = _new_hash()
                    new.update(fingerprint)
                    added.clear()
                    self._results = 0
            elif type(message) is ToolMessage:
                self._results += 1
        self.fingerprint, self._hash = fingerprint, new
        return boundaries

    def _extend_by_pairs(self, hashed: Sequence[bytes], first: int) -> list[tuple[int, bytes]]:
        """Add the texts of user messages that an answer follows each, except for the last one."""
        # Most lists are like that. One call for all that an answer adds takes three quarters of the time.
        before = b"".join((self.fingerprint, *self._added))
        fingerprints: list[bytes] = []
        for user, answer in zip(hashed[::2], hashed[1::2], strict=False):
            new = _new_hash()
            new.update(b"".join((before, _OF_USER[len(user)], user, _OF_ASSISTANT[len(answer)], answer)))
            before = new.digest()
            fingerprints.append(before)
        self._begin_at(before)
        if len(hashed) % 2:
            self.add_user(hashed[-1])
        return list(zip(range(first + 1, first + len(hashed), 2), fingerprints, strict=True))

    def add_user(self, data: bytes) -> None:
        """Add the ``user_text`` of a user message."""
        piece = _OF_USER[len(data)] + data
        self._hash.update(piece)
        self._added.append(piece)

    def answer(self, text: str, *, is_call: bool = False) -> bytes | None:
        """Add an assistant's text and return the fingerprint; None for a tool call without text, which is not added."""
        data = hashed_answer(text)
        if is_call and not data:
            return None
        self._hash.update(_OF_ASSISTANT[len(data)] + data)
        self._begin_at(self._hash.digest())
        return self.fingerprint

    def call(self, call: FunctionCall) -> bytes:
        """Return the digest of a tool call at this position, to find calls without ids. The transcript is unchanged.

        The digest includes the number of results, because a model can repeat a call after its first result.
        """
        arguments = call.arguments.encode("utf-8", "surrogatepass").translate(None, _WHITE)
        return _digest(b"call", self._hash.digest(), b"%d" % self._results, call.name.encode(), arguments)

    def input_fingerprint(self) -> bytes:
        """Return the digest of the messages so far, by which the turn is found that answers them.

        It includes the number of results: a turn that continues with results has another digest than the one before.
        """
        return _digest(b"input", self._hash.digest(), b"%d" % self._results)


def transcript_after(branch: Branch | None, scope: bytes, messages: Sequence[Message] = ()) -> Transcript:
    """Return the transcript of a branch and the messages after it, computed from its newest fingerprint."""
    transcript = Transcript((branch and branch.fingerprint) or scope)
    if branch is not None and branch.unknown:
        unknown = branch.items[-branch.unknown :]
        transcript.extend([item.message for item in unknown if item.agent is None])
    transcript.extend(messages)
    return transcript


def fingerprint_behind(branch: Branch | None, messages: Iterable[Message]) -> bytes | None:
    """Return the fingerprint of messages after a branch; None if they do not end with an answer.

    None also if no turn of the branch has a fingerprint: then its team and its end user are not known yet.
    """
    if branch is None or branch.fingerprint is None:
        return None
    transcript = transcript_after(branch, b"")
    fingerprint: bytes | None = None
    for message in messages:
        found = transcript.add(message)
        if found is not None or isinstance(message, UserMessage):
            fingerprint = found
    return fingerprint


def agent_by_user_messages(
    chain: Sequence[ChainTurn], messages: Sequence[Message]
) -> tuple[bool, str | None]:
    """Return whether the list begins like the chain, and the agent active after the last turn that both share.

    Only user messages are compared: answers may be edited or missing. The last user message of the list is the one to
    answer now, so it is not part of a shared turn.
    """
    shown = [user_text(text_of(m)) for m in messages if isinstance(m, UserMessage)]
    agent: str | None = None
    at = 0
    for turn in chain:
        texts = [
            user_text(text_of(item.message))
            for item in turn.items
            if item.agent is None and isinstance(item.message, UserMessage)
        ]
        if shown[at : at + len(texts)] != texts:
            break
        at += len(texts)
        if at >= len(shown):
            break
        agent = turn.agent
    return at > 0, agent


def is_first_input(first: ChainTurn, messages: Sequence[Message]) -> bool:
    """Whether the messages have the same types and texts as the input of the first turn."""
    stored = [item.message for item in first.items if item.agent is None and not is_instruction(item.message)]
    return bool(stored) and [_type_and_text(m) for m in stored] == [_type_and_text(m) for m in messages]


def _type_and_text(message: Message) -> tuple[type[Message], bytes]:
    return type(message), user_text(text_of(message))


def user_text(text: str) -> bytes:
    """Return the part of a user's text that is compared and hashed, without a template that wraps it."""
    return _without_white(unwrapped_text(text) if "<" in text else text)


def hashed_answer(text: str) -> bytes:
    """Return the part of an assistant's text that is compared and hashed."""
    return _without_white(without_thinking(text) if "<" in text else text)


def _are_pairs(kinds: Sequence[type[Message]]) -> bool:
    """Whether the first message, and every second one from there, is of a user, and the others are of an assistant."""
    return kinds[::2].count(UserMessage) + kinds[1::2].count(AssistantMessage) == len(kinds)


def _hashed_texts(messages: Sequence[Message]) -> Sequence[bytes]:
    """Return ``user_text`` or ``hashed_answer`` of each message.

    Results of tools, which can be long, are not hashed and therefore empty.
    """
    texts = (
        messages.texts
        if type(messages) is TextMessages
        else [
            ""
            if type(message) is ToolMessage
            else content
            if type(content := message.content) is str
            else text_of(message)
            for message in messages
        ]
    )
    # All texts with one call each: a list has thousands, and most of them are short.
    joined = _BETWEEN.join(texts)
    if "<" in joined:
        texts = list(map(_without_markup, messages, texts))
        joined = _BETWEEN.join(texts)
    hashed = _without_white(joined).split(_BETWEEN.encode())
    return hashed if len(hashed) == len(texts) else list(map(_without_white, texts))


def _without_markup(message: Message, text: str) -> str:
    if "<" not in text:
        return text
    return unwrapped_text(text) if type(message) is UserMessage else without_thinking(text)


def _without_white(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").translate(None, _WHITE)


def without_thinking(text: str) -> str:
    """Return the text without closed think tags; an unclosed tag stays.

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


def _digest(kind: bytes, *parts: bytes) -> bytes:
    new = _new_hash_of[kind]()
    new.update(b"".join([_OF_PART[len(part)] + part for part in parts]))
    return new.digest()
