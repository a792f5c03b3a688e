"""Proof at boot that aioquic still takes our connection IDs: a handshake in memory. Sans-IO.

It is for versions of aioquic that nobody has tested yet; `quic` is what they could break.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from typing import Final

import aioquic
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from asgiri.errors import LocalProtocolError
from asgiri.ipc.connection_id import CONNECTION_ID_LENGTH, ConnectionIdKind, ConnectionIdMint
from asgiri.ipc.tokens import ResetTokens
from asgiri.worker.protocol.quic import ALPN, SteeredQuicConnection

SELF_TEST_FLIGHTS: Final = 16
"""Three are needed for a handshake, and as many for what follows it."""
MINTED_IN_SELF_TEST: Final = 9
"""8 that the client may hold at once, and one more for the one it retired."""


def check_steering(mint: ConnectionIdMint, reset_tokens: ResetTokens) -> None:
    """Prove by one handshake in memory that what clients learn is ours to steer by.

    Raises LocalProtocolError: packets would not find their worker after this.
    """
    try:
        fault = _fault_of_steering(mint, reset_tokens)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # What a name of aioquic's that moved looks like.
        fault = f"{type(error).__name__}: {error}"
    if fault:
        raise LocalProtocolError(
            f"aioquic {aioquic.__version__} does not take our connection IDs: {fault}; "
            "install a version that asgiri was tested with, or leave --http3 out"
        )


def _fault_of_steering(mint: ConnectionIdMint, reset_tokens: ResetTokens) -> str:
    recorder = _RecordingMint(mint)
    server_configuration = _throw_away_configuration()
    client = QuicConnection(
        configuration=QuicConfiguration(alpn_protocols=[ALPN], verify_mode=ssl.CERT_NONE)
    )
    client.connect(("192.0.2.1", 443), now=0.0)
    server = SteeredQuicConnection(
        configuration=server_configuration,
        mint=recorder,
        reset_tokens=reset_tokens,
        max_streams=1,
        original_destination_connection_id=client.original_destination_connection_id,
    )
    now = _exchange_datagrams(client, server, 0.0)
    if not client._handshake_complete:
        return f"no handshake, {server.end_reason or 'no reason'}"
    learned = [client._peer_cid, *client._peer_cid_available]
    # Retiring one makes the server issue another: the third place where aioquic makes them.
    client.change_connection_id()
    _exchange_datagrams(client, server, now)
    learned += client._peer_cid_available
    if len({entry.cid for entry in learned}) < MINTED_IN_SELF_TEST:
        return f"only {len(learned)} were issued"
    for entry in learned:
        if entry.cid not in recorder.minted:
            return "it issues some of its own"
        if entry.stateless_reset_token != reset_tokens.token(entry.cid):
            return "it issues reset tokens of its own"
    return ""


class _RecordingMint(ConnectionIdMint):
    """A mint that remembers what it made."""

    def __init__(self, mint: ConnectionIdMint) -> None:
        self._inner = mint
        self.minted: set[bytes] = set()

    def mint(self, kind: ConnectionIdKind = ConnectionIdKind.CONNECTION) -> bytes:
        connection_id = self._inner.mint(kind)
        self.minted.add(connection_id)
        return connection_id


def _exchange_datagrams(client: QuicConnection, server: SteeredQuicConnection, now: float) -> float:
    """Carry datagrams between the two until neither has more; return the time it is then."""
    for _ in range(SELF_TEST_FLIGHTS):
        to_server = client.datagrams_to_send(now)
        for datagram, _address in to_server:
            server.receive_datagram(datagram, ("192.0.2.2", 50000), now)
        to_client = server.datagrams_to_send(now)
        for datagram, _address in to_client:
            client.receive_datagram(datagram, ("192.0.2.1", 443), now)
        if not to_server and not to_client:
            break
        now += 0.03  # longer than any delayed acknowledgement
    return now


def _throw_away_configuration() -> QuicConfiguration:
    """A configuration with a certificate of its own: the real one may be encrypted, or absent."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "self-test")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .sign(key, SHA256())
    )
    return QuicConfiguration(
        is_client=False,
        alpn_protocols=[ALPN],
        connection_id_length=CONNECTION_ID_LENGTH,
        certificate=certificate,
        private_key=key,
    )
