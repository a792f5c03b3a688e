"""Shared memory: create, pass, map, unmap. A worker's (layout in `ring`), and the board (`board`).

memfd, not multiprocessing.shared_memory: no name that outlives a SIGKILL, no /dev/shm of 64 MB in a
container (SIGBUS), no resource tracker that destroys what another process still uses. Its size is
sealed, so that nobody can truncate it under the other process.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import signal
import tempfile
from typing import Final, Self

from asgiri.errors import IpcError, RingUnavailableError
from asgiri.ipc.board import MAX_ROWS, board_size
from asgiri.ipc.counter import PipeCounter
from asgiri.ipc.scoreboard import PAGE_SIZE

__all__ = ["RING_OFFSET", "STACKS_SIZE", "BoardMemory", "Segment", "create_ring", "stacks_signal"]

RING_OFFSET: Final = 2 * PAGE_SIZE
STACKS_SIZE: Final = 64 << 10
"""Room for where a worker stands: 600 frames of its threads and tasks."""
FILE_ROWS: Final = 256
"""Workers on a board that has to live in a file: all of its pages exist."""
_MFD_NOEXEC_SEAL: Final = 0x0008  # Linux 6.3; not in `os` before Python 3.15
_F_SEAL_FUTURE_WRITE: Final = 0x0010  # Linux 5.1; not in `fcntl` before Python 3.13
# Out of descriptors or memory is no property of the host: the stream channel would fail as well.
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Segment:
    """One mapping of one worker's shared memory. Owns the descriptor and the mapping.

    `scoreboard`, `assignments` and `ring` are views of the mapping; `ring` is empty without HTTP/3.

    Stacks are written to the descriptor as to a file: that is all that a signal handler can do
    while the interpreter stands in C. Both processes have the same file offset, by which the master
    says where to begin and learns how much has come. What does not fit is refused by the seal.
    """

    def __init__(self, fd: int) -> None:
        """Map the whole of `fd`, and own it. Use `create` or `attach`."""
        self.fd = fd
        size = os.fstat(fd).st_size
        if size < RING_OFFSET + STACKS_SIZE:
            raise IpcError(f"segment of {size} bytes: at least {RING_OFFSET + STACKS_SIZE}")
        self._map = mmap.mmap(fd, size)
        self._stacks_offset = size - STACKS_SIZE
        whole = memoryview(self._map)
        self.scoreboard: Final = whole[:PAGE_SIZE]
        self.assignments: Final = whole[PAGE_SIZE:RING_OFFSET]
        self.ring: Final = whole[RING_OFFSET : self._stacks_offset]
        whole.release()

    @classmethod
    def create(cls, ring_size: int) -> Self:
        """Create a segment; called by the master, for each incarnation of a worker.

        Without memfd (macOS, seccomp) the two pages live in an unlinked temporary file. A ring does
        not: the file's pages would be written back to disk. RingUnavailableError says so, and the
        caller goes on with `create(0)` and the stream channel.
        """
        try:
            fd = _create_memfd(RING_OFFSET + ring_size + STACKS_SIZE)
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            if ring_size:
                raise RingUnavailableError(f"memfd_create: {error.strerror}") from error
            fd = _create_file(RING_OFFSET + STACKS_SIZE)
        return cls.attach(fd)

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map a segment that came through the control channel; called by the worker."""
        try:
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    # Stacks: the master's side

    def clear_stacks(self) -> None:
        """Let the next ones begin anew; called by the master, before it asks for them."""
        os.lseek(self.fd, self._stacks_offset, os.SEEK_SET)

    def count_stacks(self) -> int:
        """Return how many bytes have come."""
        return os.lseek(self.fd, 0, os.SEEK_CUR) - self._stacks_offset

    def read_stacks(self) -> bytes:
        """Return what has come."""
        count = min(max(self.count_stacks(), 0), STACKS_SIZE)
        return os.pread(self.fd, count, self._stacks_offset)

    def detach(self) -> None:
        """Unmap the memory; a second call does nothing."""
        for view in (self.scoreboard, self.assignments, self.ring):
            view.release()
        # A page that someone has not released keeps the mapping, and takes it along when it goes.
        with contextlib.suppress(BufferError):
            self._map.close()

    def close(self) -> None:
        """Unmap the memory and close the descriptor; a second call does nothing."""
        self.detach()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class BoardMemory:
    """One mapping of the board. Owns the descriptor and the mapping."""

    def __init__(self, fd: int, mapping: mmap.mmap) -> None:
        """Use `create` or `attach`."""
        self.fd = fd
        self._map = mapping
        self.buffer: Final = memoryview(mapping)

    @classmethod
    def create(cls) -> Self:
        """Create the board's memory; called by the master. Only this mapping can ever write.

        Without memfd it is an unlinked temporary file, which its readers could write as well.
        """
        try:
            size = board_size(MAX_ROWS)
            fd = _new_memfd("asgiri-board")
        except OSError as error:
            if error.errno in _EXHAUSTED:
                raise
            size = board_size(FILE_ROWS)
            fd = _create_file(size)
            return cls(fd, mmap.mmap(fd, size))
        try:
            os.ftruncate(fd, size)
            board = cls(fd, mmap.mmap(fd, size))
            # From here on: what is mapped stays writable, and nothing else becomes so.
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        except BaseException:
            os.close(fd)
            raise
        return board

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map a board that came through a channel, to read it. Owns `fd`."""
        try:
            return cls(fd, mmap.mmap(fd, os.fstat(fd).st_size, access=mmap.ACCESS_READ))
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Unmap the memory and close the descriptor; a second call does nothing."""
        self.buffer.release()
        with contextlib.suppress(BufferError):
            self._map.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def stacks_signal() -> int | None:
    """Return the signal by which the master asks a worker for its stacks; None where there is none.

    One that nobody uses by chance: a real-time signal, or what terminals of BSD ask with (^T).
    """
    if hasattr(signal, "SIGRTMIN"):
        return int(signal.SIGRTMIN) + 7
    return getattr(signal, "SIGINFO", None)


def create_ring(ring_size: int) -> tuple[Segment, PipeCounter, PipeCounter]:
    """Create a segment with a ring, its `published` and its `consumed`; called by the master.

    Raises RingUnavailableError where memfd is missing or refused; nothing is leaked.
    """
    with contextlib.ExitStack() as created:
        segment = Segment.create(ring_size)
        created.callback(segment.close)
        published = PipeCounter.create()
        created.callback(published.close)
        consumed = PipeCounter.create()
        created.pop_all()
        return segment, published, consumed


def _create_memfd(size: int) -> int:
    fd = _new_memfd("asgiri-segment")
    try:
        os.ftruncate(fd, size)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _new_memfd(name: str) -> int:
    if not hasattr(os, "memfd_create"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        # Where vm.memfd_noexec=2 nothing else is allowed; kernels before 6.3 do not know the flag.
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)


def _create_file(size: int) -> int:
    fd, path = tempfile.mkstemp(prefix="asgiri-segment-")
    try:
        os.unlink(path)
        # Written, not truncated to size: a full disk must fail here, not as SIGBUS later.
        os.write(fd, bytes(size))
    except BaseException:
        os.close(fd)
        raise
    return fd
