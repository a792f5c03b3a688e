"""Single-producer, single-consumer byte ring from the master to one worker. Sans-IO over a buffer
and two counters.

Layout of a worker's segment (sealed memfd, one per worker incarnation, created by the master):

    offset   size   field        writer   meaning
    0        4096   scoreboard   worker   u64 cells: heartbeat, load (see `scoreboard`)
    4096     4096   assignments  master   u64 cells: what the master has sent it
    8192     size   ring         master   datagram records, wrapping at `size` (see `records`)
    ...      65536  stacks       worker   text, when the master asks for it (see `segment`)

Positions live in the two processes, never in shared memory. Two pipes carry byte counts:
`published` (master adds, worker reads) and `consumed` (worker adds, master reads).

Publication. The producer stores the records, then adds their size to `published`. A producer killed
before that published nothing, so a reader never sees half a record. All that was put since the last
publication is one batch: one join, one or two stores, one system call.
Ordering. Reads and writes of a pipe take the same kernel lock: release by the writer, acquire by
the reader. Python needs no fence, on x86-64 or arm64. A "consumer sleeps" flag would save the
system call, but needs a store-load fence on both sides, which Python does not have.
Wakeup. `published` is readable while there is something that the worker has not copied out. A pipe
that is full of counts keeps the newest back (`backlog`) until it is writable.
Full. `put` returns False and the caller counts a drop by reason. It never blocks, never overwrites.
Trust. The consumer checks magic and sizes of every record; the rest of a bad batch is dropped and
counted, and the byte count leads to the next batch. The producer reads nothing from shared memory,
and believes no count that would give it more than the whole ring. No worker can make it wait
(`counter`).
Death. Each incarnation of a worker gets a new segment and new counters: nothing to resynchronise.

Fixed slots with sequence numbers were slower (512 + 808 ns a record against 437 + 570), and would
split trains of datagrams. One datagram per AF_UNIX message costs 1095 + 1471 ns.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from asgiri.errors import ChannelClosedError
from asgiri.ipc.records import Record, parse_records

__all__ = ["Counter", "RingBuffer", "RingReader", "RingWriter"]


class Counter(Protocol):
    """Carries byte counts to the other process; see `counter.PipeCounter`."""

    owed: int
    """Added, but not told for want of room."""
    ended: bool
    """Nobody is left who could add."""

    def fileno(self) -> int:
        """Return what becomes readable when the count is not 0; for the adder, writable."""

    def add(self, count: int) -> None:
        """Add to the count: everything stored before is visible to who takes it."""

    def take(self) -> int:
        """Return the count and set it to 0."""

    def close(self) -> None:
        """Close this process's end."""


class RingBuffer(Protocol):
    """What a ring needs of its memory: an mmap, a memoryview of one, or a recorder of stores."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> bytes | memoryview: ...
    def __setitem__(self, index: slice, value: bytes, /) -> None: ...


class RingWriter:
    """The master's end. Owns its ends of the two counters, not the buffer."""

    def __init__(self, buffer: RingBuffer, published: Counter, consumed: Counter) -> None:
        self._buffer = buffer
        self._size = len(buffer)
        self._published = published
        self._consumed = consumed
        self._position = 0
        self._free = self._size
        self._unread = 0
        self._parts: list[bytes] = []
        self._fill_is_fresh = False
        self.overreturned = 0
        """Times the worker claimed to have read more than there was."""

    @property
    def fill(self) -> float:
        """Share of the ring in use, 0 to 1; asks the worker's counter once per publication."""
        # Free space is otherwise collected when the ring seems full, so it looks fuller than it is.
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
        """Bytes published that the worker was not told of: `publish` again when writable."""
        return self._published.owed

    def fileno(self) -> int:
        """Return the descriptor that `publish` writes to."""
        return self._published.fileno()

    def put(self, header: bytes, peer: bytes, payload: bytes) -> bool:
        """Queue one record for `publish`; False when the ring is full."""
        size = len(header) + len(peer) + len(payload)
        if size > self._free:
            self._reclaim()
            if size > self._free:
                return False
        self._free -= size
        self._parts += (header, peer, payload)
        return True

    def publish(self) -> int:
        """Store everything put since the last call, then make it visible; return its size."""
        if not self._parts:
            if self._published.owed:
                self._published.add(0)
            return 0
        batch = b"".join(self._parts)
        self._parts.clear()
        size = len(batch)
        start = self._position
        end = start + size
        if end <= self._size:
            self._buffer[start:end] = batch
        else:
            head = self._size - start
            self._buffer[start:] = batch[:head]
            self._buffer[: size - head] = batch[head:]
        self._position = end % self._size
        self._unread += size
        self._fill_is_fresh = False
        self._published.add(size)  # publishes the batch: keep this last
        return size

    def to_state(self) -> dict[str, Any]:
        """Return what the next master needs to go on; after `publish`."""
        return {"position": self._position, "unread": self._unread, "owed": self._published.owed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where the writer that `to_state` told of has left off; before the first `put`."""
        position, unread, owed = (int(state[name]) for name in ("position", "unread", "owed"))
        if not (0 <= position < self._size and 0 <= owed <= unread <= self._size):
            raise ValueError(f"ring of {self._size}: position {position}, {unread} unread")
        self._published.owed = owed
        self._position, self._unread, self._free = position, unread, self._size - unread

    def close(self) -> None:
        """Close this process's ends of the counters; the buffer is its segment's."""
        self._parts.clear()
        self._published.close()
        self._consumed.close()

    def _reclaim(self) -> None:
        count = self._consumed.take()
        if count > self._unread:
            self.overreturned += 1
            count = self._unread
        self._unread -= count
        self._free += count


class RingReader:
    """The worker's end. Owns its ends of the two counters, not the buffer."""

    def __init__(self, buffer: RingBuffer, published: Counter, consumed: Counter) -> None:
        self._buffer = buffer
        self._size = len(buffer)
        self._published = published
        self._consumed = consumed
        self._position = 0
        self._batch = b""
        self._offset = 0
        self.corrupt = 0
        """Times that the rest of what was copied out was dropped because it made no sense."""

    @property
    def pending(self) -> bool:
        """True while records that were copied out have not been returned."""
        return self._offset < len(self._batch)

    def fileno(self) -> int:
        """Return the descriptor that is readable when something was published."""
        return self._published.fileno()

    def take(self, limit: int) -> list[Record]:
        """Return up to `limit` records, [] when there is none. Never blocks.

        Raises ChannelClosedError when the master is gone.
        """
        if self._offset >= len(self._batch) and not self._copy_out():
            return []
        records, self._offset = parse_records(self._batch, self._offset, limit)
        if self._offset < 0:
            self.corrupt += 1
            self._offset = len(self._batch)
        if self._offset == len(self._batch):
            self._batch = b""  # up to the whole ring: do not keep it until the next one
            self._offset = 0
        return records

    def close(self) -> None:
        """Close this process's ends of the counters; the buffer is its segment's."""
        self._batch = b""
        self._offset = 0
        self._published.close()
        self._consumed.close()

    def _copy_out(self) -> bool:
        size = self._published.take()
        if size == 0:
            if self._published.ended:
                raise ChannelClosedError("ring: closed by the master")
            return False
        start = self._position
        end = start + size
        self._position = end % self._size
        if end <= self._size:
            self._batch = bytes(self._buffer[start:end])
        elif size <= self._size:
            head = bytes(self._buffer[start:])
            self._batch = head + self._buffer[: end - self._size]
        else:  # not from our writer
            self.corrupt += 1
        self._offset = 0
        self._consumed.add(size)  # the producer may overwrite from here on: keep this last
        return bool(self._batch)
