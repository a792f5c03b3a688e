"""The endpoint of a worker: real clients over UDP, records over ring and stream."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aioquic.quic.connection import QuicConnection

from asgiri.config import Http1Config
from asgiri.ipc.connection_id import ConnectionIdKind
from asgiri.ipc.records import RecordFlag, record_header
from asgiri.ipc.scoreboard import Cell, Refusal
from asgiri.ipc.tokens import ResetTokens
from asgiri.master.quic_versions import encode_retry
from asgiri.worker.protocol.http3_frames import ErrorCode, frame
from asgiri.worker.protocol.quic import parse_initial_untrusted
from asgiri.worker.transport import quic
from asgiri.worker.transport.quic_ids import ConnectionTable
from tests.support.client import ExchangeFailed, FailureKind, read_response, request
from tests.support.http3_client import Http3Connection
from tests.support.quic_client import QuicClient, client_configuration
from tests.support.quic_worker import QuicWorker, quic_worker

HOST = "127.0.0.1"
BLOCK = bytes(range(256)) * 256
"""64 KiB."""


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Echoes, describes itself, or streams what is asked for."""
    path = scope["path"]
    digest = hashlib.sha256()
    size = 0
    if path != "/unread":
        while (message := await receive())["type"] == "http.request":
            digest.update(message["body"])
            size += len(message["body"])
            if not message["more_body"]:
                break
    await send({"type": "http.response.start", "status": 200})
    if path == "/download":
        for _ in range(int(scope["query_string"]) // len(BLOCK)):
            await send({"type": "http.response.body", "body": BLOCK, "more_body": True})
    facts = {
        "client": scope["client"],
        "server": scope["server"],
        "version": scope["http_version"],
        "tls": scope["extensions"]["tls"]["tls_version"],
        "size": size,
        "sha256": digest.hexdigest(),
    }
    body = b"" if path == "/download" else json.dumps(facts).encode()
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(params=["ring", "stream"])
async def worker(request: pytest.FixtureRequest) -> AsyncIterator[QuicWorker]:
    async with quic_worker(app, ring=request.param == "ring") as running:
        yield running


@pytest.fixture
async def ring_worker() -> AsyncIterator[QuicWorker]:
    async with quic_worker(app) as running:
        yield running


async def connect(worker: QuicWorker, host: str = HOST, **options: Any) -> Http3Connection:
    return await Http3Connection.connect(host, worker.port, **options)


async def facts(connection: Http3Connection, path: str = "/", **options: Any) -> Any:
    response = await request(connection, "GET", path, **options)
    assert response.status == 200
    return json.loads(response.body)


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# Requests


async def test_requests_are_answered(worker: QuicWorker):
    connection = await connect(worker)
    found = await facts(connection)
    assert found["client"] == list(connection.local_address)
    assert found["server"] == [HOST, worker.port]
    assert (found["version"], found["tls"]) == ("3", 0x0304)
    await connection.close()


async def test_many_requests_at_once_are_answered(worker: QuicWorker):
    connections = [await connect(worker) for _ in range(3)]
    answers = await asyncio.gather(*(facts(each) for each in connections for _ in range(40)))
    assert len(answers) == 120
    assert worker.scoreboard.get(Cell.QUIC_OPEN) == 3
    for each in connections:
        await each.close()
    await until(lambda: worker.endpoint.is_empty)
    assert worker.scoreboard.get(Cell.QUIC_OPEN) == 0
    assert worker.scoreboard.get(Cell.QUIC_OPENED) == worker.scoreboard.get(Cell.QUIC_CLOSED) == 3
    assert worker.scoreboard.refusals() == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("megabytes", [1, 100])
async def test_what_is_uploaded_arrives_whole(ring_worker: QuicWorker, megabytes: int):
    connection = await connect(ring_worker)
    digest = hashlib.sha256()
    exchange = await connection.start("POST", "/", body=None)
    for _ in range(megabytes * 16):
        digest.update(BLOCK)
        await exchange.send_body(BLOCK)
    await exchange.end_body()
    found = json.loads(await exchange.read())
    assert found["size"] == megabytes << 20
    assert found["sha256"] == digest.hexdigest()
    await connection.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("megabytes", [1, 100])
async def test_what_is_downloaded_arrives_whole(ring_worker: QuicWorker, megabytes: int):
    connection = await connect(ring_worker, stream_window=1 << 20)
    expected = hashlib.sha256()
    for _ in range(megabytes * 16):
        expected.update(BLOCK)
    exchange = await connection.start("GET", f"/download?{megabytes << 20}")
    digest = hashlib.sha256()
    while part := await exchange.read():
        digest.update(part)
    assert digest.hexdigest() == expected.hexdigest()
    await connection.close()


async def test_a_slow_application_holds_the_client_back():
    """What may wait for it is one window of the stream, whatever the client has."""
    waiting = asyncio.Event()
    sizes: list[int] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        while True:
            await waiting.wait()
            message = await receive()
            sizes.append(len(message["body"]))
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b""})

    window = 1 << 18
    async with quic_worker(slow, stream_window=window, connection_window=4 * window) as worker:
        connection = await connect(worker)
        exchange = await connection.start("POST", "/", body=None)
        upload = asyncio.ensure_future(exchange.send_body(bytes(8 * window)))
        (session,) = worker.endpoint._sessions
        requests = session.engine._requests
        await until(lambda: 0 in requests and requests[0].unread > window * 0.99)
        for _ in range(10):
            await connection.ping()
        assert requests[0].unread <= window
        assert not upload.done()
        waiting.set()
        await upload
        await exchange.end_body()
        assert (await exchange.head()).status == 200
        assert sum(sizes) == 8 * window
        await connection.close()


async def test_a_slow_client_holds_the_application_back():
    """What may wait for it is the high-water mark and one message, besides what is under way."""
    sent = 0

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200})
        for _ in range(64):
            await send({"type": "http.response.body", "body": BLOCK, "more_body": True})
            sent += len(BLOCK)
        await send({"type": "http.response.body", "body": b""})

    async with quic_worker(endless) as worker:
        connection = await connect(worker, stream_window=100_000)
        exchange = await connection.start("GET", "/")
        await exchange.head()
        for _ in range(10):
            await connection.ping()
        assert sent <= 100_000 + 65536 + len(BLOCK)
        (session,) = worker.endpoint._sessions
        assert session.engine._quic.held(0) <= 65536 + len(BLOCK)
        size = 0
        while part := await exchange.read():
            size += len(part)
        assert size == 64 * len(BLOCK)
        await connection.close()


async def test_what_nobody_reads_stops_nothing(ring_worker: QuicWorker):
    connection = await connect(ring_worker)
    for _ in range(5):
        exchange = await connection.start("POST", "/unread", body=None)
        assert (await exchange.head()).status == 200
        assert await exchange.wait_stopped() == ErrorCode.H3_NO_ERROR
    assert (await facts(connection))["size"] == 0
    await connection.close()


async def test_a_cancelled_request_is_a_disconnect():
    told = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        told.set()

    async with quic_worker(waits) as worker:
        connection = await connect(worker)
        exchange = await connection.start("POST", "/", body=None)
        await exchange.cancel()
        await asyncio.wait_for(told.wait(), 5)
        await connection.close()


async def test_a_response_that_breaks_off_is_reset():
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async with quic_worker(broken) as worker:
        connection = await connect(worker)
        exchange = await connection.start("GET", "/")
        with pytest.raises(ExchangeFailed) as caught:
            await read_response(exchange)
        assert (caught.value.kind, caught.value.code) == (
            FailureKind.RESET,
            ErrorCode.H3_INTERNAL_ERROR,
        )
        await connection.close()


# Clients that move


async def test_a_connection_survives_new_connection_ids_and_addresses(worker: QuicWorker):
    connection = await connect(worker)
    seen = set()
    for _ in range(10):
        seen.add(await connection.change_connection_id())
        await facts(connection)
    assert len(seen) == 10
    for _ in range(3):
        address = connection.rebind()
        await connection.ping()
        assert (await facts(connection))["client"] == list(address)
    address = await connection.migrate("127.0.0.2")
    assert address[0] == "127.0.0.2"
    assert (await facts(connection))["client"] == list(address)
    assert worker.scoreboard.get(Cell.QUIC_OPENED) == 1
    (session,) = worker.endpoint._sessions
    # What was retired is out of the table: those in use, and the one that the client chose.
    assert session.connection_ids == {*session.engine.connection_ids, *chosen(session)}
    assert set(worker.endpoint._table.living) == session.connection_ids
    await connection.close()


def chosen(session: Any) -> set[bytes]:
    return session.connection_ids - set(session.engine.connection_ids)


@pytest.mark.parametrize(("host", "other"), [("127.0.0.1", "127.0.0.3"), ("::1", "::1")])
async def test_on_a_wildcard_the_reply_leaves_from_where_it_was_asked(host: str, other: str):
    async with quic_worker(app, host=host, wildcard=True) as worker:
        for asked in (host, other):
            connection = await connect(worker, asked)
            assert (await facts(connection))["server"] == [asked, worker.port]
            await connection.close()


# Beginnings


def retry(worker: QuicWorker) -> None:
    """Have the master answer Initials without a token by a Retry."""

    def answer(datagram: bytes, address: Any) -> bytes | None:
        initial = parse_initial_untrusted(datagram)
        if initial is None or initial.token:
            return None
        source_cid = worker.endpoint._mint.mint(ConnectionIdKind.RETRY)
        token = worker.retry_tokens.seal(
            address, initial.destination_cid, source_cid, worker.services.now()
        )
        return encode_retry(
            initial.version,
            destination_cid=initial.source_cid,
            source_cid=source_cid,
            original_destination_cid=initial.destination_cid,
            token=token,
            random=0,
        )

    worker.answer = answer


async def test_a_client_that_was_sent_a_retry_is_served(ring_worker: QuicWorker):
    retry(ring_worker)
    connection = await connect(ring_worker)
    assert len(connection.retries) == 1
    (session,) = ring_worker.endpoint._sessions
    assert (await facts(connection))["version"] == "3"
    assert session.engine._quic._network_paths[0].is_validated
    await connection.close()


@pytest.mark.parametrize("how", ["forged", "of another address", "missing"])
async def test_without_its_token_a_retried_initial_is_dropped(ring_worker: QuicWorker, how: str):
    client = raw_client(ring_worker)
    source_cid = ring_worker.endpoint._mint.mint(ConnectionIdKind.RETRY)
    now = ring_worker.services.now()
    address = client.local_address if how == "forged" else ("192.0.2.1", 1)
    token = ring_worker.retry_tokens.seal(address, b"d" * 8, source_cid, now)
    if how == "forged":
        token = token[:-1] + bytes([token[-1] ^ 1])
    client.quic._peer_token = b"" if how == "missing" else token
    client.quic._peer_cid.cid = source_cid
    begin(client)
    await until(lambda: ring_worker.refusals(Refusal.QUIC_BAD_TOKEN))
    assert ring_worker.endpoint.is_empty
    client.vanish()


async def test_a_token_of_somebody_elses_is_as_good_as_none(ring_worker: QuicWorker):
    client = raw_client(ring_worker)
    client.quic._peer_token = b"from another server, or of yesterday"
    await client.handshake()
    client.close_quic()
    client.vanish()


def raw_client(worker: QuicWorker, **options: Any) -> QuicClient:
    opened = QuicClient.open_socket(HOST, worker.port)
    return QuicClient(opened, client_configuration(**options))


def begin(client: QuicClient) -> None:
    client.quic.connect(client._address, now=client._loop.time())
    client.flush()


def initial_of(client: QuicClient) -> bytes:
    """The client's first datagram, not sent."""
    kept: list[bytes] = []

    def keep(datagram: bytes) -> tuple[()]:
        kept.append(datagram)
        return ()

    client.shape_out = keep
    begin(client)
    client.shape_out = None
    return kept[0]


async def test_a_client_hello_in_two_datagrams_is_served_in_either_order(ring_worker: QuicWorker):
    """As large as ML-KEM makes it."""
    for swap in (False, True):
        held: list[bytes] = []

        def shape(datagram: bytes, swap: bool = swap, held: list[bytes] = held) -> Any:
            if swap and not held:
                held.append(datagram)
                return ()
            if len(held) == 1:
                held.append(b"")
                return (datagram, held[0])
            return (datagram,)

        opened = QuicClient.open_socket(HOST, ring_worker.port)
        configuration = client_configuration(quantum_readiness_test=True)
        client = QuicClient(opened, configuration, shape_out=shape)
        await client.handshake()
        client.close_quic()
        client.vanish()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("flip", Refusal.QUIC_BAD_INITIAL),
        ("cut", Refusal.QUIC_BAD_INITIAL),
        ("short connection ID", Refusal.QUIC_BAD_INITIAL),
        ("no Initial", Refusal.QUIC_UNKNOWN_CONNECTION),
        ("unknown version", Refusal.QUIC_UNKNOWN_CONNECTION),
    ],
)
async def test_what_is_no_initial_begins_nothing(
    ring_worker: QuicWorker, change: str, reason: Refusal
):
    client = raw_client(ring_worker)
    if change == "short connection ID":
        client.quic._peer_cid.cid = b"short"
    initial = initial_of(client)
    match change:
        case "flip":
            initial = initial[:100] + bytes([initial[100] ^ 1]) + initial[101:]
        case "cut":
            initial = initial[:-1]
        case "no Initial":
            initial = bytes([initial[0] | 0x20]) + initial[1:]
        case "unknown version":
            initial = initial[:1] + b"\x0a\x0a\x0a\x0a" + initial[5:]
    client.send_raw(initial)
    await until(lambda: ring_worker.refusals(reason))
    assert ring_worker.endpoint.is_empty
    assert ring_worker.scoreboard.get(Cell.DATAGRAMS_SENT) == 0
    client.vanish()


@pytest.mark.parametrize("datagram", [b"", b"\x40", b"\xc0" * 21, b"\xc0\x00\x00\x00\x01\xff" * 9])
async def test_no_datagram_hurts(ring_worker: QuicWorker, datagram: bytes):
    ring_worker.pass_on(datagram, ("192.0.2.1", 1))
    connection = await connect(ring_worker)
    await facts(connection)
    await connection.close()


async def test_records_of_the_master_itself_are_no_datagrams(ring_worker: QuicWorker):
    ring_worker.writer.put(record_header(4, 0, RecordFlag.CONTROL, 0), b"", b"text")
    ring_worker.writer.publish()
    await until(lambda: ring_worker.scoreboard.get(Cell.RING_RECORDS))
    assert ring_worker.scoreboard.refusals() == {}


async def test_records_of_no_listener_of_ours_are_refused(ring_worker: QuicWorker):
    """As if somebody had scribbled over the ring."""
    connection = await connect(ring_worker)
    await facts(connection)
    client = raw_client(ring_worker)
    pings: list[bytes] = []
    connection.shape_out = lambda datagram: pings.append(datagram) or ()
    connection.quic.send_ping(1)
    connection.flush()
    connection.shape_out = None
    peer = ring_worker._peers.encode(connection.local_address, 7, None)
    for datagram in (initial_of(client), pings[0], b"\x40" + bytes(100)):
        ring_worker.writer.put(record_header(len(datagram), 0, 0, len(peer)), peer, datagram)
    ring_worker.writer.publish()
    await until(lambda: ring_worker.refusals(Refusal.QUIC_UNKNOWN_LISTENER) >= 2)
    await facts(connection)
    client.vanish()
    await connection.close()


async def test_a_train_is_taken_apart(ring_worker: QuicWorker):
    """The master passes what GRO joined as one record; the last datagram may be shorter."""
    datagrams = [b"\x40" + os.urandom(17) + bytes(1182) for _ in range(3)]
    payload = b"".join(datagrams) + datagrams[0][:50]
    peer = ring_worker._peers.encode(("192.0.2.1", 1), 0, None)
    ring_worker.writer.put(record_header(len(payload), 1200, 0, len(peer)), peer, payload)
    ring_worker.writer.publish()
    await until(lambda: ring_worker.refusals(Refusal.QUIC_UNKNOWN_CONNECTION) == 4)


async def test_half_open_connections_are_bounded_and_given_up():
    """Spoofed Initials: each is a first flight of work and 91 KB (DISPATCH, section 0)."""
    async with quic_worker(
        app, max_half_open=3, handshake_timeout=0.2, sweep_period=0.01
    ) as worker:
        for number in range(5):
            client = raw_client(worker)
            worker.pass_on(initial_of(client), ("127.0.0.1", 40_000 + number))
            client.vanish()
        board = worker.scoreboard
        await until(lambda: worker.refusals(Refusal.QUIC_HALF_OPEN_LIMIT) == 2)
        assert board.get(Cell.QUIC_HALF_OPEN) == 3
        await until(lambda: worker.endpoint.is_empty)
        assert board.get(Cell.QUIC_HALF_OPEN) == 0
        assert board.get(Cell.HANDSHAKE_TIMEOUTS) == 3
        assert worker.refusals(Refusal.QUIC_HANDSHAKE_TIMEOUT) == 3
        connection = await connect(worker)
        await facts(connection)
        assert board.get(Cell.QUIC_HALF_OPEN) == 0
        await connection.close()


async def test_a_spoofed_address_is_not_sent_more_than_three_times_what_it_sent(
    ring_worker: QuicWorker,
):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim:
        victim.bind((HOST, 0))
        victim.setblocking(False)
        client = raw_client(ring_worker)
        initial = initial_of(client)
        ring_worker.pass_on(initial, victim.getsockname())
        client.vanish()
        received = 0
        loop = asyncio.get_running_loop()
        # The first flight and three repetitions of it: 0.2, 0.4, 0.8 s after each other.
        deadline = loop.time() + 1.6
        while (left := deadline - loop.time()) > 0:
            try:
                async with asyncio.timeout(left):
                    received += len(await loop.sock_recv(victim, 2000))
            except TimeoutError:
                break
        assert 0 < received <= 3 * len(initial)


# Connections that are gone


def forget_everything(worker: QuicWorker) -> None:
    """As if the worker had lost its memory: connections, and those it knew to be gone."""
    for session in list(worker.endpoint._sessions):
        worker.endpoint._forget(session, worker.services.now(), b"")
    worker.endpoint._table = ConnectionTable()


async def test_a_connection_that_is_unknown_here_is_reset(ring_worker: QuicWorker):
    connection = await connect(ring_worker)
    await facts(connection)
    forget_everything(ring_worker)
    # A request: a PING alone makes a packet that is too short to be answered.
    with pytest.raises(ExchangeFailed, match="stateless reset"):
        await facts(connection)
    assert connection.stateless_reset
    assert ring_worker.scoreboard.get(Cell.RESETS_SENT) == 1
    connection.vanish()


async def answers(client: QuicClient, datagram: bytes, worker: QuicWorker) -> int:
    """Datagrams that come back for this one, when the worker has handled it."""
    before, heard = worker.scoreboard.get(Cell.RING_RECORDS), client.datagrams_in
    client.send_raw(datagram)
    await until(lambda: worker.scoreboard.get(Cell.RING_RECORDS) > before)
    probe = await connect(worker)  # whatever was sent before is there before its answers
    await facts(probe)
    await probe.close()
    return client.datagrams_in - heard


@pytest.mark.parametrize("what", ["forged", "of another worker", "retry", "tombstone", "short"])
async def test_silence_is_the_answer(ring_worker: QuicWorker, what: str):
    """No oracle, no reflection, no reset of what may be alive elsewhere (RFC 9000 §21.11)."""
    endpoint = ring_worker.endpoint
    client = raw_client(ring_worker)
    size = 1000
    match what:
        case "forged":
            connection_id = os.urandom(17)
        case "of another worker":
            connection_id = endpoint._mint.mint_for(78, ConnectionIdKind.CONNECTION)
        case "retry":
            connection_id = endpoint._mint.mint(ConnectionIdKind.RETRY)
        case "tombstone":
            connection_id = endpoint._mint.mint()
            endpoint._table.bury([connection_id], ring_worker.services.now(), quic.Tombstone())
        case _:
            connection_id, size = endpoint._mint.mint(), 42
    datagram = b"\x40" + connection_id + bytes(size - 18)
    assert await answers(client, datagram, ring_worker) == 0
    assert ring_worker.scoreboard.get(Cell.RESETS_SENT) == 0
    client.vanish()


async def test_a_reset_has_the_token_of_its_connection_id(ring_worker: QuicWorker):
    client = raw_client(ring_worker)
    connection_id = ring_worker.endpoint._mint.mint()
    loop = asyncio.get_running_loop()
    loop.remove_reader(client.socket.fileno())
    client.send_raw(b"\x40" + connection_id + bytes(1000))
    answer = await asyncio.wait_for(loop.sock_recv(client.socket, 2000), 5)
    assert answer[-16:] == ResetTokens(ring_worker.secrets.reset_key).token(connection_id)
    client.vanish()


async def test_long_headers_of_unknown_connections_are_not_reset(ring_worker: QuicWorker):
    client = raw_client(ring_worker)
    connection_id = ring_worker.endpoint._mint.mint()
    datagram = b"\xe0\x00\x00\x00\x01\x11" + connection_id + bytes(1200)
    assert await answers(client, datagram, ring_worker) == 0
    client.vanish()


async def test_packets_to_retired_connection_ids_are_met_with_silence(ring_worker: QuicWorker):
    connection = await connect(ring_worker)
    retired = connection.quic.server_connection_ids[0]
    await connection.change_connection_id()
    await facts(connection)
    await until(lambda: retired not in ring_worker.endpoint._table.living)
    client = raw_client(ring_worker)
    assert await answers(client, b"\x40" + retired + bytes(1000), ring_worker) == 0
    assert ring_worker.refusals(Refusal.QUIC_RETIRED_CONNECTION_ID) == 1
    client.vanish()
    await connection.close()


async def test_a_close_that_was_lost_is_repeated(ring_worker: QuicWorker):
    """RFC 9000 §10.2.1."""
    connection = await connect(ring_worker)
    await facts(connection)
    lost: list[bytes] = []
    connection.shape_in = lambda datagram: lost.append(datagram) or ()
    (session,) = ring_worker.endpoint._sessions
    session.close()
    await until(lambda: lost)
    connection.shape_in = None
    with pytest.raises(ConnectionError, match="0x100"):
        await connection.ping()
    assert not connection.stateless_reset
    connection.vanish()


async def test_an_idle_connection_ends_without_a_word():
    async with quic_worker(app, idle_timeout=1.0) as worker:
        connection = await connect(worker)
        await facts(connection)
        connection.vanish()
        await until(lambda: worker.endpoint.is_empty)
        assert worker.scoreboard.get(Cell.QUIC_CLOSED) == 1


async def test_what_a_peer_does_wrong_is_counted_and_hurts_nobody_else(ring_worker: QuicWorker):
    good, bad = await connect(ring_worker), await connect(ring_worker)
    bad.start_raw(frame(0x04, b""))
    with pytest.raises(ConnectionError, match="0x105"):
        await bad.wait_until(lambda: False)
    assert ring_worker.refusals(Refusal.HTTP3_BAD_FRAME) == 1
    await facts(good)
    bad.vanish()
    await good.close()


async def test_a_body_that_does_not_come_is_answered_with_408():
    http1 = Http1Config(body_timeout=0.1)
    async with quic_worker(app, http1=http1, sweep_period=0.01) as worker:
        connection = await connect(worker)
        exchange = await connection.start("POST", "/", body=None)
        assert (await exchange.head()).status == 408
        assert worker.refusals(Refusal.BODY_TIMEOUT) == 1
        await connection.close()


async def test_a_request_that_does_not_come_is_given_up():
    http1 = Http1Config(header_timeout=0.1)
    async with quic_worker(app, http1=http1, sweep_period=0.01) as worker:
        connection = await connect(worker)
        exchange = connection.start_raw(b"\x01")
        with pytest.raises(ExchangeFailed) as caught:
            await exchange.head()
        assert caught.value.code == ErrorCode.H3_REQUEST_INCOMPLETE
        assert worker.refusals(Refusal.HTTP3_STALLED) == 1
        await connection.close()


# The end


async def test_draining_lets_requests_finish_and_then_says_goodbye():
    going_on = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await going_on.wait()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"finished"})

    async with quic_worker(slow) as worker:
        busy, idle = await connect(worker), await connect(worker)
        exchange = await busy.start("GET", "/")
        await until(lambda: worker.scoreboard.get(Cell.REQUESTS_ACTIVE))
        for step in ("begin_drain", "finish_drain"):
            for session in list(worker.endpoint._sessions):
                getattr(session, step)()
            await busy.ping()
        await idle.wait_closed()
        assert idle.termination.error_code == ErrorCode.H3_NO_ERROR
        assert busy.goaways == [(1 << 62) - 4, 4]
        going_on.set()
        assert await exchange.read() == b"finished"
        await busy.wait_closed()
        assert busy.termination.error_code == ErrorCode.H3_NO_ERROR
        assert worker.endpoint.is_empty
        busy.vanish()
        idle.vanish()


async def test_connections_that_begin_while_draining_are_told_at_once(ring_worker: QuicWorker):
    ring_worker.services.draining = True
    connection = await connect(ring_worker)
    await facts(connection)
    assert connection.goaways == [(1 << 62) - 4]
    await connection.close()


async def test_closing_tells_every_client():
    async with quic_worker(app) as worker:
        clients = [await connect(worker) for _ in range(3)]
        await asyncio.gather(*map(facts, clients))
        worker.endpoint.close()
        for client in clients:
            await client.wait_closed()
            assert client.termination.error_code == ErrorCode.H3_NO_ERROR
            client.vanish()
        assert worker.endpoint.is_empty


async def test_applications_are_told_when_the_connection_goes():
    told = asyncio.Event()

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        told.set()

    async with quic_worker(waits) as worker:
        connection = await connect(worker)
        await connection.start("POST", "/", body=None)
        await until(lambda: worker.scoreboard.get(Cell.REQUESTS_ACTIVE))
        await connection.close()
        await asyncio.wait_for(told.wait(), 5)
        await until(lambda: not worker.services.sessions)


# Batches


async def test_a_full_ring_is_worked_off_in_turns(ring_worker: QuicWorker):
    """A batch takes at most 64 records or 2 ms, so that others get their turn in between."""
    turns = 0
    loop = asyncio.get_running_loop()
    datagram = b"\x40" + os.urandom(17) + bytes(30)
    peer = ring_worker._peers.encode(("192.0.2.1", 1), 0, None)
    for _ in range(640):
        ring_worker.writer.put(record_header(len(datagram), 0, 0, len(peer)), peer, datagram)

    def count() -> None:
        nonlocal turns
        turns += 1
        if ring_worker.scoreboard.get(Cell.RING_RECORDS) < 640:
            loop.call_soon(count)

    ring_worker.writer.publish()
    count()
    await until(lambda: ring_worker.scoreboard.get(Cell.RING_RECORDS) >= 640)
    assert turns >= 640 // quic.BATCH_RECORDS
    assert ring_worker.refusals(Refusal.QUIC_UNKNOWN_CONNECTION) == 640


async def test_a_batch_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quic, "BATCH_SECONDS", 0.0)
    async with quic_worker(app) as worker:
        connection = await connect(worker)
        await asyncio.gather(*(facts(connection) for _ in range(30)))
        await connection.close()


async def test_a_connection_answers_once_for_a_batch(ring_worker: QuicWorker):
    connection = await connect(ring_worker)
    await facts(connection)
    kept: list[bytes] = []
    connection.shape_out = lambda datagram: kept.append(datagram) or ()
    exchanges = []
    for _ in range(6):
        exchanges.append(await connection.start("GET", "/"))
        connection.flush()
    connection.shape_out = None
    before = ring_worker.scoreboard.get(Cell.DATAGRAMS_SENT)
    peer = ring_worker._peers.encode(connection.local_address, 0, None)
    for datagram in kept:
        ring_worker.writer.put(record_header(len(datagram), 0, 0, len(peer)), peer, datagram)
    ring_worker.writer.publish()
    for exchange in exchanges:
        assert await exchange.read()
    # Six answers of 300 bytes: three packets, not six and six acknowledgements.
    assert ring_worker.scoreboard.get(Cell.DATAGRAMS_SENT) - before <= 3
    await connection.close()


@pytest.mark.slow
async def test_packets_of_strangers_behind_a_known_one_leave_nothing(ring_worker: QuicWorker):
    """lsquic CVE-2025-54939: Initials that follow in one datagram, to IDs that nobody has."""
    client = QuicConnection(configuration=client_configuration())
    client.connect((HOST, ring_worker.port), now=0.0)
    first = client.datagrams_to_send(now=0.0)[0][0]

    async def attack(count: int) -> int:
        """Bytes that are allocated behind `count` such datagrams."""
        until_now = ring_worker.scoreboard.get(Cell.RING_RECORDS)
        for _ in range(count):
            strangers = b"".join(
                b"\xc3\0\0\0\1\x08" + os.urandom(8) + b"\0\0\x14" + os.urandom(20)
                for _ in range(20)
            )
            ring_worker.pass_on(first + strangers, (HOST, 1))
        await until(lambda: ring_worker.scoreboard.get(Cell.RING_RECORDS) == until_now + count)
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = await attack(50)
        assert await attack(500) - before < 500 * 500
    finally:
        tracemalloc.stop()
    assert ring_worker.scoreboard.get(Cell.QUIC_OPENED) == 1
    connection = await connect(ring_worker)
    await facts(connection)
    await connection.close()


async def test_a_corrupt_batch_is_loss_and_is_counted(ring_worker: QuicWorker):
    connection = await connect(ring_worker)
    ring_worker.writer.put(b"\xff" * 8, b"", b"garbage")
    ring_worker.writer.publish()
    await facts(connection)
    assert ring_worker.scoreboard.get(Cell.RING_CORRUPT) == 1
    await connection.close()


async def test_the_self_test_passes(ring_worker: QuicWorker):
    ring_worker.endpoint.check_steering()


async def test_certificates_can_be_loaded_anew(ring_worker: QuicWorker):
    ring_worker.endpoint.load_certificate(ring_worker.services.config.tls)
    connection = await connect(ring_worker)
    await facts(connection)
    await connection.close()
