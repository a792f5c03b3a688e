"""Certificates that are renewed while the server runs; HTTP clients that are sent to HTTPS."""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import time
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding

from tests.support.certificates import certificates
from tests.support.client import request
from tests.support.http1_client import Http1Connection
from tests.support.http3_client import Http3Connection
from tests.support.load import Http2, Http3, SecureKeepAlive, assert_nothing_failed, load
from tests.support.server import Server, serve
from tests.support.stream import ByteStream

pytestmark = [pytest.mark.slow]

PATIENCE = 20.0
RSA = trustme.KeyType.RSA


class Renewable:
    """A certificate in two files."""

    def __init__(
        self,
        folder: Path,
        *names: str,
        key_type: trustme.KeyType = trustme.KeyType.ECDSA,
        issuer: trustme.CA | None = None,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.certfile, self.keyfile = folder / "chain.pem", folder / "key.pem"
        self._authority = issuer or trustme.CA()
        self._names = names or ("localhost", "127.0.0.1")
        self._key_type = key_type
        self.renew()

    def renew(self) -> None:
        leaf = self._authority.issue_cert(*self._names, key_type=self._key_type)
        fresh = self.certfile.with_suffix(".new")
        leaf.private_key_pem.write_to_path(self.keyfile)
        leaf.cert_chain_pems[0].write_to_path(fresh)
        fresh.replace(self.certfile)
        self.pem = leaf.cert_chain_pems[0].bytes()

    def break_pair(self) -> None:
        other = self._authority.issue_cert("localhost")
        other.private_key_pem.write_to_path(self.keyfile)


async def shown_by_tcp(server: Server, name: str = "localhost") -> bytes:
    stream = await ByteStream.connect(
        server.host, server.port, tls=_trusting_anybody(), server_name=name
    )
    der = stream.tls.getpeercert(binary_form=True)
    stream.close()
    return ssl.DER_cert_to_PEM_cert(der).encode()


async def shown_by_quic(server: Server, name: str = "localhost") -> bytes:
    connection = await Http3Connection.connect(
        server.host, server.port, verify_mode=ssl.CERT_NONE, server_name=name
    )
    seen = connection.quic.tls._peer_certificate.public_bytes(Encoding.PEM)
    response = await request(connection, "GET", "/scope")
    await connection.close()
    # The application is told the same.
    assert seen == json.loads(response.body)["extensions"]["tls"]["server_cert"].encode()
    return seen


async def test_renewed_certificates_are_shown_to_new_connections(tmp_path):
    files = Renewable(tmp_path)
    options = {"certfile": files.certfile, "keyfile": files.keyfile}
    async with serve(workers=2, http3=True, **options) as server:
        open_before = await Http1Connection.connect(
            server.host, server.port, tls=_trusting_anybody()
        )
        assert await shown_by_tcp(server) == files.pem
        pids = dict(server.workers)
        mark = len(server.log.text)
        files.renew()
        await server.wait_line("certificates changed: new connections get", mark)
        async with asyncio.timeout(PATIENCE):
            # Each worker hears of it by itself.
            same = 0
            while same < 8:
                same = same + 1 if await shown_by_tcp(server) == files.pem else 0
            while await shown_by_quic(server) != files.pem:
                pass
        assert (await request(open_before, "GET", "/hello")).status == 200
        await open_before.close()
        mark = len(server.log.text)
        before = files.pem
        files.break_pair()
        await server.wait_line("certificates changed, the old ones stay in use", mark)
        assert await shown_by_tcp(server) == before
        assert dict(server.workers) == pids


async def test_renewals_under_load_fail_nobody_and_reach_new_connections_within_a_second(tmp_path):
    files = Renewable(tmp_path, issuer=certificates().issuer)
    options = {"certfile": files.certfile, "keyfile": files.keyfile}
    delays = []
    async with (
        serve(workers=2, http3=True, **options) as server,
        load(server, [SecureKeepAlive, Http2, Http3], pause=0.05) as clients,
    ):
        for _ in range(3):
            files.renew()
            renewed = time.monotonic()
            async with asyncio.timeout(PATIENCE):
                last, fresh = renewed, 0
                for shown in itertools.cycle((shown_by_tcp, shown_by_quic)):
                    begun = time.monotonic()
                    if await shown(server) != files.pem:
                        last, fresh = begun, 0
                    elif (fresh := fresh + 1) == 8:  # each worker has had some
                        break
            delays.append(last - renewed)
    assert_nothing_failed(clients)
    # On a machine that is busy with other tests, one of them has to show it.
    assert min(delays) < 1.0, delays


async def test_certificates_are_chosen_by_name_over_tcp_and_quic(tmp_path):
    first = Renewable(tmp_path / "first", "a.example")
    second = Renewable(tmp_path / "second", "b.example", "*.c.example", key_type=RSA)
    options = {
        "certfile": (first.certfile, second.certfile),
        "keyfile": (first.keyfile, second.keyfile),
    }
    expected = [
        ("a.example", first),
        ("b.example", second),
        ("www.c.example", second),
        ("unknown.example", first),
    ]
    async with serve(workers=1, http3=True, **options) as server:
        for shown in (shown_by_tcp, shown_by_quic):
            for name, files in expected:
                assert await shown(server, name) == files.pem, (shown, name)
        first.renew()
        second.renew()
        async with asyncio.timeout(PATIENCE):
            for shown in (shown_by_tcp, shown_by_quic):
                for name, files in expected:
                    while await shown(server, name) != files.pem:
                        pass


def _trusting_anybody() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def test_http_clients_are_sent_to_https():
    async with serve(
        workers=1,
        tls=True,
        insecure_bind="127.0.0.1:0",
        redirect_https=True,
        hsts="1h",
    ) as server:
        found = await server.wait_line(r"http://127\.0\.0\.1:(\d+)")
        connection = await Http1Connection.connect("127.0.0.1", int(found[1]))
        response = await request(connection, "GET", "/hello?a=b", [("host", "localhost:80")])
        assert response.status == 308
        location = dict(response.headers)[b"location"]
        assert location == b"https://localhost:%d/hello?a=b" % server.port
        await connection.close()
        secure = await Http1Connection.connect(
            server.host, server.port, tls=server.client_context("http/1.1")
        )
        response = await request(secure, "GET", "/hello")
        assert dict(response.headers)[b"strict-transport-security"] == b"max-age=3600"
        await secure.close()
