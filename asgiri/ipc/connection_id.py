"""Connection IDs that say which worker they belong to, to us and to nobody else. Sans-IO.

Layout (RFC 9000 §5.1; the single-pass form of draft-ietf-quic-load-balancers):

    offset   size   field       meaning
    0        1      clear       3 bits key codepoint (0-6; 7: "not routable"), 5 unpredictable
    1        16     block       AES-128-ECB of the 16 bytes below, big-endian

    block    size   field       meaning
    0        4      server_id   names the deployment, and authenticates: a stranger's connection
                                ID passes with p = 2^-39 (server_id and kind must fit)
    4        1      kind        1 connection, 2 source connection ID of a Retry
    5        4      worker_id   the incarnation of the worker that minted it
    9        7      nonce       random start per mint, +1 for each connection ID

A block cipher over a block that never repeats is unlinkable: two connection IDs of one connection
look as different as those of two. A balancer given key and server_id (server_id_len=4,
nonce_len=12) routes to the right host and needs nothing else. Rejected: a plaintext worker number
(linkable and forgeable, and AES is cheaper than a keyed hash); no clear octet (trial decryption at
a key change).
"""

import enum
import itertools
import struct
from collections.abc import Callable
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from asgiri.errors import LocalProtocolError

__all__ = [
    "CONNECTION_ID_LENGTH",
    "KEY_LENGTH",
    "ConnectionIdCodec",
    "ConnectionIdKind",
    "ConnectionIdMint",
]

CONNECTION_ID_LENGTH: Final = 17
KEY_LENGTH: Final = 16

_LAST_CODEPOINT: Final = 6
_NONCE_START_BITS: Final = 55  # of 56: 2^55 connection IDs pass before the counter leaves its field
_NONCE_MASK: Final = (1 << 56) - 1
_pack_block: Final = struct.Struct(">QQ").pack
_unpack_block: Final = struct.Struct(">IBI").unpack_from


class ConnectionIdKind(enum.IntEnum):
    """What a connection ID of ours stands for."""

    CONNECTION = 1
    """State exists, or existed, in the worker it names."""
    RETRY = 2
    """A hint only: no state exists, any worker may take it, and it must never cause a reset."""


class ConnectionIdCodec:
    """Seal and open connection IDs under one key. The cipher contexts live as long as the codec."""

    def __init__(self, key: bytes, *, server_id: int, codepoint: int = 0) -> None:
        if not 0 <= codepoint <= _LAST_CODEPOINT:
            raise LocalProtocolError(f"connection ID codepoint {codepoint}: must be 0 to 6")
        if not 0 <= server_id < 1 << 32:
            raise LocalProtocolError(f"server_id {server_id}: must fit 32 bits")
        # One block per connection ID, never two under one nonce: ECB is the block cipher itself.
        cipher = Cipher(algorithms.AES128(key), modes.ECB())  # noqa: S305
        self.encrypt: Final = cipher.encryptor().update
        self._decrypt = cipher.decryptor().update
        self.server_id: Final = server_id
        # The five free bits come from the ciphertext: as unpredictable as a random call, and free.
        self.clear_octets: Final = [bytes([codepoint << 5 | octet & 31]) for octet in range(256)]

    def seal(self, kind: int, worker_id: int, nonce: int) -> bytes:
        """Return the 17 bytes for these values. The caller repeats no (kind, worker_id, nonce)."""
        block = self.encrypt(
            _pack_block(
                self.server_id << 32 | kind << 24 | worker_id >> 8,
                (worker_id & 0xFF) << 56 | nonce,
            )
        )
        return self.clear_octets[block[0]] + block

    def open_untrusted(self, connection_id: bytes) -> tuple[int, int] | None:
        """Return (kind, worker_id), or None when this connection ID is not ours. Never raises."""
        # A partial block would stay in the cipher context and shift all that follow.
        if len(connection_id) != CONNECTION_ID_LENGTH:
            return None
        # The codepoint is not compared (50 ns of 320): another key's block does not authenticate.
        server_id, kind, worker_id = _unpack_block(self._decrypt(connection_id[1:]))
        if server_id == self.server_id and (kind == 1 or kind == 2):
            return kind, worker_id
        return None


class ConnectionIdMint:
    """Mint connection IDs in one process. One per process: the nonce is a counter."""

    def __init__(
        self, codec: ConnectionIdCodec, worker_id: int, *, random: Callable[[int], bytes]
    ) -> None:
        self._codec = codec
        self._encrypt = codec.encrypt
        self._clear_octets = codec.clear_octets
        high = codec.server_id << 32 | worker_id >> 8
        self._highs = (high, high | 1 << 24, high | 2 << 24)  # by kind
        start = int.from_bytes(random(8), "big") >> 64 - _NONCE_START_BITS
        self._lows = itertools.count((worker_id & 0xFF) << 56 | start)

    def mint(self, kind: ConnectionIdKind = ConnectionIdKind.CONNECTION) -> bytes:
        """Return a new connection ID that names this mint's worker."""
        # `seal` written out, with its constants prepared: 320 ns instead of 500.
        block = self._encrypt(_pack_block(self._highs[kind], next(self._lows)))
        return self._clear_octets[block[0]] + block

    def mint_for(self, worker_id: int, kind: ConnectionIdKind) -> bytes:
        """Return a new connection ID that names another worker: the master's Retry."""
        return self._codec.seal(kind, worker_id, next(self._lows) & _NONCE_MASK)
