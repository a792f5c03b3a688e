"""Target for the TLS of TCP connections: a real client whose flights are spoilt on their way."""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Iterable

from asgiri.worker.transport.tls_stream import TlsTransport
from tests.fuzz.script import Script, pack
from tests.fuzz.target import Target
from tests.support.certificates import certificates

_LARGE = 100_000


class _Wire(asyncio.Transport):
    """What is below: keeps what is written, and closes when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed, "written behind the end"
        self.written += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class _Above(asyncio.Protocol):
    """What is above: echoes, and checks that it is told things in order."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.ended = 0
        self.failed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self.transport is None
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert data
        assert self.transport is not None
        assert not self.ended
        self.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended += 1

    def fail(self, error: Exception) -> None:
        assert self.transport is None
        self.failed += 1


@functools.cache
def _contexts() -> tuple[ssl.SSLContext, ssl.SSLContext, asyncio.AbstractEventLoop]:
    files = certificates()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certfile, files.keyfile)
    server.set_alpn_protocols(["h2", "http/1.1"])
    return server, files.client_context("h2"), asyncio.new_event_loop()


def run_tls(data: bytes) -> None:
    script = Script(data)
    server, client_context, loop = _contexts()
    above, wire = _Above(), _Wire()
    transport = TlsTransport(
        loop,
        above,
        server,
        offered=frozenset((b"h2",)),
        handshake_timeout=60.0,
        failed=above.fail,
    )
    transport.connection_made(wire)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while script and not wire.closed:
        step = script.byte()
        if step < 150:
            _speak(client, script)
            flight = outgoing.read()
            if step >= 100 and flight:
                at = script.integer(2) % len(flight)
                flight = flight[:at] + script.take() + flight[at + (script.byte() & 3) :]
            for part in script.cut(flight):
                if not wire.closed:
                    transport.data_received(part)
        elif step < 180:
            transport.data_received(script.take() or b"\0")
        elif step < 200:
            transport.pause_reading()
        elif step < 220:
            transport.resume_reading()
        elif step < 235:
            transport.close()
        elif step < 245:
            transport.eof_received()
        loop.run_until_complete(asyncio.sleep(0))
        incoming.write(wire.written)
        wire.written = b""
    wire.closed = True
    transport.connection_lost(None)
    transport._timer.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    assert above.failed + (above.transport is not None) == 1
    assert above.ended == (above.transport is not None)


def _speak(client: ssl.SSLObject, script: Script) -> None:
    """Go on with the handshake, or say something."""
    try:
        client.do_handshake()
        what = script.byte()
        if what == 255:
            client.unwrap()
        else:
            client.write(bytes(_LARGE) if what == 254 else script.take() or b"x")
            client.read(1 << 20)
    except (ssl.SSLError, ValueError):
        pass  # it wants more, or has seen what was spoilt


def tls_seeds() -> Iterable[bytes]:
    shake, say, end = pack(0, 0), pack(0, 0, b"hello", 0), pack(0, 255, 0)
    return [
        shake + shake + say * 3 + end,
        shake + shake + say + pack(190) + say + pack(210) + say + pack(225) + end,
        shake + shake + pack(0, 254, 0) + say + pack(240),
        shake + pack(100, 0, 9, b"\xff", 1, 0),
        pack(100, 0, 60, b"", 0, 0) + shake,
        shake + shake + pack(100, 0, b"x", 0, 7, b"\0", 1, 0) + say,
        pack(150, b"\x16\x03\x01\x00\x00") + pack(150, b"GET / HTTP/1.1\r\n\r\n"),
        shake + pack(150, b"\x15\x03\x03\x00\x02\x02\x28") + say,
    ]


TARGETS = {"tls": Target(run_tls, tls_seeds, longest=512)}
