"""Requests that the application does not see."""

import pytest

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.headers import RequestParts
from asgiri.worker.protocol.http2_requests import (
    MAX_KEPT_LIST,
    Refused,
    RequestReader,
    priority_of,
)
from asgiri.worker.protocol.priority import DEFAULT, Priority

GET = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"example.org"),
    (b":path", b"/"),
]
SIZE = sum(len(name) + len(value) + 32 for name, value in GET)


def read(fields, limit=1000, *, ended=False):
    return RequestReader(max_list_size=limit).read_untrusted(fields, ended=ended)


def test_what_keeps_the_rules_is_passed_on():
    assert isinstance(read(GET, SIZE), RequestParts)


def test_what_comes_again_is_not_read_again():
    reader = RequestReader(max_list_size=1000)
    post = [(b":method", b"POST"), *GET[1:]]
    first = reader.read_untrusted(list(GET), ended=True)
    assert reader.read_untrusted(list(GET), ended=True) is first
    assert reader.read_untrusted(post, ended=True).method == "POST"
    assert reader.read_untrusted(list(GET), ended=True) == first


def test_nothing_large_is_kept():
    reader = RequestReader(max_list_size=2 * MAX_KEPT_LIST)
    large = [*GET, (b"cookie", b"c" * MAX_KEPT_LIST)]
    assert reader.read_untrusted(large, ended=True) is not reader.read_untrusted(large, ended=True)


def test_a_section_without_fields_is_malformed():
    assert read([]).status is None


def test_a_list_beyond_the_limit_is_answered_with_431():
    refused = read(GET, SIZE - 1)
    assert isinstance(refused, Refused)
    assert (refused.status, refused.reason) == (431, Refusal.HTTP2_HEADERS_TOO_LARGE)


def test_a_malformed_request_is_not_answered():
    refused = read(GET[1:])
    assert (refused.status, refused.reason) == (None, Refusal.HTTP2_BAD_HEADERS)


@pytest.mark.parametrize("length", [b"0", b"1"])
def test_a_length_without_a_body_is_malformed(length):
    reader = RequestReader(max_list_size=1000)
    fields = [*GET, (b"content-length", length)]
    for _ in range(2):
        with_body, without = (reader.read_untrusted(fields, ended=end) for end in (False, True))
        assert isinstance(with_body, RequestParts)
        assert isinstance(without, Refused if length == b"1" else RequestParts)


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
