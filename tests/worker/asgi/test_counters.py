"""What requests leave on the scoreboard."""

from hypothesis import given
from hypothesis import strategies as st

from asgiri.ipc.scoreboard import DURATION_BOUNDS, PAGE_SIZE, Cell, Scoreboard
from asgiri.worker.asgi.counters import Counters


def make():
    scoreboard = Scoreboard(memoryview(bytearray(PAGE_SIZE)))
    return Counters(scoreboard), scoreboard


def test_requests_in_flight_are_published_at_once():
    counters, scoreboard = make()
    counters.request_began("1.1")
    counters.request_began("3")
    assert scoreboard.get(Cell.REQUESTS_ACTIVE) == 2
    counters.request_ended()
    assert scoreboard.get(Cell.REQUESTS_ACTIVE) == 1


def test_the_rest_is_published_by_the_heartbeat():
    counters, scoreboard = make()
    for version in ("1.0", "1.1", "1.1", "2", "3", "3"):
        counters.request_began(version)
    counters.response_ended(200, 0.001, 10)
    counters.response_ended(404, 0.001, 5)
    counters.body_bytes_in += 7
    counters.app_errors += 1
    counters.websocket_began()
    counters.websocket_began()
    counters.websocket_ended()
    assert scoreboard.get(Cell.REQUESTS_HTTP1) == 0
    counters.publish()
    published = {
        name: value
        for name, value in scoreboard.snapshot().items()
        if value and name != "requests_active"
    }
    assert published == {
        "requests_http1": 3,
        "requests_http2": 1,
        "requests_http3": 2,
        "responses_2xx": 1,
        "responses_4xx": 1,
        "body_bytes_in": 7,
        "body_bytes_out": 15,
        "app_errors": 1,
        "websockets_open": 1,
        "websockets_total": 2,
        "duration_sum_us": 2000,
    }


@given(st.lists(st.integers(0, 200_000_000)))
def test_durations_fall_into_the_buckets_of_the_scoreboard(durations_us):
    counters, scoreboard = make()
    _, expected = make()
    for duration_us in durations_us:
        # Half a microsecond more: seconds are floats, and are rounded down.
        counters.response_ended(200, (duration_us + 0.5) / 1e6, 0)
        expected.observe(duration_us)
    counters.publish()
    assert scoreboard.durations() == expected.durations()
    assert scoreboard.get(Cell.DURATION_SUM_US) == sum(durations_us)
    assert len(scoreboard.durations()) == len(DURATION_BOUNDS) + 1


@given(st.integers(200, 999))
def test_status_of_any_class_is_counted(status):
    counters, scoreboard = make()
    counters.response_ended(status, 0.0, 0)
    counters.publish()
    assert sum(scoreboard.durations()) == 1
