"""httptools as a field parser, and alone as an oracle."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgiri.worker.protocol.http1_head import split_fields
from asgiri.worker.protocol.http1_llhttp import LlhttpParser
from tests.support.http1_engine import connection, converse
from tests.support.http1_oracles import read_by_httptools
from tests.support.http1_requests import cut_up, streams

PARSER = LlhttpParser()


@pytest.mark.parametrize(
    "section",
    [
        b"\r\n",
        b"Host: a\r\nX: \t b c \t\r\nY:\r\nZ:   \r\nW:\t\r\n\r\n",
        b"Connection: close\r\nA: b\r\nA: c\r\n\r\n",
        b"Upgrade: x\r\nConnection: upgrade\r\nHost: c\r\n\r\n",
        b"Content-Length: 5\r\nX: \xff\x80\r\n\r\n",
        b"Transfer-Encoding: Chunked\t \r\n\r\n",
        b"Proxy-Connection: close\r\nConnection: ,(,\x80\r\n\r\n",
    ],
)
def test_fields_are_split_like_our_grammar_does(section: bytes):
    assert PARSER.parse_fields(section) == split_fields(section)


@pytest.mark.parametrize(
    "section",
    [
        b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n",
        b"Content-Length:\r\n\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding: gzip\r\n\r\n",
        b"X: a\x7fb\r\n\r\n",
        b"X : a\r\n\r\n",
        b"X: a\r\n b\r\n\r\n",
    ],
)
def test_veto(section: bytes):
    with pytest.raises(ValueError):
        PARSER.parse_fields(section)


def test_nothing_of_one_section_reaches_the_next():
    for section in (
        b"Connection: close\r\n\r\n",
        b"Content-Length: 9\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n",
    ):
        PARSER.parse_fields(section)
        assert PARSER.parse_fields(b"X: y\r\n\r\n") == [(b"x", b"y")]
    with pytest.raises(ValueError):
        PARSER.parse_fields(b"\0\r\n\r\n")
    assert PARSER.parse_fields(b"X: y\r\n\r\n") == [(b"x", b"y")]


@pytest.mark.slow
@given(st.data(), streams())
def test_events_do_not_depend_on_how_bytes_arrive(data: st.DataObject, stream: bytes):
    whole = converse(connection(PARSER), [stream])
    assert converse(connection(PARSER), data.draw(cut_up(stream))) == whole


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(streams())
def test_httptools_alone_reads_what_we_accept_in_the_same_way(stream: bytes):
    """As far as it goes: it knows fewer methods, no HTTP/1.2, and no white space in chunk lines."""
    ours = [
        (request.method, request.body) for request in converse(connection(), [stream]).answered()
    ]
    theirs = read_by_httptools(stream)
    common = min(len(ours), len(theirs))
    assert ours[:common] == theirs[:common]
