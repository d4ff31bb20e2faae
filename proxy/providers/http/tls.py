"""TLS of connections to providers: further authorities, a client certificate, and the minimum version."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Literal

from msgspec import Struct

from proxy.errors import ConfigurationError

TlsVersion = Literal["1.2", "1.3"]


class TlsOptions(Struct, frozen=True):
    """What an operator can set; ``ca`` has certificates of authorities in addition to those of the system."""

    ca: Path | None = None
    certificate: Path | None = None
    """Of this client, with its chain."""
    key: Path | None = None
    """None if it is in the file of the certificate."""
    minimum: TlsVersion = "1.2"

    def context(self) -> ssl.SSLContext:
        """Return a context for HTTP/1.1 with these options.

        Raises:
            ConfigurationError: A file cannot be read or used.
        """
        # Reads the system's certificates, which takes some milliseconds.
        context = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
        if self.minimum == "1.3":
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        if self.ca is not None:
            try:
                context.load_verify_locations(self.ca)
            except (OSError, ValueError):
                # ssl.SSLError is an OSError.
                raise ConfigurationError(
                    f"PROXY_PROVIDER_TLS_CA: {self.ca} cannot be read, or has no PEM certificates"
                ) from None
        if self.certificate is not None:
            try:
                # The password is requested on the terminal unless there is one.
                context.load_cert_chain(self.certificate, self.key, password="")
            except (OSError, ValueError):
                raise ConfigurationError(
                    f"PROXY_PROVIDER_TLS_CERTIFICATE: {self.certificate} is not a readable PEM certificate whose "
                    f"unencrypted private key is in {self.key or 'the same file'}"
                ) from None
        elif self.key is not None:
            raise ConfigurationError("PROXY_PROVIDER_TLS_KEY: needs PROXY_PROVIDER_TLS_CERTIFICATE too")
        return context
