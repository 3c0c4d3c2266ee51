"""Certificates for the tests, and real servers that speak TLS with them.

Hides how they are made, and how a free port is found for TLS besides the plain one,
which stays open for the tests' own clients.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import trustme

from kvtape.server.url import ServerUrl, Tls
from servers import PORT_TRIES, PORTS, Server, ServerError, StartServer

# The servers whose build has TLS; those that come as Python wheels have none.
TLS_SERVERS: Final = ("redis-7.0", "redis-8.0", "valkey-8.0", "valkey-8.1")

LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files of a certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """A CA that signs what the tests need, into a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._authority = trustme.CA()
        self._folder = folder
        self.file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, not_after: datetime | None = None) -> Certificate:
        """Sign a certificate for these names."""
        leaf = self._authority.issue_cert(*names, not_after=not_after)
        name = f"{names[0]}-{random.randrange(10**9)}"
        files = Certificate(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        leaf.cert_chain_pems[0].write_to_path(files.cert)
        leaf.private_key_pem.write_to_path(files.key)
        return files


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A server that speaks TLS on a port of its own."""

    server: Server
    port: int
    authority: Authority

    def tls(self, client: Certificate | None = None) -> Tls:
        """Return what a client has to know."""
        if client is None:
            return Tls(self.authority.file)
        return Tls(self.authority.file, client.cert, client.key)

    def url(
        self,
        user: str | None = None,
        password: str | None = None,
        *,
        client: Certificate | None = None,
    ) -> ServerUrl:
        """Return the URL, with TLS."""
        return ServerUrl("127.0.0.1", self.port, user, password, self.tls(client))


def start_tls_server(
    start_server: StartServer,
    name: str,
    authority: Authority,
    certificate: Certificate,
    **config: str,
) -> TlsServer:
    """Start a server that wants a client certificate, unless config says otherwise."""
    options = {
        "tls_cert_file": str(certificate.cert),
        "tls_key_file": str(certificate.key),
        "tls_ca_cert_file": str(authority.file),
        **config,
    }
    for _ in range(PORT_TRIES):
        port = random.choice(PORTS)
        try:
            server = start_server(name, tls_port=str(port), **options)  # type: ignore[arg-type]
        except ServerError as error:
            if "already in use" in str(error) or "no free port" in str(error):
                continue
            raise
        return TlsServer(server, port, authority)
    raise ServerError(f"{name} found no free port for TLS")
