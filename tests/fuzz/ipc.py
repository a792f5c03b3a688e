"""Targets for what comes from our own processes: a worker's code shares its memory and descriptors
with the application's, so that the master takes nothing of it on trust."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterable

import orjson

from asgiri.config import WorkerConfig
from asgiri.errors import ChannelClosedError, FdsLostError, RingCorruptError
from asgiri.ipc import messages
from asgiri.ipc.board import BoardReader, BoardWriter, board_size
from asgiri.ipc.channel import ConnectionChannel, ControlChannel
from asgiri.ipc.control import (
    ANSWERS,
    MAX_ANSWER_SIZE,
    REQUESTS,
    BrokenFrameError,
    Reload,
    Scale,
    SetLevel,
)
from asgiri.ipc.counter import PipeCounter
from asgiri.ipc.records import (
    PeerTable,
    Record,
    RecordFlag,
    decode_peer,
    encode_peer,
    parse_records,
    record_header,
)
from asgiri.ipc.ring import RingReader, RingWriter
from asgiri.ipc.scoreboard import PAGE_SIZE, Assignments, Cell, Scoreboard
from asgiri.ipc.stream import StreamReader, StreamWriter, record_stream_pair
from asgiri.master.balance import BalanceMode, BalanceSwitch, Shedding
from asgiri.master.dispatcher import BalancePolicy, Dispatcher
from asgiri.master.fleet import _vitals
from asgiri.master.supervisor import Supervisor
from tests.fuzz.script import Script, pack
from tests.fuzz.target import Target

PEERS = (
    encode_peer(("192.0.2.1", 443), 0, None),
    encode_peer(("2001:db8::1", 443, 0, 0), 1, None),
)

# Records: what the worker finds in memory that its own code may have scribbled over


def run_records(data: bytes) -> None:
    script = Script(data)
    limit = script.byte() + 1
    batch = script.rest()
    records, end = parse_records(batch, 0, limit)
    assert len(records) <= limit
    written = b"".join(_encode(record) for record in records)
    assert batch.startswith(written)
    if end >= 0:
        assert end == len(written)
    peers = PeerTable(4)
    for record in records:
        if record.flags & RecordFlag.CONTROL and not record.peer:
            continue
        peer = peers.decode(record.peer)
        assert peer == decode_peer(record.peer)
        assert 0 <= peer.address[1] < 65536


def _encode(record: Record) -> bytes:
    head = record_header(len(record.payload), record.gso_size, record.flags, len(record.peer))
    return head + record.peer + record.payload


def records_seeds() -> Iterable[bytes]:
    batches = [
        b"".join(_encode(Record(payload, gso, flags, peer)) for peer in PEERS)
        for payload, gso, flags in ((b"datagram", 0, 1), (b"ab" * 9, 4, 0), (b"", 0, 8))
    ]
    control = _encode(Record(b"order", 0, RecordFlag.CONTROL, b""))
    return [pack(size) + batch for size in (0, 99) for batch in (*batches, control)]


# Ring and stream: counts and bytes of the other end

_RING = 512


def run_ring(data: bytes) -> None:
    script = Script(data)
    memory = bytearray(_RING)
    published, consumed = (PipeCounter.create() for _ in range(2))
    writer = RingWriter(memory, published, consumed)
    reader = RingReader(memory, published, consumed)
    taken = put = 0
    scribbled = False
    try:
        while script:
            step = script.byte()
            if step < 80:
                payload = script.take()
                peer = script.choice(PEERS)
                put += writer.put(record_header(len(payload), 0, 0, len(peer)), peer, payload)
            elif step < 128:
                writer.publish()
                assert 0.0 <= writer.fill <= 1.0
                assert 0 <= writer.count_waiting() <= _RING
            elif step < 176:
                taken += len(reader.take(1 + script.byte()))
            elif step < 200:
                at = script.integer(2) % _RING
                scribble = script.take()[: _RING - at]
                memory[at : at + len(scribble)] = scribble
                scribbled = True
            else:
                counter = (published, consumed)[step & 1]
                counter.add(min(script.integer(1 + step % 8), (1 << 64) - 2))
                scribbled = True
        if not scribbled:
            writer.publish()
            while records := reader.take(1000):
                taken += len(records)
            assert taken == put
            assert not reader.corrupt
            assert not writer.overreturned
    finally:
        reader.close()
        writer.close()


def ring_seeds() -> Iterable[bytes]:
    put, publish, take = pack(0, b"datagram", 0), pack(80), pack(128, 9)
    return [
        (put * 5 + publish + take) * 8,
        put * 3 + publish + pack(176, 0, 9, b"\xff\xff") + take + put + publish + take,
        put + publish + pack(201, 255) + put * 9 + publish + pack(207) + bytes([255] * 8) + put,
        put + publish + pack(200, 200) + take,
    ]


def run_stream(data: bytes) -> None:
    """Each end against bytes that the other would not send."""
    script = Script(data)
    ours, theirs = record_stream_pair()
    end = script.byte() & 1
    sides = (StreamWriter(ours, _RING), theirs) if end else (StreamReader(theirs, _RING), ours)
    side, other = sides
    other.setblocking(False)
    try:
        while script:
            step = script.byte()
            if step < 100:
                try:
                    other.send(script.take() or b"\0")
                except BlockingIOError:
                    return
            elif step < 120:
                other.shutdown(socket.SHUT_WR)
            elif isinstance(side, StreamReader):
                for record in side.take(1 + script.byte()):
                    assert len(record.payload) <= _RING
            else:
                payload = script.take()
                side.put(record_header(len(payload), 0, 0, 8), PEERS[0][:8], payload)
                side.publish()
                assert 0.0 <= side.fill <= 1.0
    except (ChannelClosedError, RingCorruptError):
        pass
    except BrokenPipeError:
        pass  # ours
    finally:
        side.close()
        other.close()


def stream_seeds() -> Iterable[bytes]:
    record = _encode(Record(b"datagram", 0, 0, PEERS[0]))
    batch = len(record).to_bytes(4, "little") + record
    return [
        pack(0) + pack(0, batch, 130, 9) * 3,
        pack(0) + pack(0, batch[:7], 130, 9, 0, batch[7:], 130, 9, 110, 130, 9),
        pack(0, 0, b"\xff\xff\xff\x7f", 130, 9),
        pack(1) + pack(130, b"datagram") * 3 + pack(0, b"\x18\0\0\0") + pack(130, b"x"),
        pack(1, 130, b"x", 0, b"\xff\xff\xff\xff\xff", 130, b"x", 110, 130, b"x"),
    ]


# Messages


def run_messages(data: bytes) -> None:
    message = messages.decode_untrusted(data)
    if message is not None:
        again = messages.decode_untrusted(messages.encode(message))
        assert again is not None
        assert type(again) is type(message)
    for codec in (REQUESTS, ANSWERS):
        buffer = bytearray(len(data).to_bytes(4) + data if data[:1] > b"\1" else data)
        try:
            while codec.take_untrusted(buffer) is not None:
                pass
        except BrokenFrameError:
            continue
        assert len(buffer) < 4 + MAX_ANSWER_SIZE


def messages_seeds() -> Iterable[bytes]:
    hello = messages.Hello(
        1, 0, 1, {}, None, (messages.ListenerInfo(0, "tcp", "a", 1, "", False),), "ring", True, 1
    )
    known = (
        *(hello, messages.MoldHello(1, {}, 1), messages.Cast(1), messages.Drain(1.5)),
        *(messages.Quit(), messages.SetLogLevel("info"), messages.Shed(3), messages.Ready(1)),
        *(messages.Failed("import", "x", "y"), messages.Drained(), messages.Warning("text")),
        *(messages.Forked(1, 2), messages.ForkFailed(1, "why"), messages.Importing()),
    )
    yield from (messages.encode(message) for message in known)
    yield from (REQUESTS.encode(request) for request in (Reload(), Scale(3), SetLevel("debug")))


def run_channels(data: bytes) -> None:
    """Frames with descriptors, as a worker may send them to the master."""
    script = Script(data)
    control, worker_control = ControlChannel.pair()
    connections, worker_connections = ConnectionChannel.pair()
    carried = os.open(os.devnull, os.O_RDONLY)
    before = _count_descriptors()
    try:
        while script:
            step = script.byte()
            frame = script.take()
            fds = [carried] * (script.byte() % 70)
            for worker_end in (worker_control, worker_connections)[step & 1 :][:1]:
                if len(fds) > 64 or (not frame and not fds):
                    continue
                worker_end._send(frame, fds)
            received = control.receive()
            for fd in received[1] if received else ():
                os.close(fd)
            if step & 2:
                handed_back = connections.receive_aged()
            else:
                handed_back = [(listener, fd, 0) for listener, fd in connections.recover()]
            for listener, fd, age in handed_back:
                assert 0 <= listener < 256
                assert 0 <= age < 256
                os.close(fd)
    except (ChannelClosedError, FdsLostError):
        pass
    finally:
        for end in (worker_control, worker_connections):
            end.close()
        # What was not read goes with the channel.
        for end in (control, connections):
            end.close()
        after = _count_descriptors()
        os.close(carried)
    assert after == before - 4, "descriptors leak"


def _count_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def channels_seeds() -> Iterable[bytes]:
    ready = messages.encode(messages.Ready(1))
    return [
        pack(0, ready, 0) + pack(0, ready, 3) + pack(0, b"rubbish", 0),
        pack(3, b"\0\1\2", 3) + pack(1, b"\0\1\2\xff\x80\x00", 3) + pack(3, b"\0\1", 3),
        pack(1, bytes(64), 64) * 3 + pack(3, bytes(200), 1),
        pack(0, b"", 1) + pack(3, b"", 2),
    ]


# A segment that a broken worker has written into, as the master reads it

_VALUES = (0, 1, 65, 1 << 31, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1000 * 10**9)


def run_segment(data: bytes) -> None:
    script = Script(data)
    pages = [_Pages(worker_id) for worker_id in (1, 2, 3)]
    dispatcher = Dispatcher(
        script.choice(list(BalancePolicy)), random=random.Random(1).random, hash_key=b"key"
    )
    supervisor = Supervisor(
        WorkerConfig(count=3, max_requests=script.byte(), max_worker_rss=script.byte() << 20),
        first_worker_id=1,
        random=random.Random(2).random,
    )
    supervisor.start(0.0)
    for page in pages:
        dispatcher.add_worker(page.worker_id, page.worker_id, page.scoreboard)
        supervisor.worker_ready(page.worker_id, 1.0)
    dispatcher.set_ready([1, 2, 3])
    switch, shedding = BalanceSwitch(BalanceMode.AUTO), Shedding()
    memory = memoryview(bytearray(board_size(2)))
    board = BoardWriter(memory)
    now = 1000.0
    while script:
        step = script.byte()
        now += step / 64
        page = pages[step % 3]
        if step < 128:
            page.scribble(script)
            continue
        if step < 192:
            _decide(pages, dispatcher, supervisor, switch, shedding, now)
        else:
            _publish(pages, board, memory, page if step & 1 else None)


def _decide(
    pages: list[_Pages],
    dispatcher: Dispatcher,
    supervisor: Supervisor,
    switch: BalanceSwitch,
    shedding: Shedding,
    now: float,
) -> None:
    dispatcher.observe(now)
    chosen = dispatcher.choose_tcp(now, "192.0.2.1")
    if chosen is not None:
        dispatcher.assigned_tcp(chosen)
    dispatcher.choose_quic(now, "192.0.2.1")
    switch.observe(dispatcher.lags(now), 0, now)
    for count in shedding.observe(dispatcher.loads(), now).values():
        messages.encode(messages.Shed(count))
    dispatcher.take_back(now)
    supervisor.observe({page.worker_id: _vitals(page) for page in pages}, now)


def _publish(
    pages: list[_Pages], board: BoardWriter, memory: memoryview, retired: _Pages | None
) -> None:
    board.begin()
    for page in pages:
        board.add_row(page.scoreboard, page.assignments, {})
    if retired is not None:
        board.retire(retired.scoreboard)
    board.publish({})
    snapshot = BoardReader(memory).read()
    assert snapshot is not None
    for cell in Cell:
        snapshot.total(cell)
    successor = BoardWriter(memoryview(bytearray(board_size(2))))
    successor.restore(orjson.loads(orjson.dumps(board.retired())))


class _Pages:
    """The two pages of a worker."""

    def __init__(self, worker_id: int) -> None:
        self.worker_id = worker_id
        self.scoreboard = Scoreboard(memoryview(bytearray(PAGE_SIZE)))
        self.assignments = Assignments(memoryview(bytearray(PAGE_SIZE)))
        self.scoreboard.claim(worker_id, 1)
        self.assignments.claim(worker_id, 1)

    def scribble(self, script: Script) -> None:
        cells = self.scoreboard.cells if script.byte() & 3 else self.assignments.cells
        cell = script.integer(2) % len(cells)
        cells[cell] = script.choice(_VALUES) ^ script.byte()


def segment_seeds() -> Iterable[bytes]:
    look, lost = pack(130), pack(193)
    cells = (
        *(Cell.BEAT_NS, Cell.REQUESTS_ACTIVE, Cell.TCP_OPEN, Cell.TCP_ADOPTED, Cell.TCP_CLOSED),
        *(Cell.RSS_BYTES, Cell.REQUESTS_HTTP1, Cell.QUIC_OPENED, Cell.LAG_EWMA_US, 256),
    )
    for cell in cells:
        write = pack(1, 1) + int(cell).to_bytes(2)
        yield pack(0, 10, 10) + write + pack(7, 0) + look + lost + lost + look * 3
        yield pack(1, 0, 0) + write + pack(6, 0) + look + write + pack(1, 0) + look
        yield pack(2, 0, 0) + write + pack(4, 5) + look * 60


TARGETS = {
    "records": Target(run_records, records_seeds),
    "ring": Target(run_ring, ring_seeds),
    "stream": Target(run_stream, stream_seeds),
    "messages": Target(run_messages, messages_seeds),
    "channels": Target(run_channels, channels_seeds, longest=1024),
    "segment": Target(run_segment, segment_seeds, longest=512),
}
