"""Which worker a QUIC datagram belongs to. Sans-IO; called by the master's `receiver` only.

The order of questions, for the first packet of each datagram (RFC 9000 §12.2: all packets of a
datagram go to one connection, so the first decides for what is coalesced behind it):

    short header   its connection ID is ours?   no: silence. It may be anybody's, and an answer
                                                would be an oracle and a reflector
                   its worker lives?            yes: there. No: stateless reset, so that the client
                                                reconnects in one round trip instead of timing out
    long header    a version we speak?          no: version negotiation
                   ours, of a connection?       to its worker; dropped when that is gone, because
                                                a handshake cannot be reset
                   begun before?                to the worker that got its first datagram
                   an Initial?                  admission, then the dispatcher chooses

A client uses the connection ID it made up until it hears from us, and the ClientHello of today
fills two Initials. So a bounded table keeps, for each connection ID that began a connection, its
worker; both Initials reach it in either order, also after the client's address changed. It keeps
that worker while it lives, draining or not: only that worker has the first half of the ClientHello.
When the table is full (a flood) the connection ID itself decides, by rendezvous hash, among the
ready workers: as consistent as the table, until the set changes.

What a new connection must show before a worker spends anything on it is the matter of `admission`.
A Retry names the worker that was chosen, and nothing is kept: the Initial that follows it brings
the worker's number in its connection ID and the proof of its address in its token.

`steer_untrusted` counts what it drops by reason; others call `count_drop`.

Nothing that a stranger sends allocates more than one entry in a bounded table, raises, or is
answered by more bytes than it has.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from asgiri.ipc.connection_id import (
    CONNECTION_ID_LENGTH,
    ConnectionIdCodec,
    ConnectionIdKind,
    ConnectionIdMint,
)
from asgiri.ipc.records import RecordFlag
from asgiri.ipc.scoreboard import DropReason
from asgiri.ipc.tokens import ResetTokens, RetryTokens
from asgiri.master.admission import Admission, QuicLoad, RetryMode, is_crowded
from asgiri.master.bounds import SwappedTable, TokenBucket
from asgiri.master.quic_header import LongHeader, encode_version_negotiation, parse_long_untrusted
from asgiri.master.quic_versions import (
    SUPPORTED_VERSIONS,
    PacketType,
    encode_retry,
    initial_token_untrusted,
)

__all__ = [
    "DropReason",
    "Steering",
    "SteeringStatistics",
    "WorkerChooser",
    "is_one_train",
]

SHORTEST_SHORT_HEADER_DATAGRAM: Final = 22
"""Form octet, connection ID and at least some of the rest; less is not worth a decryption."""
SMALLEST_INITIAL_DATAGRAM: Final = 1200
"""RFC 9000 §14.1: a server must discard an Initial in a smaller datagram."""
SHORTEST_CLIENT_CHOSEN_CID: Final = 8
"""RFC 9000 §7.2. aioquic does not check it, and a short one may collide with another client's."""
LONGEST_CONNECTION_ID: Final = 20
"""RFC 9000 §17.2, for the versions we speak; others may have more (RFC 8999)."""

MAP_CAPACITY: Final = 65_536
"""Connections that were begun within the last 30 to 60 s. Some 12 MB when full."""
MAP_LIFETIME: Final = 30.0
"""Seconds after the last datagram to a client-chosen connection ID. Longer than a client repeats an
Initial that nobody answers."""

RESET_RATE: Final = 100.0
"""Stateless resets per second. A worker with 1,000 connections that dies is through in 10 s."""
RESET_DESTINATIONS: Final = 512
"""Addresses that got a reset within the last one to two seconds; the rate lets in 300 at most."""
RESET_DESTINATION_PAUSE: Final = 1.0
SHORTEST_RESET_TRIGGER: Final = 43
SHORTEST_RESET: Final = 22
LONGEST_RESET: Final = 43

_FORM: Final = 0x80
_FIXED_BIT: Final = 0x40
_CID_END: Final = 1 + CONNECTION_ID_LENGTH
_CONNECTION: Final = int(ConnectionIdKind.CONNECTION)
_LONG_HEADER: Final = int(RecordFlag.LONG_HEADER)
_NEW_CONNECTION: Final = int(RecordFlag.NEW_CONNECTION)
_TOKEN_PRESENT: Final = int(RecordFlag.TOKEN_PRESENT)
_TOKEN_VALIDATED: Final = int(RecordFlag.TOKEN_VALIDATED)

Destination = TypeVar("Destination")


class WorkerChooser(Protocol):
    """The part of `dispatcher.Dispatcher` that steering uses."""

    def choose_quic(self, now: float, client_ip: str) -> int | None:
        """Return the worker for a new connection, None when there is none."""

    def assigned_quic(self, worker_id: int) -> None:
        """Count a connection that was given to this worker."""

    def rendezvous(self, key: bytes) -> int | None:
        """Return the ready worker that `key` always leads to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SteeringStatistics:
    """Counters since the start, except `map_entries`."""

    drops: dict[str, int]
    versions_sent: int
    retries_sent: int
    resets_sent: int
    new_connections: int
    tokens_valid: int
    map_entries: int
    map_full: int
    """Connections that were begun past a full table."""


class Steering(Generic[Destination]):
    """Decide for each datagram: a worker's destination, a datagram to send back, or a drop.

    `Destination` is whatever the caller registers for a worker: its ring, its handle. It is told
    from the other two answers by its type.
    """

    def __init__(
        self,
        *,
        codec: ConnectionIdCodec,
        mint: ConnectionIdMint,
        reset_tokens: ResetTokens,
        retry_tokens: RetryTokens,
        chooser: WorkerChooser,
        random: Callable[[int], bytes],
        retry: RetryMode = RetryMode.AUTO,
        map_capacity: int = MAP_CAPACITY,
    ) -> None:
        self.flags = 0
        """RecordFlag bits of the datagram steered last; valid when it got a destination."""
        self._open = codec.open_untrusted
        self._mint = mint
        self._reset_tokens = reset_tokens
        self._retry_tokens = retry_tokens
        self._chooser = chooser
        self._random = random
        self._admission = Admission(retry)
        self._destinations: dict[int, Destination] = {}
        self._loads: dict[int, QuicLoad] = {}
        self._ready: frozenset[int] = frozenset()
        self._begun: SwappedTable[bytes, int] = SwappedTable(
            capacity=map_capacity, lifetime=MAP_LIFETIME
        )
        self._resets = TokenBucket(RESET_RATE)
        self._reset_destinations: SwappedTable[tuple[Any, ...], bool] = SwappedTable(
            capacity=RESET_DESTINATIONS, lifetime=RESET_DESTINATION_PAUSE
        )
        self._drops = [0] * len(DropReason)
        self._versions_sent = 0
        self._retries_sent = 0
        self._resets_sent = 0
        self._new_connections = 0
        self._tokens_valid = 0
        self._map_full = 0

    # Workers

    def add_worker(self, worker_id: int, destination: Destination, load: QuicLoad) -> None:
        """Route to this worker from now on; new connections only once it is ready."""
        self._destinations[worker_id] = destination
        self._loads[worker_id] = load

    def remove_worker(self, worker_id: int) -> None:
        """Forget a worker that exited: its connections get stateless resets from now on."""
        del self._destinations[worker_id]
        del self._loads[worker_id]
        self._ready -= {worker_id}

    def set_retry(self, mode: RetryMode) -> None:
        """Say when clients have to prove their addresses."""
        self._admission.mode = mode

    def set_ready(self, worker_ids: Collection[int]) -> None:
        """Say who takes new connections. One assignment: a reload switches in one step."""
        self._ready = frozenset(worker_ids)
        self._admission.set_workers(len(self._ready))

    # A takeover

    def begun(self, now: float) -> list[tuple[bytes, int]]:
        """Return the connections that are known by a client-chosen ID only, and their workers."""
        return self._begun.items(now)

    def restore_begun(self, begun: Iterable[tuple[bytes, int]], now: float) -> None:
        """Know what `begun` told."""
        for connection_id, worker_id in begun:
            self._begun.put(connection_id, worker_id, now)

    # Datagrams

    def steer_untrusted(
        self, datagram: bytes, address: tuple[Any, ...], now: float
    ) -> Destination | bytes | DropReason:
        """Decide about one datagram. bytes: send them back to `address`. Never raises.

        What is sent back is never longer than what came.
        """
        if len(datagram) < SHORTEST_SHORT_HEADER_DATAGRAM:
            return self._drop(DropReason.TOO_SHORT)
        first_octet = datagram[0]
        if first_octet & _FORM:
            return self._steer_long(datagram, address, now)
        if not first_octet & _FIXED_BIT:
            return self._drop(DropReason.FIXED_BIT_CLEAR)
        opened = self._open(datagram[1:_CID_END])
        if opened is None:
            return self._drop(DropReason.UNKNOWN_CONNECTION_ID)
        kind, worker_id = opened
        if kind != _CONNECTION:
            return self._drop(DropReason.RETRY_ID_IN_SHORT_HEADER)
        destination = self._destinations.get(worker_id)
        if destination is None:
            return self._reset(datagram, address, now)
        self.flags = 0
        return destination

    def count_drop(self, reason: DropReason) -> None:
        """Count a datagram that was dropped after it was steered: the ring was full."""
        self._drops[reason] += 1

    def statistics(self) -> SteeringStatistics:
        """Return the counters."""
        return SteeringStatistics(
            drops={reason.name.lower(): self._drops[reason] for reason in DropReason},
            versions_sent=self._versions_sent,
            retries_sent=self._retries_sent,
            resets_sent=self._resets_sent,
            new_connections=self._new_connections,
            tokens_valid=self._tokens_valid,
            map_entries=len(self._begun),
            map_full=self._map_full,
        )

    def _drop(self, reason: DropReason) -> DropReason:
        self._drops[reason] += 1
        return reason

    def _steer_long(
        self, datagram: bytes, address: tuple[Any, ...], now: float
    ) -> Destination | bytes | DropReason:
        header = parse_long_untrusted(datagram)
        if header is None:
            return self._drop(DropReason.MALFORMED_LONG_HEADER)
        if header.version not in SUPPORTED_VERSIONS:
            return self._negotiate_version(header, len(datagram))
        reason = _refusal(header, len(datagram))
        if reason is not None:
            return self._drop(reason)
        destination_cid = header.destination_cid
        self.flags = _LONG_HEADER
        opened = self._open(destination_cid)
        if opened is not None and opened[0] == _CONNECTION:
            destination = self._destinations.get(opened[1])
            return self._drop(DropReason.WORKER_GONE) if destination is None else destination
        is_initial = PacketType.of(header.version, header.first_octet) is PacketType.INITIAL
        token = initial_token_untrusted(datagram, header.end) if is_initial else b""
        if token is None:
            return self._drop(DropReason.MALFORMED_LONG_HEADER)
        if token:
            self.flags |= _TOKEN_PRESENT
        begun_at = self._begun.use(destination_cid, now)
        if begun_at is not None and begun_at in self._destinations:
            # Or one connection ID, repeated, would be a way around admission.
            if is_initial and is_crowded(self._loads[begun_at]):
                return self._drop(DropReason.RING_HALF_FULL)
            return self._destinations[begun_at]
        if not is_initial:
            return self._drop(DropReason.NO_INITIAL_BEFORE)
        return self._begin(header, token, address, now)

    # New connections

    def _begin(
        self, header: LongHeader, token: bytes, address: tuple[Any, ...], now: float
    ) -> Destination | bytes | DropReason:
        """Admit a connection, ask for a proof of its address, or drop it."""
        destination_cid = header.destination_cid
        proof = self._retry_tokens.open_untrusted(token, address, now) if token else None
        # One Initial's token proves nothing for another.
        validated = proof is not None and proof.retry_source_cid == destination_cid
        opened = self._open(destination_cid)
        if opened is not None and not validated:
            return self._drop(DropReason.TOKEN_INVALID)
        if opened is not None and opened[1] in self._ready:
            worker_id: int | None = opened[1]
        elif self._begun.is_full:
            worker_id = self._chooser.rendezvous(destination_cid)
        else:
            worker_id = self._chooser.choose_quic(now, address[0])
        if worker_id is None:
            return self._drop(DropReason.NO_WORKER)
        load = self._loads[worker_id]
        if validated:
            self._tokens_valid += 1
            self.flags |= _TOKEN_VALIDATED
            if not self._admission.may_handshake(address, now):
                return self._drop(DropReason.NETWORK_RATE)
        elif self._admission.must_prove_address(load, now):
            return self._retry(header, worker_id, address, now)
        if is_crowded(load):
            return self._drop(DropReason.RING_HALF_FULL)
        if self._begun.put(destination_cid, worker_id, now):
            self.flags |= _NEW_CONNECTION
            self._new_connections += 1
            self._chooser.assigned_quic(worker_id)
        else:
            # Not counted as assigned: nobody can tell its first datagram from the next.
            self._map_full += 1
        return self._destinations[worker_id]

    # Answers

    def _negotiate_version(self, header: LongHeader, size: int) -> bytes | DropReason:
        if header.version == 0:
            return self._drop(DropReason.VERSION_NEGOTIATION)
        # RFC 9000 §5.2.2: "Servers MUST drop smaller packets that specify unsupported versions."
        if size < SMALLEST_INITIAL_DATAGRAM:
            return self._drop(DropReason.VERSION_UNKNOWN)
        random = int.from_bytes(self._random(5), "big")
        # RFC 9000 §6.3: an unknown version in the list, so that clients learn to stand some.
        reserved = random >> 8 & 0xF0F0F0F0 | 0x0A0A0A0A
        if reserved == header.version:
            reserved ^= 0x10000000
        self._versions_sent += 1
        return encode_version_negotiation(header, (reserved, *SUPPORTED_VERSIONS), random & 0xFF)

    def _retry(
        self, header: LongHeader, worker_id: int, address: tuple[Any, ...], now: float
    ) -> bytes:
        # It names the worker, so the second Initial needs no choice. Nothing is kept here.
        source_cid = self._mint.mint_for(worker_id, ConnectionIdKind.RETRY)
        token = self._retry_tokens.seal(address, header.destination_cid, source_cid, now)
        self._retries_sent += 1
        return encode_retry(
            header.version,
            destination_cid=header.source_cid,
            source_cid=source_cid,
            original_destination_cid=header.destination_cid,
            token=token,
            random=source_cid[-1],  # ciphertext: as arbitrary as any
        )

    def _reset(self, datagram: bytes, address: tuple[Any, ...], now: float) -> bytes | DropReason:
        """Answer a short header whose worker is gone (RFC 9000 §10.3)."""
        if len(datagram) < SHORTEST_RESET_TRIGGER:
            return self._drop(DropReason.WORKER_GONE)
        if self._reset_destinations.holds(address, now) or not self._resets.take(now):
            return self._drop(DropReason.RESET_RATE)
        self._reset_destinations.put(address, value=True, now=now)
        # Shorter than what it answers: ends that reset each other come to an end (§10.3.3).
        longest = min(len(datagram) - 1, LONGEST_RESET)
        random = self._random(1 + LONGEST_RESET)
        size = SHORTEST_RESET + random[0] % (longest - SHORTEST_RESET + 1)
        token = self._reset_tokens.token(datagram[1:_CID_END])
        self._resets_sent += 1
        # To an onlooker it is a short header with a payload.
        head = bytes((_FIXED_BIT | random[1] & 0x3F,))
        return head + random[2 : size - len(token) + 1] + token


def _refusal(header: LongHeader, size: int) -> DropReason | None:
    """Say what is wrong with a packet of a version we speak, whoever it is for."""
    if not header.first_octet & _FIXED_BIT:
        return DropReason.FIXED_BIT_CLEAR
    longest = max(len(header.destination_cid), len(header.source_cid))
    if longest > LONGEST_CONNECTION_ID:
        return DropReason.CONNECTION_ID_LENGTH
    packet_type = PacketType.of(header.version, header.first_octet)
    if packet_type is PacketType.RETRY:
        return DropReason.PACKET_TYPE
    if packet_type is PacketType.INITIAL:
        if len(header.destination_cid) < SHORTEST_CLIENT_CHOSEN_CID:
            return DropReason.CONNECTION_ID_LENGTH
        if size < SMALLEST_INITIAL_DATAGRAM:
            return DropReason.INITIAL_TOO_SHORT
    return None


def is_one_train(buffer: bytes, segment_size: int) -> bool:
    """Tell whether all segments of a GRO buffer are short headers to one connection ID.

    Then one record carries the whole train, and `steer_untrusted` decides for it from the buffer
    as it is, since it reads the head only. Otherwise each segment is steered by itself.
    """
    if min(segment_size, len(buffer)) < _CID_END or buffer[0] & _FORM:
        return False
    connection_id = buffer[1:_CID_END]
    return all(
        buffer[offset + 1 : offset + _CID_END] == connection_id and not buffer[offset] & _FORM
        for offset in range(segment_size, len(buffer), segment_size)
    )
