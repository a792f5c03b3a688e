"""Which stream is served next, against a plain model and by examples."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol.http2_streams import SendQueue, Stream
from asgiri.worker.protocol.priority import DEFAULT, Priority


class Windows:
    """The peer's side: a window per stream, one for all, and a clock."""

    def __init__(self):
        self.streams = {}
        self.connection = 1 << 20
        self.now = 100.0

    def of(self, stream_id):
        return min(self.connection, self.streams.get(stream_id, 1 << 16))

    def queue(self):
        return SendQueue(self.of, lambda: self.connection)

    def clock(self):
        return self.now


def make(stream_id, *, size=10, priority=DEFAULT):
    stream = Stream(stream_id, remote_ended=True)
    stream.priority = priority
    if size:
        stream.parts.append(bytes(size))
        stream.queued = size
    return stream


def order(queue, windows, count):
    served = []
    for _ in range(count):
        stream, _ = queue.next(windows.clock)
        served.append(stream.id)
        queue.served(stream)
    return served


# What waits in a stream


def test_parts_are_taken_as_they_fit():
    stream = Stream(1, remote_ended=False)
    assert stream.take(10) == b""
    stream.parts.extend((b"abcdef", b"gh"))
    stream.queued = 8
    assert [bytes(stream.take(4)) for _ in range(3)] == [b"abcd", b"ef", b"gh"]
    assert stream.queued == 0


# Order


def test_the_most_urgent_is_served_until_it_is_done():
    windows = Windows()
    queue = windows.queue()
    low, high = make(1, priority=Priority(5)), make(3, priority=Priority(1))
    queue.add(low)
    queue.add(high)
    assert order(queue, windows, 2) == [3, 3]
    queue.discard(high)
    queue.discard(high)
    assert order(queue, windows, 1) == [1]
    assert [stream.id for stream in queue] == [1]


def test_incremental_streams_take_turns_behind_the_others():
    windows = Windows()
    queue = windows.queue()
    for stream_id, incremental in ((1, True), (3, True), (5, False)):
        queue.add(make(stream_id, priority=Priority(3, incremental)))
    assert order(queue, windows, 2) == [5, 5]
    (whole,) = (stream for stream in queue if stream.id == 5)
    queue.discard(whole)
    assert order(queue, windows, 5) == [1, 3, 1, 3, 1]


def test_a_priority_may_change_while_a_stream_waits():
    windows = Windows()
    queue = windows.queue()
    first, second, absent = make(1), make(3), make(5)
    queue.add(first)
    queue.add(second)
    queue.add(second)
    queue.prioritize(second, Priority(0))
    queue.prioritize(absent, Priority(0))
    assert order(queue, windows, 1) == [3]
    queue.prioritize(second, Priority(7))
    assert order(queue, windows, 1) == [1]


# Windows


def test_a_closed_window_sets_a_stream_aside_until_it_opens():
    windows = Windows()
    windows.streams[1] = 0
    queue = windows.queue()
    blocked, free = make(1), make(3)
    queue.add(blocked)
    queue.add(free)
    assert queue.next(windows.clock) == (free, 1 << 16)
    windows.streams[1] = 5
    assert queue.next(windows.clock) == (free, 1 << 16)  # nobody has told it
    queue.window_opened(3)
    queue.window_opened(99)
    queue.window_opened(1)
    assert queue.next(windows.clock) == (blocked, 5)


def test_the_end_of_a_body_needs_no_window():
    windows = Windows()
    windows.connection = 0
    queue = windows.queue()
    ending = make(1, size=0)
    queue.add(ending)
    assert queue.next(windows.clock) == (ending, 0)


def test_a_window_of_the_connection_lets_all_go_on():
    windows = Windows()
    windows.connection = 0
    queue = windows.queue()
    for stream_id in (1, 3, 5):
        queue.add(make(stream_id))
    assert queue.next(windows.clock) is None
    windows.connection = 100
    windows.streams[1] = 0
    queue.window_opened(0)
    assert order(queue, windows, 1) == [3]
    queue.window_opened(0)
    assert order(queue, windows, 1) == [3]


# Who is stalled


def test_a_stream_is_stalled_since_its_own_window_closed():
    windows = Windows()
    windows.streams[1] = 0
    queue = windows.queue()
    stalled = make(1)
    queue.add(stalled)
    queue.add(make(3))
    order(queue, windows, 1)
    windows.now += 10
    order(queue, windows, 1)
    assert queue.stalled_since(99.0) == []
    assert queue.stalled_since(100.0) == [stalled]
    queue.window_opened(1)
    assert queue.stalled_since(200.0) == []


def test_streams_behind_more_urgent_ones_are_not_stalled():
    """The window of the connection opens now and then, and the first in line takes it all."""
    windows = Windows()
    queue = windows.queue()
    first, second = make(1), make(3)
    queue.add(first)
    queue.add(second)
    for _ in range(100):
        windows.connection = 10
        queue.window_opened(0)
        assert order(queue, windows, 1) == [1]
        windows.connection = 0
        assert queue.next(windows.clock) is None
        windows.now += 1
    assert queue.stalled_since(windows.now - 2) == []
    windows.now += 60
    assert queue.next(windows.clock) is None
    assert queue.stalled_since(windows.now - 60) == [first, second]


# Against a model


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "discard", "prioritize", "close", "open", "serve"]),
            st.integers(0, 5),
            st.integers(0, 3),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_the_order_is_that_of_a_full_search(steps):
    windows = Windows()
    queue = windows.queue()
    streams = {number: make(2 * number + 1) for number in range(6)}
    members = {}
    turns = itertools.count(1)

    def best():
        able = [s for s in members.values() if windows.of(s.id) > 0]
        return min(able, key=lambda s: (s.priority, s.turn, s.id), default=None)

    for step, number, urgency, incremental in steps:
        stream = streams[number]
        match step:
            case "add":
                queue.add(stream)
                members[stream.id] = stream
            case "discard":
                queue.discard(stream)
                members.pop(stream.id, None)
            case "prioritize":
                queue.prioritize(stream, Priority(urgency, incremental))
            case "close":
                windows.streams[stream.id] = 0
            case "open":
                windows.streams[stream.id] = 10
                queue.window_opened(stream.id)
            case "serve":
                expected = best()
                chosen = queue.next(windows.clock)
                assert (chosen and chosen[0]) == expected
                if expected is not None:
                    queue.served(expected)
                    assert expected.turn == (
                        next(turns) if expected.priority.incremental else expected.turn
                    )
