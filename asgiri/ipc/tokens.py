"""QUIC secrets, stateless reset tokens and Retry tokens, all from one root secret. Sans-IO.

Stateless reset token (RFC 9000 §10.3.2): AES-128-ECB(reset_key, the connection ID's 16-byte block).
Who knows the key and the connection ID knows the token, so the master can reset what a dead worker
held, and a restarted server with the same root secret what its predecessor held.

Retry token (RFC 9000 §8.1.2), sealed by the master, opened by the worker that gets the second
Initial:

    offset   size   field       meaning
    0        1      type        1: "a token sent in a Retry packet", to be told from others (§8.1.3)
    1        12     nonce       random start per process, +1 per token
    13       n+16   sealed      AES-128-GCM(token_key, nonce, plaintext; type, port, address as AAD)

    plaintext    size   field
    0            8      milliseconds of CLOCK_MONOTONIC, which all processes of a host share
    8            1      length of the next field
    9            0-20   original destination connection ID
    ...          0-20   source connection ID of the Retry, to the end

A counter as nonce instead of 12 random bytes: 2^32 random nonces are a few hours of a flood.
"""

import itertools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from asgiri.errors import ConfigError, LocalProtocolError
from asgiri.ipc.connection_id import CONNECTION_ID_LENGTH, KEY_LENGTH
from asgiri.ipc.records import pack_ip

__all__ = [
    "RETRY_TOKEN_LIFETIME",
    "QuicSecrets",
    "ResetTokens",
    "RetryToken",
    "RetryTokens",
]

RETRY_TOKEN_LIFETIME: Final = 30.0
"""Seconds. Longer than a client needs for its second Initial under heavy loss, short enough that a
captured token is of little use (RFC 9000 §8.1.3)."""

_LEAST_ROOT_SIZE: Final = 16
_RETRY_TOKEN: Final = b"\x01"
_NONCE_SIZE: Final = 12
_TAG_SIZE: Final = 16
_LONGEST_CONNECTION_ID: Final = 20
_PLAINTEXT_HEADER: Final = struct.Struct(">QB")
_PORT: Final = struct.Struct(">H")
_SEALED_AT: Final = len(_RETRY_TOKEN) + _NONCE_SIZE
_SHORTEST_TOKEN: Final = _SEALED_AT + _PLAINTEXT_HEADER.size + _TAG_SIZE
_LONGEST_TOKEN: Final = _SHORTEST_TOKEN + 2 * _LONGEST_CONNECTION_ID


@dataclass(frozen=True, slots=True, kw_only=True)
class QuicSecrets:
    """The keys that every process of one server shares. They travel in the hello message only."""

    connection_id_key: bytes = field(repr=False)
    reset_key: bytes = field(repr=False)
    token_key: bytes = field(repr=False)
    server_id: int

    @classmethod
    def derive(cls, root: bytes, *, server_id: int | None = None) -> Self:
        """Derive all keys from `root`: the secret file, the TLS private key, or random bytes."""
        if len(root) < _LEAST_ROOT_SIZE:
            raise ConfigError(
                "quic_secret_file", f"<{len(root)} bytes>", "must hold at least 16 bytes"
            )
        if server_id is None:
            server_id = int.from_bytes(_derive(root, b"server id", 4), "big")
        return cls(
            connection_id_key=_derive(root, b"cid", KEY_LENGTH),
            reset_key=_derive(root, b"reset", KEY_LENGTH),
            token_key=_derive(root, b"token", KEY_LENGTH),
            server_id=server_id,
        )

    def to_json(self) -> dict[str, str | int]:
        """Return what `from_json` reads, for the hello message."""
        return {
            "connection_id_key": self.connection_id_key.hex(),
            "reset_key": self.reset_key.hex(),
            "token_key": self.token_key.hex(),
            "server_id": self.server_id,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(
            connection_id_key=bytes.fromhex(value["connection_id_key"]),
            reset_key=bytes.fromhex(value["reset_key"]),
            token_key=bytes.fromhex(value["token_key"]),
            server_id=value["server_id"],
        )


def _derive(root: bytes, purpose: bytes, size: int) -> bytes:
    return HKDF(SHA256(), size, salt=None, info=b"asgiri quic v1 " + purpose).derive(root)


class ResetTokens:
    """Stateless reset tokens of the connection IDs that we minted."""

    def __init__(self, reset_key: bytes) -> None:
        # One block per connection ID and each only once: ECB is the block cipher itself.
        cipher = Cipher(algorithms.AES128(reset_key), modes.ECB())  # noqa: S305
        self._encrypt = cipher.encryptor().update

    def token(self, connection_id: bytes) -> bytes:
        """Return the 16-byte token of a connection ID of ours."""
        # A partial block would stay in the cipher context and falsify every later token.
        if len(connection_id) != CONNECTION_ID_LENGTH:
            raise LocalProtocolError(f"reset token of a {len(connection_id)}-byte connection ID")
        return self._encrypt(connection_id[1:])


@dataclass(frozen=True, slots=True)
class RetryToken:
    """What a valid Retry token vouches for."""

    original_destination_cid: bytes
    retry_source_cid: bytes
    """The second Initial must carry it as its destination; the caller compares."""


class RetryTokens:
    """Seal (master) and open (worker, master) the tokens of Retry packets."""

    def __init__(
        self,
        token_key: bytes,
        *,
        lifetime: float = RETRY_TOKEN_LIFETIME,
        random: Callable[[int], bytes],
    ) -> None:
        self._aead = AESGCM(token_key)
        self._lifetime = int(lifetime * 1000)
        self._nonces = itertools.count(int.from_bytes(random(_NONCE_SIZE), "big"))

    def seal(
        self,
        address: tuple[Any, ...],
        original_destination_cid: bytes,
        retry_source_cid: bytes,
        now: float,
    ) -> bytes:
        """Return a token that only a client at `address` can use, until `now` + lifetime."""
        nonce = (next(self._nonces) & (1 << 96) - 1).to_bytes(_NONCE_SIZE, "big")
        plaintext = (
            _PLAINTEXT_HEADER.pack(int(now * 1000), len(original_destination_cid))
            + original_destination_cid
            + retry_source_cid
        )
        return _RETRY_TOKEN + nonce + self._aead.encrypt(nonce, plaintext, _bound_to(address))

    def open_untrusted(
        self, token: bytes, address: tuple[Any, ...], now: float
    ) -> RetryToken | None:
        """Return what the token vouches for, or None: forged, expired or another's."""
        if not _SHORTEST_TOKEN <= len(token) <= _LONGEST_TOKEN or token[:1] != _RETRY_TOKEN:
            return None
        try:
            plaintext = self._aead.decrypt(
                token[1:_SEALED_AT], token[_SEALED_AT:], _bound_to(address)
            )
        except InvalidTag:
            return None
        sealed_at, size = _PLAINTEXT_HEADER.unpack_from(plaintext)
        # Below zero: the host was restarted since, and its monotonic clock with it.
        if not 0 <= int(now * 1000) - sealed_at <= self._lifetime:
            return None
        original_end = _PLAINTEXT_HEADER.size + size
        return RetryToken(
            plaintext[_PLAINTEXT_HEADER.size : original_end], plaintext[original_end:]
        )


def _bound_to(address: tuple[Any, ...]) -> bytes:
    """Return the additional data of a token: an address as bytes, however its text is written."""
    return _RETRY_TOKEN + _PORT.pack(address[1]) + pack_ip(address[0])
