"""The control socket: `asgiri ctl` and `asgiri top` talk to the master here (`ipc.control`).

Nobody is waited for: clients are few, ask one thing at a time, and are dropped when they send
nothing, read nothing, or send what makes no sense. What they ask is done by `orders`.
"""

from __future__ import annotations

import array
import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from asgiri.config import AdminConfig, BindAddress
from asgiri.errors import StartError
from asgiri.ipc.control import (
    ANSWERS,
    MAX_REQUEST_SIZE,
    REQUESTS,
    Answer,
    Board,
    BrokenFrameError,
    Refused,
    Request,
    Watch,
)
from asgiri.ipc.control_path import NAME, default_directory, socket_name
from asgiri.master.binding import UnixAccess
from asgiri.master.listeners import Listeners
from asgiri.master.loop import EventLoop, Timer

logger = logging.getLogger("asgiri.master")

OFF: Final = "off"
BACKLOG: Final = 16
MAX_CLIENTS: Final = 16
"""Connections at a time; more wait in the backlog. Each is a descriptor and 5 KB."""
MAX_WATCHERS: Final = 12
"""Of them, those that stay to watch: an order always finds room."""
PATIENCE: Final = 10.0
"""Seconds that a client may take for a request, or for an answer."""
_CREDENTIALS: Final = struct.Struct("=iII")


def open_listeners(config: AdminConfig, access: UnixAccess) -> Listeners:
    """Open the socket; none when it is off. Raises StartError if one was asked for by its path."""
    owner = access.owner
    listeners = Listeners(backlog=BACKLOG, unix_access=UnixAccess(0o600, owner), quic=False)
    if config.control_socket == OFF:
        return listeners
    uid = os.geteuid() if owner is None else owner[0]
    try:
        path = config.control_socket or _default_path(uid)
        listeners.open_bind(BindAddress(kind="unix", path=os.path.abspath(path)), quic=False)
    except (StartError, OSError) as error:
        if config.control_socket:
            raise
        logger.warning("no control socket, so no `asgiri ctl`: %s", error)
    return listeners


def _default_path(uid: int) -> str:
    folder = default_directory(os.environ, uid)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid == os.geteuid() != uid:
        os.chown(folder, uid, -1)
    elif not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, uid):
        raise StartError(f"{folder} is somebody else's; name another one by --control-socket")
    _remove_stale(folder)
    return str(folder / socket_name(os.getpid()))


def _remove_stale(folder: Path) -> None:
    """Remove sockets of masters that were killed."""
    for path in folder.iterdir():
        match = NAME.fullmatch(path.name)
        if match is not None and not _exists(int(match[1])):
            with contextlib.suppress(OSError):
                path.unlink()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


class Orders(Protocol):
    """What the master does for a client."""

    def carry_out(self, request: Request, answer: Callable[[Answer], None]) -> None:
        """Do it, and answer, now or later."""

    def watch(self) -> int:
        """Keep the board up to date; return its descriptor."""

    def unwatch(self) -> None:
        """One watcher less."""


class Control:
    """Owns its clients. The listener is whoever's opened it."""

    def __init__(self, loop: EventLoop, listeners: Listeners, orders: Orders) -> None:
        self.loop = loop
        self.orders = orders
        self._listeners = listeners
        self._clients: set[_Client] = set()
        self.watchers = 0
        self.requests = 0
        self.refused = 0
        """Connections of strangers, and what was no request."""

    def start(self) -> None:
        """Begin to listen; nothing happens when the socket is off."""
        for listener in self._listeners:
            self.loop.watch_readable(listener.fileno(), self._accept)

    def close(self) -> None:
        """Drop every client, and listen no more."""
        for listener in self._listeners:
            if listener.fileno() >= 0:
                self.loop.unwatch(listener.fileno())
        for client in list(self._clients):
            client.close()

    def _accept(self) -> None:
        for listener in self._listeners:
            try:
                connection, _ = listener.socket.accept()
            except OSError:  # it is gone, or we have no descriptor for it now
                return
            self._admit(connection)
            if len(self._clients) >= MAX_CLIENTS:
                self.loop.unwatch(listener.fileno())

    def _admit(self, connection: socket.socket) -> None:
        pid, uid = _credentials(connection)
        if uid not in (0, os.geteuid()):
            self.refused += 1
            logger.warning("control socket: user %d (process %d) is not let in", uid, pid)
            connection.close()
            return
        connection.setblocking(False)
        self._clients.add(_Client(self, connection, pid))

    def left(self, client: _Client) -> None:
        """A client is gone; there is room for another one."""
        self._clients.discard(client)
        for listener in self._listeners:
            if listener.fileno() >= 0:
                self.loop.watch_readable(listener.fileno(), self._accept)


def _credentials(connection: socket.socket) -> tuple[int, int]:
    """Return process and user at the other end; where the system does not tell, it is one of ours:
    the socket's mode lets nobody else in.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return 0, os.geteuid()
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(raw)
    return pid, uid


class _Client:
    """One connection: one request at a time."""

    def __init__(self, control: Control, connection: socket.socket, pid: int) -> None:
        self._control = control
        self._loop = control.loop
        self._socket = connection
        self._pid = pid
        self._incoming = bytearray()
        self._outgoing = b""
        self._busy = False
        self._watching = False
        self._closed = False
        self._timer: Timer
        self._set_clock()
        self._loop.watch_readable(connection.fileno(), self._read)

    def close(self) -> None:
        """Drop it; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        self._loop.unwatch(self._socket.fileno())
        self._socket.close()
        if self._watching:
            self._control.watchers -= 1
            self._control.orders.unwatch()
        self._control.left(self)

    def _set_clock(self) -> None:
        self._timer = self._loop.call_later(PATIENCE, self.close)

    def _read(self) -> None:
        try:
            received = self._socket.recv(MAX_REQUEST_SIZE)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self.close()
            return
        self._incoming += received
        try:
            request = REQUESTS.take_untrusted(self._incoming)
            if self._busy or (request is not None and self._incoming):
                raise BrokenFrameError("the answer to the last request was not waited for")
        except BrokenFrameError as error:
            self._control.refused += 1
            logger.warning("control socket: process %d: %s", self._pid, error)
            self.close()
            return
        if request is not None:
            self._begin(request)

    def _begin(self, request: Request) -> None:
        self._control.requests += 1
        self._busy = True
        self._timer.cancel()
        level = logging.DEBUG if isinstance(request, Watch) else logging.INFO
        logger.log(level, "control socket: process %d asks for %s", self._pid, request)
        if isinstance(request, Watch):
            self._watch()
        else:
            self._control.orders.carry_out(request, self._answer)

    def _watch(self) -> None:
        if not self._watching and self._control.watchers >= MAX_WATCHERS:
            self._answer(Refused(f"{MAX_WATCHERS} others watch already"))
            return
        fd = self._control.orders.watch()
        if self._watching:  # counted before
            self._control.orders.unwatch()
        else:
            self._watching = True
            self._control.watchers += 1
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        frame = ANSWERS.encode(Board())
        try:
            # So few bytes go at once, or the client has never read.
            sent = self._socket.sendmsg([frame], rights)
        except OSError:
            sent = 0
        if sent < len(frame):
            self.close()
        else:
            self._busy = False

    def _answer(self, answer: Answer) -> None:
        """May come late, and when the client is gone."""
        if not self._closed:
            self._outgoing = ANSWERS.encode(answer)
            self._set_clock()
            self._write()

    def _write(self) -> None:
        try:
            sent = self._socket.send(self._outgoing)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        self._outgoing = self._outgoing[sent:]
        if self._outgoing:
            self._loop.watch_writable(self._socket.fileno(), self._write)
            return
        self._loop.unwatch_writable(self._socket.fileno())
        self._busy = False
        if self._watching:
            self._timer.cancel()
