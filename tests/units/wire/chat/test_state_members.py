"""The members of messages with the state of a provider are found, whatever else a body has."""

import pytest

from proxy.messages import CALL_STATE_MEMBERS, MESSAGE_STATE_MEMBERS
from proxy.wire.provider_state import states_in_chat

VALUES = {
    "reasoning_content": b'"because"',
    "reasoning_details": b'[{"type":"text"}]',
    "thinking_blocks": b'[{"type":"thinking"}]',
    "extra_content": b'{"google":{}}',
    "provider_specific_fields": b'{"signature":"s"}',
}


@pytest.mark.parametrize("name", sorted({*MESSAGE_STATE_MEMBERS, *CALL_STATE_MEMBERS}))
def test_each_member_is_found(name: str) -> None:
    member = b'"%b":%b' % (name.encode(), VALUES[name])
    if name in MESSAGE_STATE_MEMBERS:
        message = b'{"role":"assistant","content":"x",%b}' % member
    else:
        call = b'{"id":"1","type":"function","function":{"name":"f","arguments":"{}"},%b}' % member
        message = b'{"role":"assistant","content":"x","tool_calls":[%b]}' % call

    assert list(states_in_chat(b'{"model":"m","messages":[{"role":"user","content":"x"},%b]}' % message)) == [
        1
    ]
