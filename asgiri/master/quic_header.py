"""Version-independent part of a QUIC packet's header, RFC 8999. Sans-IO; called by the master only.

The master may look at nothing else: form bit, version and connection IDs are the same in every
version of QUIC, everything behind them is the business of one version. `steering` reads short
headers by itself, because that is one slice and the most frequent datagram of all.

Version negotiation is an invariant as well (RFC 8999 §6), so its packet is written here.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from asgiri.ipc.connection_id import CONNECTION_ID_LENGTH

__all__ = [
    "LONG_HEADER_FORM",
    "LongHeader",
    "ShortHeader",
    "encode_version_negotiation",
    "parse_long_untrusted",
    "parse_untrusted",
]

LONG_HEADER_FORM: Final = 0x80
_DESTINATION_CID_AT: Final = 6
_SHORTEST_LONG_HEADER: Final = 7
_VERSION_NEGOTIATION: Final = 0
_OUR_CID_END: Final = 1 + CONNECTION_ID_LENGTH


class LongHeader(NamedTuple):
    """RFC 8999 §5.1."""

    first_octet: int
    version: int
    destination_cid: bytes
    source_cid: bytes
    end: int
    """Offset of the version-specific rest."""


class ShortHeader(NamedTuple):
    """RFC 8999 §5.2."""

    first_octet: int
    destination_cid: bytes
    """As long as those we mint: nothing in the packet says how long it is."""


def parse_untrusted(datagram: bytes) -> LongHeader | ShortHeader | None:
    """Return the header of the datagram's first packet, None when it is cut short. Never raises."""
    if not datagram:
        return None
    if datagram[0] & LONG_HEADER_FORM:
        return parse_long_untrusted(datagram)
    if len(datagram) < _OUR_CID_END:
        return None
    return ShortHeader(datagram[0], datagram[1:_OUR_CID_END])


def parse_long_untrusted(datagram: bytes) -> LongHeader | None:
    """Return the long header of a datagram whose form bit is set, None when it is cut short."""
    size = len(datagram)
    if size < _SHORTEST_LONG_HEADER:
        return None
    # All 255 lengths are legal here: "future versions of QUIC might use longer ones" (§5.1).
    destination_end = _DESTINATION_CID_AT + datagram[5]
    if size <= destination_end:
        return None
    source_end = destination_end + 1 + datagram[destination_end]
    if size < source_end:
        return None
    return LongHeader(
        datagram[0],
        int.from_bytes(datagram[1:5], "big"),
        datagram[_DESTINATION_CID_AT:destination_end],
        datagram[destination_end + 1 : source_end],
        source_end,
    )


def encode_version_negotiation(header: LongHeader, versions: Sequence[int], random: int) -> bytes:
    """Return a Version Negotiation packet that answers `header`; `random` fills the free bits.

    The versions must not contain that of `header`: a client ignores such a packet (§6).
    """
    return b"".join(
        (
            # 0x40 is free here as well, but lets the client tell QUIC from what else may share
            # its port (RFC 9000 §17.2.1).
            bytes((LONG_HEADER_FORM | 0x40 | random & 0x3F,)),
            _VERSION_NEGOTIATION.to_bytes(4, "big"),
            # "The server MUST include the value from the Source Connection ID field of the packet
            # it receives in the Destination Connection ID field", and the other way round.
            bytes((len(header.source_cid),)),
            header.source_cid,
            bytes((len(header.destination_cid),)),
            header.destination_cid,
            struct.pack(f">{len(versions)}I", *versions),
        )
    )
