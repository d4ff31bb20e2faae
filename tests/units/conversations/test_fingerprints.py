"""Fingerprints: what they depend on, and that they exclude reasoning."""

from __future__ import annotations

import re
from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.conversations.fingerprints import (
    Transcript,
    agent_by_user_messages,
    fingerprint_behind,
    hashed_answer,
    is_first_input,
    last_answer_of,
    scope_of,
    transcript_after,
    user_text,
    without_thinking,
)
from proxy.message_lists import text_messages
from proxy.messages import (
    AssistantMessage,
    FunctionCall,
    FunctionMessage,
    ImagePart,
    ImageUrl,
    Item,
    Message,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
    text_of,
)
from proxy.turns.records import Branch, ChainTurn
from tests.fakes.messages import message_lists

NAMES = ("think", "thinking", "reasoning")
PIECES = [f"<{name}>" for name in NAMES] + [f"</{name}>" for name in NAMES] + ["<", ">", "a", "\n", "think"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_closed_think_tags_are_left_out_as_the_expression_says(text: str) -> None:
    expression = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL)

    assert without_thinking(text) == expression.sub("", text)


# --- transcripts ---

SCOPE = scope_of("alice", "shop", "")
CALL = FunctionCall("look_up", '{"item": 1}')


def turn(key: int, *items: Item, agent: str = "sales", fingerprint: bytes | None = None) -> ChainTurn:
    return ChainTurn(key, agent, True, items, (), fingerprint=fingerprint)


def fingerprint_of(*messages: Message, scope: bytes = SCOPE) -> bytes:
    transcript = Transcript(scope)
    transcript.extend(messages)
    return transcript.fingerprint


STORED: list[tuple[Message, str | None, str, str]] = [
    (
        SystemMessage("It is 9:00"),
        None,
        "e24b0b16952862bb781f116ae3f6b6d0",
        "6ab7e149117131c07b09a0a84ba51205",
    ),
    (
        UserMessage("Hi,\n two  questions"),
        None,
        "655bfcedf03fab5cb734528dc1414f01",
        "ef38798210092dacb24c436b8aaf6086",
    ),
    (
        UserMessage([TextPart("Größe?"), ImagePart(ImageUrl("https://x/y.png"))]),
        None,
        "df33f5de6f7b2f7c16667c32678d6838",
        "a93f43fa2e0032a26ca529595433821f",
    ),
    (
        AssistantMessage("<think>Hm</think>Which one?"),
        "6dcabe092e6a26f50f8350350d06f4c5",
        "6d41abe8a98900c302c33f5f5bd0a8ac",
        "bc20006b377d300a795e06f88778f791",
    ),
    (
        UserMessage(" \n"),
        None,
        "6d41abe8a98900c302c33f5f5bd0a8ac",
        "bc20006b377d300a795e06f88778f791",
    ),
    (
        UserMessage("\ud83d \0 <context><source>x</source></context>The\tfirst"),
        None,
        "f1e06bbbe07459d4bc3e7f75b5c997fd",
        "3c5b8e364bd22b67db89b1d867f61295",
    ),
    (
        AssistantMessage(None, tool_calls=[ToolCall("1", CALL)]),
        None,
        "f1e06bbbe07459d4bc3e7f75b5c997fd",
        "3c5b8e364bd22b67db89b1d867f61295",
    ),
    (
        ToolMessage("1", "found"),
        None,
        "2a9e71ff64f6010d4ef41c63b6e543d6",
        "16d5f801d843b1783ab9465c3b872467",
    ),
    (
        ToolMessage("2", "<found>"),
        None,
        "fbcb4b07cba10d6296508b16b908560a",
        "fb1725951bab4c8e250103a56b06d42b",
    ),
    (
        AssistantMessage(None, refusal="No."),
        "99d11196d6cbdbade37a07acf645f88e",
        "e94b6db7ebc476a25650fe479b4be3a1",
        "b6779f9c97629891a579ad6ae0561db5",
    ),
    (
        FunctionMessage("f", "x"),
        None,
        "e94b6db7ebc476a25650fe479b4be3a1",
        "b6779f9c97629891a579ad6ae0561db5",
    ),
    (
        AssistantMessage(""),
        "cff6244518ee252c67a60160d3eaa949",
        "171e14707853e1207c0d396195e871bf",
        "4c1b52e5ec9544ad302e84441539bd32",
    ),
    (
        UserMessage("Bye"),
        None,
        "ce59d0dc9b5dcc9bd6f9a991999ee503",
        "12fb4c883769f07ce75398b7ee5e5d48",
    ),
]
"""Messages of one list, and behind each: fingerprint, digest of the input so far, and digest of ``CALL`` there."""


def test_digests_are_those_in_existing_databases() -> None:
    transcript = Transcript(SCOPE)
    found = [
        (
            message,
            fingerprint.hex() if (fingerprint := transcript.add(message)) is not None else None,
            transcript.input_fingerprint().hex(),
            transcript.call(CALL).hex(),
        )
        for message, *_ in STORED
    ]

    assert found == STORED
    assert SCOPE.hex() == "1154109286ad146bc2f49a50544d049b"
    assert (last_answer_of(SCOPE, "Which one?") or b"").hex() == "56189b85d78494351d69bcb65589656d"
    assert transcript.state() == (bytes.fromhex("cff6244518ee252c67a60160d3eaa949"), b"u3:Bye", 0)


TEXTS = st.lists(
    st.sampled_from([*PIECES, "\0", "é", "\ud83d", "0", "<context><source></context>"]), max_size=4
)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(UserMessage, TEXTS.map("".join)),
    st.builds(UserMessage, st.none() | TEXTS.map(lambda texts: [TextPart(text) for text in texts])),
    st.builds(
        AssistantMessage, TEXTS.map("".join), tool_calls=st.sampled_from([None, [ToolCall("1", CALL)]])
    ),
    st.builds(ToolMessage, st.just("1"), TEXTS.map("".join)),
    st.builds(SystemMessage, TEXTS.map("".join)),
)


@given(st.lists(MESSAGES, max_size=12), st.integers(0, 12))
def test_a_list_has_the_same_fingerprints_at_once_in_two_parts_and_message_by_message(
    messages: list[Message], at: int
) -> None:
    single, whole, divided = Transcript(SCOPE), Transcript(SCOPE), Transcript(SCOPE)
    expected = [
        (index, found) for index, one in enumerate(messages) if (found := single.add(one)) is not None
    ]

    assert whole.extend(messages) == expected
    first, second = messages[:at], messages[at:]
    assert divided.extend(first) + divided.extend(second, first=len(first)) == expected
    for transcript in (whole, divided):
        assert transcript.fingerprint == single.fingerprint
        assert transcript.input_fingerprint() == single.input_fingerprint()
        assert Transcript.restored(*transcript.state()).input_fingerprint() == single.input_fingerprint()


def plain_fingerprints(messages: list[Message]) -> list[tuple[int, bytes]]:
    """The definition: the hash of the fingerprint before, and of each text since with its role and length."""
    found: list[tuple[int, bytes]] = []
    before = SCOPE
    for index, message in enumerate(messages):
        if isinstance(message, UserMessage):
            text = user_text(text_of(message))
            before += b"u%d:%b" % (len(text), text) if text else b""
        elif isinstance(message, AssistantMessage):
            text = hashed_answer(text_of(message))
            if text or not (message.tool_calls or message.function_call):
                before = blake2b(before + b"a%d:%b" % (len(text), text), digest_size=16).digest()
                found.append((index, before))
    return found


@given(message_lists)
def test_fingerprints_of_each_kind_of_list_are_those_of_their_definition(messages: list[Message]) -> None:
    for one in filter(None, (messages, text_messages(messages))):
        transcript = Transcript(SCOPE)

        assert transcript.extend(one) == plain_fingerprints(messages)
        assert transcript.answer("Bye") == plain_fingerprints([*messages, AssistantMessage("Bye")])[-1][1]


PAIRS = st.lists(
    st.tuples(st.builds(UserMessage, TEXTS.map("".join)), st.builds(AssistantMessage, TEXTS.map("".join)))
).map(lambda pairs: [message for pair in pairs for message in pair])


@given(message_lists, PAIRS, st.lists(st.builds(UserMessage, st.sampled_from(["And now?", ""])), max_size=1))
def test_a_list_of_questions_and_answers_continues_like_any_other(
    before: list[Message], pairs: list[Message], last: list[Message]
) -> None:
    one, other = Transcript(SCOPE), Transcript(SCOPE)
    one.extend(before)
    other.extend(before)
    messages = text_messages([*pairs, *last])
    assert messages is not None

    assert one.extend(messages, first=len(before)) == other.extend([*messages], first=len(before))
    assert one.state() == other.state()
    assert one.input_fingerprint() == other.input_fingerprint()
    assert one.call(CALL) == other.call(CALL)
    assert one.answer("Bye") == other.answer("Bye")


@given(message_lists, TEXTS.map("".join))
def test_the_text_of_a_user_is_added_like_its_message(before: list[Message], text: str) -> None:
    one, other = Transcript(SCOPE), Transcript(SCOPE)
    one.extend([*before, UserMessage(text)])
    other.extend(before)
    other.add_user(user_text(text))

    assert one.state() == other.state()
    assert one.input_fingerprint() == other.input_fingerprint()
    assert one.answer("Bye") == other.answer("Bye")


@pytest.mark.parametrize("length", [1023, 1024, 100_000])
def test_long_texts_have_the_fingerprints_of_their_definition(length: int) -> None:
    messages: list[Message] = [UserMessage("x" * length), AssistantMessage("ß" * length)] * 2

    for one in filter(None, (messages, text_messages(messages))):
        assert Transcript(SCOPE).extend(one) == plain_fingerprints(messages)


def test_scopes_differ_by_caller_team_and_end_user() -> None:
    parts = [("a", "b", "c"), ("ab", "", "c"), ("a", "bc", ""), ("b", "a", "c"), ("a", "b", "")]

    assert len({scope_of(*part) for part in parts}) == len(parts)
    assert scope_of("a", "b", "c") == scope_of("a", "b", "c")


@pytest.mark.parametrize("text", ["", " \n\t\r\x0b\x0c", "<think>Hm</think> "])
def test_empty_answer_has_no_last_answer_digest(text: str) -> None:
    assert last_answer_of(SCOPE, text) is None


def test_last_answer_digest_depends_on_the_scope_and_the_text_without_white_space() -> None:
    digest = last_answer_of(SCOPE, "Which colour?")

    assert digest == last_answer_of(SCOPE, " Which\ncolour?<thinking>red</thinking>")
    assert digest != last_answer_of(SCOPE, "Which color?")
    assert digest != last_answer_of(scope_of("bob", "shop", ""), "Which colour?")


def test_fingerprint_depends_on_texts_and_roles_in_order() -> None:
    user, answer = UserMessage("Hi"), AssistantMessage("Hello")
    known = fingerprint_of(user, answer)

    assert known == fingerprint_of(
        SystemMessage("It is 9:00"), UserMessage(" H i"), AssistantMessage("Hello\n")
    )
    assert known == fingerprint_of(user, UserMessage(" "), answer)
    others = [
        fingerprint_of(answer),
        fingerprint_of(UserMessage("Hi"), UserMessage("Hello"), answer),
        fingerprint_of(UserMessage("HiHello"), answer),
        fingerprint_of(UserMessage("Hi<think>x</think>"), answer),
        fingerprint_of(user, answer, user, answer),
        fingerprint_of(user, answer, scope=scope_of("bob", "shop", "")),
    ]
    assert len({known, *others}) == 1 + len(others)


def test_only_assistant_messages_that_are_not_bare_calls_return_a_fingerprint() -> None:
    transcript = Transcript(SCOPE)

    assert transcript.add(UserMessage("Hi")) is None
    assert transcript.add(AssistantMessage(None, tool_calls=[ToolCall("1", CALL)])) is None
    assert transcript.add(AssistantMessage(None, function_call=CALL)) is None
    assert transcript.add(ToolMessage("1", "2")) is None
    assert transcript.fingerprint == SCOPE
    with_text = transcript.add(AssistantMessage("Wait", tool_calls=[ToolCall("1", CALL)]))
    assert with_text == transcript.fingerprint != SCOPE
    empty = transcript.add(AssistantMessage(""))
    assert empty == transcript.fingerprint != with_text
    assert Transcript(SCOPE).answer("") == fingerprint_of(AssistantMessage(""))
    assert Transcript(SCOPE).answer("", is_call=True) is None


def test_answer_continues_from_the_fingerprint_before_it() -> None:
    first = fingerprint_of(UserMessage("Hi"), AssistantMessage("Hello"))

    assert Transcript(first).answer("Bye") == fingerprint_of(
        UserMessage("Hi"), AssistantMessage("Hello"), AssistantMessage("Bye")
    )


def test_call_digest_depends_on_the_position_the_name_the_arguments_and_the_results_before_it() -> None:
    transcript = Transcript(SCOPE)
    transcript.add(UserMessage("Hi"))
    first = transcript.call(CALL)
    assert first == transcript.call(FunctionCall("look_up", '{ "item":1 }')), "the transcript is unchanged"
    digests = {
        first,
        transcript.call(FunctionCall("look_down", CALL.arguments)),
        transcript.call(FunctionCall("look_up", "")),
    }
    transcript.add(ToolMessage("1", "found"))
    digests.add(transcript.call(CALL))
    transcript.add(ToolMessage("2", "found"))
    digests.add(transcript.call(CALL))
    assert len(digests) == 5

    transcript.add(AssistantMessage("Done"))
    assert transcript.call(CALL) == Transcript(transcript.fingerprint).call(CALL), (
        "results before an answer do not count"
    )


def test_transcript_of_a_branch_continues_from_its_newest_fingerprint() -> None:
    hi, more = Item(UserMessage("Hi")), Item(UserMessage("More"))
    answer = Item(AssistantMessage("Hello"), "sales")
    known = b"k" * 16
    chain = [turn(1, hi, answer), turn(2, hi, answer, fingerprint=known), turn(3, more, answer)]

    expected = Transcript(known)
    expected.extend([more.message, UserMessage("Now")])
    found = transcript_after(Branch.of(chain), SCOPE, [UserMessage("Now")])
    assert found.answer("x") == expected.answer("x")

    unknown = Transcript(SCOPE)
    unknown.extend([hi.message, more.message])
    without = Branch.of([turn(1, hi, answer), turn(2, more, answer)])
    assert transcript_after(without, SCOPE).answer("x") == unknown.answer("x")
    assert transcript_after(None, SCOPE).answer("x") == Transcript(SCOPE).answer("x")


def test_fingerprint_behind_a_branch_is_that_of_a_list_that_ends_with_an_answer() -> None:
    known = b"k" * 16
    branch = Branch.of([turn(1, Item(UserMessage("Hi")), fingerprint=known)])
    question, answer = UserMessage("More?"), AssistantMessage("Yes")
    expected = Transcript(known)
    expected.extend([question, answer])

    assert fingerprint_behind(branch, [question, answer]) == expected.fingerprint
    assert fingerprint_behind(branch, [question, answer, ToolMessage("1", "x")]) == expected.fingerprint
    assert fingerprint_behind(branch, [question, answer, UserMessage("And?")]) is None
    assert fingerprint_behind(branch, [question]) is None
    assert fingerprint_behind(Branch.of([turn(1)]), [question, answer]) is None


CHAIN = [
    turn(1, Item(UserMessage("one")), Item(AssistantMessage("1"), "triage"), agent="triage"),
    turn(
        2,
        Item(UserMessage("two")),
        Item(UserMessage("and")),
        Item(UserMessage("hidden"), "sales"),
        agent="sales",
    ),
    turn(3, Item(UserMessage("three")), agent="repairs"),
]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], (False, None)),
        (["other"], (False, None)),
        (["one"], (True, None)),
        (["one", "more"], (True, "triage")),
        (["one", "two", "and"], (True, "triage")),
        (["one", "two", "more"], (True, "triage")),
        (["one", " two", "and", "more"], (True, "sales")),
        (["one", "two", "and", "three"], (True, "sales")),
        (["one", "two", "and", "three", "more"], (True, "repairs")),
        (["two", "and", "three", "more"], (False, None)),
    ],
)
def test_active_agent_is_that_of_the_last_turn_with_the_same_user_messages(
    texts: list[str], expected: tuple[bool, str | None]
) -> None:
    messages: list[Message] = [SystemMessage("x")]
    for text in texts:
        messages += [UserMessage(text), AssistantMessage("edited")]

    assert agent_by_user_messages(CHAIN, messages) == expected


def test_first_input_has_the_same_types_and_texts() -> None:
    first = turn(
        1,
        Item(SystemMessage("now")),
        Item(UserMessage("one")),
        Item(UserMessage("two")),
        Item(AssistantMessage("1"), "a"),
    )

    assert is_first_input(first, [UserMessage("o ne"), UserMessage("two")])
    different: list[list[Message]] = [
        [UserMessage("one")],
        [UserMessage("one"), AssistantMessage("two")],
        [UserMessage("one"), UserMessage("three")],
        [],
    ]
    for others in different:
        assert not is_first_input(first, others)
    assert not is_first_input(turn(1, Item(SystemMessage("now"))), [])
