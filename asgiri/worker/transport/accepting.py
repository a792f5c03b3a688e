"""Listeners that a worker accepts from by itself: those of the admin worker.

It is to answer also while the master stands still.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Final

from asgiri.ipc.scoreboard import Cell, Scoreboard
from asgiri.worker.transport.tcp import TcpEndpoint

ACCEPTS_PER_TURN: Final = 16
MAX_CONNECTIONS: Final = 256
"""Open connections beyond which no more are accepted: operators and their machines are few, and
others shall not make this worker hold their connections."""
PAUSE: Final = 0.1
"""Seconds until another look when that many are open, or no descriptor is left."""


class Accepting:
    """Owns the sockets from `start` to `stop`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        endpoint: TcpEndpoint,
        scoreboard: Scoreboard,
        sockets: Mapping[int, socket.socket],
    ) -> None:
        """`sockets` by the index of their listener. Never blocking, in all processes that have
        them.
        """
        self._loop = loop
        self._endpoint = endpoint
        self._scoreboard = scoreboard
        self._sockets = dict(sockets)

    def start(self) -> None:
        """Begin to accept."""
        for index, listener in self._sockets.items():
            self._loop.add_reader(listener.fileno(), self._accept, index, listener)

    def stop(self) -> None:
        """Accept no more; what nobody has accepted waits for a successor."""
        for listener in self._sockets.values():
            self._loop.remove_reader(listener.fileno())
            listener.close()
        self._sockets.clear()

    def _accept(self, index: int, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            if self._scoreboard.get(Cell.TCP_OPEN) >= MAX_CONNECTIONS:
                self._rest()
                return
            try:
                connection, _address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:  # out of descriptors or memory
                self._rest()
                return
            self._endpoint.adopt(index, connection.detach())

    def _rest(self) -> None:
        for listener in self._sockets.values():
            self._loop.remove_reader(listener.fileno())
        self._loop.call_later(PAUSE, self.start)
