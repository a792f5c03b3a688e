"""Targets for what comes over UDP: the master's steering, a worker's endpoint, QUIC frames, HTTP/3.

Packets are encrypted, so that bytes at random would test the AEAD. Scripts build real packets
around the parts that vary: by the keys of a real client where there is one.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
from collections.abc import Iterable
from typing import Any

from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicPacketBuilderStop
from aioquic.tls import Epoch

from asgiri.ipc.connection_id import ConnectionIdCodec, ConnectionIdKind, ConnectionIdMint
from asgiri.ipc.scoreboard import PAGE_SIZE, Cell, DropReason, Scoreboard
from asgiri.ipc.tokens import QuicSecrets, ResetTokens, RetryTokens
from asgiri.master.admission import RetryMode
from asgiri.master.dispatcher import BalancePolicy, Dispatcher
from asgiri.master.steering import Steering, is_one_train
from asgiri.worker.protocol import http3_frames
from asgiri.worker.protocol.http3_frames import FrameViolation, write_integer
from asgiri.worker.protocol.qpack import FieldSections, SectionTooLargeError
from asgiri.worker.protocol.quic import parse_initial_untrusted
from tests.fuzz.application import Application
from tests.fuzz.script import Script, pack
from tests.fuzz.target import Target
from tests.support.quic_client import client_configuration
from tests.support.quic_pair import GET, POST, SERVER_ADDRESS, Pair
from tests.support.quic_worker import QuicWorker

SECRETS = QuicSecrets.derive(b"a root secret of the fuzzer's")
CODEC = ConnectionIdCodec(SECRETS.connection_id_key, server_id=SECRETS.server_id)
VERSIONS = (1, 0x6B3343CF, 0, 0x0A0A0A0A, 0xFFFFFFFF)

# Steering: the master reads the first packet's header, and nothing else


class _Worker:
    """Destination and load."""

    def __init__(self) -> None:
        self.half_open = 0
        self.ring_fill = 0.0


class _Front:
    """A master's steering, with two ready workers and one that is gone."""

    def __init__(self, retry: RetryMode) -> None:
        def randomness(size: int) -> bytes:
            return bytes(size)

        self.now = 1000.0
        self.mint = ConnectionIdMint(CODEC, 0, random=randomness)
        self.retry_tokens = RetryTokens(SECRETS.token_key, random=randomness)
        dispatcher = Dispatcher(
            BalancePolicy.LEAST_LOADED, random=random.Random(1).random, hash_key=b"key"
        )
        self.steering: Steering[_Worker] = Steering(
            codec=CODEC,
            mint=self.mint,
            reset_tokens=ResetTokens(SECRETS.reset_key),
            retry_tokens=self.retry_tokens,
            chooser=dispatcher,
            random=randomness,
            retry=retry,
            map_capacity=8,
        )
        for worker_id in (1, 2):
            page = Scoreboard(memoryview(bytearray(PAGE_SIZE)))
            page.set(Cell.BEAT_NS, 1 << 62)
            dispatcher.add_worker(worker_id, worker_id, page)
            worker = _Worker()
            self.steering.add_worker(worker_id, worker, worker)
        dispatcher.set_ready((1, 2))
        self.steering.set_ready((1, 2))


def run_steering(data: bytes) -> None:
    script = Script(data)
    front = _Front(script.choice(list(RetryMode)))
    answered = steered = count = 0
    while script:
        datagram = _header(script, front)
        address = ("192.0.2.1", script.byte() + 1)
        answer = front.steering.steer_untrusted(datagram, address, front.now)
        count += 1
        front.now += 0.01
        if isinstance(answer, bytes):
            assert len(answer) < len(datagram), "no answer is longer than what it answers"
            answered += 1
        elif isinstance(answer, _Worker):
            steered += 1
        else:
            assert isinstance(answer, DropReason)
        is_one_train(datagram, script.byte() * 8)
        parse_initial_untrusted(datagram)
    statistics = front.steering.statistics()
    assert sum(statistics.drops.values()) + answered + steered == count
    assert statistics.map_entries <= 8


def _header(script: Script, front: _Front) -> bytes:
    """A datagram: raw, or with a short or a long header, cut or filled up."""
    kind = script.byte()
    if kind < 64:
        return script.take()
    connection_id = _connection_id(script, front)
    size = script.choice((1200, 1199, 50, 22, 21, 300))
    if kind < 128:
        return (bytes((0x40 | kind & 0x3F,)) + connection_id + script.take()).ljust(size, b"\0")
    version = script.choice(VERSIONS)
    source = script.take()
    token = script.take()
    if script.byte() & 1:
        address = ("192.0.2.1", script.byte() + 1)
        token = front.retry_tokens.seal(address, script.take()[:20], connection_id, front.now)
    length = 0x4000 | len(token) if script.byte() & 1 else script.integer(2)
    head = (
        bytes((kind,))
        + version.to_bytes(4)
        + bytes((len(connection_id) & 0xFF,))
        + connection_id[:255]
        + bytes((len(source) & 0xFF,))
        + source[:255]
        + length.to_bytes(2)
        + token
    )
    return head.ljust(size, b"\0") if script.byte() & 1 else head


def _connection_id(script: Script, front: _Front) -> bytes:
    kind = script.byte()
    if kind & 1:
        return script.take()
    what = script.choice(list(ConnectionIdKind))
    return front.mint.mint_for(script.choice((1, 2, 3)), what)


def steering_seeds() -> Iterable[bytes]:
    initial = pack(0xC0, 1, b"12345678", 0, 0, b"client", b"", 0, 1, 1, 5, 3)
    retried = pack(0xC0, 0, 1, 0, 0, 0, b"client", b"", 1, 5, b"12345678", 1, 1, 5, 3)
    return [
        pack(retry) + steps
        for retry in range(3)
        for steps in (
            initial + initial + pack(0xE0, 1, b"12345678", 0, 0, b"client", b"", 0, 1, 1, 5, 3),
            retried + pack(0x41, 0, 0, 0, 0, b"payload", 5, 3),
            pack(0x41, 0, 0, 2, 0, b"payload", 5, 3) * 2,
            pack(0xC0, 1, b"12345678", 0, 3, b"client", b"", 0, 1, 1, 5, 3),
            pack(0, b"\xc0\0\0\0\1\xff", 5, 3) + pack(0, bytes(30), 1, 1),
        )
    ]


# QUIC frames: what a peer with keys can say


_EPOCHS = (Epoch.ONE_RTT, Epoch.INITIAL, Epoch.HANDSHAKE)


def run_quic(data: bytes) -> None:
    """Frames forged into packets, before or after the handshake; broken datagrams in between."""
    script = Script(data)
    mode = script.byte()
    pair = Pair(connect=bool(mode & 1))
    application = Application(pair.engine)
    if not mode & 1:
        pair.client.connect(SERVER_ADDRESS, now=pair.now)
        if mode & 2:
            pair.step()
    while script and not application.is_over:
        step = script.byte()
        if step < 128:
            _forge(pair, script, _EPOCHS[0 if mode & 1 else 1 + (step & 1)])
        elif step < 160:
            pair.to_server(script.take())
        elif step < 192:
            application.act(script)
        elif step < 224:
            pair.now += script.byte() / 50
            pair.handle_timer(pair.now)
        else:
            pair.run(0.05)
        application.handle(pair.take_events())
    pair.run(0.1)
    application.handle(pair.take_events())
    assert len(pair.quic._streams) <= 2 * 128 + 16


def _forge(pair: Pair, script: Script, epoch: Epoch) -> None:
    payload = (script.choice(_FRAMES) + script.take())[:1000]
    payload += bytes(max(0, 4 - len(payload)))
    try:
        datagram = pair.forge(payload, epoch)
    except (AssertionError, KeyError, QuicPacketBuilderStop, ValueError, TypeError):
        return  # the client has no keys of this kind, or none any more
    pair.to_server(datagram)


_FRAMES = (
    b"",
    b"\x01",  # PING
    b"\x02\x00\x00\x00\x00",  # ACK
    b"\x04\x00\x00\x00",  # RESET_STREAM
    b"\x05\x00\x00",  # STOP_SENDING
    b"\x06\x40\x00\x04abcd",  # CRYPTO
    b"\x0b\x00\x05hello",  # STREAM
    b"\x0e\x00\x41\x00\x05hello",
    b"\x10\x80\x00\xff\xff",  # MAX_DATA
    b"\x11\x00\x40\xff",
    b"\x14\x01\x15\x00\x01\x16\x01",
    b"\x18\x08\x00\x08abcdefgh" + bytes(16),  # NEW_CONNECTION_ID
    b"\x19\x00",  # RETIRE_CONNECTION_ID
    b"\x1a12345678",  # PATH_CHALLENGE
    b"\x1b12345678",
    b"\x1c\x00\x00\x00",  # CONNECTION_CLOSE
    b"\x1e",  # HANDSHAKE_DONE
    b"\x30datagram",
)


def quic_seeds() -> Iterable[bytes]:
    for index in range(len(_FRAMES)):
        yield pack(1, 0, index, b"", 230, 0, index, b"\x01", 200, 50, 230)
        yield pack(index & 2, index & 1, index, b"", 230)
    yield pack(1, 130, bytes(40), 130, b"\x41" + bytes(30), 230)


# HTTP/3: streams, after the handshake


def run_http3(data: bytes) -> None:
    script = Script(data)
    pair = Pair()
    application = Application(pair.engine)
    streams: list[int] = [2]
    while script and not application.is_over:
        step = script.byte()
        if step < 96 or pair.client._close_event is not None:
            _say(pair, script, streams)
        elif step < 160:
            application.act(script)
        elif step < 176:
            stream = script.choice(streams)
            if stream & 2 == 0:
                pair.client.reset_stream(stream, script.byte())
        elif step < 192:
            pair.now += script.byte() / 50
            pair.handle_timer(pair.now)
        else:
            pair.run(0.05)
        application.handle(pair.take_events())
        pair.say()
        application.handle(pair.take_events())
    pair.run(0.1)
    application.handle(pair.take_events())


def _say(pair: Pair, script: Script, streams: list[int]) -> None:
    """Open a stream or go on with one: whole frames, or bytes."""
    kind = script.byte()
    payload = b""
    for _ in range(1 + (kind >> 6)):
        payload += _http3_frame(pair, script)
    ended = bool(kind & 1)
    try:
        if kind & 6 == 0 and len(streams) < 64:
            streams.append(pair.open(payload, ended=ended))
        elif kind & 6 == 2 and len(streams) < 64:
            streams.append(pair.open_uni(write_integer(script.byte() & 7) + payload))
        else:
            pair.send(script.choice(streams), payload, ended=ended)
    except (AssertionError, RuntimeError, ValueError):
        pass  # the client has ended that stream


def _http3_frame(pair: Pair, script: Script) -> bytes:
    kind = script.byte()
    if kind < 64:
        return script.take()
    if kind < 160:
        return pair.section(script.choice(_SECTIONS))
    if kind < 224:
        number = script.choice((0, 1, 3, 4, 5, 7, 0xD, 0xF0700, 0x21, 2, 6, 8, 9))
        return http3_frames.frame(number, script.take())
    return http3_frames.frame(http3_frames.HEADERS, b"\0\0" + script.take())


_SECTIONS: tuple[list[tuple[bytes, bytes]], ...] = (
    GET,
    POST,
    [*POST, (b"content-length", b"5")],
    [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]],
    [(b":method", b"CONNECT"), (b":authority", b"a:1")],
    [(b"x-trailer", b"1")],
    [*GET, (b"Upper", b"x")],
)


def http3_seeds() -> Iterable[bytes]:
    answer, flush = pack(100, 21, 0, 2, 0), pack(200)
    return [
        pack(0, 1, 64, 0) + answer + flush,
        pack(0, 65, 64, 2, 160, 0, b"hello") + pack(100, 0, 0) + answer + flush,
        pack(0, 64, 64, 3, 160, 0, b"ws") + pack(100, 5, 0, 2) + flush,
        pack(0, 0, 64, 1, 164, 1, 8) + flush,
        pack(0, 2, 0, b"\x3f\xe1\x1f\xc0\x01y", 2) + flush,
        pack(0, 2, 0, b"\x00", 3) + pack(0, 4, 163, b"\x06\x40\x64", 0) + flush,
        pack(0, 0, 224, b"\xd1\xd7\x50\x01a\xc1") + answer + flush,
        pack(0, 4, 167, 7, b"\x00", 0) + pack(100, 255, 200, 100, 254, 200),
        pack(0, 129, 64, 1, 160, 0, b"x", 64, 5) + answer + flush,
    ]


# QPACK: pylsqpack is C, and given what nobody has looked at before


def run_qpack(data: bytes) -> None:
    script = Script(data)
    sections = FieldSections(16384)
    blocked: set[int] = set()
    stream_id = 0
    while script:
        step = script.byte()
        try:
            if step < 100:
                for resumed in sections.encoder_stream_received(script.take()):
                    if resumed in blocked and sections.resume(resumed) is not None:
                        blocked.discard(resumed)
            elif step < 200:
                stream_id += 4
                if sections.decode(stream_id, script.take()) is None:
                    blocked.add(stream_id)
            elif step < 220:
                sections.decoder_stream_received(script.take())
            elif blocked:
                sections.cancel(blocked.pop())
        except SectionTooLargeError:
            continue
        except FrameViolation:
            return
    assert len(sections.take_output()) <= len(data) * 4 + 16


def qpack_seeds() -> Iterable[bytes]:
    return [
        pack(100, b"\0\0\xd1\xd7\x50\x01a\xc1"),
        pack(0, b"\x3f\xe1\x1f", 0, b"\x42xy\x03abc", 100, b"\x02\x00\x80", 200, b"\x80"),
        pack(100, b"\x02\x00\x80", 0, b"\x3f\xe1\x1f\x42xy\x03abc", 230),
        pack(100, b"\x03\x81\x10\x80", 230, 0, b"\x02\x80\xc1\x01y"),
        pack(200, b"\x81\x41\x01", 100, b"\0\0\x27\x01abcdefgh\x03xyz"),
    ]


# A worker's endpoint: datagrams as the master passes them on


class _Endpoint:
    """One for all inputs of a process: what it keeps is bounded, and part of what is tested."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.errors: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self.worker = self.loop.run_until_complete(self._start())

    async def _start(self) -> QuicWorker:
        return QuicWorker(_answer)

    def turn(self) -> None:
        self.loop.run_until_complete(_three_turns())
        if self.errors:
            context = self.errors.pop()
            raise context.get("exception") or AssertionError(context["message"])


async def _three_turns() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"ok"})


_endpoint = functools.cache(_Endpoint)


def run_endpoint(data: bytes) -> None:
    endpoint = _endpoint()
    script = Script(data)
    client: QuicConnection | None = None
    while script:
        step = script.byte()
        address = ("127.0.0.1", 1 + script.byte())
        if step < 100:
            datagrams = [_worker_header(script, endpoint.worker)]
        else:
            if client is None:
                client = QuicConnection(configuration=client_configuration())
                client.connect(SERVER_ADDRESS, now=endpoint.loop.time())
            now = endpoint.loop.time()
            datagrams = [_spoil(sent, script) for sent, _ in client.datagrams_to_send(now)]
        for datagram in datagrams:
            endpoint.worker.pass_on(datagram, address)
        endpoint.turn()


def _worker_header(script: Script, worker: QuicWorker) -> bytes:
    kind = script.byte()
    endpoint = worker.endpoint
    if kind < 64:
        return script.take()
    connection_id = (
        script.take()
        if kind & 1
        else endpoint._mint.mint(
            ConnectionIdKind.RETRY if kind & 2 else ConnectionIdKind.CONNECTION
        )
    )
    if kind < 160:
        return bytes((0x40,)) + connection_id + script.take()
    token = script.take()
    if kind & 4:
        token = worker.retry_tokens.seal(
            ("127.0.0.1", 1 + script.byte()), os.urandom(8), connection_id, endpoint._services.now()
        )
    version = script.choice(VERSIONS)
    head = bytes((0xC0 | kind & 0x3F,)) + version.to_bytes(4)
    head += bytes((len(connection_id) & 0xFF,)) + connection_id[:255] + b"\x04abcd"
    return (head + write_integer(len(token)) + token + script.take()).ljust(1200, b"\0")


def _spoil(datagram: bytes, script: Script) -> bytes:
    at = script.integer(2) % len(datagram)
    return datagram[:at] + script.take() + datagram[at + (script.byte() & 3) :]


def endpoint_seeds() -> Iterable[bytes]:
    return [
        pack(100, 5, 0, 0, b"", 0),
        pack(100, 5, 0, 200, b"x", 1, 100, 5, 0, 5, b"", 1),
        pack(0, 5, 160, b"", 0, b"x"),
        pack(0, 5, 161, b"12345678", b"", 0, b"x"),
        pack(0, 5, 164 | 2, b"", 9, 0, b"x"),
        pack(0, 5, 64, b"short"),
        pack(0, 5, 0, bytes(50)),
    ]


TARGETS = {
    "steering": Target(run_steering, steering_seeds),
    "quic": Target(run_quic, quic_seeds, longest=1024),
    "http3": Target(run_http3, http3_seeds, longest=1024),
    "qpack": Target(run_qpack, qpack_seeds),
    "endpoint": Target(run_endpoint, endpoint_seeds, longest=1024),
}
