"""The ring: a bounded queue that is published by byte counts, whatever happens to its memory.

Sans-IO here: a buffer and counters that record the order of what is done to them. Real memory and
real processes are in `test_processes`, the comparison with the stream in `test_stream`.
"""

from __future__ import annotations

import os
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asgiri.errors import ChannelClosedError
from asgiri.ipc.counter import PipeCounter
from asgiri.ipc.records import HEADER_SIZE, Record, decode_peer, encode_peer, record_header
from asgiri.ipc.ring import RingReader, RingWriter
from tests.support.memory import Log, RecordingBuffer, RecordingCounter

PEER = encode_peer(("192.0.2.7", 4433), 0, None)
OVERHEAD = HEADER_SIZE + len(PEER)


class Ring:
    """Both ends of a ring over recorders."""

    def __init__(self, size: int) -> None:
        self.log: Log = []
        self.buffer = RecordingBuffer(size, self.log)
        self.published = RecordingCounter("published", self.log)
        self.consumed = RecordingCounter("consumed", self.log)
        self.writer = RingWriter(self.buffer, self.published, self.consumed)
        self.reader = RingReader(self.buffer, self.published, self.consumed)

    def put(self, payload: bytes) -> bool:
        return self.writer.put(record_header(len(payload), 0, 0, len(PEER)), PEER, payload)

    def take_all(self) -> list[bytes]:
        payloads = [record.payload for record in self.reader.take(1000)]
        while self.reader.pending:
            payloads += [record.payload for record in self.reader.take(1000)]
        return payloads


# A bounded queue


class RingAgainstQueue(RuleBasedStateMachine):
    """The model counts bytes: what is queued or published and not copied out uses the ring."""

    @initialize(size=st.integers(OVERHEAD, 400))
    def create(self, size):
        self.size = size
        self.ring = Ring(size)
        self.queued: deque[Record] = deque()
        self.published: deque[Record] = deque()
        self.copied: deque[Record] = deque()

    def used(self) -> int:
        return sum(OVERHEAD + len(r.payload) for r in (*self.queued, *self.published))

    @rule(payload=st.binary(max_size=60), gso_size=st.integers(0, 9), flags=st.integers(0, 7))
    def put(self, payload, gso_size, flags):
        header = record_header(len(payload), gso_size, flags, len(PEER))
        accepted = self.ring.writer.put(header, PEER, payload)
        assert accepted is (self.used() + OVERHEAD + len(payload) <= self.size)
        if accepted:
            self.queued.append(Record(payload, gso_size, flags, PEER))

    @rule()
    def publish(self):
        size = self.ring.writer.publish()
        assert size == sum(OVERHEAD + len(r.payload) for r in self.queued)
        self.published += self.queued
        self.queued.clear()

    @rule(limit=st.integers(1, 5))
    def take(self, limit):
        if not self.copied:
            self.copied, self.published = self.published, deque()
        expected = [self.copied.popleft() for _ in range(min(limit, len(self.copied)))]
        assert self.ring.reader.take(limit) == expected

    @rule()
    def ask_for_the_fill(self):
        assert self.used() / self.size - 1e-9 <= self.ring.writer.fill <= 1

    @invariant()
    def pending_says_what_was_copied_and_not_returned(self):
        if hasattr(self, "ring"):
            assert self.ring.reader.pending is bool(self.copied)
            assert self.ring.reader.corrupt == self.ring.writer.overreturned == 0


TestRingAgainstQueue = RingAgainstQueue.TestCase
TestRingAgainstQueue.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestRingAgainstQueue.pytestmark = pytest.mark.slow


# Order


def test_the_count_is_added_after_all_stores_of_a_batch():
    ring = Ring(100)
    assert ring.put(bytes(40))
    assert ring.log == []
    ring.writer.publish()
    assert ring.log == [("store", 0, 56), ("published", 56, 0)]
    ring.take_all()
    ring.log.clear()
    assert ring.put(bytes(10))
    assert ring.put(bytes(30))
    ring.writer.publish()
    assert ring.log == [("store", 56, 100), ("store", 0, 28), ("published", 72, 0)]


def test_memory_is_given_back_after_all_of_it_was_copied():
    ring = Ring(100)
    for size in (40, 56):
        ring.put(bytes(size))
        ring.writer.publish()
        ring.log.clear()
        ring.take_all()
    assert ring.log == [("load", 56, 100), ("load", 0, 28), ("consumed", 72, 0)]


def test_publishing_nothing_touches_nothing():
    ring = Ring(100)
    assert ring.writer.publish() == 0
    assert ring.reader.take(10) == []
    assert ring.log == []


def test_what_was_put_is_invisible_until_it_is_published():
    ring = Ring(100)
    assert ring.put(b"x")
    assert ring.take_all() == []
    ring.writer.publish()
    assert ring.take_all() == [b"x"]


# Positions and sizes


@pytest.mark.parametrize("records_per_batch", [1, 3])
def test_batches_wrap_at_every_position(records_per_batch):
    size = 101  # prime: batches of a constant size come to begin at each position
    ring = Ring(size)
    begun = set()
    for number in range(4 * size):
        payloads = [bytes([number % 251, part]) * part for part in range(records_per_batch)]
        assert all(ring.put(payload) for payload in payloads)
        ring.log.clear()
        ring.writer.publish()
        begun.add(ring.log[0][1])
        assert ring.take_all() == payloads
    assert begun == set(range(size))


@pytest.mark.parametrize("size", [0, 1, 1200, 65_507])
def test_payloads_from_empty_to_the_largest(size):
    ring = Ring(1 << 17)
    payload = bytes(range(256)) * 256
    for _ in range(5):
        assert ring.put(payload[:size])
        ring.writer.publish()
        assert ring.take_all() == [payload[:size]]


def test_a_record_as_large_as_the_ring_fits_and_one_more_byte_does_not():
    ring = Ring(OVERHEAD + 10)
    assert not ring.put(bytes(11))
    assert ring.put(bytes(10))
    assert not ring.put(b"")


# Full


def test_a_full_ring_refuses_the_newest_and_takes_again_what_fits():
    ring = Ring(10 * OVERHEAD)
    accepted = [ring.put(b"") for _ in range(13)]
    assert accepted == [True] * 10 + [False] * 3
    ring.writer.publish()
    assert not ring.put(b"")
    assert ring.take_all() == [b""] * 10
    assert ring.put(b"")


def test_the_fill_follows_the_reader():
    ring = Ring(4 * OVERHEAD)
    assert ring.writer.fill == 0.0
    ring.put(b"")
    assert ring.writer.fill == 0.25
    ring.put(b"")
    ring.writer.publish()
    assert ring.writer.fill == 0.5
    ring.take_all()
    assert ring.writer.fill == 0.5  # asked once per publication: a flood of Initials asks often
    assert ring.writer.count_waiting() == 0
    ring.put(b"")
    ring.writer.publish()
    assert ring.writer.fill == 0.25


def test_a_reader_that_claims_to_have_read_more_than_there_was_gains_nothing():
    ring = Ring(4 * OVERHEAD)
    for _ in range(2):
        ring.put(b"")
    ring.writer.publish()
    ring.put(b"")
    ring.consumed.add(1 << 60)
    assert ring.writer.fill == 0.25
    assert ring.writer.overreturned == 1
    assert [ring.put(b"") for _ in range(4)] == [True, True, True, False]


# Portions


def test_a_limit_leaves_the_rest_pending_and_returns_the_memory_at_once():
    ring = Ring(10 * OVERHEAD)
    for _ in range(10):
        ring.put(b"")
    ring.writer.publish()
    assert [len(ring.reader.take(4)), ring.reader.pending] == [4, True]
    assert ring.put(b"")
    ring.writer.publish()
    assert [len(ring.reader.take(4)), ring.reader.pending] == [4, True]
    assert [len(ring.reader.take(4)), ring.reader.pending] == [2, False]
    assert [len(ring.reader.take(4)), ring.reader.pending] == [1, False]
    assert ring.reader.take(4) == []


# Corruption


def test_a_corrupt_record_costs_the_rest_of_its_batch_and_nothing_more():
    ring = Ring(1000)
    for payload in (b"one", b"two", b"three"):
        ring.put(payload)
    ring.writer.publish()
    ring.buffer.content[OVERHEAD + 3 + 6] ^= 0xFF  # the magic of the second
    assert ring.take_all() == [b"one"]
    assert ring.reader.corrupt == 1
    ring.put(b"next")
    ring.writer.publish()
    assert ring.take_all() == [b"next"]
    assert ring.reader.corrupt == 1


@given(
    st.lists(st.binary(max_size=40), min_size=1, max_size=8),
    st.lists(st.tuples(st.integers(0, 999), st.integers(1, 255)), min_size=1, max_size=8),
    st.integers(1, 9),
)
def test_random_flips_never_raise_and_the_next_batch_is_whole(payloads, flips, limit):
    ring = Ring(1000)
    for payload in payloads:
        assert ring.put(payload)
    published = ring.writer.publish()
    for position, flip in flips:
        ring.buffer.content[position % published] ^= flip
    parsed = ring.reader.take(limit)
    while ring.reader.pending:
        parsed += ring.reader.take(limit)
    understood = sum(HEADER_SIZE + len(r.peer) + len(r.payload) for r in parsed)
    assert ring.reader.corrupt == (understood != published)
    for record in parsed:
        assert not record.peer or decode_peer(record.peer)
    corrupt = ring.reader.corrupt
    assert ring.put(b"whole")
    ring.writer.publish()
    assert ring.take_all() == [b"whole"]
    assert ring.reader.corrupt == corrupt


def test_a_count_beyond_the_ring_is_corrupt_and_the_next_batch_is_found():
    ring = Ring(1000)
    ring.published.add(1000 * 3)  # not from a writer of ours; a multiple keeps the positions equal
    assert ring.reader.take(10) == []
    assert (ring.reader.corrupt, ring.reader.pending) == (1, False)
    ring.put(b"next")
    ring.writer.publish()
    assert ring.take_all() == [b"next"]


# A counter that has no room


def test_what_the_worker_was_not_told_of_is_told_as_soon_as_there_is_room():
    memory = bytearray(1 << 20)
    published, consumed = PipeCounter.create(), PipeCounter.create()
    writer = RingWriter(memory, published, consumed)
    reader = RingReader(memory, published, consumed)
    header = record_header(0, 0, 0, len(PEER))
    count = 0
    while not writer.backlog:
        assert writer.put(header, PEER, b"")
        writer.publish()
        count += 1
    told = len(reader.take(count))
    assert told == count - 1
    other = RingWriter(memory, PipeCounter(writing=os.dup(published.writing)), consumed)
    other.restore(writer.to_state())  # a takeover does not forget it
    assert other.backlog == len(header) + len(PEER)
    assert other.publish() == 0
    assert (other.backlog, len(reader.take(count))) == (0, 1)
    for owner in (writer, reader, other):
        owner.close()


def test_its_reader_learns_that_the_master_is_gone():
    published, consumed = PipeCounter.create(), PipeCounter.create()
    reader = RingReader(bytearray(512), published, consumed)
    assert reader.take(1) == []
    published.close_writing()
    with pytest.raises(ChannelClosedError, match="closed by the master"):
        reader.take(1)
    reader.close()


# Ownership


def test_closing_closes_the_counters_and_forgets_what_was_queued():
    ring = Ring(1000)
    ring.put(b"x")
    ring.writer.publish()
    ring.put(b"y")
    assert ring.reader.take(0) == []
    assert ring.reader.pending
    assert ring.writer.fileno() == ring.reader.fileno() == ring.published.fileno()
    assert ring.writer.backlog == 0
    ring.writer.close()
    ring.reader.close()
    assert (ring.published.closed, ring.consumed.closed) == (True, True)
    assert not ring.reader.pending
    assert ring.writer.publish() == 0


# A takeover


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(0, 29))
def test_a_writer_goes_on_where_another_has_left_off(sizes, exchanged_after):
    ring = Ring(512)
    expected, taken = [], []
    for number, size in enumerate(sizes):
        payload = bytes([number]) * size
        if ring.put(payload):
            expected.append(payload)
        ring.writer.publish()
        if number % 3 == 2:
            taken += ring.take_all()
        if number == exchanged_after:
            state = ring.writer.to_state()
            ring.writer = RingWriter(ring.buffer, ring.published, ring.consumed)
            ring.writer.restore(state)
    assert taken + ring.take_all() == expected
    # And the whole ring can be used again.
    assert ring.writer.fill == 0


@pytest.mark.parametrize(
    "state",
    [
        {"position": 512, "unread": 0, "owed": 0},
        {"position": -1, "unread": 0, "owed": 0},
        {"position": 0, "unread": 513, "owed": 0},
        {"position": 0, "unread": 5, "owed": 6},
    ],
)
def test_a_writer_s_state_that_cannot_be_is_refused(state):
    with pytest.raises(ValueError, match="ring of 512"):
        Ring(512).writer.restore(state)
