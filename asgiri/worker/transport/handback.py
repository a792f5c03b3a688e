"""Gives idle plaintext HTTP/1.1 connections back to the master, which gives each to whoever is free
when its next request comes (D22).

The master says by one cell whether it wants them: while handlers hog the event loop of some worker,
and from a worker that drains. What is given back is not read any more: bytes that come meanwhile
wait in the kernel, so that nothing is lost or read twice.
"""

from __future__ import annotations

from asgiri.errors import ChannelClosedError
from asgiri.ipc.channel import ConnectionChannel
from asgiri.ipc.scoreboard import AssignmentCell, Assignments, Cell, Scoreboard

_WANTED = int(AssignmentCell.HAND_BACK)


class HandBack:
    """One per worker."""

    def __init__(
        self, channel: ConnectionChannel, assignments: Assignments, scoreboard: Scoreboard
    ) -> None:
        self._channel = channel
        self._get = assignments.get
        self._scoreboard = scoreboard

    @property
    def wanted(self) -> bool:
        """The master wants idle connections back."""
        return self._get(_WANTED) != 0

    def give(self, listener: int, fd: int, idle_share: float) -> bool:
        """Send a copy of a connection; False when the channel is full or the master gone.
        `idle_share`: how much of its keep-alive time is over, 0 to 1.

        After True the caller closes its own copy without shutting the connection down, and does not
        count it as closed.
        """
        try:
            age = bytes((int(255 * min(1.0, max(0.0, idle_share))),))
            given = self._channel.send(bytes((listener,)), (fd,), age)
        except ChannelClosedError:
            return False
        if given:
            self._scoreboard.add(Cell.TCP_HANDED_BACK)
            self._scoreboard.add(Cell.TCP_OPEN, -1)
        return given == 1
