"""Which protocols a TLS client offers (ALPN, RFC 7301), read from its ClientHello. Sans-IO.

Python's ssl goes on without a protocol when the client offers none of ours, where RFC 7301 §3.2
says: "the server SHALL respond with a fatal 'no_application_protocol' alert". Otherwise bytes meant
for another protocol could be taken for HTTP (alpaca-attack.com).
"""

from __future__ import annotations

from typing import Final

__all__ = ["NO_APPLICATION_PROTOCOL", "offered_protocols_untrusted"]

NO_APPLICATION_PROTOCOL: Final = bytes.fromhex("15 0303 0002 02 78")
"""A record with that fatal alert."""
MAX_HELLO: Final = 1 << 16
"""Bytes of a hello that are looked at. With keys against quantum computers it has about 2,000."""
MAX_RECORDS: Final = 64
"""Records that they may come in. Clients use one; each piece that arrives is a look at all of them,
so that 64 KiB in records of a byte each would cost a minute."""

_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_RECORD_HEADER: Final = 5
_MESSAGE_HEADER: Final = 4
_VERSION_AND_RANDOM: Final = 34
_ALPN: Final = 16


def offered_protocols_untrusted(received: bytes) -> tuple[bytes, ...] | None:
    """Read what a client has sent so far. Never raises.

    None: more is needed. Empty: it names no protocol, or sends what OpenSSL shall complain of.
    """
    message = b""
    start = records = 0
    while start < len(received) <= MAX_HELLO:
        records += 1
        if received[start] != _HANDSHAKE or records > MAX_RECORDS:
            return ()
        content = start + _RECORD_HEADER
        start = content + int.from_bytes(received[content - 2 : content])
        if content > len(received):
            return None
        message += received[content:start]
        if message and message[0] != _CLIENT_HELLO:
            return ()
        end = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER])
        if len(message) >= max(end, _MESSAGE_HEADER):
            return _find_protocols(message[_MESSAGE_HEADER:end])
    return None if len(received) <= MAX_HELLO else ()


def _find_protocols(hello: bytes) -> tuple[bytes, ...]:
    start = _VERSION_AND_RANDOM
    for width in (1, 2, 1):  # session ID, cipher suites, compression methods
        start += width + int.from_bytes(hello[start : start + width])
    start += 2
    while start < len(hello):
        kind, size = hello[start : start + 2], int.from_bytes(hello[start + 2 : start + 4])
        start += 4
        if int.from_bytes(kind) == _ALPN:
            return _split_names(hello[start + 2 : start + size])
        start += size
    return ()


def _split_names(names: bytes) -> tuple[bytes, ...]:
    found = []
    start = 0
    while start < len(names):
        end = start + 1 + names[start]
        found.append(names[start + 1 : end])
        start = end
    return tuple(found)
