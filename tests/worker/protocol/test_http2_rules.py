"""Rules for single frames of HTTP/2 that h2 does not keep."""

import struct

import pytest

from asgiri.worker.protocol.http2_frames import (
    ErrorCode,
    Flag,
    Frame,
    FrameType,
    FrameViolation,
    frame,
)
from asgiri.worker.protocol.http2_rules import (
    MAX_ENCODER_TABLE,
    StreamViolation,
    check_first,
    check_priority,
    read_settings,
    read_window_update,
    with_end,
    without_priority,
)


def made(kind, payload=b"", flags=0, stream_id=0):
    return Frame(kind, flags, stream_id, frame(kind, stream_id, payload, flags))


def settings(*pairs, **more):
    return made(FrameType.SETTINGS, b"".join(struct.pack("!HI", *pair) for pair in pairs), **more)


@pytest.mark.parametrize("kind", [FrameType.PING, FrameType.HEADERS, 0x42])
def test_a_connection_begins_with_settings(kind):
    with pytest.raises(FrameViolation) as refused:
        check_first(made(kind))
    assert refused.value.code is ErrorCode.PROTOCOL_ERROR
    check_first(settings())


def test_their_acknowledgment_is_no_beginning():
    with pytest.raises(FrameViolation):
        check_first(settings(flags=Flag.ACK))


def test_settings_that_nobody_knows_are_not_kept():
    received = settings((0x4242, 1), (4, 5), (9, 1), (0, 0))
    assert read_settings(received) == settings((4, 5), (9, 1))


def test_a_table_of_ours_does_not_grow_with_the_peers_offer():
    assert read_settings(settings((1, 2**32 - 1))) == settings((1, MAX_ENCODER_TABLE))
    assert read_settings(settings((1, 0))) == settings((1, 0))


@pytest.mark.parametrize(
    ("pairs", "code"),
    [
        ([(2, 2)], ErrorCode.PROTOCOL_ERROR),
        ([(4, 2**31)], ErrorCode.FLOW_CONTROL_ERROR),
        ([(4, 2**31), (4, 0)], ErrorCode.FLOW_CONTROL_ERROR),
        ([(5, 16383)], ErrorCode.PROTOCOL_ERROR),
        ([(5, 2**24)], ErrorCode.PROTOCOL_ERROR),
        ([(8, 2)], ErrorCode.PROTOCOL_ERROR),
        ([(9, 2)], ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_each_value_is_checked(pairs, code):
    with pytest.raises(FrameViolation) as refused:
        read_settings(settings(*pairs))
    assert refused.value.code is code


def test_an_acknowledgment_has_no_content():
    assert read_settings(settings(flags=Flag.ACK)) == settings(flags=Flag.ACK)
    with pytest.raises(FrameViolation) as refused:
        read_settings(settings((4, 1), flags=Flag.ACK))
    assert refused.value.code is ErrorCode.FRAME_SIZE_ERROR


@pytest.mark.parametrize(
    "received", [settings((2, 2), stream_id=1), made(FrameType.SETTINGS, bytes(5))]
)
def test_what_h2_refuses_rightly_is_left_to_it(received):
    assert read_settings(received) is received


def window_update(increment, stream_id=1):
    return made(FrameType.WINDOW_UPDATE, increment.to_bytes(4), stream_id=stream_id)


def test_the_reserved_bit_of_an_increment_is_ignored():
    assert read_window_update(window_update(1), stream_is_open=True) == window_update(1)
    received = window_update(1 | 1 << 31)
    assert read_window_update(received, stream_is_open=True) == window_update(1)


def test_an_increment_of_0_is_an_error_of_its_stream():
    with pytest.raises(StreamViolation):
        read_window_update(window_update(0), stream_is_open=True)
    with pytest.raises(FrameViolation):
        read_window_update(window_update(0, stream_id=0), stream_is_open=False)
    closed = window_update(0)
    assert read_window_update(closed, stream_is_open=False) is closed
    short = made(FrameType.WINDOW_UPDATE, bytes(3), stream_id=1)
    assert read_window_update(short, stream_is_open=True) is short


def test_priority_is_checked_and_means_nothing():
    check_priority(made(FrameType.PRIORITY, bytes(5), stream_id=1), stream_is_open=False)
    with pytest.raises(FrameViolation) as refused:
        check_priority(made(FrameType.PRIORITY, bytes(5)), stream_is_open=False)
    assert refused.value.code is ErrorCode.PROTOCOL_ERROR
    short = made(FrameType.PRIORITY, bytes(4), stream_id=1)
    with pytest.raises(StreamViolation) as violated:
        check_priority(short, stream_is_open=True)
    assert violated.value.code is ErrorCode.FRAME_SIZE_ERROR
    with pytest.raises(FrameViolation):
        check_priority(short, stream_is_open=False)


def test_a_priority_is_taken_out_of_headers():
    plain = made(FrameType.HEADERS, b"block", Flag.END_HEADERS, 1)
    flags = Flag.END_HEADERS | Flag.PRIORITY
    assert without_priority(made(FrameType.HEADERS, b"12345block", flags, 1)) == plain
    padded = made(FrameType.HEADERS, b"\x0212345block\0\0", flags | Flag.PADDED, 1)
    expected = made(FrameType.HEADERS, b"\x02block\0\0", Flag.END_HEADERS | Flag.PADDED, 1)
    assert without_priority(padded) == expected
    with pytest.raises(FrameViolation):
        without_priority(made(FrameType.HEADERS, b"\x0012", flags | Flag.PADDED, 1))


def test_an_end_is_set():
    assert with_end(made(FrameType.HEADERS, b"x", 4, 1)) == made(FrameType.HEADERS, b"x", 5, 1)
