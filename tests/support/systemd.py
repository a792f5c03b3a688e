"""The service manager's part: NOTIFY_SOCKET, the descriptors it keeps, LISTEN_FDS."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.server import PATIENCE

ACTIVATE = """
import fcntl, os, sys
fds, names, command = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]
copies = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in fds]
for number, copy in enumerate(copies, 3):
    os.dup2(copy, number)
os.environ |= {
    "LISTEN_PID": str(os.getpid()),
    "LISTEN_FDS": str(len(fds)),
    "LISTEN_FDNAMES": names,
}
os.closerange(3 + len(fds), 200)
os.execv(command[0], command)
"""


class Manager:
    """The end of NOTIFY_SOCKET that systemd holds."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(PATIENCE)
        self.environment = {"NOTIFY_SOCKET": str(path), "FDSTORE": "32"}
        self.kept: list[tuple[str, int]] = []
        """Names and descriptors of its store."""

    async def wait_for(self, name: str) -> dict[str, str]:
        """Return the next message that tells this; what comes before it is obeyed and dropped."""
        while True:
            message = await asyncio.to_thread(self._receive)
            if name in message:
                return message

    def _receive(self) -> dict[str, str]:
        received, fds, _, _ = socket.recv_fds(self._socket, 4096, 253)
        message = dict(line.split("=", 1) for line in received.decode().split("\n"))
        if "FDSTOREREMOVE" in message:
            for name, fd in self.kept:
                assert name == message["FDNAME"]
                os.close(fd)
            self.kept.clear()
        if fds:
            assert message["FDSTORE"] == "1"
            self.kept += [(message["FDNAME"], fd) for fd in fds]
        return message

    def activation(self) -> tuple[str, ...]:
        """Return a command that runs another one with what is kept; see `kept_fds`."""
        return activation(self.kept)

    @property
    def kept_fds(self) -> tuple[int, ...]:
        return tuple(fd for _, fd in self.kept)

    def close(self) -> None:
        self._socket.close()
        for _, fd in self.kept:
            os.close(fd)


def activation(passed: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """Return a command that runs another one with these names and descriptors as LISTEN_FDS."""
    names = ":".join(name for name, _ in passed)
    return (sys.executable, "-c", ACTIVATE, ",".join(str(fd) for _, fd in passed), names)
