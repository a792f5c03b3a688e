"""HTTP/2 over real sockets: versions, batches, back-pressure, patience, drain."""

import asyncio
import contextlib
import hashlib
import json
import socket

import h2.events
import pytest

from asgiri.ipc.scoreboard import Cell
from asgiri.worker.protocol.sniff import HTTP2_PREFACE
from asgiri.worker.transport.http1 import H2C_MAX_BODY
from asgiri.worker.transport.http2 import MAX_UNREAD_ANSWERS
from tests.support.apps import app, pattern
from tests.support.certificates import certificates
from tests.support.client import ExchangeFailed, FailureKind, request
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.stream import ByteStream
from tests.support.worker import serve_app

ON_BOTH_EVENT_LOOPS = True
WITHOUT_TRANSPORTS_TOO = True

PING, SETTINGS, GOAWAY, RST_STREAM = 6, 4, 7, 3


def frame(kind, stream_id=0, payload=b"", flags=0):
    head = len(payload).to_bytes(3) + bytes([kind, flags]) + stream_id.to_bytes(4)
    return head + payload


def frames(raw):
    """(kind, stream id, payload) of each whole frame."""
    while len(raw) >= 9:
        end = 9 + int.from_bytes(raw[:3])
        yield raw[3], int.from_bytes(raw[5:9]), raw[9:end]
        raw = raw[end:]


@contextlib.asynccontextmanager
async def serving(call=app, *, connect=True, tls=False, receive_buffer=None, **options):
    """Yields the worker and a client's connection."""
    connection = None
    async with serve_app(call, secure=tls, **options) as worker:
        if connect:
            context = certificates().client_context("h2") if tls else None
            connection = await Http2Connection.connect(
                *worker.address, tls=context, receive_buffer=receive_buffer
            )
        try:
            yield worker, connection
        finally:
            if connection is not None:
                await connection.close()


class Gate:
    """An application that waits, once per request, until the test lets it go on."""

    def __init__(self):
        self.calls = []
        self.go = asyncio.Event()
        self.disconnected = 0

    async def __call__(self, scope, receive, send):
        self.calls.append(scope["path"])
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})


async def wait_read(receive, send, *, answer=b"done"):
    while (message := await receive())["type"] == "http.request" and message["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": answer})


# Which version


@pytest.mark.parametrize("tls", [False, True])
async def test_streams_are_answered(tls):
    async with serving(tls=tls) as (worker, connection):
        for _ in range(3):
            assert (await request(connection, "GET", "/hello")).body == b"Hello, world!"
        scope = json.loads((await request(connection, "GET", "/scope?a=b")).body)
        assert scope["http_version"] == "2"
        assert scope["scheme"] == ("https" if tls else "http")
        assert ("tls" in scope["extensions"]) == tls
        assert worker.count(Cell.REQUESTS_HTTP2) == 4
        assert worker.refusals == {}


@pytest.mark.parametrize("size", [1, 3, 23, 24, 25])
async def test_preface_may_come_in_pieces(size):
    async with serving(connect=False) as (worker, _):
        stream = await ByteStream.connect(*worker.address)
        raw = HTTP2_PREFACE + frame(SETTINGS) + frame(PING, payload=b"question")
        for start in range(0, len(raw), size):
            await stream.write(raw[start : start + size])
            await asyncio.sleep(0)
        received = b""
        while b"question" not in received:
            received += await stream.read()
        kinds = [kind for kind, _, _ in frames(received)]
        assert kinds[0] == SETTINGS
        assert worker.refusals == {}
        stream.close()


async def test_preface_that_stops_gets_its_answer_when_the_time_is_over():
    async with serving(connect=False, http1={"header_timeout": 0.1}) as (worker, _):
        stream = await ByteStream.connect(*worker.address)
        await stream.write(HTTP2_PREFACE[:10])
        assert (await stream.read_to_end()).startswith(b"HTTP/1.1 408 ")
        stream.close()


async def test_client_of_http1_is_refused_where_it_is_off():
    async with serving(connect=False, http={"http1": False}) as (worker, _):
        connection = await Http1Connection.connect(*worker.address)
        response = await request(connection, "GET", "/hello")
        assert response.status == 505
        assert response.header("connection") == "close"
        await connection.wait_closed()
        await connection.close()
        assert worker.refusals == {"version_disabled": 1}
        assert worker.count(Cell.REQUESTS_HTTP1) == 0


async def test_client_of_http2_is_sent_to_http1_where_it_is_off():
    async with serving(connect=False, http={"http2": False}) as (worker, _):
        connection = await Http2Connection.connect(*worker.address)
        await connection.wait_closed()
        assert connection.goaway == (0xD, 0)
        await connection.close()
        assert worker.refusals == {"version_disabled": 1}
        other = await Http1Connection.connect(*worker.address)
        assert (await request(other, "GET", "/hello")).status == 200
        await other.close()


@pytest.mark.parametrize("offered", [(), ("http/1.1",), ("h2", "http/1.1")])
async def test_alpn_or_the_first_bytes_tell_over_tls(offered):
    async with serving(connect=False, tls=True) as (worker, _):
        context = certificates().client_context(*offered)
        stream = await ByteStream.connect(*worker.address, tls=context)
        assert stream.alpn == (offered[0] if offered else None)
        if stream.alpn == "h2":
            assert next(frames(await stream.read()))[0] == SETTINGS  # unasked
        else:
            await stream.write(b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert (await stream.read_to_end()).endswith(b"Hello, world!")
        stream.close()


# The upgrade from HTTP/1.1 (RFC 7540 §3.2)

UPGRADE = (
    b"%b /%b HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\n"
    b"http2-settings: AAMAAABkAAQAAP__\r\n"
)
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"


async def upgrade(worker, *, method=b"GET", path=b"hello", more=b"\r\n"):
    """Send a request that wants to go on as HTTP/2; what comes first in the answer."""
    stream = await ByteStream.connect(*worker.address)
    await stream.write(UPGRADE % (method, path) + more)
    return stream, await stream.read()


async def read_stream_1(stream, received):
    """Speak HTTP/2 until stream 1 ends; status line and body."""
    connection = Http2Connection(stream, scheme="http")
    connection.h2.initiate_upgrade_connection()
    connection.h2.clear_outbound_data_buffer()
    await stream.write(HTTP2_PREFACE + frame(SETTINGS))
    head, body = None, b""
    while True:
        for event in connection.h2.receive_data(received):
            match event:
                case h2.events.ResponseReceived():
                    head = dict(event.headers)
                case h2.events.DataReceived():
                    body += event.data
                case h2.events.StreamEnded():
                    return head, body
        received = await stream.read()


async def test_request_goes_on_as_stream_1():
    async with serving(connect=False) as (worker, _):
        stream, answer = await upgrade(worker, path=b"scope")
        assert answer.startswith(SWITCHING)
        head, body = await read_stream_1(stream, answer.removeprefix(SWITCHING))
        assert head[b":status"] == b"200"
        scope = json.loads(body)
        assert scope["http_version"] == "2"
        assert scope["headers"] == [["host", "x"]]
        assert worker.count(Cell.TCP_OPEN) == 1
        stream.close()
        await worker.wait_until(lambda: worker.count(Cell.TCP_OPEN) == 0)


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_goes_along_with_its_request(chunked):
    content = pattern(50_000)
    if chunked:
        more = b"transfer-encoding: chunked\r\n\r\n%x\r\n" % len(content)
        more += content + b"\r\n0\r\n\r\n"
    else:
        more = b"content-length: %d\r\n\r\n" % len(content) + content
    async with serving(connect=False) as (worker, _):
        stream, answer = await upgrade(worker, method=b"POST", path=b"hash", more=more)
        assert answer.startswith(SWITCHING)
        _, body = await read_stream_1(stream, answer.removeprefix(SWITCHING))
        assert json.loads(body)["sha256"] == hashlib.sha256(content).hexdigest()
        stream.close()


async def test_frames_behind_the_request_are_not_lost():
    async with serving(connect=False) as (worker, _):
        more = b"\r\n" + HTTP2_PREFACE + frame(SETTINGS) + frame(PING, payload=b"question")
        stream, answer = await upgrade(worker, more=more)
        while b"question" not in answer:
            answer += await stream.read()
        assert answer.startswith(SWITCHING)
        stream.close()


@pytest.mark.parametrize("size", [H2C_MAX_BODY + 1, 1 << 20])
@pytest.mark.parametrize("chunked", [False, True])
async def test_long_body_is_served_by_http1(size, chunked):
    async with serving(connect=False) as (worker, _):
        content = pattern(size)
        connection = await Http1Connection.connect(*worker.address)
        fields = [
            ("connection", "upgrade, http2-settings"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
        ]
        if chunked:
            exchange = await connection.start("POST", "/hash", fields, body=None)
            for start in range(0, size, 10_000):
                await exchange.send_body(content[start : start + 10_000])
            await exchange.end_body()
        else:
            exchange = await connection.start("POST", "/hash", fields, body=content)
        assert (await exchange.head()).status == 200
        assert json.loads(await exchange.read())["sha256"] == hashlib.sha256(content).hexdigest()
        assert (await request(connection, "GET", "/scope")).status == 200
        await connection.close()


NO_UPGRADES = {
    "wrong settings": ({}, b"POST", b"\r\n", b"AAMAAABkAAQAAP__", b"!!!!"),
    "wrong settings with a body": (
        {},
        b"POST",
        b"content-length: 2\r\n\r\nhi",
        b"AAMAAABkAAQAAP__",
        b"!!!!",
    ),
    "switched off": ({"h2c_upgrade": False}, b"GET", b"\r\n", b"", b""),
    "client not trusted": ({"forwarded_allow_ips": ("192.0.2.1",)}, b"GET", b"\r\n", b"", b""),
    "http2 off": ({"http2": False}, b"GET", b"\r\n", b"", b""),
    "expects 100": (
        {},
        b"POST",
        b"expect: 100-continue\r\ncontent-length: 2\r\n\r\nhi",
        b"",
        b"",
    ),
}


@pytest.mark.parametrize(
    ("http", "method", "more", "old", "new"), NO_UPGRADES.values(), ids=NO_UPGRADES
)
async def test_request_is_served_by_http1_otherwise(http, method, more, old, new):
    async with serving(connect=False, http=http) as (worker, _):
        stream = await ByteStream.connect(*worker.address)
        await stream.write((UPGRADE % (method, b"hash")).replace(old, new) + more)
        received = b""
        while not received.endswith(b"}"):
            received += await stream.read()
        assert received.startswith(b"HTTP/1.1 200 OK\r\n")
        assert worker.refusals == ({"http1_upgrade_refused": 1} if new else {})
        stream.close()


async def test_upgrade_can_be_allowed_to_everybody():
    http = {"h2c_upgrade": True, "forwarded_allow_ips": ()}
    async with serving(connect=False, http=http) as (worker, _):
        stream, answer = await upgrade(worker)
        assert answer.startswith(SWITCHING)
        stream.close()


async def test_upgrade_is_not_for_tls():
    async with serving(connect=False, tls=True, http={"h2c_upgrade": True}) as (worker, _):
        context = certificates().client_context("http/1.1")
        stream = await ByteStream.connect(*worker.address, tls=context)
        await stream.write(UPGRADE % (b"GET", b"hello") + b"\r\n")
        assert (await stream.read()).startswith(b"HTTP/1.1 200 ")
        stream.close()


async def test_body_that_does_not_come_gets_408_also_when_it_was_to_be_upgraded():
    async with serving(connect=False, http1={"body_timeout": 0.1}) as (worker, _):
        stream = await ByteStream.connect(*worker.address)
        await stream.write(UPGRADE % (b"POST", b"hash") + b"content-length: 5\r\n\r\nab")
        assert (await stream.read_to_end()).startswith(b"HTTP/1.1 408 ")
        stream.close()


# Writing


async def test_responses_of_one_turn_leave_in_one_write(monkeypatch):
    gate = Gate()
    async with serving(gate) as (worker, connection):
        exchanges = [await connection.start("GET", f"/{number}") for number in range(10)]
        await worker.wait_until(lambda: len(gate.calls) == 10)
        (session,) = worker.services.sessions
        writes = []

        class Recorder:
            def __init__(self, transport):
                self._transport = transport

            def write(self, data):
                writes.append(data)
                self._transport.write(data)

            def __getattr__(self, name):
                return getattr(self._transport, name)

        session._transport = Recorder(session._transport)
        gate.go.set()
        for number, exchange in enumerate(exchanges):
            assert await exchange.read() == f"/{number}".encode()
        assert len(writes) == 1


@pytest.mark.parametrize("tls", [False, True])
async def test_large_bodies_go_both_ways(tls):
    async with serving(tls=tls) as (_, connection):
        content = pattern(8 << 20)
        response = await request(connection, "POST", "/hash", body=content)
        assert json.loads(response.body)["sha256"] == hashlib.sha256(content).hexdigest()
        response = await request(connection, "GET", f"/bytes?size={8 << 20}")
        assert response.body == pattern(65536) * 128


async def test_streams_of_a_slow_client_are_complete_though_the_connection_ends():
    """The drain ends while the last response is still on its way."""
    async with serving(connect=False) as (worker, _):
        connection = await Http2Connection.connect(
            *worker.address, receive_buffer=4096, stream_window=1 << 24
        )
        exchange = await connection.start("GET", "/bytes?size=4000000")
        await exchange.head()
        worker.drain()
        size = 0
        while part := await exchange.read():
            size += len(part)
        assert size == 4000000
        await connection.wait_closed()
        await connection.close()


# A client that does not read


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True])
async def test_answers_that_nobody_reads_are_bounded(tls):
    """Requests of ten bytes, heads of 5 KiB, and nobody who reads them."""
    started = 0

    async def call(scope, receive, send):
        nonlocal started
        started += 1
        headers = [(b"x-%d" % number, b"%05d" % started * 200) for number in range(5)]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body"})

    # Calls whose head has left wait for room for the body: many of them, before the heads fill it.
    many = {"max_concurrent_streams": 10_000}
    async with serving(call, tls=tls, receive_buffer=4096, http2=many) as (worker, connection):
        (session,) = worker.services.sessions
        adopted = session._transport.get_extra_info("socket")
        adopted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        connection._task.cancel()  # it reads no more
        await asyncio.wait([connection._task])
        connection.h2.remote_settings.update({3: 1 << 30})
        connection.h2.remote_settings.acknowledge()
        sent = 0
        while not worker.refusals:
            for _ in range(50):
                connection.h2.send_headers(2 * sent + 1, REQUEST, end_stream=True)
                sent += 1
            await connection.flush()
            await worker.wait_until(lambda sent=sent: worker.refusals or started == sent)
        assert worker.refusals == {"http2_output_limit": 1}
        assert session._transport.get_write_buffer_size() < MAX_UNREAD_ANSWERS + (2 << 20)
        before = started
        for _ in range(50):
            connection.h2.send_headers(2 * sent + 1, REQUEST, end_stream=True)
            sent += 1
        await connection.flush()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not session._transport.is_reading()
        assert started == before  # they are not even read
        await connection.abort()


REQUEST = [
    (b":method", b"GET"),
    (b":scheme", b"http"),
    (b":authority", b"x"),
    (b":path", b"/"),
]


async def test_reading_goes_on_when_the_client_takes_its_answers():
    async def call(scope, receive, send):
        headers = [(b"x", b"y" * 500)]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body"})

    async with serving(call, flow={"high_water": 1024, "low_water": 0}) as (worker, connection):
        (session,) = worker.services.sessions
        exchanges = [await connection.start("GET", "/") for _ in range(50)]
        session.pause_writing()  # as the transport does when the kernel takes no more
        session._reading_paused = True
        session._transport.pause_reading()
        late = await connection.start("GET", "/")
        session.resume_writing()
        for exchange in [*exchanges, late]:
            assert (await exchange.head()).status == 204


# Patience


async def test_idle_connection_is_closed_in_order():
    async with serving(http2={"idle_timeout": 0.1}) as (_, connection):
        assert (await request(connection, "GET", "/hello")).status == 200
        await connection.wait_closed()
        assert connection.goaway == (0, 1)


async def test_silent_client_is_closed_like_an_idle_one():
    async with serving(connect=False, tls=True, http2={"idle_timeout": 0.1}) as (worker, _):
        context = certificates().client_context("h2")
        stream = await ByteStream.connect(*worker.address, tls=context)
        received = await stream.read_to_end()
        assert [kind for kind, _, _ in frames(received)][-1] == GOAWAY
        stream.close()


async def test_connection_with_a_stream_is_not_idle():
    gate = Gate()
    async with serving(gate, http2={"idle_timeout": 0.05}) as (_, connection):
        exchange = await connection.start("GET", "/slow")
        await asyncio.sleep(0.3)
        gate.go.set()
        assert await exchange.read() == b"/slow"


async def test_client_is_asked_whether_it_is_there():
    async with serving(http2={"ping_interval": 0.05}) as (worker, connection):
        asked = []
        take = connection._take
        connection._take = lambda event: (asked.append(type(event)), take(event))
        await worker.wait_until(lambda: asked.count(h2.events.PingReceived) >= 3)
        assert (await request(connection, "GET", "/hello")).status == 200
        assert worker.refusals == {}


async def test_client_that_does_not_answer_is_gone():
    async with serving(connect=False, http2={"ping_interval": 0.05}) as (worker, _):
        stream = await ByteStream.connect(*worker.address)
        await stream.write(HTTP2_PREFACE + frame(SETTINGS))
        with contextlib.suppress(ConnectionError):
            await stream.read_to_end()
        await worker.wait_until(lambda: worker.count(Cell.TCP_OPEN) == 0)
        assert worker.refusals == {"http2_ping_timeout": 1}
        stream.close()


@pytest.mark.slow
async def test_client_that_never_opens_its_window_is_given_up():
    async with serving(connect=False, http1={"body_timeout": 0.3}) as (worker, _):
        connection = await Http2Connection.connect(*worker.address, stream_window=0)
        exchange = await connection.start("GET", "/bytes?size=100000000")
        assert (await exchange.head()).status == 200
        with pytest.raises(ExchangeFailed) as failure:
            await exchange.read()
        assert (failure.value.kind, failure.value.code) == (FailureKind.RESET, 8)
        assert worker.refusals == {"http2_stalled": 1}
        assert (await connection.start("HEAD", "/hello")) is not None
        await connection.close()


@pytest.mark.slow
async def test_client_that_takes_nothing_is_given_up():
    async with serving(connect=False, http1={"body_timeout": 0.3}) as (worker, _):
        connection = await Http2Connection.connect(
            *worker.address, receive_buffer=4096, stream_window=1 << 30
        )
        connection._task.cancel()
        await connection.start("GET", "/bytes?size=100000000")
        await worker.wait_until(lambda: worker.count(Cell.TCP_OPEN) == 0)
        assert worker.refusals == {"write_timeout": 1}
        await connection.abort()


@pytest.mark.slow
async def test_body_that_does_not_come_gets_408():
    async with serving(http1={"body_timeout": 0.1}) as (worker, connection):
        exchange = await connection.start("POST", "/hash", body=None)
        await exchange.send_body(b"some")
        assert (await exchange.head()).status == 408
        assert worker.refusals == {"body_timeout": 1}
        assert (await request(connection, "GET", "/hello")).status == 200


# Ends


async def test_client_that_closes_disconnects_its_exchanges():
    heard = []

    async def call(scope, receive, send):
        await receive()
        heard.append(await receive())

    async with serving(call) as (worker, connection):
        for _ in range(3):
            await connection.start("POST", "/", body=None)
        exchange = await connection.start("GET", "/")
        await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 4)
        await exchange.cancel()
        await worker.wait_until(lambda: len(heard) == 1)
        await connection.stream.end_writes()
        await worker.wait_until(lambda: len(heard) == 4 or worker.count(Cell.REQUESTS_ACTIVE) == 0)
        assert {message["type"] for message in heard} == {"http.disconnect"}


async def test_violation_is_answered_by_goaway_though_the_client_goes_on_sending():
    async with serving(connect=False) as (worker, _):
        stream = await ByteStream.connect(*worker.address)
        await stream.write(HTTP2_PREFACE + frame(SETTINGS) + frame(0, 1, bytes(100)))

        async def flood():
            with contextlib.suppress(OSError):
                for _ in range(100):
                    await stream.write(frame(PING, payload=bytes(8)) * 1000)

        flooding = asyncio.create_task(flood())
        received = await stream.read_to_end()
        kind, _, payload = list(frames(received))[-1]
        assert (kind, payload[4:8]) == (GOAWAY, (1).to_bytes(4))
        assert worker.refusals == {"http2_protocol_error": 1}
        stream.close()
        await flooding


@pytest.mark.parametrize("tls", [False, True])
async def test_drain_finishes_what_runs_and_takes_nothing_new(tls):
    gate = Gate()
    async with serving(gate, tls=tls) as (worker, connection):
        exchange = await connection.start("GET", "/first")
        await worker.wait_until(lambda: gate.calls)
        worker.drain()
        # The second GOAWAY comes by itself, when the PING behind the first was answered.
        await worker.wait_until(lambda: len(connection.goaways) == 2)
        assert connection.goaways == [(0, 2**31 - 1), (0, 1)]
        late = await connection.start("GET", "/late")
        with pytest.raises(ExchangeFailed) as failure:
            await late.head()
        assert failure.value.code == 7  # REFUSED_STREAM
        gate.go.set()
        assert await exchange.read() == b"/first"
        await connection.wait_closed()
        assert gate.calls == ["/first"]


async def test_drain_does_not_wait_for_ever_for_the_answer_to_a_ping():
    async with serving(connect=False) as (worker, _):
        stream = await ByteStream.connect(*worker.address)
        await stream.write(HTTP2_PREFACE + frame(SETTINGS))
        await worker.wait_until(lambda: worker.services.sessions)
        worker.drain()
        for session in list(worker.services.sessions):
            session.finish_drain()
        received = await stream.read_to_end()
        assert [kind for kind, _, _ in frames(received)].count(GOAWAY) == 2
        stream.close()


async def test_connection_that_comes_within_a_drain_is_told_at_once():
    async with serving(connect=False) as (worker, _):
        worker.services.draining = True
        connection = await Http2Connection.connect(*worker.address)
        await connection.wait_closed()
        assert connection.goaways[0] == (0, 2**31 - 1)
        await connection.close()


async def test_client_that_says_goodbye_gets_its_answers_first():
    gate = Gate()
    async with serving(gate) as (worker, connection):
        exchange = await connection.start("GET", "/last")
        await worker.wait_until(lambda: gate.calls)
        await connection.send(frame(GOAWAY, payload=bytes(8)))
        gate.go.set()
        assert await exchange.read() == b"/last"
        await connection.wait_closed()
