"""The frames that most messages are: whole, masked, uncompressed. Sans-IO.

wsproto takes 9 us for such a frame of 100 bytes and 90 us for one of 64 KiB, most of it for copies;
here it is 1 and 75 us, or 3 where the C of the package `websockets` unmasks (extra `fast`). All
other frames are wsproto's: fragments, compressed ones, and whatever breaks a rule.
"""

from __future__ import annotations

from typing import Final

TEXT: Final = 0x81
BINARY: Final = 0x82
PING: Final = 0x89
PONG: Final = 0x8A
_PLAIN: Final = frozenset((TEXT, BINARY, PING, PONG))
_MASKED: Final = 0x80
_CRUMB: Final = 1024
"""A read of less, within a frame, is copied: as an object of its own it would take many times the
memory of its bytes, and a peer could send a large message in crumbs only."""
_SHORT: Final = 2048
"""Payloads up to here are faster as one large number than by tables."""
_TABLES: Final = [bytes(left ^ right for left in range(256)) for right in range(256)]


def _unmask(payload: bytes, key: bytes) -> bytes:
    """XOR with the masking key (RFC 6455 §5.3)."""
    size = len(payload)
    if size <= _SHORT:
        mask = (key * (size + 3 >> 2))[:size]
        return (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(size)
    plain = bytearray(payload)
    for start in range(4):
        plain[start::4] = plain[start::4].translate(_TABLES[key[start]])
    return bytes(plain)


try:
    from websockets.speedups import apply_mask as unmask
except ImportError:
    unmask = _unmask  # type: ignore[assignment]

NEED_MORE: Final = (0, b"")
"""What has come is no whole frame yet."""
FOREIGN: Final = (-1, b"")
"""What comes next is not a plain frame."""
TOO_BIG: Final = (-2, b"")
"""What comes next announces more than may be."""


class FrameReader:
    """Takes plain frames off the front of what has come. Between two calls of `next_frame` nothing
    is parsed: a reader who is behind holds bytes, not messages.
    """

    __slots__ = ("_data", "_max_size", "_missing", "_parts", "_start")

    def __init__(self, *, max_size: int) -> None:
        """`max_size`: of a message's payload; a longer one is refused when its header has come."""
        self._max_size = max_size
        self._data = b""
        self._start = 0
        self._parts: list[bytes | bytearray] = []
        self._missing = 0
        """Bytes that a frame still lacks, of which `_parts` has what has come."""

    def receive(self, data: bytes) -> None:
        """Feed bytes from the peer."""
        if self._missing > 0:
            # Joined once: a long message is not copied with every read.
            last = self._parts[-1]
            if len(data) >= _CRUMB:
                self._parts.append(data)
            elif isinstance(last, bytearray):
                last += data
            else:
                self._parts.append(bytearray(data))
            self._missing -= len(data)
            if self._missing <= 0:
                self._data = b"".join(self._parts)
                self._parts.clear()
            return
        if self._start < len(self._data):
            data = self._data[self._start :] + data
        self._data = data
        self._start = 0

    def next_frame(self) -> tuple[int, bytes]:
        """Return the next frame's first byte and its payload, or NEED_MORE, FOREIGN, TOO_BIG."""
        data, start = self._data, self._start
        left = len(data) - start
        if left < 2:
            # Of a frame that is incomplete nothing else is here.
            return NEED_MORE if not left or data[start] in _PLAIN else FOREIGN
        first, length = data[start], data[start + 1] - _MASKED
        if length < 0 or first not in _PLAIN:
            return FOREIGN
        payload = start + 6
        if length > 125:
            wide = 2 if length == 126 else 8
            payload += wide
            if first > BINARY:
                return FOREIGN
            if left < 2 + wide:
                return NEED_MORE
            length = int.from_bytes(data[start + 2 : start + 2 + wide])
            if length < (126 if wide == 2 else 65536) or length >> 63:
                return FOREIGN  # not the minimal number of bytes, or with its first bit
        if length > self._max_size and first <= BINARY:
            return TOO_BIG
        end = payload + length
        if end > len(data):
            self._missing = end - len(data)
            self._parts.append(data[start:] if start else data)
            self._data, self._start = b"", 0
            return NEED_MORE
        self._start = end
        return first, unmask(data[payload:end], data[payload - 4 : payload])

    def take_rest(self) -> bytes:
        """Hand over what is left, to whoever goes on."""
        rest = self._data[self._start :]
        self._data, self._start = b"", 0
        return rest
