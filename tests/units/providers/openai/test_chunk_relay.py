"""A turn whose text is passed on by a relay has the same response and the same log as one without."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.server import ServerState

from proxy.events import Event, Failed, Started, TextDelta
from proxy.http_exchange import HttpExchange
from proxy.messages import Usage
from proxy.providers.http.connection import Connection, Owner
from proxy.providers.model import ModelDelta, ModelRequest, forward_of
from proxy.providers.openai.answer import Accepted, ProviderAnswer
from proxy.providers.openai.chunk_relay import chunk_relay
from proxy.providers.openai.repeated_frame import RepeatedData, RepeatedFrame
from proxy.providers.openai.responses_stream import ResponsesReader
from proxy.providers.openai.stream_parser import AnswerReader
from proxy.providers.timeouts import Alarm, AlarmClock, ModelLimits
from proxy.routes.client_connection import ClientConnection, StreamTimeouts
from proxy.routes.streaming import stream
from proxy.turns.live import LiveTurn
from proxy.turns.text_relay import TextRelay
from proxy.wire.chat.completion import AnswerOptions
from proxy.wire.chat.stream import ChunkEncoder
from tests.fakes.answering_model import FakeAnsweringModel

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TEXTS = [
    " word",
    "x",
    " a longer text, with more words",
    "ü",
    "日本語",
    "🙂",
    " a",
    " of",
    ".",
    ",",
    "|",
    "<",
    " {",
    "]}",
]
OTHERS = ["\n", '"', '","', "\\", "\u2028", "\x85", "\x7f", "\u3000", "</think>", '"},"content":"']


class FakeTransport:
    """Records what is written, and has the protocol that gets what arrives."""

    def __init__(self) -> None:
        self.written = b""
        self.protocol: asyncio.Protocol

    def set_protocol(self, protocol: asyncio.Protocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class FakeConnection:
    """The connection of the client."""

    def __init__(self) -> None:
        self.fake = FakeTransport()
        self.transport = cast("asyncio.Transport", self.fake)
        self.flow = FlowControl(self.transport)
        self.server_state = ServerState()

    def on_response_complete(self) -> None: ...

    def close_after(self, exchange: HttpExchange) -> None: ...


@dataclass
class Result:
    """What became of an answer."""

    body: bytes = b""
    events: list[tuple[int, Event]] = field(default_factory=list)
    deltas: list[str] = field(default_factory=list)
    relayed: int = 0
    """How many texts were passed on by relays."""


class Receiver:
    """Emits the text of an answer, and records it."""

    def __init__(self, live: LiveTurn, result: Result) -> None:
        self._live, self._result = live, result

    def take(self, batch: Sequence[ModelDelta]) -> bool:
        texts = [delta for delta in batch if isinstance(delta, TextDelta)]
        self._result.deltas += [delta.text for delta in texts]
        return self._live.emit_batch(texts)

    def open_relay(self) -> TextRelay | None:
        relay = self._live.open_relay()
        if relay is not None:
            relay.add_record(self._record)
        return relay

    def _record(self, texts: Sequence[str], times: Sequence[float]) -> None:
        assert len(texts) == len(times)
        self._result.deltas += texts
        self._result.relayed += len(texts)


async def answer_of(
    reads: Sequence[bytes],
    *,
    has_relay: bool,
    version: str = "1.1",
    limits: ModelLimits | None = None,
    make_reader: Callable[..., AnswerReader | ResponsesReader] = AnswerReader,
) -> Result:
    """Let a provider send an answer in these reads; return what the client and the log got."""
    result, live, client = Result(), LiveTurn("t"), FakeConnection()
    provider, transport = Connection(Owner()), FakeTransport()
    transport.protocol = provider
    provider.connection_made(cast("asyncio.Transport", transport))
    response = provider.ask(b"request")
    scope: dict[str, Any] = {"type": "http", "method": "POST", "http_version": version}
    exchange = HttpExchange.of(client, scope, announced_bytes=None, keep_alive=True)
    exchange.end_body()
    live.emit(Started("t", "triage"), at=1.0)
    receiver = Receiver(live, result)

    async def send(request: ModelRequest) -> Accepted:
        return Accepted(response, make_reader)

    async def ask() -> None:
        call = ProviderAnswer(
            FakeAnsweringModel(send),
            ModelRequest(messages=[]),
            limits or ModelLimits(),
        )
        try:
            async with call as batches:
                forward = forward_of(batches)
                assert forward is not None
                async for batch in batches:
                    receiver.take(batch)
                    while not await forward(receiver.take, receiver.open_relay if has_relay else None):
                        pass
        finally:
            # Not ``Completed``: some answers end with a failure.
            live.emit(Failed("internal_error", "end", Usage()))

    connection = ClientConnection(scope, exchange.receive, exchange.send)
    encoder = ChunkEncoder(AnswerOptions(id="chatcmpl-1", created=0, model="shop"))
    writing = asyncio.create_task(stream(live, encoder, [], connection, StreamTimeouts(), left=lambda: None))
    asking = asyncio.create_task(ask())
    transport.protocol.data_received(HEAD)
    for read in reads:
        transport.protocol.data_received(read)
        # The tasks run as far as they can.
        for _ in range(8):
            await asyncio.sleep(0)
    transport.protocol.connection_lost(None)
    async with asyncio.timeout(20):
        await asyncio.gather(asking, return_exceptions=True)
        await writing
    body = client.fake.written.partition(b"\r\n\r\n")[2]
    result.body = body if version == "1.0" else b"".join(chunks_of(body))
    result.events = [(entry.position, entry.event) for entry in live.entries]
    return result


def chunks_of(body: bytes) -> Iterator[bytes]:
    """Decode a chunked body."""
    while body != b"0\r\n\r\n":
        line, _, rest = body.partition(b"\r\n")
        size = int(line, 16)
        assert rest[size : size + 2] == b"\r\n"
        yield rest[:size]
        body = rest[size + 2 :]


def chunk(*events: bytes, form: str = "%x") -> bytes:
    data = b"".join(events)
    return (form % len(data)).encode() + b"\r\n" + data + b"\r\n"


def packed(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def event(delta: dict[str, Any] | str, reason: str | None = None, **members: Any) -> bytes:
    """Return a chunk of a chat completion."""
    if isinstance(delta, str):
        delta = {"content": delta}
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: %b\n\n" % packed({"id": "chatcmpl-x", "choices": [choice], **members})


START = chunk(event({"role": "assistant", "content": ""})) + chunk(event("Hello"))
END = chunk(event({}, "stop"), b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Chat:
    """Events of chat completions."""

    make_reader: Callable[..., AnswerReader | ResponsesReader] = AnswerReader

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw

    @property
    def start(self) -> bytes:
        return START

    @property
    def end(self) -> bytes:
        return END

    def text(self, text: str) -> bytes:
        return event(text)

    def other(self) -> bytes:
        return self._draw.choice(
            [
                event({"reasoning_content": "hm"}),
                event("y", usage={"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}),
                event("z", note=1),
            ]
        )


class PaddedChat(Chat):
    """The same with padding of another length in each, as OpenAI's have it."""

    def text(self, text: str) -> bytes:
        return event(text, obfuscation=padding(self._draw))


class Responses(Chat):
    """Events of the Responses API."""

    make_reader = ResponsesReader
    number = 8

    @property
    def start(self) -> bytes:
        return chunk(self.text("Hello"))

    @property
    def end(self) -> bytes:
        response = {"status": "completed", "output": []}
        return chunk(self.event("response.completed", response=response)) + b"0\r\n\r\n"

    def text(self, text: str) -> bytes:
        return self.event(
            "response.output_text.delta",
            item_id="msg_1",
            output_index=0,
            content_index=0,
            delta=text,
            logprobs=[],
            obfuscation=padding(self._draw),
        )

    def other(self) -> bytes:
        text = "response.output_text.delta"
        return self._draw.choice(
            [
                self.event("response.reasoning_summary_text.delta", delta="hm", output_index=0),
                self.event(text, item_id="msg_2", output_index=1, content_index=0, delta="x", logprobs=[]),
                self.event(text, output_index=0, delta="x", logprobs=[{"token": "x", "logprob": -1.0}]),
                self.event("response.unknown", delta="x"),
            ]
        )

    def event(self, kind: str, **members: Any) -> bytes:
        self.number += 1
        data = {"type": kind, "sequence_number": self.number, **members}
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), packed(data))


def padding(draw: random.Random) -> str:
    return "".join(draw.choices("abcXYZ123", k=draw.randint(0, 20)))


def some_reads(draw: random.Random, form: Chat) -> list[bytes]:
    """Return an answer of many texts and some other events, cut in some way."""
    reads = [form.start]
    for _ in range(draw.randint(5, 60)):
        read = b""
        for _ in range(draw.choice([1, 1, 1, 2, 7])):
            pieces = [form.text(draw.choice(TEXTS)) for _ in range(draw.choice([1, 1, 1, 1, 3]))]
            kind = draw.randint(0, 30)
            if kind == 0:
                pieces.append(b": ping\n\n")
            elif kind in (1, 2):
                pieces = [form.other()]
            elif kind in (3, 4):
                pieces = [form.text(draw.choice(OTHERS))]
            read += chunk(*pieces, form="%X" if draw.random() < 0.03 else "%x")
        reads.append(read)
    reads.append(form.end)
    if draw.random() < 0.3:
        whole = b"".join(reads)
        cuts = sorted(draw.sample(range(1, len(whole)), 12))
        reads = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    elif draw.random() < 0.5:
        at = draw.randrange(1, len(reads) - 1)
        cut = draw.randrange(1, len(reads[at]))
        reads[at : at + 1] = [reads[at][:cut], reads[at][cut:]]
    return reads


@pytest.mark.parametrize("form", [Chat, PaddedChat, Responses])
@pytest.mark.parametrize("seed", range(40))
async def test_response_and_log_are_the_same(seed: int, form: type[Chat]) -> None:
    draw = random.Random(seed)
    reads = some_reads(draw, form(draw))

    usual = await answer_of(reads, has_relay=False, make_reader=form.make_reader)
    relayed = await answer_of(reads, has_relay=True, make_reader=form.make_reader)

    assert relayed.body == usual.body
    assert relayed.events == usual.events
    assert "".join(relayed.deltas) == "".join(usual.deltas)
    assert usual.relayed == 0


@pytest.mark.parametrize("form", [Chat, PaddedChat, Responses])
@pytest.mark.parametrize("seed", range(40))
def test_deltas_are_those_of_a_reader_that_parses_each_event(seed: int, form: type[Chat]) -> None:
    draw = random.Random(seed)
    events = [form(draw).text("Hello")]
    reading = form(draw)
    for _ in range(40):
        kind = draw.randint(0, 12)
        text = draw.choice(OTHERS if kind == 1 else TEXTS)
        events.append(reading.other() if kind == 0 else reading.text(text))
    reader, parser = (form.make_reader(provider="", max_answer_bytes=10_000) for _ in range(2))

    while events:
        count = draw.choice([1, 1, 2, 5])
        deltas = reader.feed(b"".join(events[:count]))
        # With a comment before each event, the bytes are not those of a repeated one.
        assert [*deltas] == [*parser.feed(b"".join(b": \n\n" + one + b": \n" for one in events[:count]))]
        del events[:count]


@pytest.mark.parametrize("form", [PaddedChat, Responses])
async def test_text_with_padding_is_passed_on(form: type[Chat]) -> None:
    events = form(random.Random(1))
    reads = [events.start, *(chunk(events.text(f" word {number}")) for number in range(300)), events.end]

    result = await answer_of(reads, has_relay=True, make_reader=form.make_reader)

    assert 290 <= result.relayed < 300


async def test_text_that_arrives_alone_is_passed_on() -> None:
    reads = [START, *(chunk(event(f" word {number}")) for number in range(600)), END]

    result = await answer_of(reads, has_relay=True)

    # The first one is parsed, and one in 64 KB, after which the log gets the text.
    assert 590 <= result.relayed < 600
    assert result.body == (await answer_of(reads, has_relay=False)).body


@pytest.mark.parametrize("form", [Chat, PaddedChat, Responses])
async def test_text_that_arrives_in_bursts_is_passed_on(form: type[Chat]) -> None:
    events = form(random.Random(1))
    bursts = [b"".join(chunk(events.text(text)) for text in TEXTS) for _ in range(20)]

    result = await answer_of(
        [events.start, *bursts, events.end], has_relay=True, make_reader=form.make_reader
    )

    assert result.relayed >= 18 * len(TEXTS)


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(chunk(event("a\\b")), id="escape"),
        pytest.param(chunk(event("")), id="empty text"),
        pytest.param(chunk(event("a"))[:-1], id="part of a chunk"),
        pytest.param(chunk(event("a")) + b"5\r\n", id="beginning of another chunk"),
        pytest.param(chunk(event("a")).replace(b'"a"', b'"\xff"'), id="not UTF-8"),
        pytest.param(
            (chunk(event("a")) + chunk(event("b"))).replace(b'"b"', b'"\xff"'), id="second is not UTF-8"
        ),
        pytest.param(b"0" + chunk(event("a")), id="other size line"),
        pytest.param(chunk(event("a")).replace(b"\r\n", b";x=1\r\n", 1), id="chunk extension"),
        pytest.param(chunk(event("a", note=1)), id="another member"),
        pytest.param(chunk(event("a", "stop")), id="finish reason"),
        pytest.param(chunk(event("a")) + chunk(event("b", note=1)), id="another event behind"),
        pytest.param(chunk(event("a")) + END, id="end"),
    ],
)
async def test_anything_else_is_parsed(read: bytes) -> None:
    before = [START, *[chunk(event(" word"))] * 4]

    result = await answer_of([*before, read], has_relay=True)

    assert result.relayed == 3
    usual = await answer_of([*before, read], has_relay=False)
    assert (result.body, result.events) == (usual.body, usual.events)


async def test_a_response_that_is_not_chunked_gets_no_text_from_relays() -> None:
    reads = [START, *[chunk(event(" word"))] * 20, END]

    old = await answer_of(reads, has_relay=True, version="1.0")

    assert old.relayed == 0
    assert old.body == (await answer_of(reads, has_relay=False)).body


@pytest.mark.parametrize("ended_by", ["nothing", "size", "reader", "writer"])
@pytest.mark.parametrize("is_varying", [False, True])
async def test_a_read_is_passed_on_while_nothing_has_ended_the_relay(ended_by: str, is_varying: bool) -> None:
    written: list[bytes] = []

    def write(text: bytes) -> bool:
        if ended_by != "writer":
            written.append(text)
        return ended_by != "writer"

    data = event(" word", obfuscation="a1") if is_varying else event(" word")
    read = chunk(data)
    relay = TextRelay(write, b"", lambda: ended_by == "reader")
    alarm = Alarm(AlarmClock(), lambda: None)
    parsed: list[bytes] = []
    repeated = RepeatedData.of(data[6:-2], b'"content"')
    assert repeated is not None
    most = len(read) - (ended_by == "size")
    process = chunk_relay(RepeatedFrame(b"", repeated), relay, alarm, 1.0, most, parsed.append)

    process(read)

    is_passed_on = ended_by == "nothing"
    assert (written, relay.texts, parsed) == (
        ([b" word"], [" word"], []) if is_passed_on else ([], [], [read])
    )


async def test_an_answer_that_is_too_long_fails_as_without_a_relay() -> None:
    reads = [START, *[chunk(event(" word"))] * 100, END]
    limits = ModelLimits(answer_bytes=300)

    usual = await answer_of(reads, has_relay=False, limits=limits)
    relayed = await answer_of(reads, has_relay=True, limits=limits)

    assert relayed.body == usual.body
    assert len("".join(relayed.deltas)) <= 300
