"""Where lines go: to a file or a standard stream, or to another process. Never blocks or raises.

A line that a full disk or a pipe without a reader does not take is dropped and counted, and the
next line that gets through tells how many were.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import stat
from collections.abc import Callable, Mapping
from typing import Any, Final

from asgiri.errors import StartError

STANDARD_OUTPUT: Final = 1
STANDARD_ERROR: Final = 2
MAX_LINE: Final = 64 << 10
"""Longest line in bytes, so that one message cannot fill a disk. A traceback of 500 frames fits."""
PIPE_CHUNK: Final = select.PIPE_BUF
"""What a pipe that reports to be writable takes at once without blocking (POSIX, write(2))."""


_made: Final[set[tuple[int, int]]] = set()
"""Device and inode of the files that this process has made."""


class LineHandler(logging.Handler):
    """Writes each record by one write(2), so that processes may share a file; see the module."""

    def __init__(self, path: str = "", standard: int = STANDARD_ERROR) -> None:
        super().__init__()
        self.dropped = 0
        self._path = "" if path == "-" else path
        self._unreported = 0
        opened = self._open() if self._path else _open_again(standard)
        self._is_ours = opened is not None
        self._fd = standard if opened is None else opened
        self._poll = _poll_for(self._fd)

    @property
    def is_terminal(self) -> bool:
        return os.isatty(self._fd)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except (TypeError, ValueError) as error:  # arguments that do not fit their message
            line = _unprintable(record, error)
        self.write_line(line)

    def write_line(self, line: str) -> None:
        """Write one line, or count it as dropped."""
        if self._unreported:
            line = f"{_dropped_text(self._unreported)}\n{line}"
        content = (line + "\n").encode(errors="backslashreplace")
        if len(content) > MAX_LINE:
            content = content[: MAX_LINE - 5] + b" ...\n"
        try:
            self._write(content)
        except OSError:
            self.dropped += 1
            self._unreported += 1
        else:
            self._unreported = 0

    def reopen(self) -> None:
        """Go on in a new file of the same name, after the old one was moved away."""
        if not self._path:
            return
        fresh = self._open()
        old, self._fd, self._poll = self._fd, fresh, _poll_for(fresh)
        os.close(old)

    def give_to(self, uid: int, gid: int) -> None:
        """Give the file to another user if we have made it: who becomes that user opens it again.

        Only then: where that user may put links into the folder, it could be anybody's file.
        """
        status = os.fstat(self._fd)
        if (status.st_dev, status.st_ino) in _made:
            os.fchown(self._fd, uid, gid)

    def close(self) -> None:
        super().close()
        if self._is_ours and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            try:
                fd = os.open(self._path, flags | os.O_EXCL, 0o640)
            except FileExistsError:
                return os.open(self._path, flags, 0o640)
            status = os.fstat(fd)
            _made.add((status.st_dev, status.st_ino))
            return fd
        except OSError as error:
            remedy = "name a file that can be written"
            raise StartError.from_os_error(error, f"log file {self._path}", remedy) from None

    def _write(self, content: bytes) -> None:
        if self._poll is None:
            os.write(self._fd, content)
            return
        for start in range(0, len(content), PIPE_CHUNK):
            ready = self._poll.poll(0)
            if not ready or not ready[0][1] & select.POLLOUT:
                raise BlockingIOError
            os.write(self._fd, content[start : start + PIPE_CHUNK])


class ForwardHandler(logging.Handler):
    """Gives records to another process, as what JSON can carry. `send` tells whether it could."""

    def __init__(self, send: Callable[[Mapping[str, Any]], bool]) -> None:
        super().__init__()
        self.dropped = 0
        self._unreported = 0
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Make the message here: its arguments may be anything."""
        try:
            message = record.getMessage()
        except (TypeError, ValueError) as error:
            message = _unprintable(record, error)
        exception = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        if self._unreported:
            message = f"{_dropped_text(self._unreported)}\n{message}"
        sent = self._send(
            {
                "name": record.name,
                "levelno": record.levelno,
                "levelname": record.levelname,
                "msg": message,
                "created": record.created,
                "msecs": record.msecs,
                "process": record.process,
                "processName": "asgiri: master",
                "exc_text": exception,
            }
        )
        self.dropped += not sent
        self._unreported = 0 if sent else self._unreported + 1


def _dropped_text(count: int) -> str:
    """Say how many lines are missing."""
    return f"{count} log lines were dropped before this one"


def _unprintable(record: logging.LogRecord, error: Exception) -> str:
    return f"unprintable log message {record.msg!r}: {type(error).__name__}"


def _open_again(standard: int) -> int | None:
    """Open the pipe that is a standard stream once more, not to block; None where that is denied.

    O_NONBLOCK on the stream itself would change it for whoever shares it: the shell, the other
    workers. And if two of us ask whether there is room for a line, one may have it and the other
    one blocks, for as long as nobody reads.
    """
    with contextlib.suppress(OSError):
        if stat.S_ISFIFO(os.fstat(standard).st_mode):
            flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK
            return os.open(f"/proc/self/fd/{standard}", flags)
    return None


def _poll_for(fd: int) -> select.poll | None:
    """Make what tells whether a write would block; files never do."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return None
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return poll
