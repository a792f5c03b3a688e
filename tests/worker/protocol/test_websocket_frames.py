"""Frames by hand; `test_websocket` asks wsproto the same."""

import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol import websocket_frames
from asgiri.worker.protocol.websocket_frames import (
    BINARY,
    FOREIGN,
    NEED_MORE,
    PING,
    PONG,
    TEXT,
    TOO_BIG,
    FrameReader,
)

KEY = b"\x01\x20\x7f\xff"


def xor(payload: bytes) -> bytes:
    return bytes(byte ^ KEY[index % 4] for index, byte in enumerate(payload))


def frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 65536:
        length = b"\xfe" + size.to_bytes(2)
    else:
        length = b"\xff" + size.to_bytes(8)
    return bytes((first,)) + length + KEY + xor(payload)


def read_all(reader: FrameReader) -> list[tuple[int, bytes]]:
    frames = []
    while (found := reader.next_frame()) is not NEED_MORE and found is not FOREIGN:
        frames.append(found)
    return frames


def reader_of(data: bytes, max_size: int = 1 << 20) -> FrameReader:
    reader = FrameReader(max_size=max_size)
    reader.receive(data)
    return reader


@pytest.mark.parametrize("size", [0, 1, 3, 4, 125, 126, 2047, 2048, 2049, 65535, 65536, 100_001])
@pytest.mark.parametrize("unmask", [websocket_frames.unmask, websocket_frames._unmask])
def test_payloads_are_unmasked(size, unmask):
    payload = bytes(index * 7 & 0xFF for index in range(size))
    assert unmask(xor(payload), KEY) == payload


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_a_whole_frame_is_read(size):
    payload = bytes(index & 0xFF for index in range(size))
    assert read_all(reader_of(frame(BINARY, payload))) == [(BINARY, payload)]


messages = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([TEXT, BINARY]), st.binary(max_size=300)),
        st.tuples(st.just(BINARY), st.integers(65530, 65540).map(bytes)),
        st.tuples(st.sampled_from([PING, PONG]), st.binary(max_size=125)),
    ),
    min_size=1,
    max_size=5,
)


@given(messages, st.lists(st.integers(0, 70_000), max_size=6))
def test_frames_do_not_depend_on_how_bytes_arrive(expected, cuts):
    data = b"".join(frame(*message) for message in expected)
    reader = FrameReader(max_size=1 << 20)
    frames = []
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, end in itertools.pairwise(edges):
        if start < end:
            reader.receive(data[start:end])
            frames += read_all(reader)
    assert frames == expected
    assert reader.next_frame() is NEED_MORE
    assert reader.take_rest() == b""


def test_a_message_in_crumbs_takes_no_more_memory_than_in_one_piece():
    """ws CVE-2026-48779: an object for each two bytes is twenty times the message."""
    size = 100_000
    data = frame(BINARY, bytes(size))
    reader = reader_of(data[:20])
    assert reader.next_frame() is NEED_MORE
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for start in range(20, len(data) - 2, 2):
            reader.receive(data[start : start + 2])
        assert tracemalloc.get_traced_memory()[0] - before < 2 * size
    finally:
        tracemalloc.stop()
    reader.receive(data[start + 2 :])
    assert read_all(reader) == [(BINARY, bytes(size))]


@given(st.binary(max_size=40))
def test_what_is_no_plain_frame_is_handed_over_untouched(tail):
    head = frame(TEXT, b"first")
    reader = reader_of(head + tail)
    read = sum(len(frame(*found)) for found in read_all(reader))
    if reader.next_frame() is FOREIGN:
        assert reader.take_rest() == (head + tail)[read:]
        assert reader.next_frame() is NEED_MORE


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x01", id="the first of several fragments"),
        pytest.param(b"\x80", id="a continuation"),
        pytest.param(b"\xc1", id="compressed"),
        pytest.param(b"\x88", id="close"),
        pytest.param(b"\x83", id="an unknown opcode"),
        pytest.param(b"\x81\x05", id="not masked"),
        pytest.param(b"\x82\xfe\x00\x7d", id="a length in more bytes than it needs"),
        pytest.param(b"\x82\xff" + (65535).to_bytes(8), id="a length in eight bytes for no reason"),
        pytest.param(b"\x82\xff" + (1 << 63).to_bytes(8), id="a length with its highest bit set"),
        pytest.param(b"\x89\xfe", id="a ping that is too long"),
    ],
)
def test_others_are_known_by_their_first_bytes(data):
    assert reader_of(data, 1024).next_frame() is FOREIGN


@pytest.mark.parametrize(("data", "limit"), [(b"\x82\xfe\x04\x01", 1024), (b"\x82\x8b", 10)])
def test_what_announces_too_much_is_known_by_its_first_bytes(data, limit):
    assert reader_of(data, limit).next_frame() is TOO_BIG


def test_a_ping_may_be_longer_than_a_message():
    assert read_all(reader_of(frame(PING, bytes(100)), max_size=10)) == [(PING, bytes(100))]
