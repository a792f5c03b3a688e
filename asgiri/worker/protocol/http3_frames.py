"""Frames, settings and error codes of HTTP/3 (RFC 9114, 9204, 9218, 9220). Sans-IO, no library.

Frames are read from `bytes` by offset: aioquic's Buffer costs an object and a call per integer.
"""

from __future__ import annotations

import enum
from typing import Final


class ErrorCode(enum.IntEnum):
    """RFC 9114 §8.1 and RFC 9204 §6."""

    H3_NO_ERROR = 0x100
    H3_GENERAL_PROTOCOL_ERROR = 0x101
    H3_INTERNAL_ERROR = 0x102
    H3_STREAM_CREATION_ERROR = 0x103
    H3_CLOSED_CRITICAL_STREAM = 0x104
    H3_FRAME_UNEXPECTED = 0x105
    H3_FRAME_ERROR = 0x106
    H3_EXCESSIVE_LOAD = 0x107
    H3_ID_ERROR = 0x108
    H3_SETTINGS_ERROR = 0x109
    H3_MISSING_SETTINGS = 0x10A
    H3_REQUEST_REJECTED = 0x10B
    H3_REQUEST_CANCELLED = 0x10C
    H3_REQUEST_INCOMPLETE = 0x10D
    H3_MESSAGE_ERROR = 0x10E
    H3_CONNECT_ERROR = 0x10F
    H3_VERSION_FALLBACK = 0x110
    QPACK_DECOMPRESSION_FAILED = 0x200
    QPACK_ENCODER_STREAM_ERROR = 0x201
    QPACK_DECODER_STREAM_ERROR = 0x202


DATA: Final = 0x00
HEADERS: Final = 0x01
CANCEL_PUSH: Final = 0x03
SETTINGS: Final = 0x04
PUSH_PROMISE: Final = 0x05
GOAWAY: Final = 0x07
MAX_PUSH_ID: Final = 0x0D
PRIORITY_UPDATE: Final = 0xF0700
PRIORITY_UPDATE_PUSH: Final = 0xF0701

NOT_ON_REQUESTS: Final = frozenset(
    # 0x02, 0x06, 0x08 and 0x09 were frames of HTTP/2 (RFC 9114 §7.2.8).
    (
        *(CANCEL_PUSH, SETTINGS, PUSH_PROMISE, GOAWAY, MAX_PUSH_ID, 0x02, 0x06, 0x08, 0x09),
        *(PRIORITY_UPDATE, PRIORITY_UPDATE_PUSH),
    )
)
NOT_ON_CONTROL: Final = frozenset((DATA, HEADERS, PUSH_PROMISE, 0x02, 0x06, 0x08, 0x09))


class StreamType(enum.IntEnum):
    """First integer of a unidirectional stream (RFC 9114 §6.2, RFC 9204 §4.2)."""

    CONTROL = 0x00
    PUSH = 0x01
    QPACK_ENCODER = 0x02
    QPACK_DECODER = 0x03


class Setting(enum.IntEnum):
    """RFC 9114 §7.2.4.1, RFC 9204 §5, RFC 9220 §5, RFC 9297 §5.1."""

    QPACK_MAX_TABLE_CAPACITY = 0x01
    MAX_FIELD_SECTION_SIZE = 0x06
    QPACK_BLOCKED_STREAMS = 0x07
    ENABLE_CONNECT_PROTOCOL = 0x08
    H3_DATAGRAM = 0x33


RESERVED_SETTINGS: Final = frozenset((0x00, 0x02, 0x03, 0x04, 0x05))
BOOLEAN_SETTINGS: Final = frozenset((Setting.ENABLE_CONNECT_PROTOCOL, Setting.H3_DATAGRAM))

INCOMPLETE: Final = -1
"""Offset that says an integer continues beyond what has arrived."""

_MASKS: Final = (0x3F, 0x3FFF, 0x3FFFFFFF, 0x3FFFFFFFFFFFFFFF)


class FrameViolation(Exception):
    """The connection's peer broke a rule: the error code to close with."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


def read_integer(data: bytes, offset: int) -> tuple[int, int]:
    """Read a variable-length integer (RFC 9000 §16); return it and the offset behind it."""
    if offset >= len(data):
        return 0, INCOMPLETE
    first = data[offset]
    if first < 0x40:
        return first, offset + 1
    length_bits = first >> 6
    end = offset + (1 << length_bits)
    if end > len(data):
        return 0, INCOMPLETE
    return int.from_bytes(data[offset:end], "big") & _MASKS[length_bits], end


def write_integer(value: int) -> bytes:
    """Return a variable-length integer in its shortest form."""
    if value < 0x40:
        return value.to_bytes(1, "big")
    if value < 0x4000:
        return (value | 0x4000).to_bytes(2, "big")
    if value < 0x40000000:
        return (value | 0x80000000).to_bytes(4, "big")
    return (value | 0xC000000000000000).to_bytes(8, "big")


def frame(kind: int, payload: bytes) -> bytes:
    """Return a complete frame."""
    return write_integer(kind) + write_integer(len(payload)) + payload


def write_settings(settings: dict[int, int]) -> bytes:
    """Return a SETTINGS frame."""
    payload = b"".join(write_integer(key) + write_integer(settings[key]) for key in settings)
    return frame(SETTINGS, payload)


def read_settings(payload: bytes) -> dict[int, int]:
    """Return the settings of a frame; raise FrameViolation as RFC 9114 §7.2.4 demands."""
    settings: dict[int, int] = {}
    offset = 0
    while offset < len(payload):
        key, offset = read_integer(payload, offset)
        value, offset = read_integer(payload, offset) if offset > 0 else (0, INCOMPLETE)
        if offset < 0:
            raise FrameViolation(ErrorCode.H3_FRAME_ERROR, "SETTINGS frame ends in a setting")
        if key in RESERVED_SETTINGS:
            raise FrameViolation(ErrorCode.H3_SETTINGS_ERROR, f"setting {key:#x} is reserved")
        if key in settings:
            raise FrameViolation(ErrorCode.H3_SETTINGS_ERROR, f"setting {key:#x} comes twice")
        if key in BOOLEAN_SETTINGS and value > 1:
            raise FrameViolation(ErrorCode.H3_SETTINGS_ERROR, f"setting {key:#x} is {value}")
        settings[key] = value
    return settings


def read_single_integer(payload: bytes, name: str) -> int:
    """Return the one integer that a GOAWAY, CANCEL_PUSH or MAX_PUSH_ID frame consists of."""
    value, end = read_integer(payload, 0)
    if end != len(payload):
        raise FrameViolation(ErrorCode.H3_FRAME_ERROR, f"{name} frame of {len(payload)} bytes")
    return value


def count_field_lines(block: bytes, limit: int) -> int:
    """Count the field lines of an encoded field section without decoding them (RFC 9204 §4.5).

    Stops above `limit`. One octet can stand for an entry of the dynamic table, 4 KiB when decoded:
    this tells how many there will be. What is malformed is left to the decoder.
    """
    offset = _skip_prefixed(block, 0, 8)  # Required Insert Count
    offset = _skip_prefixed(block, offset, 7)  # Delta Base
    count = 0
    size = len(block)
    while offset < size and count <= limit:
        count += 1
        first = block[offset]
        if first & 0x80:  # indexed
            offset = _skip_prefixed(block, offset, 6)
        elif first & 0x40:  # literal with name reference
            offset = _skip_string(block, _skip_prefixed(block, offset, 4), 7)
        elif first & 0x20:  # literal with literal name
            offset = _skip_string(block, _skip_string(block, offset, 3), 7)
        elif first & 0x10:  # indexed, post-base
            offset = _skip_prefixed(block, offset, 4)
        else:  # literal with post-base name reference
            offset = _skip_string(block, _skip_prefixed(block, offset, 3), 7)
    return count


def _read_prefixed(block: bytes, offset: int, bits: int) -> tuple[int, int]:
    """Read an integer with a prefix (RFC 7541 §5.1); beyond the end the offset is the end."""
    size = len(block)
    if offset >= size:
        return 0, size
    mask = (1 << bits) - 1
    value = block[offset] & mask
    offset += 1
    if value < mask:
        return value, offset
    shift = 0
    while offset < size and shift < 63:
        octet = block[offset]
        offset += 1
        value += (octet & 0x7F) << shift
        shift += 7
        if octet < 0x80:
            break
    return value, offset


def _skip_prefixed(block: bytes, offset: int, bits: int) -> int:
    return _read_prefixed(block, offset, bits)[1]


def _skip_string(block: bytes, offset: int, bits: int) -> int:
    length, offset = _read_prefixed(block, offset, bits)
    return offset + length
