"""h11 as a field parser, and alone as an oracle."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgiri.worker.protocol.http1_h11 import H11Parser
from asgiri.worker.protocol.http1_head import split_fields
from tests.support.http1_engine import connection, converse
from tests.support.http1_oracles import read_by_h11
from tests.support.http1_requests import cut_up, streams

PARSER = H11Parser()


@pytest.mark.parametrize(
    "section",
    [
        b"\r\n",
        b"Host: a\r\nX: \t b c \t\r\nY:\r\nZ:   \r\n\r\n",
        b"Connection: close\r\nA: b\r\nA: c\r\n\r\n",
        b"Upgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"Content-Length: 5\r\nX: \xff\x80\r\n\r\n",
        b"Transfer-Encoding: Chunked\r\n\r\n",
    ],
)
def test_fields_are_split_like_our_grammar_does(section: bytes):
    assert PARSER.parse_fields(section) == split_fields(section)


@pytest.mark.parametrize(
    "section",
    [
        b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"Content-Length: 5, 5\r\n\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"Content-Length:\r\n\r\n",
        b"Transfer-Encoding: gzip\r\n\r\n",
        b"X: a\0b\r\n\r\n",
        b"X : a\r\n\r\n",
    ],
)
def test_veto(section: bytes):
    with pytest.raises(ValueError):
        PARSER.parse_fields(section)


@pytest.mark.slow
@given(st.data(), streams())
def test_events_do_not_depend_on_how_bytes_arrive(data: st.DataObject, stream: bytes):
    whole = converse(connection(PARSER), [stream])
    assert converse(connection(PARSER), data.draw(cut_up(stream))) == whole


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(streams())
def test_h11_alone_reads_what_we_accept_in_the_same_way(stream: bytes):
    """As far as it goes: it does not keep HTTP/1.0 connections, nor go on behind an upgrade."""
    ours = [
        (request.method, request.body) for request in converse(connection(), [stream]).answered()
    ]
    theirs = read_by_h11(stream)
    common = min(len(ours), len(theirs))
    assert ours[:common] == theirs[:common]
