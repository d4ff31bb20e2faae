from __future__ import annotations

import socket

import pytest

from proxy.errors import ConfigurationError
from proxy.listen_sockets import bound_sockets, url_of
from proxy.settings import load_settings


def test_port_0_takes_a_free_one_for_all_addresses_of_the_host() -> None:
    with bound_sockets("localhost", 0) as sockets:
        ports = {bound.getsockname()[1] for bound in sockets}
        families = [bound.family for bound in sockets]

        assert len(ports) == 1
        assert socket.AF_INET in families
        settings = load_settings(env_file=None, host="localhost")
        assert url_of(settings, sockets) == f"http://localhost:{ports.pop()}"


def test_an_address_of_ipv6_is_in_brackets_and_tls_changes_the_scheme() -> None:
    with bound_sockets("127.0.0.1", 0) as sockets:
        settings = load_settings(env_file=None, host="::1", tls_certificate="server.pem")
        assert url_of(settings, sockets) == f"https://[::1]:{sockets[0].getsockname()[1]}"


def test_connections_are_refused_before_start_up() -> None:
    with bound_sockets("127.0.0.1", 0) as sockets, pytest.raises(ConnectionRefusedError):
        socket.create_connection(sockets[0].getsockname()[:2])


def test_the_sockets_are_closed_afterwards() -> None:
    with bound_sockets("127.0.0.1", 0) as sockets:
        port = sockets[0].getsockname()[1]

    with bound_sockets("127.0.0.1", port) as sockets:
        assert sockets[0].getsockname()[1] == port


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ("no-such-host.invalid", "PROXY_HOST: no-such-host.invalid cannot be resolved"),
        ("x" * 80, f"PROXY_HOST: {'x' * 80} cannot be resolved"),
        ("192.0.2.1", "PROXY_HOST: 192.0.2.1 is not an address of this machine"),
    ],
    ids=["an unknown name", "no name at all", "another machine's address"],
)
def test_a_host_that_cannot_be_bound_is_reported(host: str, sentence: str) -> None:
    with pytest.raises(ConfigurationError) as caught, bound_sockets(host, 0):
        pass

    assert caught.value.message == sentence


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with (
            pytest.raises(ConfigurationError, match="is in use by another program"),
            bound_sockets("127.0.0.1", port),
        ):
            pass
