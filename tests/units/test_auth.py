from __future__ import annotations

import re

import pytest

from proxy.auth import ANYONE, Keys, check_exposure
from proxy.errors import ApiKeyMissing, ConfigurationError, Unauthorized

KEY = "key-of-the-operations-desk"
OTHER = "key-of-the-night-shift"


@pytest.fixture
def keys() -> Keys:
    return Keys([KEY, OTHER])


# --- with keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [
        f"Bearer {KEY}",
        f"bearer {KEY}",
        f"BEARER {KEY}",
        f"Bearer   {KEY}  ",
        f"  Bearer {KEY}",
    ],
)
def test_a_known_key_is_let_in_however_the_header_is_spaced(keys: Keys, authorization: str) -> None:
    assert keys.caller(authorization) == keys.caller(f"Bearer {KEY}")


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(None, id="no header"),
        pytest.param("", id="empty header"),
        pytest.param("Bearer", id="no key"),
        pytest.param("Bearer ", id="empty key"),
        pytest.param(KEY, id="no scheme"),
        pytest.param(f"Basic {KEY}", id="another scheme"),
        pytest.param(f"Token {KEY}", id="an unknown scheme"),
    ],
)
def test_a_missing_key_gets_an_error_with_instructions(keys: Keys, authorization: str | None) -> None:
    with pytest.raises(ApiKeyMissing, match=r"^You didn't provide an API key\."):
        keys.caller(authorization)


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(f"Bearer {KEY[:-1]}", id="all but the last letter"),
        pytest.param(f"Bearer {KEY}x", id="a letter more"),
        pytest.param(f"Bearer {KEY.upper()}", id="in capitals"),
        pytest.param(f"Bearer {KEY},{OTHER}", id="all keys at once"),
        pytest.param(f"Bearer {KEY} {KEY}", id="twice"),
        pytest.param("Bearer \udcff\udcfe", id="bytes that are no text"),
        pytest.param("Bearer " + "x" * 60_000, id="a huge key"),
    ],
)
def test_anything_else_is_rejected_with_the_same_message(keys: Keys, authorization: str | None) -> None:
    with pytest.raises(Unauthorized, match=r"^Incorrect API key provided\.$"):
        keys.caller(authorization)


def test_callers_are_distinguished_by_their_keys(keys: Keys) -> None:
    assert keys.caller(f"Bearer {KEY}") != keys.caller(f"Bearer {OTHER}")


def test_a_caller_keeps_its_name_when_other_keys_come_and_go(keys: Keys) -> None:
    assert Keys([KEY]).caller(f"Bearer {KEY}") == keys.caller(f"Bearer {KEY}")


def test_a_caller_id_does_not_reveal_its_key(keys: Keys) -> None:
    name = keys.caller(f"Bearer {KEY}")

    assert re.fullmatch(r"key-[0-9a-f]{24}", name)
    assert KEY not in f"{name} {vars(keys)}"


# --- without keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authorization", [None, "Bearer ", f"Bearer {KEY}", f"Bearer {OTHER}", "Basic eDp5"])
def test_an_open_server_has_one_caller(authorization: str | None) -> None:
    keys = Keys([])

    assert keys.is_open
    assert keys.caller(authorization) == ANYONE


def test_an_open_server_can_separate_callers_by_their_keys() -> None:
    keys = Keys([], separates_keys=True)

    assert keys.caller(None) == ANYONE
    assert keys.caller("Bearer ") == ANYONE
    assert keys.caller(f"Bearer {KEY}") != keys.caller(f"Bearer {OTHER}") != ANYONE


def test_a_separate_caller_keeps_its_name_when_keys_are_set_later() -> None:
    assert Keys([], separates_keys=True).caller(f"Bearer {KEY}") == Keys([KEY]).caller(f"Bearer {KEY}")


def test_a_server_with_keys_is_not_open(keys: Keys) -> None:
    assert not keys.is_open


# --- exposure ------------------------------------------------------------------------------------------------


def is_exposed(host: str, *, has_keys: bool, allow_open: bool) -> bool:
    """Whether the server refuses to start because other machines could use it without a key."""
    try:
        check_exposure(host, has_keys=has_keys, allow_open=allow_open)
    except ConfigurationError:
        return True
    return False


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "localhost", "::1"])
def test_this_machine_is_served_without_keys(host: str) -> None:
    assert is_exposed(host, has_keys=False, allow_open=False) is False


OUTSIDE = [
    "0.0.0.0",
    "::",
    "192.168.1.20",
    "example.internal",
    "localhost.example.internal",
    "127.example.internal",
    "::ffff:10.0.0.1",
]


@pytest.mark.parametrize("host", OUTSIDE)
def test_other_machines_are_not_served_without_keys(host: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_exposure(host, has_keys=False, allow_open=False)

    assert caught.value.message == (
        f"PROXY_HOST: {host} can be reached from other machines, and no keys are set. "
        "Set PROXY_API_KEYS (keys separated by commas) or create one with `handoff-proxy keys create`, "
        "or set PROXY_ALLOW_OPEN=true to serve requests without a key."
    )


@pytest.mark.parametrize("host", OUTSIDE)
def test_other_machines_are_served_with_keys_or_if_the_setting_allows_it(host: str) -> None:
    assert is_exposed(host, has_keys=False, allow_open=False)
    assert not is_exposed(host, has_keys=True, allow_open=False)
    assert not is_exposed(host, has_keys=False, allow_open=True)
