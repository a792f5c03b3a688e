"""The stream channel: a bounded queue like the ring, with what only a socket can do wrong."""

from __future__ import annotations

import contextlib
import select
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiri.errors import ChannelClosedError, RingCorruptError
from asgiri.ipc.records import HEADER_SIZE, Record, encode_peer, record_header
from asgiri.ipc.ring import RingReader, RingWriter
from asgiri.ipc.segment import create_ring
from asgiri.ipc.stream import StreamReader, StreamWriter, record_stream_pair
from tests.support.memory import no_fd_leaks

PEER = encode_peer(("2001:db8::7", 4433, 0, 0), 1, None)
OVERHEAD = HEADER_SIZE + len(PEER)
SIZE = 1 << 17


class Stream:
    """Both ends of a stream channel in this process."""

    def __init__(self, size: int = SIZE) -> None:
        self.ours, self.theirs = record_stream_pair()
        self.writer = StreamWriter(self.ours, size)
        self.reader = StreamReader(self.theirs, size)

    def put(self, payload: bytes) -> bool:
        return self.writer.put(record_header(len(payload), 0, 0, len(PEER)), PEER, payload)

    def put_bytes(self, size: int) -> bool:
        """Put what only counts: no record that could be parsed."""
        return self.writer.put(b"", b"", bytes(size))

    def take_all(self) -> list[bytes]:
        return [record.payload for record in drain(self.writer, self.reader)]


@pytest.fixture
def stream():
    with no_fd_leaks():
        created = Stream()
        yield created
        created.writer.close()
        created.reader.close()


def drain(writer, reader, limit: int = 1000) -> list[Record]:
    """Publish and take until nothing is left on the way."""
    records: list[Record] = []
    writer.publish()
    while taken := reader.take(limit) or reader.pending or writer.backlog:
        records += taken if isinstance(taken, list) else []
        writer.publish()
    return records


# The same as the ring

operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from([0, 1, 30, 1200, 9000, 65_507])),
        st.tuples(st.just("publish"), st.just(0)),
        st.tuples(st.just("drain"), st.integers(1, 5)),
    ),
    max_size=60,
)


@pytest.mark.slow
@pytest.mark.linux
@settings(max_examples=150, deadline=None)
@given(operations)
def test_ring_and_stream_accept_refuse_and_return_the_same(steps):
    with no_fd_leaks(), contextlib.ExitStack() as opened:
        segment, published, consumed = create_ring(SIZE)
        opened.callback(segment.close)
        ring = RingWriter(segment.ring, published, consumed)
        ring_reader = RingReader(segment.ring, published, consumed)
        opened.callback(ring.close)
        stream = Stream()
        opened.callback(stream.writer.close)
        opened.callback(stream.reader.close)
        for number, (step, value) in enumerate([*steps, ("drain", 3)]):
            if step == "put":
                payload = bytes([number]) * value
                header = record_header(value, value and 1200, 1, len(PEER))
                assert ring.put(header, PEER, payload) == stream.writer.put(header, PEER, payload)
            elif step == "publish":
                assert ring.publish() == stream.writer.publish()
            else:
                from_ring = drain(ring, ring_reader, value)
                assert drain(stream.writer, stream.reader, value) == from_ring
        # Nothing is left in either: all of the capacity can be had, and not a byte more.
        for writer in (ring, stream.writer):
            assert writer.put(b"", b"", bytes(SIZE))
            assert not writer.put(b"", b"", b"x")


@pytest.mark.parametrize("size", [0, 1, 1200, 65_507])
def test_payloads_from_empty_to_the_largest(stream, size):
    assert stream.put(bytes(size))
    assert stream.take_all() == [bytes(size)]


def test_what_was_put_is_invisible_until_it_is_published(stream):
    assert stream.put(b"x")
    assert stream.reader.take(10) == []
    assert stream.writer.publish() == OVERHEAD + 1
    assert [record.payload for record in stream.reader.take(10)] == [b"x"]
    assert stream.writer.publish() == 0


def test_a_limit_leaves_the_rest_pending_across_batches(stream):
    for _ in range(3):
        assert all(stream.put(b"") for _ in range(4))
        stream.writer.publish()
    portions = [(len(stream.reader.take(5)), stream.reader.pending) for _ in range(4)]
    assert portions == [(5, True), (5, True), (2, False), (0, False)]


def test_its_descriptor_is_readable_when_something_was_published(stream):
    assert not select.select([stream.reader], [], [], 0)[0]
    stream.put(b"x")
    stream.writer.publish()
    assert select.select([stream.reader], [], [], 0)[0]
    stream.take_all()
    assert not select.select([stream.reader], [], [], 0)[0]


def test_a_full_channel_refuses_the_newest_exactly(stream):
    payload = bytes(1200 - OVERHEAD)
    accepted = [stream.put(payload) for _ in range(SIZE // 1200 + 5)]
    assert accepted == [True] * (SIZE // 1200) + [False] * 5
    assert len(stream.take_all()) == SIZE // 1200
    assert stream.put(payload)


def test_the_fill_follows_the_reader(stream):
    assert stream.writer.fill == 0.0
    stream.put_bytes(SIZE // 2)
    stream.writer.publish()
    assert stream.writer.fill == 0.5
    stream.take_all()
    assert stream.writer.fill == 0.5  # asked once per publication
    assert stream.writer.count_waiting() == 0
    stream.put_bytes(SIZE // 4)
    stream.writer.publish()
    assert stream.writer.fill == 0.25


# What the kernel does not take


def test_a_reader_that_stops_leaves_a_backlog_and_loses_nothing():
    with no_fd_leaks():
        stream = Stream(size=8 << 20)
        payloads = [bytes([number]) * 60_000 for number in range(100)]
        for payload in payloads:
            assert stream.put(payload)
            stream.writer.publish()
        assert stream.writer.backlog > 1 << 20
        assert stream.writer.fileno() == stream.ours.fileno()
        received = []
        while len(received) < 100:
            while taken := stream.reader.take(1000):
                received += [record.payload for record in taken]
            if stream.writer.backlog:
                assert select.select([], [stream.writer], [], 10)[1]
                stream.writer.publish()
        assert received == payloads
        stream.writer.close()
        stream.reader.close()


def test_a_return_path_that_was_full_cannot_wedge_the_channel(stream):
    # Many small batches: more counts than the socket back to the master holds.
    batches = SIZE // OVERHEAD
    for _ in range(batches):
        assert stream.put(b"")
        stream.writer.publish()
        assert len(stream.reader.take(10)) == 1
    assert stream.reader._owed  # the fault is really there
    large = bytes(65_507)
    assert not stream.put(large)
    stream.writer.publish()
    assert select.select([stream.reader], [], [], 10)[0]
    assert stream.reader.take(10) == []
    assert not stream.reader._owed
    assert stream.put(large)
    assert stream.take_all() == [large]


def test_a_refusal_while_more_is_under_way_asks_for_nothing(stream):
    assert stream.put(bytes(65_507))
    assert stream.put(bytes(65_000))
    assert not stream.put(bytes(65_507))
    stream.writer.publish()
    assert len(stream.take_all()) == 2
    assert stream.writer.backlog == 0
    assert stream.reader.take(10) == []


def test_batches_and_counts_may_arrive_in_any_pieces():
    stream = Stream()
    ours, theirs, writer, reader = stream.ours, stream.theirs, stream.writer, stream.reader
    record = record_header(3, 0, 0, len(PEER)) + PEER + b"abc"
    frame = struct.pack("<I", len(record)) + record
    for octet in frame[:-1]:
        ours.send(bytes([octet]))
        assert reader.take(10) == []
        assert not reader.pending
    ours.send(frame[-1:])
    assert [r.payload for r in reader.take(10)] == [b"abc"]
    assert ours.recv(99) == struct.pack("<I", len(record))
    assert stream.put_bytes(SIZE)
    writer.publish()
    for octet in struct.pack("<I", 100):
        assert not stream.put_bytes(1)
        theirs.send(bytes([octet]))
    assert not stream.put_bytes(101)
    assert stream.put_bytes(100)
    writer.close()
    reader.close()


# What the other side does wrong


def test_a_corrupt_record_costs_the_rest_of_its_batch_and_nothing_more(stream):
    good = record_header(3, 0, 0, len(PEER)) + PEER + b"one"
    batch = good + b"rubbish!" * 5
    stream.ours.send(struct.pack("<I", len(batch)) + batch)
    stream.put(b"next")
    assert stream.take_all() == [b"one", b"next"]
    assert stream.reader.corrupt == 1


def test_a_batch_that_cannot_be_ends_the_channel(stream):
    stream.ours.send(struct.pack("<I", SIZE + 1))
    for _ in range(2):
        with pytest.raises(RingCorruptError, match=f"batch of {SIZE + 1} bytes"):
            stream.reader.take(10)


def test_a_worker_that_claims_to_have_read_more_than_there_was_gains_nothing(stream):
    assert stream.put_bytes(SIZE)
    stream.theirs.send(struct.pack("<I", 0xFFFFFFFF))
    assert not stream.put(b"")
    assert stream.writer.overreturned == 1
    stream.writer.publish()
    stream.theirs.send(struct.pack("<II", OVERHEAD, 0))
    assert stream.put(b"")
    assert not stream.put(b"")


def test_the_end_of_the_master_is_reported_after_what_it_published(stream):
    stream.put(b"last words")
    stream.writer.publish()
    stream.writer.close()
    assert [record.payload for record in stream.reader.take(1)] == [b"last words"]
    with pytest.raises(ChannelClosedError, match="closed by the master"):
        stream.reader.take(1)


def test_a_reset_is_the_end_of_the_master(stream):
    stream.theirs.send(b"unread")  # closing with something unread resets
    stream.writer.close()
    with pytest.raises(ChannelClosedError):
        stream.reader.take(1)


@pytest.mark.parametrize("unread", [False, True])
def test_the_end_of_the_worker_is_a_channel_that_fills_up(stream, unread):
    if unread:  # the socket then ends with a reset
        stream.put(b"x")
        stream.writer.publish()
    stream.reader.close()
    payload = bytes(1200 - OVERHEAD)
    for _ in range(SIZE // 1200 - 1):
        assert stream.put(payload)
        assert stream.writer.publish() == 1200
    assert [stream.put(payload) for _ in range(3)] in ([True, False, False], [False] * 3)
    assert stream.writer.backlog == 0
    assert stream.writer.fill > 0.9


@pytest.mark.parametrize("unread", [False, True])
def test_the_end_of_the_worker_may_first_show_when_reading(stream, unread):
    if unread:
        stream.put(b"x")
        stream.writer.publish()
    stream.put(bytes(100))
    stream.reader.close()
    assert 0 < stream.writer.fill < 0.01
    assert stream.writer._reader_is_gone
    stream.writer.publish()
    assert stream.writer.backlog == 0


def test_a_count_for_a_master_that_is_gone_harms_nothing():
    stream = Stream()
    stream.put(b"one")
    stream.writer.publish()
    stream.put(b"two")
    stream.writer.publish()
    stream.writer.close()
    assert [record.payload for record in stream.reader.take(9)] == [b"one", b"two"]
    with pytest.raises(ChannelClosedError):
        stream.reader.take(9)
    stream.reader.close()


# A takeover


def test_a_writer_goes_on_where_another_has_left_off():
    """In the midst of a backlog."""
    size = 16 << 20
    with no_fd_leaks():
        stream = Stream(size)
        expected = []
        while not stream.writer.backlog:
            payload = bytes([len(expected) % 256]) * 60000
            assert stream.put(payload)
            expected.append(payload)
            stream.writer.publish()
        state = stream.writer.to_state()
        old, stream.writer = stream.writer, StreamWriter(stream.ours, size)
        stream.writer.restore(state)
        assert (stream.writer.backlog, stream.writer.fill) == (old.backlog, old.fill)
        assert stream.put(b"last")
        stream.writer.publish()
        assert stream.take_all() == [*expected, b"last"]
        assert stream.writer.fill == 0
        stream.writer.close()
        stream.reader.close()


def test_a_writer_s_state_that_cannot_be_is_refused(stream):
    with pytest.raises(ValueError, match="record stream of"):
        stream.writer.restore({"unread": SIZE + 1, "backlog": "", "counts": ""})
