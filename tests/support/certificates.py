"""A certificate authority and a certificate for the loopback names, made once per test process."""

from __future__ import annotations

import functools
import ssl
import tempfile
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, slots=True)
class Certificates:
    directory: tempfile.TemporaryDirectory[str]
    issuer: trustme.CA
    authority: Path
    certfile: Path
    keyfile: Path
    other_keyfile: Path
    """A key that belongs to another certificate."""
    client_certfile: Path
    """Certificate and key of a client, signed by the same authority."""

    def client_context(self, *alpn: str, client_certificate: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.authority))
        if alpn:
            context.set_alpn_protocols(list(alpn))
        if client_certificate:
            context.load_cert_chain(str(self.client_certfile))
        return context


@functools.cache
def certificates() -> Certificates:
    directory = tempfile.TemporaryDirectory(prefix="certificates-")
    root = Path(directory.name)
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1", "127.0.0.2", "::1")
    other = authority.issue_cert("localhost")
    client = authority.issue_cert("client@example.org", common_name="client")
    authority.cert_pem.write_to_path(root / "authority.pem")
    for number, blob in enumerate(server.cert_chain_pems):
        blob.write_to_path(root / "server.pem", append=number > 0)
    server.private_key_pem.write_to_path(root / "server.key")
    other.private_key_pem.write_to_path(root / "other.key")
    client.private_key_and_cert_chain_pem.write_to_path(root / "client.pem")
    return Certificates(
        directory=directory,
        issuer=authority,
        authority=root / "authority.pem",
        certfile=root / "server.pem",
        keyfile=root / "server.key",
        other_keyfile=root / "other.key",
        client_certfile=root / "client.pem",
    )
