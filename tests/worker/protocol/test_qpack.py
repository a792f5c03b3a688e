"""QPACK against pylsqpack's own other half."""

from __future__ import annotations

import pylsqpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.errors import AppError
from asgiri.worker.protocol.http3_frames import ErrorCode, FrameViolation
from asgiri.worker.protocol.qpack import (
    BLOCKED_STREAMS,
    MAX_FIELD_LINES,
    TABLE_SIZE,
    FieldSections,
    SectionTooLargeError,
)

FIELDS = [(b":status", b"200"), (b"x-name", b"some value"), (b"x-other", b"some value")]
LIMIT = 65_536


class Peer:
    """The other end, with a dynamic table."""

    def __init__(self) -> None:
        self.encoder = pylsqpack.Encoder()
        self.first = self.encoder.apply_settings(
            max_table_capacity=TABLE_SIZE, blocked_streams=BLOCKED_STREAMS
        )

    def inserting(self, stream_id: int, fields: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
        """Instructions, and a section that needs them."""
        for _ in range(4):
            instructions, block = self.encoder.encode(stream_id, fields)
            if instructions:
                return instructions, block
        raise AssertionError("nothing was inserted")


@given(
    st.lists(
        st.tuples(st.sampled_from([b"x", b":status", b"content-type"]), st.binary(max_size=200)),
        min_size=1,
        max_size=20,
    )
)
def test_what_we_encode_needs_no_table(fields: list[tuple[bytes, bytes]]):
    block = FieldSections(LIMIT).encode(0, fields)
    assert pylsqpack.Decoder(0, 0).feed_header(0, block)[1] == fields


def test_a_section_may_be_empty():
    assert FieldSections(LIMIT).decode(0, FieldSections(LIMIT).encode(0, [])) == []


def test_a_field_that_does_not_fit_is_the_applications_fault():
    with pytest.raises(AppError, match="response fields"):
        FieldSections(LIMIT).encode(0, [(b"x", b"v" * 70_000)])


def test_sections_wait_for_the_table_and_are_acknowledged():
    peer, sections = Peer(), FieldSections(LIMIT)
    assert sections.encoder_stream_received(peer.first) == []
    instructions, block = peer.inserting(4, FIELDS)
    assert sections.decode(4, block) is None
    assert sections.resume(4) is None
    assert sections.encoder_stream_received(instructions) == [4]
    assert sections.resume(4) == FIELDS
    peer.encoder.feed_decoder(sections.take_output())
    assert sections.take_output() == b""


def test_a_section_that_waits_can_be_cancelled():
    peer, sections = Peer(), FieldSections(LIMIT)
    sections.encoder_stream_received(peer.first)
    instructions, block = peer.inserting(4, FIELDS)
    assert sections.decode(4, block) is None
    sections.cancel(4)
    assert sections.encoder_stream_received(instructions) == []
    peer.encoder.feed_decoder(sections.take_output())


def test_sections_above_the_limit_are_refused_once_decoded():
    peer, sections = Peer(), FieldSections(100)
    _, block = peer.encoder.encode(0, FIELDS)
    with pytest.raises(SectionTooLargeError):
        sections.decode(0, block)
    sections.encoder_stream_received(peer.first)
    instructions, block = peer.inserting(4, FIELDS)
    assert sections.decode(4, block) is None
    sections.encoder_stream_received(instructions)
    with pytest.raises(SectionTooLargeError):
        sections.resume(4)


def test_sections_of_too_many_lines_are_refused_undecoded():
    sections = FieldSections(LIMIT)
    with pytest.raises(SectionTooLargeError):
        sections.decode(0, b"\x00\x00" + b"\xd1" * (MAX_FIELD_LINES + 1))
    assert sections.decode(0, b"\x00\x00" + b"\xd1" * 1000) == [(b":method", b"GET")] * 1000
    # Many octets in few lines are counted, and decoded.
    _, block = pylsqpack.Encoder().encode(0, [(b"x", b"\x00" * 5000)])
    assert sections.decode(0, block) == [(b"x", b"\x00" * 5000)]


def test_garbage_is_a_decompression_failure():
    with pytest.raises(FrameViolation) as caught:
        FieldSections(LIMIT).decode(4, b"\xff" * 9)
    assert caught.value.code == ErrorCode.QPACK_DECOMPRESSION_FAILED


def test_garbage_that_had_to_wait_is_a_decompression_failure():
    peer, sections = Peer(), FieldSections(LIMIT)
    sections.encoder_stream_received(peer.first)
    instructions, _ = peer.inserting(4, FIELDS)
    assert sections.decode(4, b"\x02\x00\x80\x81") is None
    sections.encoder_stream_received(instructions)
    with pytest.raises(FrameViolation) as caught:
        sections.resume(4)
    assert caught.value.code == ErrorCode.QPACK_DECOMPRESSION_FAILED


def test_wrong_instructions_are_errors_of_their_streams():
    sections = FieldSections(LIMIT)
    with pytest.raises(FrameViolation) as caught:
        sections.encoder_stream_received(b"\x3f\xe2\x7f")
    assert caught.value.code == ErrorCode.QPACK_ENCODER_STREAM_ERROR
    with pytest.raises(FrameViolation) as caught:
        sections.decoder_stream_received(b"\xff\xff\xff\x7f")
    assert caught.value.code == ErrorCode.QPACK_DECODER_STREAM_ERROR


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=6))
def test_no_bytes_raise_anything_else(parts: list[tuple[bool, bytes]]):
    sections = FieldSections(LIMIT)
    for stream_id, (is_section, data) in enumerate(parts):
        try:
            if is_section:
                sections.decode(stream_id, data)
            else:
                sections.encoder_stream_received(data)
        except (FrameViolation, SectionTooLargeError):
            break
