"""The other end of the control socket: find a running server, ask it for something.

Waits, unlike the master. `asgiri ctl` and `asgiri top` are made of it.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from asgiri.errors import StartError
from asgiri.ipc.board import BoardReader
from asgiri.ipc.control import (
    ANSWERS,
    MAX_ANSWER_SIZE,
    REQUESTS,
    Answer,
    Board,
    BrokenFrameError,
    Done,
    Refused,
    Request,
    Watch,
)
from asgiri.ipc.control_path import Found, find_sockets
from asgiri.ipc.segment import BoardMemory

__all__ = ["ControlClient", "RefusedError", "locate"]

PATH_VARIABLE: Final = "ASGIRI_CONTROL_SOCKET"
ANSWER_TIMEOUT: Final = 20.0
"""Seconds for an answer that does not wait for workers. The master has a turn of 0.1 s at most."""
_MAX_FDS: Final = 4
_CREDENTIALS: Final = struct.Struct("=iII")
"""struct ucred: process, user, group."""


class RefusedError(Exception):
    """The master does not do it, for this reason."""


def locate(path: str, pid: int, environ: Mapping[str, str]) -> Path:
    """Return the control socket that is meant. Raises StartError when it is not one that is clear.

    `path` and `pid` are what the operator said, "" and 0 if nothing.
    """
    path = path or environ.get(PATH_VARIABLE, "")
    if path and not pid:
        return Path(path)
    found = [each for each in find_sockets(environ) if _answers(each.path)]
    if pid:
        found = [each for each in found if each.pid == pid]
    if not found:
        raise StartError(_nothing_found(pid))
    if len(found) > 1:
        raise StartError(f"{len(found)} servers run; say which by --pid: {_list(found)}")
    return found[0].path


def _nothing_found(pid: int) -> str:
    which = f"no server of process {pid}" if pid else "no running server"
    return f"{which} was found whose control socket you may use; name it by --control-socket"


def _list(found: Sequence[Found]) -> str:
    return ", ".join(f"{each.pid} ({each.path})" for each in found)


def _answers(path: Path) -> bool:
    try:
        _connect(path).close()
    except OSError:
        return False
    return True


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(ANSWER_TIMEOUT)
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


class ControlClient:
    """One connection to a master. Its methods raise StartError when there is nobody any more."""

    def __init__(self, path: Path) -> None:
        """Connect. Raises StartError."""
        try:
            self._socket = _connect(path)
        except OSError as error:
            remedy = "is the server running, and does it belong to you?"
            raise StartError.from_os_error(error, f"control socket {path}", remedy) from None
        self._incoming = bytearray()
        self._fds: list[int] = []

    def close(self) -> None:
        """End the connection."""
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def ask(self, request: Request, timeout: float | None = ANSWER_TIMEOUT) -> str:
        """Have something done; return what the master says. Raises RefusedError."""
        match self._exchange(request, timeout):
            case Done(text=text):
                return text
            case Refused(text=text):
                raise RefusedError(text)
            case _:
                raise StartError("the server answers what it was not asked: another version?")

    @contextlib.contextmanager
    def watch(self) -> Iterator[BoardReader]:
        """Give the board; it is up to date as long as the connection is open."""
        match self._exchange(Watch(), ANSWER_TIMEOUT):
            case Board() if self._fds:
                memory = BoardMemory.attach(self._fds.pop())
            case Refused(text=text):
                raise RefusedError(text)
            case _:
                raise StartError("the server answers what it was not asked: another version?")
        try:
            yield BoardReader(memory.buffer)
        finally:
            memory.close()

    @property
    def is_open(self) -> bool:
        """False when the master has closed the connection, by its end for example."""
        if not select.select([self._socket], [], [], 0)[0]:
            return True
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def wait_end(self) -> None:
        """Return when the master has ended, or has closed the connection where only that tells."""
        self._socket.settimeout(None)
        with contextlib.suppress(OSError):
            while self._socket.recv(4096):
                pass
        with contextlib.suppress(OSError, AttributeError):  # gone already; not Linux
            raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            pidfd = os.pidfd_open(_CREDENTIALS.unpack(raw)[0])
            try:
                select.select([pidfd], [], [], ANSWER_TIMEOUT)
            finally:
                os.close(pidfd)

    def _exchange(self, request: Request, timeout: float | None) -> Answer:
        self._socket.settimeout(timeout)
        try:
            self._socket.sendall(REQUESTS.encode(request))
            while (answer := ANSWERS.take_untrusted(self._incoming)) is None:
                self._receive()
        except TimeoutError:
            raise StartError(f"the server has not answered within {timeout:g} s") from None
        except (OSError, BrokenFrameError) as error:
            raise StartError(f"the server has ended, or speaks otherwise: {error}") from None
        return answer

    def _receive(self) -> None:
        received, ancillary, _, _ = self._socket.recvmsg(
            MAX_ANSWER_SIZE, socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
        )
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds += fds
        if not received:
            raise ConnectionResetError("the connection was closed")
        self._incoming += received
