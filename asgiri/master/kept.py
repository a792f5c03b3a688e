"""Listening sockets that the service manager kept while no master lived: systemd's FDSTORE.

The master has the manager keep a duplicate of each socket that it opened itself. When it crashes
they stay open: connections wait in their backlogs, datagrams in their buffers. The next master gets
them like those of a .socket unit (LISTEN_FDS), but under this name, and takes each where it would
have bound its address. What the configuration does not want any more is closed, here and there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from typing import Final

from asgiri.errors import StartError

NAME: Final = "asgiri-listener"
"""FDNAME= of them all: their addresses tell them apart."""

Address = tuple[int, int, str, int]
"""Family, type, host (or path), port."""


class KeptSockets:
    """Those that nobody has taken yet. Owns them."""

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._sockets: dict[Address, socket.socket] = {}
        for fd in fds:
            try:
                kept = socket.socket(fileno=fd)
                os.set_inheritable(fd, False)
                kept.setblocking(False)
                address = _address(kept)
            except OSError as error:
                raise StartError.from_os_error(
                    error, f"fd://{fd}, called {NAME}", "give no other socket this name"
                ) from error
            if address in self._sockets:  # the same one twice
                self._sockets[address].close()
            self._sockets[address] = kept

    def __len__(self) -> int:
        return len(self._sockets)

    def take(self, family: int, kind: int, host: str, port: int) -> socket.socket | None:
        """Give away a socket that is bound to this; `host` is the path of a Unix socket.

        Port 0 is content with any port, as in bind(2).
        """
        for address in self._sockets:
            if address[:3] == (family, kind, host) and port in (0, address[3]):
                return self._sockets.pop(address)
        return None

    def close(self) -> None:
        """Close what nobody took; may be repeated."""
        for kept in self._sockets.values():
            kept.close()
        self._sockets.clear()


def _address(kept: socket.socket) -> Address:
    name = kept.getsockname()
    if kept.family == socket.AF_UNIX:
        return int(kept.family), int(kept.type), os.fsdecode(name), 0
    return int(kept.family), int(kept.type), name[0], name[1]
