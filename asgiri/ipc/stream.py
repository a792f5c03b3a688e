"""The records of `ring` over a socketpair: for hosts without memfd, and as test oracle.

    master -> worker   u32 size, then a batch of `size` bytes of records (see `records`);
                       size 0 asks for counts that the worker could not return so far
    worker -> master   u32 each: bytes copied out, to be added up

All integers little-endian. The counts that pipes carry for the ring travel here in the stream,
so the two accept and refuse the same records in the same order. What the kernel does not take at
once stays with the writer as `backlog`, bounded by the capacity like all the rest.

The ring is preferred where it can be had: `put` never leaves a remainder that someone has to write
later, and nothing is copied through socket buffers. It is not faster.
"""

import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

from asgiri.errors import ChannelClosedError, RingCorruptError
from asgiri.ipc.records import Record, parse_records

__all__ = ["StreamReader", "StreamWriter", "record_stream_pair"]

_SIZE: Final = struct.Struct("<I")
_SOCKET_BUFFER_SIZE: Final = 1 << 20
_RECEIVE_SIZE: Final = 1 << 17
_COUNTS_SIZE: Final = 1 << 16
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


def record_stream_pair() -> tuple[socket.socket, socket.socket]:
    """Return the master's socket, for StreamWriter, and the worker's, for StreamReader."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    # A wish: the kernel takes what it allows, and the rest waits as backlog.
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER_SIZE)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER_SIZE)
    return ours, theirs


class StreamWriter:
    """The master's end. Owns its socket."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        self._socket = sock
        self._size = size
        self._free = size
        self._unread = 0
        self._parts: list[bytes] = []
        self._queued = 0
        self._backlog = bytearray()
        self._counts = b""
        self._fill_is_fresh = False
        self._refused = False
        self._reader_is_gone = False
        self.overreturned = 0
        """Times the worker claimed to have read more than there was."""

    @property
    def fill(self) -> float:
        """Share of the capacity in use, 0 to 1; asks the socket once per publication."""
        if not self._fill_is_fresh and self._free < self._size:
            self._fill_is_fresh = True
            self._reclaim()
        return 1.0 - self._free / self._size

    def count_waiting(self) -> int:
        """Return the bytes in use; asks each time, for those who look seldom."""
        self._reclaim()
        return self._size - self._free

    @property
    def backlog(self) -> int:
        """Bytes published that the kernel has not taken: `publish` again when writable."""
        return len(self._backlog)

    def fileno(self) -> int:
        """Return the socket to watch for writability while `backlog` is not 0."""
        return self._socket.fileno()

    def put(self, header: bytes, peer: bytes, payload: bytes) -> bool:
        """Queue one record for `publish`; False when the capacity is used up."""
        size = len(header) + len(peer) + len(payload)
        if size > self._free:
            self._reclaim()
            if size > self._free:
                self._refused = True
                return False
        self._free -= size
        self._queued += size
        self._parts += (header, peer, payload)
        return True

    def publish(self) -> int:
        """Send everything put since the last call as one batch, behind what is still waiting."""
        size = self._queued
        # Refused and nothing under way: the worker may have found its return path full, once.
        if size or (self._refused and not self._backlog):
            self._backlog += b"".join((_SIZE.pack(size), *self._parts))
            self._parts.clear()
            self._queued = 0
            self._refused = False
            self._unread += size
            self._fill_is_fresh = False
        if self._backlog:
            self._send()
        return size

    def to_state(self) -> dict[str, Any]:
        """Return what the next master needs to go on; after `publish`."""
        return {
            "unread": self._unread,
            "backlog": self._backlog.hex(),
            "counts": self._counts.hex(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where the writer that `to_state` told of has left off; before the first `put`."""
        unread = int(state["unread"])
        if not 0 <= unread <= self._size:
            raise ValueError(f"record stream of {self._size}: {unread} unread")
        self._unread, self._free = unread, self._size - unread
        self._backlog = bytearray.fromhex(state["backlog"])
        self._counts = bytes.fromhex(state["counts"])

    def close(self) -> None:
        """Close the socket; what waits is lost."""
        self._parts.clear()
        self._backlog.clear()
        self._socket.close()

    def _send(self) -> None:
        try:
            while self._backlog:
                with memoryview(self._backlog) as rest:
                    sent = self._socket.send(rest, _SEND_FLAGS)
                del self._backlog[:sent]
        except BlockingIOError:
            return
        except ConnectionError:
            # As with a ring whose worker died: it fills up, and its supervisor takes it away.
            self._reader_is_gone = True
            self._backlog.clear()

    def _reclaim(self) -> None:
        """Add up the counts that the worker has sent back."""
        if self._reader_is_gone:
            return
        try:
            # Once: all that a socket holds, and no loop that a worker could keep us in.
            received = self._socket.recv(_COUNTS_SIZE, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except ConnectionError:
            received = b""
        if received:
            self._add_counts(self._counts + received)
        else:
            self._reader_is_gone = True

    def _add_counts(self, received: bytes) -> None:
        whole = len(received) - len(received) % _SIZE.size
        self._counts = received[whole:]
        count = sum(value for (value,) in _SIZE.iter_unpack(received[:whole]))
        if count > self._unread:
            self.overreturned += 1
            count = self._unread
        self._unread -= count
        self._free += count


class StreamReader:
    """The worker's end. Owns its socket. Returns whole batches only, like the ring."""

    def __init__(self, sock: socket.socket, size: int) -> None:
        self._socket = sock
        self._size = size
        self._space = memoryview(bytearray(_RECEIVE_SIZE))  # `recv` would allocate it each time
        self._received = bytearray()
        self._batch = b""
        self._offset = 0
        self._owed = bytearray()
        self.corrupt = 0
        """Batches whose rest was dropped because it made no sense."""

    @property
    def pending(self) -> bool:
        """True when `take` has something to return without another byte arriving."""
        return self._offset < len(self._batch) or self._has_whole_batch()

    def fileno(self) -> int:
        """Return the socket: readable when something was published."""
        return self._socket.fileno()

    def take(self, limit: int) -> list[Record]:
        """Return up to `limit` records, [] when there is none. Never blocks.

        Raises ChannelClosedError when the master is gone, RingCorruptError when the stream makes no
        sense any more, which cannot happen to a ring.
        """
        if not self.pending:
            self._receive()
        records: list[Record] = []
        while len(records) < limit and (self._offset < len(self._batch) or self._next_batch()):
            wanted = limit - len(records)
            parsed, self._offset = parse_records(self._batch, self._offset, wanted)
            records += parsed
            if self._offset < 0:
                self.corrupt += 1
                self._offset = len(self._batch)
        if self._offset == len(self._batch):
            self._batch = b""
            self._offset = 0
        return records

    def close(self) -> None:
        """Close the socket."""
        self._batch = b""
        self._offset = 0
        self._received.clear()
        self._socket.close()

    def _next_size(self) -> int:
        """Return the size of the next batch, -1 while it is not known."""
        if len(self._received) < _SIZE.size:
            return -1
        return int.from_bytes(self._received[: _SIZE.size], "little")

    def _has_whole_batch(self) -> bool:
        return 0 <= self._next_size() <= min(self._size, len(self._received) - _SIZE.size)

    def _receive(self) -> None:
        """Read until a batch is complete or the socket is empty."""
        while not self._has_whole_batch():
            if self._next_size() > self._size:
                raise RingCorruptError(f"record stream: batch of {self._next_size()} bytes")
            try:
                size = self._socket.recv_into(self._space, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                size = 0
            if not size:
                raise ChannelClosedError("record stream: closed by the master")
            self._received += self._space[:size]

    def _next_batch(self) -> bool:
        if not self._has_whole_batch():
            return False
        end = _SIZE.size + self._next_size()
        self._batch = bytes(memoryview(self._received)[_SIZE.size : end])
        self._offset = 0
        del self._received[:end]
        self._return_count(len(self._batch))
        return True

    def _return_count(self, size: int) -> None:
        self._owed += _SIZE.pack(size)
        try:
            sent = self._socket.send(self._owed, _SEND_FLAGS)
        except BlockingIOError:
            return  # the master reads them when the channel seems full; none is lost
        except ConnectionError:
            sent = len(self._owed)  # the next read says that the master is gone
        del self._owed[:sent]
