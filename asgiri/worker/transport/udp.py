"""Sends datagrams on a UDP socket that all workers and the master share.

The master reads from it and has made it non-blocking; the flag belongs to the open socket, not to
our descriptor, so nothing here changes it: MSG_DONTWAIT says the same for one call. The send buffer
is shared too: when another worker has filled it, a few datagrams wait, and those beyond are
dropped, which QUIC takes for loss and slows down.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from asgiri.ipc.records import Peer
from asgiri.ipc.scoreboard import Cell, Scoreboard

MAX_QUEUED: Final = 256
"""Datagrams that wait for the socket. 300 KB: what one connection sends in some milliseconds."""
MAX_SEGMENTS: Final = 64
MAX_TRAIN_SIZE: Final = 65_507 - 64
"""What the kernel takes in one call (UDP_MAX_SEGMENTS, the largest UDP payload and its headers)."""

# Python names them from 3.14 or not at all.
_IP_PKTINFO: Final = 26 if sys.platform == "darwin" else 8
_IPV6_PKTINFO: Final = 46 if sys.platform == "darwin" else 50
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_SEGMENT_SIZE: Final = struct.Struct("@H")
_PKTINFO4: Final = struct.Struct("@i4s4s")
_PKTINFO6: Final = struct.Struct("@16sI")

_NO_OFFLOAD: Final = frozenset((errno.EIO, errno.EINVAL, errno.ENOPROTOOPT, errno.EOPNOTSUPP))
"""What a kernel or a network card says that cannot cut trains. EINVAL also names other faults; then
the datagrams fail once more, one by one."""

Ancillary = list[tuple[int, int, bytes]]


class DatagramSender:
    """One per UDP listener. Does not own the socket."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, sock: socket.socket, scoreboard: Scoreboard
    ) -> None:
        self._loop = loop
        self._socket = sock
        self._scoreboard = scoreboard
        self._queue: deque[tuple[bytes, Ancillary, tuple[Any, ...]]] = deque()
        self._sends_trains = sys.platform == "linux"

    @property
    def queued(self) -> int:
        """Datagrams that wait for the socket."""
        return len(self._queue)

    def send(self, datagrams: Sequence[bytes], peer: Peer) -> None:
        """Send to one peer, in order. Never blocks and never raises; counts what is not sent."""
        address = peer.address
        ancillary = _reply_from(peer)
        if self._queue:
            self._enqueue(datagrams, ancillary, address)
            return
        index = 0
        count = len(datagrams)
        while index < count:
            end = index + 1
            if self._sends_trains and count - index > 1:
                end = _train_end(datagrams, index)
            if not self._send(datagrams[index:end], ancillary, address):
                self._enqueue(datagrams[index:], ancillary, address)
                return
            index = end

    def close(self) -> None:
        """Forget what waits."""
        if self._queue:
            self._loop.remove_writer(self._socket.fileno())
            self._scoreboard.add(Cell.DATAGRAMS_FAILED, len(self._queue))
            self._queue.clear()

    def _send(
        self, datagrams: Sequence[bytes], ancillary: Ancillary, address: tuple[Any, ...]
    ) -> bool:
        """Send one datagram or one train; False when the socket is full."""
        count = len(datagrams)
        try:
            if count > 1:
                segment = _SEGMENT_SIZE.pack(len(datagrams[0]))
                self._socket.sendmsg(
                    datagrams,
                    [*ancillary, (_SOL_UDP, _UDP_SEGMENT, segment)],
                    socket.MSG_DONTWAIT,
                    address,
                )
            elif ancillary:
                self._socket.sendmsg(datagrams, ancillary, socket.MSG_DONTWAIT, address)
            else:
                self._socket.sendto(datagrams[0], socket.MSG_DONTWAIT, address)
        except BlockingIOError:
            return False
        except OSError as error:
            if count > 1 and error.errno in _NO_OFFLOAD:
                self._sends_trains = False
                return self._send_singly(datagrams, ancillary, address)
            # Unreachable, forbidden by a firewall, too large for the path: as good as lost.
            self._scoreboard.add(Cell.DATAGRAMS_FAILED, count)
            return True
        self._scoreboard.add(Cell.DATAGRAMS_SENT, count)
        return True

    def _send_singly(
        self, datagrams: Sequence[bytes], ancillary: Ancillary, address: tuple[Any, ...]
    ) -> bool:
        for index, datagram in enumerate(datagrams):
            if not self._send((datagram,), ancillary, address):
                self._enqueue(datagrams[index:], ancillary, address)
                break
        return True

    def _enqueue(
        self, datagrams: Sequence[bytes], ancillary: Ancillary, address: tuple[Any, ...]
    ) -> None:
        self._scoreboard.add(Cell.DATAGRAMS_BLOCKED, len(datagrams))
        room = MAX_QUEUED - len(self._queue)
        if not self._queue:
            self._loop.add_writer(self._socket.fileno(), self._writable)
        self._queue.extend((datagram, ancillary, address) for datagram in datagrams[:room])
        if len(datagrams) > room:
            self._scoreboard.add(Cell.DATAGRAMS_FAILED, len(datagrams) - room)

    def _writable(self) -> None:
        while self._queue:
            datagram, ancillary, address = self._queue[0]
            if not self._send((datagram,), ancillary, address):
                return
            self._queue.popleft()
        self._loop.remove_writer(self._socket.fileno())


def _train_end(datagrams: Sequence[bytes], start: int) -> int:
    """Return where the train ends that begins here: equal sizes, of which the last may be less."""
    size = len(datagrams[start])
    limit = min(len(datagrams), start + MAX_SEGMENTS, start + MAX_TRAIN_SIZE // size)
    end = start + 1
    while end < limit and len(datagrams[end]) == size:
        end += 1
    if end < limit and len(datagrams[end]) < size:
        end += 1
    return end


def _reply_from(peer: Peer) -> Ancillary:
    """Ancillary data that makes a datagram leave from the address that the peer wrote to."""
    local = peer.local_ip
    if local is None:
        return []
    if len(local) == 4:
        # No interface: the routing table knows better when the way back is another.
        return [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(0, local, bytes(4)))]
    interface = peer.interface if _is_link_local(local) else 0
    return [(socket.IPPROTO_IPV6, _IPV6_PKTINFO, _PKTINFO6.pack(local, interface))]


def _is_link_local(address: bytes) -> bool:
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80
