"""A turn that was stopped, lost or failed after a tool has run is history as far as it came."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.behaviour.chat_client import Caller, assistant, shape_of, user
from tests.behaviour.counted import http, read_and_cut, shop
from tests.fakes.counted_tools import call_keys, runs
from tests.fakes.upstream import FakeUpstream, Reply, calls, error, text
from tests.polling import until
from tests.server import Served

pytestmark = pytest.mark.asyncio(loop_scope="module")
CALLED = ["calls:refund", "result"]
NAMED = {"X-Conversation-Id": "{order}"}
FRONTEND = {"X-OpenWebUI-Chat-Id": "{order}"}


class Case:
    """One conversation with an order of its own."""

    def __init__(self, folder: Path, served: Served, other: Served, upstream: FakeUpstream) -> None:
        self.folder = folder
        self.served = served
        self.other = other
        self.upstream = upstream.forget()
        self.caller = Caller(served)
        self.order = f"order-{id(self)}-{len(runs(folder))}"
        self.ask = user(f"Refund {self.order}")
        self.turn_id = ""
        self.hold = asyncio.Event()
        """The model has replied "I have refunded", and continues when it is set."""

    @property
    def runs(self) -> int:
        return runs(self.folder)[self.order]

    @property
    def refund(self) -> Reply:
        return calls(("refund", {"order": self.order}))

    def headers(self, pattern: dict[str, str]) -> dict[str, str]:
        return {name: value.format(order=self.order) for name, value in pattern.items()}

    async def stop(
        self, headers: dict[str, str], shown: str = "I have", messages: list[Any] | None = None
    ) -> None:
        """Send the request and close the connection in the answer behind the refund."""
        body = {"model": "shop", "messages": messages or [self.ask], "stream": True}
        before = set(self.served.services.turns.running_turns())
        self.upstream.reply(self.refund, text("", chunks=["I have", " refunded", self.hold, " it"]))
        if shown:
            await read_and_cut(self.served, body, headers, shown=shown)
        else:
            reached = asyncio.create_task(self.upstream.received(2))
            event = asyncio.Event()
            reached.add_done_callback(lambda _: event.set())
            await read_and_cut(self.served, body, headers, reached=event)
        for turn_id in set(self.served.services.turns.running_turns()) - before:
            self.turn_id = turn_id
            await self.left(self.turn_id, has_ended=headers.get("X-On-Disconnect") == "cancel")

    async def completed(self) -> None:
        """Let the model continue, and wait for the end of the stopped turn."""
        self.hold.set()
        await self.left(self.turn_id, has_ended=True)

    async def queued(self, count: int) -> None:
        """Wait until this number of requests is in the queues."""
        await until(lambda: self.served.services.turns.queued == count)

    async def is_read(self, turn_id: str) -> None:
        """Wait until the server has stored that the answer was read."""
        services = self.served.services
        caller = services.keys.caller("Bearer test-key")
        async with asyncio.timeout(5):
            while True:
                record = await services.history.turn(caller, turn_id)
                assert record is not None
                if record.left_at is None:
                    return
                await asyncio.sleep(0.01)

    async def left(self, turn_id: str, *, has_ended: bool) -> None:
        """Wait until the server has stored that the client left."""
        services = self.served.services
        caller = services.keys.caller("Bearer test-key")
        async with asyncio.timeout(5):
            while True:
                record = await services.history.turn(caller, turn_id)
                assert record is not None
                if record.status != "running" or (record.left_at is not None and not has_ended):
                    return
                await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def workers(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Path, Served, Served, FakeUpstream]]:
    folder = tmp_path_factory.mktemp("shop")
    async with (
        FakeUpstream() as upstream,
        shop(folder, upstream) as served,
        shop(folder, upstream) as other,
    ):
        yield folder, served, other, upstream


@pytest.fixture
def case(workers: tuple[Path, Served, Served, FakeUpstream]) -> Case:
    folder, served, other, upstream = workers
    return Case(folder, served, other, upstream)


SHOWN = {"beginning": "I have", "less": "I", "empty": "", "none": None, "with a remark": "I have [stopped]"}


# After ``detach`` the answer is complete, and a complete answer with a remark is an edited one.
@pytest.mark.parametrize(
    ("shown", "policy"),
    [
        pytest.param(shown, policy, id=f"{name}-{policy}")
        for policy in ("", "cancel", "detach")
        for name, shown in SHOWN.items()
        if (policy, name) != ("detach", "with a remark")
    ],
)
@pytest.mark.parametrize("place", [{}, FRONTEND, NAMED], ids=["no id", "frontend", "named"])
async def test_stop_after_a_tool_with_effects_and_the_next_message_knows_the_call(
    case: Case, place: dict[str, str], shown: str | None, policy: str
) -> None:
    headers = case.headers(place)
    await case.stop({**headers, **({"X-On-Disconnect": policy} if policy else {})})
    if policy == "detach":
        await case.completed()
    case.upstream.reply(text("Done."), text("Bye."))

    messages = [case.ask, *([assistant(shown)] if shown is not None else []), user("In short, please")]
    answer = await case.caller.ask(messages, headers=headers)

    assert (answer, case.runs) == ("Done.", 1)
    assert shape_of(case.upstream)[:4] == ["system", f"user:Refund {case.order}", *CALLED]
    assert shape_of(case.upstream)[-1] == "user:In short, please"

    messages += [assistant("Done."), user("Thanks")]
    assert await case.caller.ask(messages, headers=headers) == "Bye."
    assert shape_of(case.upstream)[:4] == ["system", f"user:Refund {case.order}", *CALLED]
    assert shape_of(case.upstream)[-2:] == ["assistant:Done.", "user:Thanks"]


@pytest.mark.parametrize("worker", ["served", "other"])
@pytest.mark.parametrize("place", [{}, FRONTEND, NAMED], ids=["no id", "frontend", "named"])
async def test_a_repeated_request_gets_the_turn_that_runs_without_its_client(
    case: Case, place: dict[str, str], worker: str
) -> None:
    headers = case.headers(place) | {"X-On-Disconnect": "detach"}
    await case.stop(headers)

    body = {"model": "shop", "messages": [case.ask], "stream": True}
    async with (
        http(getattr(case, worker)) as client,
        client.stream("POST", "/chat/completions", json=body, headers=headers) as response,
    ):
        await case.completed()
        answer = (await response.aread()).decode()

    assert response.headers["x-conversation-match"] == "same-turn"
    assert " refunded" in answer
    assert answer.endswith("data: [DONE]\n\n")
    assert case.runs == 1


@pytest.mark.parametrize("worker", ["served", "other"])
@pytest.mark.parametrize("place", [{}, FRONTEND, NAMED], ids=["no id", "frontend", "named"])
async def test_a_repeated_request_gets_a_detached_turn_that_has_not_run_its_tool_yet(
    case: Case, place: dict[str, str], worker: str
) -> None:
    headers = case.headers(place) | {"X-On-Disconnect": "detach"}
    body = {"model": "shop", "messages": [case.ask], "stream": True}
    refund = calls(("refund", {"order": case.order}), text="Wait.").held(case.hold, after=3)
    case.upstream.reply(refund, text("Done.", chunks=1))
    await read_and_cut(case.served, body, headers, shown="Wa")
    (case.turn_id,) = case.served.services.turns.running_turns()
    await case.left(case.turn_id, has_ended=False)

    async with (
        http(getattr(case, worker)) as client,
        client.stream("POST", "/chat/completions", json=body, headers=headers) as response,
    ):
        await case.completed()
        answer = (await response.aread()).decode()

    assert response.headers["x-conversation-match"] == "same-turn"
    assert "Done." in answer
    assert case.runs == 1


@pytest.mark.parametrize("is_later", [False, True], ids=["first message", "later message"])
@pytest.mark.parametrize("place", [FRONTEND, NAMED], ids=["frontend", "named"])
async def test_an_answer_that_was_not_read_is_given_to_the_same_request(
    case: Case, place: dict[str, str], is_later: bool
) -> None:
    headers = case.headers(place)
    messages = [case.ask]
    if is_later:
        case.upstream.reply(text("Hello."))
        hello = user(f"Hi {case.order}")
        first = await case.caller.ask([hello], headers=headers)
        messages = [case.ask] if place is NAMED else [hello, assistant(first), case.ask]
        case.upstream.forget()
    await case.stop({**headers, "X-On-Disconnect": "detach"}, messages=messages)
    await case.completed()

    body = {"model": "shop", "messages": messages, "stream": True}
    async with http(case.served) as client:
        again = await client.post("/chat/completions", json=body, headers=headers)
        await case.is_read(case.turn_id)
        case.upstream.reply(text("Another."))
        new = await client.post("/chat/completions", json=body, headers=headers)

    assert again.headers["x-conversation-match"] == "same-turn"
    assert (" refunded" in again.text, case.runs) == (True, 1)
    assert new.headers["x-conversation-match"] != "same-turn"


@pytest.mark.parametrize("place", [FRONTEND, NAMED], ids=["frontend", "named"])
async def test_another_answer_instead_of_one_that_was_not_read_knows_its_calls(
    case: Case, place: dict[str, str]
) -> None:
    headers = case.headers(place)
    await case.stop({**headers, "X-On-Disconnect": "detach"})
    await case.completed()
    case.upstream.reply(text("Refunded."))

    assert await case.caller.ask([case.ask], headers=headers, temperature=0.5) == "Refunded."

    assert case.runs == 1
    assert shape_of(case.upstream) == ["system", f"user:Refund {case.order}", *CALLED]


@pytest.mark.parametrize("shown", SHOWN.values(), ids=SHOWN)
async def test_the_next_message_of_a_conversation_without_id_waits_for_a_detached_turn(
    case: Case, shown: str | None
) -> None:
    await case.stop({"X-On-Disconnect": "detach"})
    messages = [case.ask, *([assistant(shown)] if shown is not None else []), user("In short, please")]

    with pytest.raises(openai.ConflictError) as busy:
        await case.caller.ask(messages)
    queued = asyncio.create_task(case.caller.ask(messages, headers={"X-Busy": "queue"}))
    await case.queued(1)
    case.upstream.reply(text("Done."))
    await case.completed()

    assert busy.value.code == "conversation_busy"
    assert busy.value.response.headers["retry-after"]
    assert (await queued, case.runs) == ("Done.", 1)


@pytest.mark.parametrize("shown", ["I have", None], ids=["continued", "regenerated"])
async def test_a_chat_does_not_answer_again_next_to_a_detached_turn_with_effects(
    case: Case, shown: str | None
) -> None:
    headers = case.headers(FRONTEND)
    await case.stop({**headers, "X-On-Disconnect": "detach"})
    messages = [case.ask, *([assistant(shown)] if shown is not None else [])]

    with pytest.raises(openai.ConflictError) as busy:
        await case.caller.ask(messages, headers=headers)
    queued = asyncio.create_task(case.caller.ask(messages, headers={**headers, "X-Busy": "queue"}))
    await case.queued(1)
    case.upstream.reply(text("Done."))
    await case.completed()

    assert busy.value.code == "conversation_busy"
    assert ((await queued).strip(), case.runs) == ("Done.", 1)
    assert CALLED[0] in shape_of(case.upstream)


@pytest.mark.parametrize("policy", ["", "cancel"])
async def test_a_client_that_appends_messages_continues_the_stopped_turn(case: Case, policy: str) -> None:
    headers = case.headers(NAMED)
    await case.stop({**headers, **({"X-On-Disconnect": policy} if policy else {})})
    case.upstream.reply(text("Done."))

    assert await case.caller.ask([user("In short, please")], headers=headers) == "Done."
    assert case.runs == 1
    assert shape_of(case.upstream)[:4] == ["system", f"user:Refund {case.order}", *CALLED]


async def test_the_next_message_at_another_worker_knows_the_call(case: Case) -> None:
    await case.stop({})
    case.upstream.reply(text("Done."))

    messages = [case.ask, assistant("I have"), user("In short, please")]
    assert await Caller(case.other).ask(messages) == "Done."

    assert case.runs == 1
    assert shape_of(case.upstream)[2:4] == CALLED


@pytest.mark.parametrize(
    "reply", [error(401), text("Refunded, and", chunks=4).cut(after=2)], ids=["rejected", "reset"]
)
@pytest.mark.parametrize("place", [{}, FRONTEND, NAMED], ids=["no id", "frontend", "named"])
async def test_a_failure_after_a_tool_and_the_same_request_again_does_not_run_it_again(
    case: Case, place: dict[str, str], reply: Reply
) -> None:
    headers = case.headers(place)
    case.upstream.reply(case.refund, reply)
    body = {"model": "shop", "messages": [case.ask]}
    async with http(case.served) as client:
        failed = await client.post("/chat/completions", json=body, headers=headers)
        case.upstream.forget().reply(text("Refunded."), text("Bye."))
        again = await client.post("/chat/completions", json=body, headers=headers)

    assert failed.status_code == 502
    assert again.json()["choices"][0]["message"]["content"] == "Refunded."
    assert case.runs == 1
    assert shape_of(case.upstream) == ["system", f"user:Refund {case.order}", *CALLED]

    messages = [case.ask, assistant("Refunded."), user("Thanks")]
    assert await case.caller.ask(messages, headers=headers) == "Bye."
    assert shape_of(case.upstream) == [
        "system",
        f"user:Refund {case.order}",
        *CALLED,
        "assistant:Refunded.",
        "user:Thanks",
    ]


@pytest.mark.parametrize("place", [{}, FRONTEND, NAMED], ids=["no id", "frontend", "named"])
async def test_the_message_after_a_failure_knows_the_call(case: Case, place: dict[str, str]) -> None:
    headers = case.headers(place)
    case.upstream.reply(case.refund, error(401))
    body = {"model": "shop", "messages": [case.ask]}
    async with http(case.served) as client:
        await client.post("/chat/completions", json=body, headers=headers)
    case.upstream.reply(text("Refunded."))

    assert await case.caller.ask([case.ask, user("Well?")], headers=headers) == "Refunded."

    assert case.runs == 1
    assert shape_of(case.upstream)[2:] == [*CALLED, "user:Well?"]


async def test_a_regenerated_answer_of_a_stopped_turn_does_not_run_the_tool_again(case: Case) -> None:
    headers = case.headers(FRONTEND)
    await case.stop({**headers, "X-On-Disconnect": "cancel"})
    case.upstream.reply(text("Refunded."))

    assert await case.caller.ask([case.ask], headers=headers) == "Refunded."

    assert case.runs == 1
    assert shape_of(case.upstream) == ["system", f"user:Refund {case.order}", *CALLED]


async def test_a_stopped_turn_later_in_a_conversation_is_known_too(case: Case) -> None:
    case.upstream.reply(text("Hello."))
    messages = [user(f"Hi {case.order}"), assistant(await case.caller.ask([user(f"Hi {case.order}")]))]
    case.upstream.forget()
    await case.stop({"X-On-Disconnect": "cancel"}, messages=[*messages, case.ask])
    case.upstream.reply(text("Done."))

    await case.caller.ask([*messages, case.ask, assistant("I have"), user("In short, please")])

    assert case.runs == 1
    assert shape_of(case.upstream)[3:6] == [f"user:Refund {case.order}", *CALLED]


async def test_equal_text_of_other_people_has_no_calls(case: Case) -> None:
    await case.stop({}, messages=[case.ask])
    case.upstream.reply(text("Done."))

    await case.caller.ask([case.ask, assistant("I have"), user("In short, please")], user="somebody else")

    assert CALLED[0] not in shape_of(case.upstream)


async def test_an_unstored_turn_that_is_repeated_uses_the_same_call_keys(case: Case) -> None:
    case.upstream.reply(case.refund, error(401), case.refund, text("Refunded."))
    body = {"model": "shop", "messages": [case.ask], "store": False}
    async with http(case.served) as client:
        await client.post("/chat/completions", json=body)
        again = await client.post("/chat/completions", json=body)

    assert again.status_code == 200
    assert case.runs == 2
    assert len(set(call_keys(case.folder, case.order))) == 1


@pytest.mark.parametrize("following", [["I have", "In short, please"], ["In short, please"], []])
@pytest.mark.parametrize("policy", ["", "cancel"])
async def test_an_approved_call_of_a_stopped_turn_does_not_run_again(
    case: Case, policy: str, following: list[str]
) -> None:
    case.upstream.reply(calls(("release", {"order": case.order})))
    question = await case.caller.ask([case.ask])
    messages = [case.ask, assistant(question), user("yes")]
    case.upstream.reply(text("", chunks=["I have", case.hold]))
    headers = {"X-On-Disconnect": policy} if policy else {}
    before = set(case.served.services.turns.running_turns())
    body = {"model": "shop", "messages": messages, "stream": True}
    await read_and_cut(case.served, body, headers, shown="I have")
    for turn_id in set(case.served.services.turns.running_turns()) - before:
        await case.left(turn_id, has_ended=bool(policy))
    case.upstream.reply(text("Done.", chunks=1))

    if len(following) > 1:
        messages.append(assistant(following[0]))
    messages += [user(content) for content in following[-1:]]
    if following:
        answer = await case.caller.ask(messages)
    else:
        case.hold.set()
        async with http(case.served) as client:
            response = await client.post("/chat/completions", json=body)
        answer = "Done." if "Done." in response.text else response.text

    assert case.runs == 1
    if policy or following:
        assert answer == "Done."
        contents = [m.get("content") for m in case.upstream.requests[-1].body["messages"]]
        assert f"{case.order} was released" in contents
