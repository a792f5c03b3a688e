"""Codec of one datagram record, and the interface of what carries records. Sans-IO.

The ring and the stream channel carry the same bytes. Little-endian, no alignment:

    offset   size   field          meaning
    0        2      payload_size   0 to 65,535
    2        2      gso_size       0: one datagram; else the payload is a train of datagrams of this
                                   size, of which the last may be shorter
    4        1      flags          see RecordFlag
    5        1      peer_size      8, 16, 28 or 48; 0 in a control record only
    6        2      magic          0xA61D
    8        ...    peer           who sent it, to which of our addresses
    ...      ...    payload

Peer; its size says which of the optional fields are there:

    offset   size   field       meaning
    0        1      family      4 or 6
    1        1      listener    index of the UDP listener
    2        2      port        big-endian
    4        4/16   address
    ...      4+4    flow information and scope, IPv6 only
    ...      4/16   local address     } only when the listener is bound to a wildcard:
    ...      4      local interface   } the reply must leave from there

Trust. A record is written by the master and read by one worker, whose broken code may have
scribbled over the shared memory in between. Magic and sizes of each record are checked; the first
that does not fit condemns the rest of its batch. A payload that was hit fails its AEAD: a lost
packet.
"""

import enum
import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from asgiri.errors import RingCorruptError

__all__ = [
    "HEADER_SIZE",
    "MAGIC",
    "PEER_TABLE_SIZE",
    "LocalAddress",
    "Peer",
    "PeerTable",
    "Record",
    "RecordFlag",
    "RecordReader",
    "RecordWriter",
    "decode_peer",
    "encode_peer",
    "pack_ip",
    "parse_batch",
    "parse_records",
    "record_header",
]

MAGIC: Final = 0xA61D
_HEADER: Final = struct.Struct("<HHBBH")
HEADER_SIZE: Final = _HEADER.size
_ENDPOINT: Final = struct.Struct(">BBH")
_SCOPE: Final = struct.Struct(">II")
_INTERFACE: Final = struct.Struct(">I")

# size of the peer field -> (size of an address, has a local address). All four differ.
_PEER_SHAPES: Final = {8: (4, False), 16: (4, True), 28: (16, False), 48: (16, True)}
_PEER_SIZES: Final = frozenset(_PEER_SHAPES)

PEER_TABLE_SIZE: Final = 4096
"""Peers remembered by each half of the table. An entry is 0.5 KB; twice as many concurrently active
peers as one worker serves at 10 datagrams a second each."""


class RecordFlag(enum.IntFlag):
    """What the master knows about a record."""

    LONG_HEADER = 1
    NEW_CONNECTION = 2
    """First datagram of a connection ID that the master had not seen before."""
    TOKEN_PRESENT = 4
    CONTROL = 8
    """No datagram: the payload is a message of the master's to the transport."""
    TOKEN_VALIDATED = 16


_CONTROL: Final = int(RecordFlag.CONTROL)


class Record(NamedTuple):
    """One datagram, or one train of equal-sized datagrams from one peer."""

    payload: bytes
    gso_size: int
    flags: int
    peer: bytes
    """As it came; `PeerTable.decode` turns it into a `Peer`."""


class LocalAddress(NamedTuple):
    """The address of ours that a datagram was sent to, from IP_PKTINFO."""

    ip: bytes
    interface: int


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a datagram came from and where its reply leaves from."""

    address: tuple[Any, ...]
    """As `sendto` takes it."""
    listener: int
    local_ip: bytes | None
    interface: int


class RecordWriter(Protocol):
    """The master's end of a worker's record channel."""

    @property
    def fill(self) -> float:
        """Share of the capacity in use, 0 to 1. May lag behind the reader, not behind `put`."""

    def count_waiting(self) -> int:
        """Return the bytes in use, as the reader has it now."""

    @property
    def backlog(self) -> int:
        """Bytes published that the kernel has not taken: `publish` again when writable."""

    def fileno(self) -> int:
        """Return what to watch for writability while `backlog` is not 0."""

    def put(self, header: bytes, peer: bytes, payload: bytes) -> bool:
        """Queue one record; False when it does not fit and the caller counts the drop."""

    def publish(self) -> int:
        """Make everything put since visible to the reader; return how many bytes that were."""

    def to_state(self) -> dict[str, Any]:
        """Return what the next master needs to go on; after `publish`."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where another writer has left off; before the first `put`. ValueError: it cannot
        have been so.
        """

    def close(self) -> None:
        """Give the channel up; what was not read is lost."""


class RecordReader(Protocol):
    """The worker's end of its record channel."""

    corrupt: int
    """Batches, or rests of batches, that were dropped because they made no sense."""

    @property
    def pending(self) -> bool:
        """True when `take` has something to return without `fileno` becoming readable."""

    def fileno(self) -> int:
        """Return what to watch: readable when something was published."""

    def take(self, limit: int) -> list[Record]:
        """Return up to `limit` records, [] when there is none. Never blocks.

        Raises ChannelClosedError when the master is gone.
        """

    def close(self) -> None:
        """Give the channel up."""


def record_header(payload_size: int, gso_size: int, flags: int, peer_size: int) -> bytes:
    """Return the header that precedes `peer` and `payload`."""
    return _HEADER.pack(payload_size, gso_size, flags, peer_size, MAGIC)


def parse_batch(batch: bytes) -> tuple[list[Record], bool]:
    """Return the records of a batch, and False when it ends in something that is none."""
    records, offset = parse_records(batch, 0, len(batch))
    return records, offset == len(batch)


def parse_records(batch: bytes, offset: int, limit: int) -> tuple[list[Record], int]:
    """Parse at most `limit` records; return them and the next offset, -1 when corrupt."""
    records: list[Record] = []
    append = records.append
    unpack = _HEADER.unpack_from
    new_record = tuple.__new__  # a NamedTuple's own constructor takes 3 times as long
    end = len(batch)
    last_header = end - HEADER_SIZE
    while limit > 0 and offset < end:
        if offset > last_header:
            return records, -1
        payload_size, gso_size, flags, peer_size, magic = unpack(batch, offset)
        peer_at = offset + HEADER_SIZE
        payload_at = peer_at + peer_size
        offset = payload_at + payload_size
        if magic != MAGIC or offset > end:
            return records, -1
        if peer_size not in _PEER_SIZES and (peer_size or not flags & _CONTROL):
            return records, -1
        append(
            new_record(
                Record, (batch[payload_at:offset], gso_size, flags, batch[peer_at:payload_at])
            )
        )
        limit -= 1
    return records, offset


def pack_ip(host: str) -> bytes:
    """Return an address as 4 or 16 bytes. Not `inet_pton`: this module knows no socket."""
    if ":" in host:
        return ipaddress.IPv6Address(host).packed
    return ipaddress.IPv4Address(host).packed


def encode_peer(address: tuple[Any, ...], listener: int, local: LocalAddress | None) -> bytes:
    """Return the peer field of a record. Slow (2 us): `PeerTable.encode` remembers it."""
    ip = pack_ip(address[0])
    if len(ip) == 4:
        remote = _ENDPOINT.pack(4, listener, address[1]) + ip
    else:
        remote = _ENDPOINT.pack(6, listener, address[1]) + ip + _SCOPE.pack(*address[2:4])
    return remote if local is None else remote + local.ip + _INTERFACE.pack(local.interface)


def decode_peer(raw: bytes) -> Peer:
    """Return what `encode_peer` was given. Total over all that `parse_records` lets through."""
    shape = _PEER_SHAPES.get(len(raw))
    if shape is None:
        raise RingCorruptError(f"peer of {len(raw)} bytes")
    ip_size, has_local = shape
    # The size says the family; a scribbled family octet misleads nobody.
    _, listener, port = _ENDPOINT.unpack_from(raw)
    ip_end = _ENDPOINT.size + ip_size
    ip = raw[_ENDPOINT.size : ip_end]
    address: tuple[Any, ...]
    if ip_size == 4:
        address = (str(ipaddress.IPv4Address(ip)), port)
    else:
        address = (str(ipaddress.IPv6Address(ip)), port, *_SCOPE.unpack_from(raw, ip_end))
    if not has_local:
        return Peer(address, listener, None, 0)
    return Peer(
        address, listener, raw[-4 - ip_size : -4], _INTERFACE.unpack_from(raw, len(raw) - 4)[0]
    )


class PeerTable:
    """Remember the last peers, so that no packet pays for parsing an address.

    Two dicts that are swapped when the younger is full: bounded, no timers, no per-hit bookkeeping.
    The master encodes, a worker decodes; each table serves one of them. `decode` returns the same
    object for the same bytes while the peer is remembered.
    """

    def __init__(self, size: int = PEER_TABLE_SIZE) -> None:
        self._size = size
        self._encoded: dict[tuple[Any, ...], bytes] = {}
        self._encoded_old: dict[tuple[Any, ...], bytes] = {}
        self._decoded: dict[bytes, Peer] = {}
        self._decoded_old: dict[bytes, Peer] = {}
        self.swaps = 0
        """How often a full half pushed the other out: many a second are a flood of addresses."""

    def __len__(self) -> int:
        encoded = len(self._encoded) + len(self._encoded_old)
        return encoded + len(self._decoded) + len(self._decoded_old)

    def encode(self, address: tuple[Any, ...], listener: int, local: LocalAddress | None) -> bytes:
        """Return the peer field for a datagram. Called by the master."""
        key = (address, listener, local)
        raw = self._encoded.get(key)
        if raw is None:
            raw = self._encoded_old.get(key) or encode_peer(address, listener, local)
            if len(self._encoded) >= self._size:
                self._encoded_old, self._encoded = self._encoded, {}
                self.swaps += 1
            self._encoded[key] = raw
        return raw

    def decode(self, raw: bytes) -> Peer:
        """Return the peer of a record. Called by the worker."""
        peer = self._decoded.get(raw)
        if peer is None:
            peer = self._decoded_old.get(raw) or decode_peer(raw)
            if len(self._decoded) >= self._size:
                self._decoded_old, self._decoded = self._decoded, {}
                self.swaps += 1
            self._decoded[raw] = peer
        return peer
