"""TLS options of connections to providers."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from proxy.errors import ConfigurationError
from proxy.providers.http.tls import TlsOptions
from tests.fakes.certificates import make_certificate


def test_authorities_are_added_to_those_of_the_system(tmp_path: Path) -> None:
    certificate, _ = make_certificate(tmp_path)
    present = TlsOptions().context().cert_store_stats()["x509"]

    assert TlsOptions(ca=certificate).context().cert_store_stats()["x509"] == present + 1


def test_a_minimum_version_can_be_set() -> None:
    assert TlsOptions(minimum="1.3").context().minimum_version is ssl.TLSVersion.TLSv1_3
    assert TlsOptions().context().minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_certificate_can_be_in_the_file_of_its_key(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())

    assert isinstance(TlsOptions(certificate=both).context(), ssl.SSLContext)


def test_files_that_cannot_be_used_are_errors(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    _, other_key = make_certificate(tmp_path, name="other")
    encrypted, encrypted_key = make_certificate(tmp_path, name="encrypted", password=b"secret")
    missing = tmp_path / "missing.pem"
    for options, beginning in [
        (TlsOptions(ca=missing), "PROXY_PROVIDER_TLS_CA: "),
        (TlsOptions(ca=key), "PROXY_PROVIDER_TLS_CA: "),
        (TlsOptions(certificate=missing, key=key), "PROXY_PROVIDER_TLS_CERTIFICATE: "),
        (TlsOptions(certificate=certificate, key=other_key), "PROXY_PROVIDER_TLS_CERTIFICATE: "),
        (TlsOptions(certificate=certificate), "PROXY_PROVIDER_TLS_CERTIFICATE: "),
        (TlsOptions(certificate=encrypted, key=encrypted_key), "PROXY_PROVIDER_TLS_CERTIFICATE: "),
        (TlsOptions(key=key), "PROXY_PROVIDER_TLS_KEY: "),
    ]:
        with pytest.raises(ConfigurationError) as failed:
            options.context()
        assert failed.value.message.startswith(beginning)
