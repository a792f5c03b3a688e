"""The client's control stream and its companions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol.http3_control import (
    LARGEST_CONTROL_FRAME,
    ClientStreams,
    ControlStream,
)
from asgiri.worker.protocol.http3_frames import (
    CANCEL_PUSH,
    GOAWAY,
    HEADERS,
    MAX_PUSH_ID,
    PRIORITY_UPDATE,
    SETTINGS,
    ErrorCode,
    FrameViolation,
    frame,
    write_integer,
    write_settings,
)
from asgiri.worker.protocol.qpack import FieldSections

GREASE = 0x21


def client_streams() -> ClientStreams:
    return ClientStreams(FieldSections(65_536))


def refused(call: object, *arguments: object, **options: object) -> ErrorCode:
    assert callable(call)
    with pytest.raises(FrameViolation) as caught:
        call(*arguments, **options)
    return caught.value.code


WHOLE = b"".join(
    [
        write_settings({0x06: 1000, GREASE: 1}),
        frame(GREASE, b"x" * 200),
        frame(GOAWAY, b"\x08"),
        frame(MAX_PUSH_ID, b"\x03"),
        frame(PRIORITY_UPDATE, b"\x04u=1, i"),
        frame(GREASE, b""),
        frame(GOAWAY, b"\x04"),
        frame(MAX_PUSH_ID, b"\x03"),
    ]
)


@given(st.lists(st.integers(1, 40), max_size=60))
def test_frames_do_not_depend_on_how_bytes_arrive(cuts: list[int]):
    control = ControlStream()
    data = WHOLE
    for size in cuts:
        control.receive(data[:size])
        data = data[size:]
    control.receive(data)
    assert control.settings == {0x06: 1000, GREASE: 1}
    assert control.priorities == [(4, b"u=1, i")]
    assert refused(control.receive, frame(GOAWAY, b"\x08")) == ErrorCode.H3_ID_ERROR


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(GREASE, b""), ErrorCode.H3_MISSING_SETTINGS),
        (frame(SETTINGS, b"") * 2, ErrorCode.H3_FRAME_UNEXPECTED),
        (frame(SETTINGS, b"") + frame(HEADERS, b""), ErrorCode.H3_FRAME_UNEXPECTED),
        (frame(SETTINGS, b"") + frame(CANCEL_PUSH, b"\x00"), ErrorCode.H3_ID_ERROR),
        (frame(SETTINGS, b"") + frame(PRIORITY_UPDATE, b""), ErrorCode.H3_FRAME_ERROR),
        (frame(SETTINGS, b"") + frame(PRIORITY_UPDATE, b"\x03"), ErrorCode.H3_ID_ERROR),
        (
            frame(SETTINGS, b"") + frame(MAX_PUSH_ID, b"\x03") + frame(MAX_PUSH_ID, b"\x02"),
            ErrorCode.H3_ID_ERROR,
        ),
        (
            write_integer(SETTINGS) + write_integer(LARGEST_CONTROL_FRAME + 1),
            ErrorCode.H3_EXCESSIVE_LOAD,
        ),
    ],
)
def test_a_control_stream_is_refused_by_the_code_of_the_rfc(data: bytes, code: ErrorCode):
    assert refused(ControlStream().receive, data) == code


@given(st.lists(st.binary(max_size=30), max_size=5))
def test_a_control_stream_is_read_or_refused(parts: list[bytes]):
    control = ControlStream()
    try:
        for part in (write_settings({}), *parts):
            control.receive(part)
    except FrameViolation:
        pass


def test_streams_are_known_by_their_first_integer():
    streams = client_streams()
    streams.receive(2, b"\x00" + write_settings({}), ended=False)
    streams.receive(6, b"\x02", ended=False)
    streams.receive(10, b"\x03", ended=False)
    assert streams.control.settings == {}
    for kind in (0, 2, 3):
        code = refused(streams.receive, 14 + 4 * kind, bytes([kind]), ended=False)
        assert code == ErrorCode.H3_STREAM_CREATION_ERROR
    assert refused(streams.receive, 50, b"\x01", ended=False) == ErrorCode.H3_STREAM_CREATION_ERROR


def test_a_type_may_come_in_parts_or_never():
    streams = client_streams()
    for octet in b"\x80\x00\x00":
        streams.receive(2, bytes([octet]), ended=False)
    streams.receive(2, b"\x00" + write_settings({}), ended=False)
    assert streams.control.settings == {}
    streams.receive(6, b"\x40", ended=True)
    streams.receive(10, b"\x40", ended=False)
    streams.reset(10)
    streams.receive(10, b"\x02", ended=False)


def test_streams_of_unknown_type_are_unwanted_and_forgotten():
    streams = client_streams()
    for stream_id in (2, 6):
        streams.receive(stream_id, b"\x21grease", ended=False)
        streams.receive(stream_id, b"more", ended=False)
    assert streams.unwanted == [2, 6]
    streams.receive(2, b"", ended=True)
    streams.reset(6)
    streams.receive(10, b"\x21", ended=True)


@pytest.mark.parametrize("kind", [b"\x00", b"\x02", b"\x03"])
def test_critical_streams_do_not_end(kind: bytes):
    streams = client_streams()
    streams.receive(2, kind, ended=False)
    assert refused(streams.reset, 2) == ErrorCode.H3_CLOSED_CRITICAL_STREAM
    streams = client_streams()
    streams.receive(2, kind, ended=False)
    assert refused(streams.receive, 2, b"", ended=True) == ErrorCode.H3_CLOSED_CRITICAL_STREAM


@pytest.mark.parametrize(
    ("kind", "instruction", "code"),
    [
        (b"\x02", b"\x3f\xe2\x7f", ErrorCode.QPACK_ENCODER_STREAM_ERROR),
        (b"\x03", b"\xff\xff\xff\x7f", ErrorCode.QPACK_DECODER_STREAM_ERROR),
    ],
)
def test_instructions_of_qpack_are_passed_on(kind: bytes, instruction: bytes, code: ErrorCode):
    streams = client_streams()
    streams.receive(6, kind, ended=False)
    assert refused(streams.receive, 6, instruction, ended=False) == code
