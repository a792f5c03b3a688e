"""Requests that the application does not see."""

import pytest

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.headers import RequestParts
from asgiri.worker.protocol.http2_requests import Refused, priority_of, read_request_untrusted
from asgiri.worker.protocol.priority import DEFAULT, Priority

GET = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"example.org"),
    (b":path", b"/"),
]
SIZE = sum(len(name) + len(value) + 32 for name, value in GET)


def read(fields, limit=1000):
    return read_request_untrusted(fields, max_list_size=limit)


def test_what_keeps_the_rules_is_passed_on():
    assert isinstance(read(GET, SIZE), RequestParts)


def test_a_list_beyond_the_limit_is_answered_with_431():
    refused = read(GET, SIZE - 1)
    assert isinstance(refused, Refused)
    assert (refused.status, refused.reason) == (431, Refusal.HTTP2_HEADERS_TOO_LARGE)


def test_a_malformed_request_is_not_answered():
    refused = read(GET[1:])
    assert (refused.status, refused.reason) == (None, Refusal.HTTP2_BAD_HEADERS)


@pytest.mark.parametrize(
    "fields",
    [
        [(b":method", b"CONNECT"), (b":authority", b"example.org:443")],
        [(b":method", b"CONNECT"), (b":protocol", b"connect-udp"), *GET[1:]],
    ],
)
def test_other_tunnels_than_websockets_are_not_implemented(fields):
    assert read(fields).status == 501


def test_a_websocket_is_passed_on():
    parts = read([(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]])
    assert (parts.protocol, parts.target) == ("websocket", b"/")


def test_the_priority_is_that_of_the_field():
    assert priority_of([(b"a", b"b")]) == DEFAULT
    assert priority_of([(b"a", b"b"), (b"priority", b"u=1, i")]) == Priority(1, True)
