"""Frames of a request stream, cut by the network wherever it likes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol.http3_frames import (
    DATA,
    HEADERS,
    NOT_ON_REQUESTS,
    ErrorCode,
    FrameViolation,
    frame,
    write_integer,
)
from asgiri.worker.protocol.http3_requests import TOO_LARGE, FrameReader, Phase, Request

GREASE = 0x21
LIMIT = 100

frames = st.lists(
    st.tuples(st.sampled_from([DATA, HEADERS, GREASE]), st.binary(max_size=LIMIT)), max_size=6
)


def joined(pieces: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """Parts of a body put together; what is empty left out."""
    result: list[tuple[int, bytes]] = []
    for kind, payload in pieces:
        if kind == DATA and result and result[-1][0] == DATA:
            result[-1] = (DATA, result[-1][1] + payload)
        elif payload or kind != DATA:
            result.append((kind, payload))
    return result


@given(frames, st.lists(st.integers(1, 30), max_size=40))
def test_pieces_do_not_depend_on_how_bytes_arrive(sent: list[tuple[int, bytes]], cuts: list[int]):
    data = b"".join(frame(kind, payload) for kind, payload in sent)
    reader = FrameReader(LIMIT)
    pieces = []
    for size in cuts:
        pieces += reader.read(data[:size])
        data = data[size:]
    pieces += reader.read(data)
    expected = [(kind, payload) for kind, payload in sent if kind != GREASE]
    assert joined(pieces) == joined(expected)
    assert reader.is_between_frames


@given(frames, st.data())
def test_the_middle_of_a_frame_is_told_from_its_end(
    sent: list[tuple[int, bytes]], data: st.DataObject
):
    whole = b"".join(frame(kind, payload) for kind, payload in sent)
    ends = {0}
    for kind, payload in sent:
        ends.add(max(ends) + len(frame(kind, payload)))
    cut = data.draw(st.integers(0, len(whole)))
    reader = FrameReader(LIMIT)
    reader.read(whole[:cut])
    assert reader.is_between_frames is (cut in ends)


@pytest.mark.parametrize("kind", sorted(NOT_ON_REQUESTS))
def test_frames_of_other_streams_are_refused_by_their_type(kind: int):
    reader = FrameReader(LIMIT)
    with pytest.raises(FrameViolation) as caught:
        reader.read(write_integer(kind) + write_integer(1000))
    assert caught.value.code == ErrorCode.H3_FRAME_UNEXPECTED


def test_a_section_above_the_limit_is_one_piece_and_skipped():
    reader = FrameReader(LIMIT)
    head = write_integer(HEADERS) + write_integer(LIMIT + 1)
    assert reader.read(head + bytes(50)) == [(TOO_LARGE, b"")]
    assert reader.read(bytes(51) + frame(DATA, b"x")) == [(DATA, b"x")]


def test_empty_data_is_a_piece():
    assert FrameReader(LIMIT).read(frame(DATA, b"")) == [(DATA, b"")]


def test_a_stream_begins_with_a_head():
    request = Request(4, LIMIT, 7.0)
    assert (request.stream_id, request.phase, request.since) == (4, Phase.HEAD, 7.0)
