"""Our transport of TLS, between asyncio's of TCP and a protocol; a real client on a socketpair."""

import asyncio
import contextlib
import contextvars
import socket
import ssl

import pytest
import trustme

from asgiri.worker.transport import tls_stream
from asgiri.worker.transport.tls_stream import NoCommonProtocolError, TlsTransport

AUTHORITY = trustme.CA()
SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
AUTHORITY.issue_cert("localhost").configure_cert(SERVER)
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
LARGE = bytes(range(256)) * 4096


class Recorder(asyncio.Protocol):
    """Notes what it is told; `gone` is set at the end."""

    def __init__(self):
        self.received = b""
        self.told = []
        self.made = asyncio.Event()
        self.changed = asyncio.Event()
        self.gone = asyncio.Event()

    def connection_made(self, transport):
        self.transport = transport
        self.made.set()

    def data_received(self, data):
        self.received += data
        self.changed.set()

    def eof_received(self):
        self.told.append("eof")

    def pause_writing(self):
        self.told.append("pause")
        self.changed.set()

    def resume_writing(self):
        self.told.append("resume")
        self.changed.set()

    def connection_lost(self, exc):
        self.told.append("lost")
        self.gone.set()

    async def until(self, condition):
        while not condition():
            self.changed.clear()
            await self.changed.wait()


class Client:
    """The other side, by hand: what it has received is read when it says so."""

    def __init__(self, connection, context):
        self.loop = asyncio.get_running_loop()
        self.socket = connection
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    async def flush(self):
        if data := self.outgoing.read():
            await self.loop.sock_sendall(self.socket, data)

    async def call(self, function, *arguments):
        """One of OpenSSL's, with what it needs from the server."""
        while True:
            try:
                result = function(*arguments)
            except ssl.SSLWantReadError:
                await self.flush()
                data = await self.loop.sock_recv(self.socket, 65536)
                self.incoming.write(data) if data else self.incoming.write_eof()
            else:
                await self.flush()
                return result

    async def read(self, size):
        data = b""
        while len(data) < size:
            part = await self.call(self.tls.read, size - len(data))
            assert part, "the server has closed"
            data += part
        return data

    async def send(self, *parts):
        """Each in a record of its own, all at once."""
        for part in parts:
            self.tls.write(part)
        await self.flush()


@contextlib.asynccontextmanager
async def connect(*, handshake_timeout=10.0, version=ssl.TLSVersion.TLSv1_3, offered=(), alpn=()):
    """A client before its handshake, the server's protocol, its transport, and its failures."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    protocol, failures = Recorder(), []
    transport = TlsTransport(
        loop,
        protocol,
        SERVER,
        offered=frozenset(offered),
        handshake_timeout=handshake_timeout,
        failed=lambda error: (failures.append(error), protocol.gone.set()),
    )
    await loop.connect_accepted_socket(lambda: transport, ours)
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    context.maximum_version = context.minimum_version = version
    if alpn:
        context.set_alpn_protocols(alpn)
    with theirs:
        yield Client(theirs, context), protocol, transport, failures
        transport.abort()
    await protocol.gone.wait()


@contextlib.asynccontextmanager
async def connected(**options):
    async with connect(**options) as (client, protocol, transport, failures):
        await client.call(client.tls.do_handshake)
        await protocol.made.wait()
        yield client, protocol, transport
        assert not failures


@pytest.mark.parametrize("version", VERSIONS)
async def test_bytes_pass_in_both_directions(version):
    async with connected(version=version) as (client, protocol, transport):
        await client.send(b"hello", b"again")
        await protocol.until(lambda: protocol.received == b"helloagain")
        transport.write(b"well")
        transport.write(b"")
        transport.writelines([b"come", bytearray(b" "), memoryview(b"in")])
        assert await client.read(11) == b"wellcome in"
        assert transport.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
        assert transport.get_extra_info("socket").fileno() >= 0
        assert transport.get_extra_info("nothing", "default") == "default"
        assert transport.is_reading()
        assert not transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            transport.write_eof()


@pytest.mark.parametrize("version", VERSIONS)
async def test_much_passes_in_both_directions_and_holds_the_writer_back(version):
    async with connected(version=version) as (client, protocol, transport):
        transport.set_write_buffer_limits(65536, 16384)
        transport.write(LARGE)
        assert protocol.told == ["pause"]
        assert transport.get_write_buffer_size() > 65536
        assert await client.read(len(LARGE)) == LARGE
        await protocol.until(lambda: protocol.told == ["pause", "resume"])
        await client.send(LARGE)
        await protocol.until(lambda: len(protocol.received) == len(LARGE))
        assert protocol.received == LARGE


async def test_request_that_comes_with_the_end_of_the_handshake_is_read():
    async with connect() as (client, protocol, _, _):
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        await client.flush()
        client.incoming.write(await client.loop.sock_recv(client.socket, 65536))
        client.tls.do_handshake()
        await client.send(b"at once")
        await protocol.until(lambda: protocol.received == b"at once")


async def test_records_may_come_byte_by_byte():
    async with connected() as (client, protocol, _):
        client.tls.write(b"slow")
        for byte in client.outgoing.read():
            await client.loop.sock_sendall(client.socket, bytes([byte]))
            await asyncio.sleep(0)
        await protocol.until(lambda: protocol.received == b"slow")


async def test_nothing_is_delivered_while_reading_is_paused_not_even_what_has_come():
    async with connected() as (client, protocol, transport):
        contexts = []
        variable = contextvars.ContextVar("whose", default="the connection's")
        original = protocol.data_received

        def pause_at_first(data):
            contexts.append(variable.get())
            original(data)
            if data == b"one":
                transport.pause_reading()

        protocol.data_received = pause_at_first
        await client.send(b"one", b"two")
        await protocol.until(lambda: protocol.received)
        for _ in range(5):
            await asyncio.sleep(0)
        assert protocol.received == b"one"
        assert not transport.is_reading()
        variable.set("the caller's")
        transport.resume_reading()
        assert protocol.received == b"one"
        await protocol.until(lambda: protocol.received == b"onetwo")
        assert contexts == ["the connection's"] * 2


@pytest.mark.parametrize("version", VERSIONS)
async def test_close_sends_what_is_written_and_waits_for_the_peers_close_notify(version):
    async with connected(version=version) as (client, protocol, transport):
        transport.write(LARGE)
        transport.close()
        transport.write(b"too late")
        assert transport.is_closing()
        assert await client.read(len(LARGE)) == LARGE
        # What is under way from the client is thrown away, and resets nothing.
        await client.send(LARGE[:65536])
        assert await client.call(client.tls.read, 1) == b""
        assert not protocol.gone.is_set()
        client.tls.unwrap()
        await client.flush()
        await protocol.gone.wait()
        assert client.socket.recv(1) == b""
        assert protocol.received == b""


async def test_close_while_reading_is_paused_ends_too():
    async with connected() as (client, protocol, transport):
        transport.pause_reading()
        await client.send(LARGE[:1000])
        transport.close()
        assert await client.call(client.tls.read, 1) == b""
        client.tls.unwrap()
        await client.flush()
        await protocol.gone.wait()
        assert protocol.received == b""


async def test_peer_that_never_says_close_notify_is_given_up(monkeypatch):
    monkeypatch.setattr(tls_stream, "SHUTDOWN_TIMEOUT", 0.05)
    async with connected() as (_, protocol, transport):
        transport.close()
        await protocol.gone.wait()


@pytest.mark.parametrize("version", VERSIONS)
async def test_close_notify_of_the_peer_ends_the_connection_in_order(version):
    async with connected(version=version) as (client, protocol, _):
        client.tls.write(b"last")
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.unwrap()
        await client.flush()
        await client.call(client.tls.unwrap)
        await protocol.gone.wait()
        assert protocol.received == b"last"
        assert protocol.told == ["eof", "lost"]


async def test_end_without_close_notify_ends_the_connection():
    async with connected() as (client, protocol, _):
        await client.send(b"last")
        client.socket.shutdown(socket.SHUT_WR)
        await protocol.gone.wait()
        assert protocol.received == b"last"
        assert protocol.told == ["lost"]
        assert await client.call(client.tls.read, 1) == b""


async def test_record_that_was_changed_is_answered_by_an_alert():
    async with connected() as (client, protocol, _):
        client.tls.write(b"secret")
        record = bytearray(client.outgoing.read())
        record[-1] ^= 1
        await client.loop.sock_sendall(client.socket, record)
        with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac"):
            await client.call(client.tls.read, 1)
        await protocol.gone.wait()
        assert protocol.received == b""
        assert protocol.told == ["lost"]


async def test_bytes_behind_a_failure_or_an_end_are_ignored():
    async with connected() as (client, protocol, transport):
        transport.close()
        assert await client.call(client.tls.read, 1) == b""
        await client.loop.sock_sendall(client.socket, b"nonsense" * 10)
        await protocol.gone.wait()
        transport.data_received(b"more")
        transport.pause_reading()
        transport.resume_reading()
        transport.close()
        assert protocol.told == ["lost"]


async def test_protocol_can_be_exchanged():
    async with connected() as (client, protocol, transport):
        successor = Recorder()
        assert transport.get_protocol() is protocol
        transport.set_protocol(successor)
        await client.send(b"new")
        await successor.until(lambda: successor.received == b"new")
        transport.set_protocol(protocol)


async def test_handshake_timeout():
    async with connect(handshake_timeout=0.02) as (_, protocol, _, failures):
        await protocol.gone.wait()
        assert [type(error) for error in failures] == [ConnectionAbortedError]
        assert not protocol.told


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_client_that_goes_in_the_handshake(how):
    async with connect() as (client, protocol, transport, failures):
        client.socket.send(b"\x16\x03\x01")
        if how == "end":
            client.socket.shutdown(socket.SHUT_WR)
        else:
            transport.abort()
        await protocol.gone.wait()
        assert [type(error) for error in failures] == [ConnectionResetError]
        assert not protocol.told


async def test_cleartext_is_refused():
    async with connect() as (client, protocol, _, failures):
        client.socket.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await protocol.gone.wait()
        assert [error.reason for error in failures] == ["HTTP_REQUEST"]


async def test_client_without_a_common_protocol_gets_the_alert():
    async with connect(offered={b"h2"}, alpn=["spdy"]) as (client, protocol, _, failures):
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            await client.call(client.tls.do_handshake)
        await protocol.gone.wait()
        assert [type(error) for error in failures] == [NoCommonProtocolError]
