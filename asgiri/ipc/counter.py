"""A pipe that carries byte counts from one process to another and wakes the one that reads.

Writing and reading take the pipe's lock: release by the one, acquire by the other. What was stored
before `add` is seen after the `take` that returns its count, on every architecture, and Python
needs no fence.

Nothing here blocks, whatever the other process does. O_NONBLOCK belongs to an open file
description, and whoever holds it may clear it. The ends of a pipe are two descriptions, and each
process has only its own. An eventfd is a single one for both, cannot be opened a second time
(ENXIO) and knows no RWF_NOWAIT for writing: a worker could make the master wait for ever. It costs
0.6 us an `add` and `take` against 1.0; MSG_DONTWAIT on a socketpair costs 1.9.
"""

import os
from typing import Final, Self

__all__ = ["PipeCounter"]

_COUNT_SIZE: Final = 8
_READ_SIZE: Final = 4096
_READS: Final = 16
"""Together what a pipe holds: no loop that a worker could keep the master in."""


class PipeCounter:
    """A process's hold on a counter; owns its descriptors. One process adds, the other takes."""

    def __init__(self, *, reading: int = -1, writing: int = -1) -> None:
        """Own one end, or both until they part."""
        self.reading = reading
        self.writing = writing
        self.owed = 0
        """Counted, but not told: the pipe is full. It goes with the next `add`."""
        self.ended = False
        """Nobody is left who could add."""

    @classmethod
    def create(cls) -> Self:
        """Create a counter at 0. Raises OSError."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        return cls(reading=reading, writing=writing)

    def fileno(self) -> int:
        """Return the end to read, readable while the count is not 0; where only the other is held,
        that one, writable while there is room.
        """
        return self.reading if self.reading >= 0 else self.writing

    def add(self, count: int) -> None:
        """Add to the count and wake the reader."""
        count += self.owed
        self.owed = 0
        try:
            os.write(self.writing, count.to_bytes(_COUNT_SIZE, "little"))
        except BlockingIOError:
            self.owed = count
        except BrokenPipeError:
            pass  # as with full memory: nobody reads it any more, and who supervises sees the exit

    def take(self) -> int:
        """Return the count and set it to 0."""
        count = 0
        for _ in range(_READS):
            try:
                counts = os.read(self.reading, _READ_SIZE)
            except BlockingIOError:
                break
            if len(counts) == _COUNT_SIZE:
                return count + int.from_bytes(counts, "little")
            # Each is written whole; whoever writes something else spoils only its own ring.
            for start in range(0, len(counts), _COUNT_SIZE):
                count += int.from_bytes(counts[start : start + _COUNT_SIZE], "little")
            if len(counts) < _READ_SIZE:
                self.ended = not counts
                break
        return count

    def close_reading(self) -> None:
        """Close the end to read; a second call does nothing."""
        if self.reading >= 0:
            os.close(self.reading)
            self.reading = -1

    def close_writing(self) -> None:
        """Close the end to write; a second call does nothing."""
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        """Close what is held; a second call does nothing."""
        self.close_reading()
        self.close_writing()
