"""URLs of HTTP servers."""

from __future__ import annotations

import pytest

from proxy.providers.http.url import HttpUrl


def test_a_url_has_decoded_and_sent_parts() -> None:
    url = HttpUrl.parse("HTTPS://me%40b:p%3Aw@Provider.example:8443/v1/a%2Fb c/?key=a%20b&k=1#there")

    assert url == HttpUrl(
        scheme="https",
        host="provider.example",
        ascii_host="provider.example",
        port=8443,
        authority="provider.example:8443",
        user="me@b",
        password="p:w",
        path="/v1/a%2Fb%20c/",
        query="key=a%20b&k=1",
    )
    assert url.target == "/v1/a%2Fb%20c/?key=a%20b&k=1"
    assert url.query_values == ["a b", "1"]


@pytest.mark.parametrize(
    ("url", "port", "authority", "target"),
    [
        ("http://provider.example", 80, "provider.example", "/"),
        ("https://provider.example?a", 443, "provider.example", "/?a"),
        ("http://[::1]:8080/v1", 8080, "[::1]:8080", "/v1"),
        ("http://[::1]/v1", 80, "[::1]", "/v1"),
        ("ftp://provider.example/", None, "provider.example", "/"),
        ("http://provider.example/ä%zz", 80, "provider.example", "/%C3%A4%zz"),
    ],
)
def test_ports_and_paths_have_defaults(url: str, port: int | None, authority: str, target: str) -> None:
    parsed = HttpUrl.parse(url)

    assert (parsed.port, parsed.authority, parsed.target) == (port, authority, target)


@pytest.mark.parametrize("url", ["https://bücher.example:1/v1", "https://xn--bcher-kva.example:1/v1"])
def test_an_international_host_has_a_name_in_ascii(url: str) -> None:
    parsed = HttpUrl.parse(url)

    assert (parsed.host, parsed.ascii_host, parsed.authority) == (
        "bücher.example",
        "xn--bcher-kva.example",
        "xn--bcher-kva.example:1",
    )


def test_names_are_joined_to_the_path_and_the_query_stays() -> None:
    base = "https://provider.example/v1/?version=2"

    assert HttpUrl.parse(base).joined("chat", "a b/c").target == "/v1/chat/a%20b%2Fc?version=2"
    assert HttpUrl.parse("https://provider.example").joined("models").target == "/models"


@pytest.mark.parametrize(
    "url",
    ["http://h:99999/", "http://h:x/", "http://[::1/", "http://a b/", "http://a\\b/", "http://a\x01b/"],
)
def test_a_url_that_is_not_valid_is_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its message is not part of the contract
        HttpUrl.parse(url)
