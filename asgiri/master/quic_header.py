"""Version-independent part of a QUIC packet's header, RFC 8999. Sans-IO; called by the master only.

The master may look at nothing else: form bit, version and connection IDs are the same in every
version of QUIC, everything behind them is the business of one version. `steering` reads short
headers by itself, because that is one slice and the most frequent datagram of all.

Version negotiation is an invariant as well (RFC 8999 §6), so its packet is written here.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = [
    "LONG_HEADER_FORM",
    "LongHeader",
    "ShortHeader",
    "encode_version_negotiation",
    "parse_untrusted",
]

LONG_HEADER_FORM: Final = 0x80


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
    raise NotImplementedError


def encode_version_negotiation(header: LongHeader, versions: Iterable[int], random: int) -> bytes:
    """Return a Version Negotiation packet that answers `header`; `random` fills the free bits."""
    raise NotImplementedError
