"""Tell a service manager how we are: the protocol of sd_notify(3), written out.

One datagram per message, to the Unix socket in NOTIFY_SOCKET. Nothing here blocks or fails: a
manager that does not listen misses the news.

    READY=1            the first generation serves, or a reload has ended, well or not
    RELOADING=1        a reload begins; MONOTONIC_USEC tells when (Type=notify-reload)
    STOPPING=1         the drain begins
    STATUS=...         one line for `systemctl status`
    WATCHDOG=1         the master's loop turns (WatchdogSec=)
    EXTEND_TIMEOUT_USEC  how long the start, the reload or the drain may take by our own limits
    FDSTORE=1          duplicates of our listening sockets, to be kept if we crash: see `kept`
"""

from __future__ import annotations

import array
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Final

logger = logging.getLogger("asgiri.master")

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "FDSTORE")
"""Meant for this process alone: what a worker sent would be taken for our word, or refused."""
MAX_FDS: Final = 253
"""Descriptors in one message: SCM_MAX_FD of Linux."""
EXTENSION_MARGIN: Final = 10.0
"""Seconds more than a step may take: our own limit is to end it, not the manager's."""


class ServiceManager:
    """The manager of this process; without one everything here does nothing."""

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        # "@" stands for the NUL of an abstract name; other families (vsock) are for machines.
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._socket: socket.socket | None = None
        self.failures = 0
        """Messages that could not be sent."""
        self.watchdog_interval = 0.0
        """Seconds between two `alive`; 0 when nobody asks for them."""
        self._room = 0
        """How many descriptors it keeps for us (FileDescriptorStoreMax=)."""
        if self._address[:1] in ("/", "\0"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)
            if environ.get("WATCHDOG_PID", str(pid)) == str(pid):
                # Half of the limit, as sd_watchdog_enabled(3) recommends.
                self.watchdog_interval = _seconds(environ.get("WATCHDOG_USEC", "")) / 2
            room = environ.get("FDSTORE", "")
            self._room = int(room) if room.isdecimal() else 0

    def starting(self, patience: float) -> None:
        """Workers boot, for so many seconds at most."""
        self._send(EXTEND_TIMEOUT_USEC=_usec(patience), STATUS="starting")

    def ready(self, status: str) -> None:
        """We serve: after the start, and after each reload."""
        self._send(READY="1", STATUS=status)

    def status(self, text: str) -> None:
        """Something is different; nobody waits for it."""
        self._send(STATUS=text)

    def reloading(self, patience: float) -> None:
        """A reload begins."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(
            RELOADING="1",
            MONOTONIC_USEC=str(now),
            STATUS="reloading",
            EXTEND_TIMEOUT_USEC=_usec(patience),
        )

    def stopping(self, patience: float) -> None:
        """The drain begins, for so many seconds at most."""
        self._send(
            STOPPING="1",
            STATUS="finishing what is in flight",
            EXTEND_TIMEOUT_USEC=_usec(patience),
        )

    def alive(self) -> None:
        """The loop turns."""
        self._send(WATCHDOG="1")

    def keep(self, name: str, fds: Sequence[int]) -> None:
        """Have duplicates of these kept, instead of all that it has under this name."""
        if not self._room:
            return
        if len(fds) > self._room:
            logger.warning(
                "%d of %d sockets outlive a crash: set FileDescriptorStoreMax=%d in the unit",
                *(self._room, len(fds), len(fds)),
            )
        kept = fds[: self._room]
        self._send(FDSTOREREMOVE="1", FDNAME=name)
        # FDPOLL=0: an error that is read from a socket is no reason to forget it.
        for start in range(0, len(kept), MAX_FDS):
            batch = array.array("i", kept[start : start + MAX_FDS])
            self._send(batch, FDSTORE="1", FDNAME=name, FDPOLL="0")

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, fds: array.array[int] | None = None, **fields: str) -> None:
        if self._socket is None:
            return
        lines = (f"{name}={value.replace(os.linesep, ' ')}" for name, value in fields.items())
        try:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
            self._socket.sendmsg(["\n".join(lines).encode()], rights, 0, self._address)
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                logger.warning("the service manager cannot be told: %s", error.strerror)


def _usec(seconds: float) -> str:
    return str(int((seconds + EXTENSION_MARGIN) * 1e6))


def _seconds(usec: str) -> float:
    return int(usec) / 1e6 if usec.isdecimal() else 0.0
