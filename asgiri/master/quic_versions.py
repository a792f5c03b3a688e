"""What the master must know of QUIC versions 1 and 2 (RFC 9000, RFC 9369). Sans-IO.

It tells packet types apart, reads the token of an Initial, and writes Retry packets; called by
`steering` only. Nothing here needs a connection's keys: a Retry's integrity tag is made with a key
that the RFC publishes, so that a client can tell a damaged packet.
"""

import enum
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["SUPPORTED_VERSIONS", "PacketType", "encode_retry", "initial_token_untrusted"]

QUIC_1: Final = 0x00000001
QUIC_2: Final = 0x6B3343CF
SUPPORTED_VERSIONS: Final = (QUIC_1, QUIC_2)


class PacketType(enum.Enum):
    """Of a long header."""

    INITIAL = enum.auto()
    ZERO_RTT = enum.auto()
    HANDSHAKE = enum.auto()
    RETRY = enum.auto()

    @staticmethod
    def of(version: int, first_octet: int) -> "PacketType":
        """Return the type of a packet of a supported version."""
        return _TYPES[version][first_octet >> 4 & 3]


_TYPES: Final = {
    QUIC_1: (PacketType.INITIAL, PacketType.ZERO_RTT, PacketType.HANDSHAKE, PacketType.RETRY),
    QUIC_2: (PacketType.RETRY, PacketType.INITIAL, PacketType.ZERO_RTT, PacketType.HANDSHAKE),
}
_RETRY_FIRST_OCTET: Final = {QUIC_1: 0xF0, QUIC_2: 0xC0}
_RETRY_INTEGRITY: Final = {
    # RFC 9001 §5.8
    QUIC_1: (
        AESGCM(bytes.fromhex("be0c690b9f66575a1d766b54e368c84e")),
        bytes.fromhex("461599d35d632bf2239825bb"),
    ),
    # RFC 9369 §3.3.3
    QUIC_2: (
        AESGCM(bytes.fromhex("8fb4b01b56ac48e260fbcbcead7ccc92")),
        bytes.fromhex("d86969bc2d7c6d9990efb04a"),
    ),
}


def initial_token_untrusted(datagram: bytes, offset: int) -> bytes | None:
    """Return the token of an Initial whose connection IDs end at `offset`; b"" when it has none.

    None: the token does not fit the datagram. Never raises.
    """
    size_octets = 1 << (datagram[offset] >> 6) if offset < len(datagram) else 1
    start = offset + size_octets
    # The two high bits of a variable-length integer are its length (RFC 9000 §16).
    mask = (1 << 8 * size_octets - 2) - 1
    end = start + (int.from_bytes(datagram[offset:start], "big") & mask)
    return datagram[start:end] if start <= len(datagram) >= end else None


def encode_retry(
    version: int,
    *,
    destination_cid: bytes,
    source_cid: bytes,
    original_destination_cid: bytes,
    token: bytes,
    random: int,
) -> bytes:
    """Return a Retry packet (RFC 9000 §17.2.5); `random` fills the four unused bits."""
    packet = b"".join(
        (
            bytes((_RETRY_FIRST_OCTET[version] | random & 0x0F,)),
            version.to_bytes(4, "big"),
            bytes((len(destination_cid),)),
            destination_cid,
            bytes((len(source_cid),)),
            source_cid,
            token,
        )
    )
    aead, nonce = _RETRY_INTEGRITY[version]
    pseudo_packet = bytes((len(original_destination_cid),)) + original_destination_cid + packet
    # The nonce is the RFC's constant and repeats: the tag detects damage, it hides nothing.
    return packet + aead.encrypt(nonce, b"", pseudo_packet)
