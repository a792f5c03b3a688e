"""Cutting bytes into frames: nothing lost, nothing kept beyond a frame, no header block endless."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.http2_frames import (
    FRAME_HEADER_SIZE,
    MAX_FRAME_SIZE,
    MAX_HEADER_BLOCK_FRAMES,
    ErrorCode,
    Flag,
    FrameCutter,
    FrameType,
    FrameViolation,
    frame,
)
from asgiri.worker.protocol.sniff import HTTP2_PREFACE


def cutter(max_header_block=1000):
    made = FrameCutter(max_header_block=max_header_block)
    assert [given.kind for given in made.receive_untrusted(HTTP2_PREFACE)] == [None]
    return made


frames = st.lists(
    st.tuples(
        st.integers(0, 255).filter(lambda kind: kind not in (1, 9)),
        st.integers(0, 255),
        st.integers(0, 2**31 - 1),
        st.binary(max_size=80),
    ),
    max_size=8,
)


@given(frames, st.lists(st.integers(1, 50), max_size=40))
def test_frames_do_not_depend_on_how_bytes_arrive(sent, cuts):
    wire = HTTP2_PREFACE + b"".join(
        frame(kind, stream_id, payload, flags) for kind, flags, stream_id, payload in sent
    )
    pieces, offset = [], 0
    for cut in cuts:
        pieces.append(wire[offset : offset + cut])
        offset += cut
    pieces.append(wire[offset:])
    made = FrameCutter(max_header_block=1000)
    given = [cut for piece in pieces for cut in made.receive_untrusted(piece)]
    assert b"".join(cut.raw for cut in given) == wire
    assert [
        (cut.kind, cut.flags, cut.stream_id, cut.payload) for cut in given if cut.kind is not None
    ] == sent


def test_the_reserved_bit_of_a_stream_id_is_ignored():
    raw = b"\x00\x00\x00\x03\x00\xff\xff\xff\xff"
    assert next(cutter().receive_untrusted(raw)).stream_id == 2**31 - 1


def test_an_overlong_frame_is_refused_by_its_header_alone():
    made = cutter()
    header = frame(FrameType.DATA, 1, bytes(MAX_FRAME_SIZE + 1))[:FRAME_HEADER_SIZE]
    with pytest.raises(FrameViolation) as caught:
        list(made.receive_untrusted(header))
    assert caught.value.code is ErrorCode.FRAME_SIZE_ERROR
    assert caught.value.reason is Refusal.HTTP2_FRAME_SIZE


def test_the_longest_frame_is_taken():
    assert len(list(cutter().receive_untrusted(frame(FrameType.DATA, 1, bytes(16384))))) == 1


def test_frames_before_a_bad_one_are_given():
    wire = frame(FrameType.PING, 0, bytes(8)) + frame(FrameType.DATA, 1, bytes(20000))
    given = cutter().receive_untrusted(wire)
    assert next(given).kind == FrameType.PING
    with pytest.raises(FrameViolation):
        next(given)


def test_a_header_block_that_goes_on_is_ended():
    """VU#421644: CONTINUATION without end."""
    made = cutter(max_header_block=1000)
    list(made.receive_untrusted(frame(FrameType.HEADERS, 1, bytes(600))))
    list(made.receive_untrusted(frame(FrameType.CONTINUATION, 1, bytes(400))))
    assert made.in_header_block
    with pytest.raises(FrameViolation) as caught:
        list(made.receive_untrusted(frame(FrameType.CONTINUATION, 1, b"x")))
    assert caught.value.code is ErrorCode.ENHANCE_YOUR_CALM
    assert caught.value.reason is Refusal.HTTP2_CONTINUATION_FLOOD


def test_a_header_block_in_very_many_frames_is_ended():
    """VU#421644 again, with frames that bring next to nothing."""
    made = cutter(max_header_block=1000)
    list(made.receive_untrusted(frame(FrameType.HEADERS, 1, b"")))
    for _ in range(MAX_HEADER_BLOCK_FRAMES - 1):
        list(made.receive_untrusted(frame(FrameType.CONTINUATION, 1, b"")))
    with pytest.raises(FrameViolation) as caught:
        list(made.receive_untrusted(frame(FrameType.CONTINUATION, 1, b"")))
    assert caught.value.reason is Refusal.HTTP2_CONTINUATION_FLOOD


def test_blocks_are_counted_one_by_one():
    made = cutter(max_header_block=1000)
    for _ in range(3):
        list(made.receive_untrusted(frame(FrameType.HEADERS, 1, bytes(600))))
        last = frame(FrameType.CONTINUATION, 1, bytes(400), Flag.END_HEADERS)
        assert len(list(made.receive_untrusted(last))) == 1
        assert not made.in_header_block
