"""Files as response bodies: opened and read so that a slow disk does not hold up the event loop.

What the page cache has is read at once (3 us for 64 KiB, where a thread takes 60); everything else
by a few threads, of our own because an application may keep those of the event loop busy.
"""

from __future__ import annotations

import asyncio
import functools
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from asgiri.errors import AppError

PART_SIZE: Final = 65536
"""Bytes of a file in memory at once, for each response."""
THREADS: Final = 4
"""A disk does not get faster by more of them, and they outlive a stuck one or two."""

_NOWAIT: Final = getattr(os, "RWF_NOWAIT", 0)  # Linux


class FileAccess:
    """One per worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @functools.cached_property
    def threads(self) -> ThreadPoolExecutor:
        """Started when they are first needed."""
        return ThreadPoolExecutor(THREADS, thread_name_prefix="asgiri-files")

    async def open(self, path: object) -> tuple[int, int]:
        """Open a regular file for reading; give its descriptor and size. AppError if it can't."""
        if not isinstance(path, str) or not os.path.isabs(path):
            raise AppError(f"'path' must be an absolute path, not {path!r}")
        return await self._loop.run_in_executor(self.threads, _open, path)

    async def read(self, file: int, size: int, offset: int) -> bytes:
        """Read at most `size` bytes; b"" at the end of the file. AppError if it can't be read."""
        if _NOWAIT:
            buffer = bytearray(size)
            try:
                count = os.preadv(file, [buffer], offset, _NOWAIT)
            except OSError:
                pass  # not in the cache, or a file system that can't tell; errors come again below
            else:
                return bytes(memoryview(buffer)[:count])
        try:
            return await self._loop.run_in_executor(self.threads, os.pread, file, size, offset)
        except OSError as error:
            raise AppError(f"the file cannot be read: {error.strerror}") from error


def _open(path: str) -> tuple[int, int]:
    try:
        # Without O_NONBLOCK a FIFO would keep the thread until somebody writes to it.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        # Not as it is: an OSError out of send() says that the client has gone.
        raise AppError(f"{path!r} cannot be opened: {error}") from error
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        os.close(file)
        raise AppError(f"{path!r} is no regular file")
    return file, status.st_size


class FilePart:
    """What a 'http.response.zerocopysend' names: a descriptor, where to begin, how much."""

    __slots__ = ("_advances", "_file", "count", "descriptor", "offset")

    def __init__(self, message: Any) -> None:
        """Raises AppError for what is not an open regular file, or not within it."""
        file = self._file = message.get("file")
        try:
            self.descriptor: int = file if isinstance(file, int) else file.fileno()
            status = os.fstat(self.descriptor)
        except (AttributeError, TypeError, OSError, ValueError) as error:
            raise AppError(f"'file' must be an open file, not {file!r}: {error}") from error
        if not stat.S_ISREG(status.st_mode):
            raise AppError("'file' must be a regular file")
        offset = _number(message, "offset")
        self._advances = offset is None
        self.offset = self._position() if offset is None else offset
        left = status.st_size - self.offset
        count = _number(message, "count")
        self.count = max(left, 0) if count is None else count
        if self.count > max(left, 0):
            raise AppError(f"'count' is {self.count}, but the file has {max(left, 0)} bytes left")

    def sent(self) -> None:
        """Move the position of a file that was to be sent from there."""
        if self._advances:
            position = self.offset + self.count
            if isinstance(self._file, int):
                os.lseek(self._file, position, os.SEEK_SET)
            else:
                self._file.seek(position)

    def _position(self) -> int:
        # A buffered file has read ahead: its descriptor's position is not its own.
        position: int = (
            os.lseek(self._file, 0, os.SEEK_CUR)
            if isinstance(self._file, int)
            else self._file.tell()
        )
        return position


def _number(message: Any, name: str) -> int | None:
    value = message.get(name)
    if value is None or (type(value) is int and value >= 0):
        return value
    raise AppError(f"'{name}' must be an int from 0 on, not {value!r}")
