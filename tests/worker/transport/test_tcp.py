"""Adoption of accepted connections: each is counted once when it comes and once when it goes."""

import asyncio
import contextlib
import os
import socket
import ssl
import struct

import pytest

from asgiri.ipc.scoreboard import Cell
from tests.support.certificates import certificates
from tests.support.worker import serve_app

ON_BOTH_EVENT_LOOPS = True
WITHOUT_TRANSPORTS_TOO = True


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def open_files():
    return len(os.listdir("/proc/self/fd"))


async def test_every_connection_is_counted_when_it_comes_and_when_it_goes():
    async with serve_app(hello) as worker:
        clients = [await worker.connect() for _ in range(20)]
        await worker.wait_until(lambda: worker.count(Cell.TCP_ADOPTED) == 20)
        assert worker.count(Cell.TCP_OPEN) == 20
        for number, client in enumerate(clients):
            if number % 2:
                client.get()
                await client.read_response()
            async with client:
                pass
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED) == 20)
        assert worker.count(Cell.TCP_OPEN) == 0


async def test_connection_that_was_reset_on_its_way_is_counted_and_closed():
    async with serve_app(hello) as worker:
        asyncio.get_running_loop().remove_reader(worker.listening)
        before = open_files()
        client = socket.create_connection(worker.address)
        connection, _ = worker.listening.accept()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        worker.endpoint.adopt(0, connection.detach())
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED) == 1)
        await worker.wait_until(lambda: open_files() == before)
        assert worker.count(Cell.TCP_ADOPTED) == 1


async def test_connection_of_an_unknown_listener_is_counted_and_closed(caplog):
    async with serve_app(hello) as worker:
        ours, theirs = socket.socketpair()
        worker.endpoint.adopt(7, ours.detach())
        assert worker.count(Cell.TCP_ADOPTED) == worker.count(Cell.TCP_CLOSED) == 1
        assert theirs.recv(1) == b""
        theirs.close()
    assert "listener 7" in caplog.text


@pytest.mark.linux
async def test_no_descriptor_is_left_behind():
    async def connect_once(worker):
        async with await worker.connect() as client:
            client.get("/", "Connection: close")
            await client.read_response()

    async with serve_app(hello) as worker:
        await connect_once(worker)  # uvloop opens something of its own with the first
        await worker.wait_until(lambda: worker.count(Cell.TCP_OPEN) == 0)
        before = open_files()
        for _ in range(30):
            await connect_once(worker)
        await worker.wait_until(lambda: open_files() <= before)


async def test_adopted_connection_sends_small_writes_at_once():
    async with serve_app(hello) as worker, await worker.connect() as client:
        client.get()
        await client.read_response()
        (session,) = worker.services.sessions
        adopted = session._transport.get_extra_info("socket")
        assert adopted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_head_timeout_of_a_silent_connection_counts_from_accept():
    async with serve_app(hello, http1={"header_timeout": 0.1}) as worker:
        async with await worker.connect() as client:
            client.writer.write(b"PRI")  # tells nothing about the version yet
            assert (await client.read_response())[0] == 408


async def test_version_is_found_although_the_first_bytes_come_one_by_one():
    async with serve_app(hello) as worker, await worker.connect() as client:
        for byte in b"PROPFIND / HTTP/1.1\r\nHost: x\r\n\r\n":
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.read_response())[0] == 200


# TLS


async def test_client_that_speaks_cleartext_to_a_tls_listener_is_counted():
    async with serve_app(hello, secure=True) as worker:
        async with await worker.connect(ssl=None, server_hostname=None) as client:
            client.get()
            await client.read_to_end()
            await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))
        assert worker.count(Cell.TLS_HANDSHAKE_FAILURES) == 1
        assert worker.refusals == {"plaintext_on_tls": 1}


async def test_client_that_does_not_trust_us_is_counted():
    async with serve_app(hello, secure=True) as worker:
        with pytest.raises(ssl.SSLError):
            await worker.connect(ssl=ssl.create_default_context())
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))
        assert worker.count(Cell.TLS_HANDSHAKE_FAILURES) == 1


@pytest.mark.parametrize(
    ("maximum_version", "ciphers", "alert"),
    [
        (ssl.TLSVersion.TLSv1_3, "", "certificate required"),
        (ssl.TLSVersion.TLSv1_2, "", "handshake failure"),
        (ssl.TLSVersion.TLSv1_2, "DHE-RSA-AES256-SHA", "handshake failure"),
    ],
)
async def test_client_whose_handshake_fails_is_told_why(maximum_version, ciphers, alert):
    authority = str(certificates().authority)
    tls = {"cert_reqs": "required", "ca_certs": authority}
    async with serve_app(hello, secure=True, tls=tls) as worker:
        context = certificates().client_context("http/1.1")
        context.maximum_version = maximum_version
        if ciphers:
            context.set_ciphers(ciphers)
        with pytest.raises(ssl.SSLError, match=f"(?i)alert {alert}"):
            async with await worker.connect(ssl=context) as client:
                await client.reader.read()
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))
        assert worker.count(Cell.TLS_HANDSHAKE_FAILURES) == 1
        assert worker.refusals == ({} if ciphers else {"tls_client_certificate": 1})


@pytest.mark.parametrize(
    ("http", "offered", "chosen"),
    [
        ({}, ("http/1.0",), "http/1.0"),
        ({}, ("h3", "http/1.1"), "http/1.1"),
        ({}, ("ftp", "h3"), None),
        ({"http1": False}, ("http/1.1",), None),
        ({"http2": False}, ("h2",), None),
        ({"http2": False}, ("h2", "http/1.1"), "http/1.1"),
    ],
)
async def test_client_that_offers_none_of_our_protocols_is_told(http, offered, chosen):
    async with serve_app(hello, secure=True, http=http) as worker:
        context = certificates().client_context(*offered)
        if chosen:
            async with await worker.connect(ssl=context) as client:
                assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == chosen
                client.get()
                assert (await client.read_response())[0] == 200
            return
        with pytest.raises(ssl.SSLError, match=r"(?i)alert no application protocol"):
            await worker.connect(ssl=context)
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))
        assert worker.refusals == {"tls_no_protocol": 1}


async def test_hello_may_come_in_pieces():
    async with serve_app(hello, secure=True) as worker:
        context = certificates().client_context("http/1.1")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        async with await worker.connect(ssl=None, server_hostname=None) as client:
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            for byte in outgoing.read():
                client.writer.write(bytes([byte]))
                await client.writer.drain()
                await asyncio.sleep(0)
            while outgoing.pending == 0:  # until the client's Finished
                incoming.write(await client.reader.read(65536))
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
            assert tls.selected_alpn_protocol() == "http/1.1"


async def test_handshake_that_takes_too_long_is_given_up():
    async with serve_app(hello, secure=True, tls={"handshake_timeout": 0.1}) as worker:
        async with await worker.connect(ssl=None, server_hostname=None) as client:
            await client.read_to_end()
            await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))
            assert worker.refusals == {"tls_handshake_timeout": 1}


async def test_client_that_goes_within_the_handshake_leaves_nothing():
    async with serve_app(hello, secure=True) as worker:
        async with await worker.connect(ssl=None, server_hostname=None) as client:
            client.writer.write(b"\x16\x03\x01")
            await worker.wait_until(lambda: worker.count(Cell.TCP_ADOPTED))
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED))


async def test_request_timeout_after_the_handshake():
    async with serve_app(hello, secure=True, http1={"header_timeout": 0.1}) as worker:
        async with await worker.connect() as client:
            assert (await client.read_response())[0] == 408


async def test_reloaded_certificate_is_for_new_connections():
    from asgiri.worker.transport.tls import ServerTls

    async with serve_app(hello, secure=True) as worker, await worker.connect() as early:
        config = worker.services.config
        worker.endpoint.tls = ServerTls(config.tls, config.http)
        async with await worker.connect() as late:
            for client in (early, late):
                client.get()
                assert (await client.read_response())[0] == 200


async def test_alpn_tells_the_version():
    async with serve_app(hello, secure=True, http={"http2": False}) as worker:
        context = certificates().client_context("http/1.1")
        async with await worker.connect(ssl=context) as client:
            chosen = client.writer.get_extra_info("ssl_object").selected_alpn_protocol()
            assert chosen == "http/1.1"
