"""Client certificates over every version: told to the application, or asked for in vain."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.support.certificates import certificates
from tests.support.client import ClientConnection, ExchangeFailed, request
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.http3_client import Http3Connection
from tests.support.server import Server, serve

pytestmark = pytest.mark.slow

AUTHORITY = trustme.CA()
LEAF = AUTHORITY.create_child_ca().issue_cert("client@example.org", common_name="client")
CHAIN = [blob.bytes().decode() for blob in LEAF.cert_chain_pems]
Connect = Callable[[Server, Path], Awaitable[ClientConnection]]


def context(file: Path, alpn: str) -> ssl.SSLContext:
    context = certificates().client_context(alpn)
    if file.exists():
        context.load_cert_chain(file)
    return context


async def connect_http1(server: Server, file: Path) -> ClientConnection:
    tls = context(file, "http/1.1")
    return await Http1Connection.connect("127.0.0.1", server.port, tls=tls)


async def connect_http2(server: Server, file: Path) -> ClientConnection:
    return await Http2Connection.connect("127.0.0.1", server.port, tls=context(file, "h2"))


async def connect_http3(server: Server, file: Path) -> ClientConnection:
    shown: dict[str, Any] = {}
    if file.exists():
        leaf, *issuers = x509.load_pem_x509_certificates(file.read_bytes())
        key = load_pem_private_key(LEAF.private_key_pem.bytes(), None)
        shown = {"certificate": leaf, "certificate_chain": issuers, "private_key": key}
    return await Http3Connection.connect("127.0.0.1", server.port, **shown)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    authority = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(authority)
    LEAF.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    async with serve(
        workers=2, tls=True, http3=True, ca_certs=authority, cert_reqs="required"
    ) as server:
        yield server


async def test_client_certificates(server: Server, tmp_path: Path):
    """One server for all: starting it costs more than the requests."""
    for version, connect in {"1.1": connect_http1, "2": connect_http2, "3": connect_http3}.items():
        scope = await ask(connect, server, tmp_path / "client.pem")
        assert scope["http_version"] == version
        tls = scope["extensions"]["tls"]
        assert "CN=client" in tls["client_cert_name"]
        assert tls["tls_version"] == 0x0304
        assert tls["server_cert"].split() == certificates().certfile.read_text().split()
        # Before Python 3.13, ssl does not tell those that came along with the client's own.
        known = CHAIN if version == "3" or sys.version_info >= (3, 13) else CHAIN[:1]
        assert [pem.split() for pem in tls["client_cert_chain"]] == [pem.split() for pem in known]
        # TLS 1.3: a client is ready before the server has seen that it shows nothing.
        with pytest.raises((OSError, ExchangeFailed)):
            await ask(connect, server, tmp_path / "none")


async def ask(connect: Connect, server: Server, file: Path) -> Any:
    connection = await connect(server, file)
    try:
        return json.loads((await request(connection, "GET", "/scope")).body)
    finally:
        await connection.close()
