"""Chunked bodies. What is refused: the cases of RFC 9112 §7.1 in tests/conformance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.config import Http1Config
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.http1_chunked import MAX_CHUNK_LINE, MAX_EXTENSIONS, ChunkedReader
from tests.support.http1_requests import CHUNKS, ENDINGS, cut_up


class Read:
    """A reader, and all that came out of it."""

    def __init__(self, parts: list[bytes]) -> None:
        reader = ChunkedReader(Http1Config())
        self.content = b""
        rest = [*parts]
        while rest and not reader.ended and reader.violation is None:
            self.content += reader.read(rest.pop(0))
        self.ended = reader.ended
        self.trailers = reader.trailers
        self.behind = reader.rest + b"".join(rest) if reader.ended else b""
        violation = reader.violation
        self.violation = violation and (violation.status, violation.reason, violation.detail)


@pytest.mark.slow
@given(st.lists(st.binary(min_size=1, max_size=300)), st.binary(max_size=20), st.data())
def test_content_comes_out_as_it_was_cut(parts: list[bytes], behind: bytes, data: st.DataObject):
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    read = Read(data.draw(cut_up(body + behind)))
    assert (read.content, read.ended, read.violation) == (b"".join(parts), True, None)
    assert read.behind == behind
    assert read.trailers == b"\r\n"


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(CHUNKS), max_size=4).map(b"".join),
    st.sampled_from(ENDINGS),
    st.binary(max_size=5),
    st.data(),
)
def test_events_do_not_depend_on_how_bytes_arrive(
    chunks: bytes, ending: bytes, behind: bytes, data: st.DataObject
):
    body = chunks + ending + behind
    assert vars(Read(data.draw(cut_up(body)))) == vars(Read([body]))


def test_content_before_a_violation_is_not_lost():
    reader = ChunkedReader(Http1Config())
    assert reader.read(b"5\r\nhello\r\n2\r\nabXX") == b"helloab"
    assert reader.violation is not None
    assert not reader.ended


def test_content_of_one_read_comes_as_one():
    reader = ChunkedReader(Http1Config())
    assert reader.read(b"1\r\na\r\n1\r\nb\r\n3\r\ncd") == b"abcd"
    assert reader.read(b"e\r") == b"e"
    assert reader.read(b"\n") == b""


@pytest.mark.parametrize("over", [0, 1])
def test_chunk_line_has_a_limit(over: int):
    line = b"0;" + b"a" * (MAX_CHUNK_LINE - 4 + over) + b"\r\n"
    for parts in ([line + b"\r\n"], [line[:-1], b"\n\r\n"], [line[:-2], b"\r\n\r\n"]):
        assert Read(parts).ended is not bool(over)


@pytest.mark.parametrize("over", [0, 1])
def test_extensions_of_a_body_have_a_limit(over: int):
    chunk = b"1;" + b"a" * 511 + b"\r\nx\r\n"  # 512 bytes of extension
    last = b"0" + over * b";a" + b"\r\n\r\n"
    assert Read([chunk * (MAX_EXTENSIONS // 512) + last]).ended is not bool(over)


@pytest.mark.parametrize(("size", "refused"), [(2**63 - 1, False), (2**63, True), (2**64, True)])
def test_chunk_size_has_a_limit(size: int, refused: bool):
    assert (Read([b"%x\r\nabc" % size]).violation is not None) is refused


@pytest.mark.parametrize("end", [b"XX", b"\n", b"\rX", b"\0"])
def test_end_of_a_chunk_is_looked_at(end: bytes):
    """CVE-2025-43859."""
    for parts in ([b"1\r\na" + end + b"\r\n"], [b"1\r\na", end[:1], end[1:] + b"\r\n"]):
        violation = Read(parts).violation
        assert violation is not None
        assert violation[1] is Refusal.HTTP1_BAD_CHUNK


def test_endless_extension_is_refused_before_its_end():
    reader = ChunkedReader(Http1Config())
    reader.read(b"5;")
    for _ in range(2):
        assert reader.violation is None
        reader.read(b"a" * (MAX_CHUNK_LINE // 2))
    assert reader.violation is not None


def test_trailers_have_the_limits_of_a_head():
    config = Http1Config(max_header_fields=2, max_head_size=256)
    for trailers, status in (
        (b"X: y\r\n" * 2, None),
        (b"X: y\r\n" * 3, 431),
        (b"X:" + b"y" * 255, 431),
    ):
        reader = ChunkedReader(config)
        reader.read(b"0\r\n" + trailers + b"\r\n")
        violation = reader.violation
        assert (violation and violation.status) == status
        assert violation is None or violation.reason is Refusal.HTTP1_BAD_TRAILER
