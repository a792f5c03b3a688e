"""Integers, frames, settings and the counting of field lines."""

from __future__ import annotations

import pylsqpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol.http3_frames import (
    INCOMPLETE,
    ErrorCode,
    FrameViolation,
    count_field_lines,
    frame,
    read_integer,
    read_settings,
    read_single_integer,
    write_integer,
    write_settings,
)

integers = st.integers(0, (1 << 62) - 1) | st.sampled_from(
    [0, 63, 64, 16383, 16384, (1 << 30) - 1, 1 << 30]
)


@given(integers, st.binary(max_size=3), st.binary(max_size=3))
def test_integers_are_read_as_they_were_written(value: int, before: bytes, behind: bytes):
    data = before + write_integer(value) + behind
    assert read_integer(data, len(before)) == (value, len(data) - len(behind))


@given(integers, st.data())
def test_an_integer_that_goes_on_is_incomplete(value: int, data: st.DataObject):
    written = write_integer(value)
    cut = data.draw(st.integers(0, len(written) - 1))
    assert read_integer(written[:cut], 0)[1] == INCOMPLETE


@pytest.mark.parametrize(
    ("encoded", "value"),
    [
        ("c2197c5eff14e88c", 151_288_809_941_952_652),
        ("9d7f3e7d", 494_878_333),
        ("7bbd", 15_293),
        ("25", 37),
        ("4025", 37),
    ],
)
def test_the_examples_of_the_rfc(encoded: str, value: int):
    """RFC 9000 §A.1."""
    assert read_integer(bytes.fromhex(encoded), 0)[0] == value


def test_a_frame_is_type_length_and_payload():
    assert frame(0x21, b"x" * 64) == b"\x21\x40\x40" + b"x" * 64


@given(
    st.dictionaries(st.integers(0x34, 1 << 40), integers, max_size=8)
    | st.dictionaries(st.sampled_from([0x08, 0x33]), st.integers(0, 1))
)
def test_settings_are_read_as_they_were_written(settings: dict[int, int]):
    written = write_settings(settings)
    assert written[0] == 0x04
    _, start = read_integer(written, 1)
    assert read_settings(written[start:]) == settings


@given(st.binary(max_size=40))
def test_settings_are_read_or_refused(payload: bytes):
    code = None
    try:
        read_settings(payload)
    except FrameViolation as violation:
        code = violation.code
    assert code in (None, ErrorCode.H3_FRAME_ERROR, ErrorCode.H3_SETTINGS_ERROR)


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x06", ErrorCode.H3_FRAME_ERROR),
        (b"\x04\x00", ErrorCode.H3_SETTINGS_ERROR),
        (b"\x06\x01\x06\x01", ErrorCode.H3_SETTINGS_ERROR),
        (b"\x08\x02", ErrorCode.H3_SETTINGS_ERROR),
    ],
)
def test_settings_are_refused_by_the_code_of_the_rfc(payload: bytes, code: ErrorCode):
    with pytest.raises(FrameViolation) as caught:
        read_settings(payload)
    assert caught.value.code == code


@given(st.binary(max_size=12))
def test_a_single_integer_fills_its_frame(payload: bytes):
    value = None
    try:
        value = read_single_integer(payload, "GOAWAY")
    except FrameViolation as violation:
        code = violation.code
    read, end = read_integer(payload, 0)
    if end == len(payload):
        assert value == read
    else:
        assert (value, code) == (None, ErrorCode.H3_FRAME_ERROR)


fields = st.lists(
    st.tuples(
        st.sampled_from([b":method", b":path", b"x-name", b"content-type", b"cookie"]),
        st.sampled_from([b"GET", b"/", b"text/plain"]) | st.binary(max_size=300),
    ),
    max_size=30,
)


@given(fields, st.booleans())
def test_field_lines_are_counted_without_being_decoded(
    fields: list[tuple[bytes, bytes]], dynamic: bool
):
    encoder = pylsqpack.Encoder()
    if dynamic:
        encoder.apply_settings(max_table_capacity=4096, blocked_streams=16)
        encoder.encode(0, fields)
        encoder.encode(4, fields)
    _, block = encoder.encode(8, fields)
    assert count_field_lines(block, 1000) == len(fields)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b"\x80", "indexed, dynamic"),
        (b"\xff\x80\x01", "indexed, static, two octets"),
        (b"\x5f\x00\x03abc", "literal with name reference"),
        (b"\x27\x01" + b"n" * 8 + b"\x7f\x01" + b"v" * 128, "literal with literal name"),
        (b"\x10", "indexed, post-base"),
        (b"\x07\x00\x01v", "literal with post-base name reference"),
    ],
)
def test_every_kind_of_line_counts_as_one(line: bytes, kind: str):
    assert count_field_lines(b"\x00\x00" + line * 7, 100) == 7


def test_counting_stops_above_the_limit():
    assert count_field_lines(b"\x00\x00" + b"\x80" * 1000, 10) == 11


@given(st.binary(max_size=80))
def test_counting_never_raises_or_exceeds_the_octets(block: bytes):
    assert count_field_lines(block, 1000) <= len(block)


def test_an_integer_without_end_is_read_to_the_end():
    assert count_field_lines(b"\x00\x00\xff" + b"\xff" * 30, 100) <= 31
