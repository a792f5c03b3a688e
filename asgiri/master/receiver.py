"""Receive datagrams, let steering decide, put them into workers' record channels. One per UDP
socket.

There is one reader per UDP socket, this one; workers have duplicates to send with. A turn takes a
bounded number of datagrams and then publishes to all workers that got any: one system call per
worker and turn, not per datagram.

On a concrete address `recvfrom` is enough. On a wildcard the local address of each datagram
matters, because the reply must leave from it, so `recvmsg` asks for IP_PKTINFO; trains of
datagrams that the kernel joined (UDP_GRO) then come almost for free.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from asgiri.ipc.records import LocalAddress, PeerTable, RecordWriter, record_header
from asgiri.ipc.scoreboard import AssignmentCell
from asgiri.master.binding import IP_PKTINFO, Listener
from asgiri.master.loop import EventLoop
from asgiri.master.processes import WorkerHandle
from asgiri.master.steering import DropReason, is_one_train

logger = logging.getLogger("asgiri.master")

DATAGRAMS_PER_TURN: Final = 256
"""Datagrams taken from one socket before all touched workers are woken and others get their turn:
0.7 ms of the master's time, a sixteenth of the kernel's buffer."""
RECEIVE_SIZE: Final = 65535
"""The largest datagram, or train of them. A smaller buffer is not faster."""
_DONT_WAIT: Final = int(socket.MSG_DONTWAIT)
"""The workers' copies of a socket share its O_NONBLOCK, and whoever has one may clear it."""
LOCAL_ADDRESSES: Final = 1024
"""Local addresses remembered per socket; more are only read again."""
KERNEL_DROPS_INTERVAL: Final = 5.0
"""Seconds between two looks at what the kernel dropped because a socket's buffer was full."""

_SOL_UDP: Final = 17
_UDP_GRO: Final = 104
_IPV6_PKTINFO: Final = getattr(socket, "IPV6_PKTINFO", 50 if sys.platform == "linux" else 46)
_IN_PKTINFO: Final = struct.Struct("=I4s4s")
_IN6_PKTINFO: Final = struct.Struct("=16sI")
_GRO_SIZE: Final = struct.Struct("=i")
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(_IN6_PKTINFO.size) + socket.CMSG_SPACE(_GRO_SIZE.size)


class Steerer(Protocol):
    """The part of `steering.Steering` that concerns datagrams."""

    flags: int

    def steer_untrusted(
        self, datagram: bytes, address: tuple[Any, ...], now: float
    ) -> WorkerHandle | bytes | DropReason: ...
    def count_drop(self, reason: DropReason) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiverStatistics:
    """Counters since the start. What steering drops, it counts itself."""

    datagrams: int
    trains: int
    """Groups of datagrams that the kernel had joined and that one record carries."""
    ring_full: int
    replies_sent: int
    """Version negotiation, Retry and stateless resets."""
    replies_failed: int
    receive_errors: int
    kernel_drops: int


class Receiver:
    """The reader of one UDP listener."""

    def __init__(
        self, loop: EventLoop, listener: Listener, steering: Steerer, peers: PeerTable
    ) -> None:
        self._loop = loop
        self._socket = listener.socket
        self._index = listener.index
        self._steering = steering
        self._peers = peers
        self._locals: dict[bytes, LocalAddress] = {}
        self._touched: set[WorkerHandle] = set()
        self._datagrams = self._trains = self._ring_full = 0
        self._replies_sent = self._replies_failed = self._receive_errors = 0
        self.kernel_drops = 0
        self.inode = os.fstat(listener.fileno()).st_ino
        self._receive = self._receive_with_local if listener.wildcard else self._receive_plain
        if listener.wildcard:
            with contextlib.suppress(OSError):  # before Linux 5.0, or not Linux at all
                self._socket.setsockopt(_SOL_UDP, _UDP_GRO, 1)

    def start(self) -> None:
        """Begin to receive."""
        self._loop.watch_readable(self._socket.fileno(), self.receive)

    def stop(self) -> None:
        """Receive no more; the socket stays open."""
        if self._socket.fileno() >= 0:
            self._loop.unwatch(self._socket.fileno())

    def receive(self) -> None:
        """Take a turn's worth of datagrams. Called when the socket is readable."""
        try:
            self._receive()
        except BlockingIOError:
            pass
        except OSError as error:
            # Nothing that a peer can cause on a socket without IP_RECVERR; the next turn tries
            # again.
            self._receive_errors += 1
            logger.debug("UDP listener %d: %s", self._index, error.strerror)
        finally:
            self._publish()

    def _receive_plain(self) -> None:
        # Names are looked up once per turn: 150 ns of each datagram's 3 us otherwise.
        recvfrom = self._socket.recvfrom
        steer = self._steering.steer_untrusted
        encode_peer = self._peers.encode
        index, now, steering, touched = self._index, self._loop.now, self._steering, self._touched
        for _ in range(DATAGRAMS_PER_TURN):
            datagram, address = recvfrom(RECEIVE_SIZE, _DONT_WAIT)
            self._datagrams += 1
            destination = steer(datagram, address, now)
            if isinstance(destination, WorkerHandle):
                peer = encode_peer(address, index, None)
                header = record_header(len(datagram), 0, steering.flags, len(peer))
                if destination.records.put(header, peer, datagram):  # type: ignore[union-attr]
                    touched.add(destination)
                else:
                    self._count_full(destination)
            elif isinstance(destination, bytes):
                self._reply(destination, address, None)

    def _receive_with_local(self) -> None:
        recvmsg = self._socket.recvmsg
        left = DATAGRAMS_PER_TURN
        while left > 0:
            datagram, ancillary, _, address = recvmsg(RECEIVE_SIZE, _ANCILLARY_SIZE, _DONT_WAIT)
            local, segment_size = self._parse_ancillary(ancillary)
            if not 0 < segment_size < len(datagram):
                self._datagrams += 1
                left -= 1
                self._take(datagram, 0, address, local)
                continue
            count = -(-len(datagram) // segment_size)
            self._datagrams += count
            left -= count
            if is_one_train(datagram, segment_size):
                self._trains += 1
                self._take(datagram, segment_size, address, local)
            else:
                for start in range(0, len(datagram), segment_size):
                    self._take(datagram[start : start + segment_size], 0, address, local)

    def _take(
        self,
        datagram: bytes,
        segment_size: int,
        address: tuple[Any, ...],
        local: LocalAddress | None,
    ) -> None:
        destination = self._steering.steer_untrusted(datagram, address, self._loop.now)
        if isinstance(destination, WorkerHandle):
            peer = self._peers.encode(address, self._index, local)
            header = record_header(len(datagram), segment_size, self._steering.flags, len(peer))
            if _records_of(destination).put(header, peer, datagram):
                self._touched.add(destination)
            else:
                self._count_full(destination)
        elif isinstance(destination, bytes):
            self._reply(destination, address, local)

    def _parse_ancillary(
        self, ancillary: Iterable[tuple[int, int, bytes]]
    ) -> tuple[LocalAddress | None, int]:
        local: LocalAddress | None = None
        segment_size = 0
        for level, kind, content in ancillary:
            if level == _SOL_UDP and kind == _UDP_GRO:
                segment_size = _GRO_SIZE.unpack_from(content)[0]
            else:
                local = self._locals.get(content) or self._parse_local(level, kind, content)
        return local, segment_size

    def _parse_local(self, level: int, kind: int, content: bytes) -> LocalAddress | None:
        local = parse_local_address(level, kind, content)
        if local is not None and len(self._locals) < LOCAL_ADDRESSES:
            self._locals[content] = local
        return local

    def _count_full(self, worker: WorkerHandle) -> None:
        self._ring_full += 1
        self._steering.count_drop(DropReason.RING_FULL)
        worker.assignments.add(AssignmentCell.RING_DROP_FULL)

    def _reply(self, datagram: bytes, address: tuple[Any, ...], local: LocalAddress | None) -> None:
        try:
            if local is None:
                self._socket.sendto(datagram, socket.MSG_DONTWAIT, address)
            else:
                self._socket.sendmsg([datagram], [source_of(local)], socket.MSG_DONTWAIT, address)
        except OSError:
            # A full buffer, a firewall, no route: the peer asks again.
            self._replies_failed += 1
        else:
            self._replies_sent += 1

    def _publish(self) -> None:
        for worker in self._touched:
            records = _records_of(worker)
            records.publish()
            if records.backlog:
                self._loop.watch_writable(records.fileno(), _Flush(self._loop, records))
        self._touched.clear()

    def statistics(self) -> ReceiverStatistics:
        """Return the counters."""
        return ReceiverStatistics(
            datagrams=self._datagrams,
            trains=self._trains,
            ring_full=self._ring_full,
            replies_sent=self._replies_sent,
            replies_failed=self._replies_failed,
            receive_errors=self._receive_errors,
            kernel_drops=self.kernel_drops,
        )


class _Flush:
    """Send on what a stream channel's kernel buffer did not take. A ring needs it when its
    worker has left thousands of small batches unread."""

    __slots__ = ("_loop", "_records")

    def __init__(self, loop: EventLoop, records: RecordWriter) -> None:
        self._loop = loop
        self._records = records

    def __call__(self) -> None:
        self._records.publish()
        if not self._records.backlog:
            self._loop.unwatch_writable(self._records.fileno())


def _records_of(worker: WorkerHandle) -> RecordWriter:
    assert worker.records is not None, "steering knows workers with a record channel only"
    return worker.records


def parse_local_address(level: int, kind: int, content: bytes) -> LocalAddress | None:
    """Read an ancillary message: to which address of ours a datagram was sent; None: no answer."""
    if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
        interface, _, ip = _IN_PKTINFO.unpack_from(content)
    elif level == socket.IPPROTO_IPV6 and kind == _IPV6_PKTINFO:
        ip, interface = _IN6_PKTINFO.unpack_from(content)
    else:
        return None
    return LocalAddress(ip, interface)


def source_of(local: LocalAddress) -> tuple[int, int, bytes]:
    """Return the ancillary message that makes a datagram leave from `local`, by any interface."""
    if len(local.ip) == 4:
        return socket.IPPROTO_IP, IP_PKTINFO, _IN_PKTINFO.pack(0, local.ip, bytes(4))
    return socket.IPPROTO_IPV6, _IPV6_PKTINFO, _IN6_PKTINFO.pack(local.ip, 0)


class KernelDrops:
    """Watch what the kernel drops because a socket's buffer is full."""

    def __init__(
        self,
        receivers: Iterable[Receiver],
        tables: Iterable[Path] = (Path("/proc/net/udp"), Path("/proc/net/udp6")),
    ) -> None:
        self._receivers = {receiver.inode: receiver for receiver in receivers}
        self._tables = tuple(tables)

    def poll(self) -> int:
        """Update the receivers' counters; return how many datagrams were dropped since."""
        new = 0
        for table in self._tables:
            try:
                lines = table.read_text().splitlines()[1:]
            except OSError:  # not Linux, or hidden from us
                continue
            for line in lines:
                fields = line.split()
                receiver = self._receivers.get(int(fields[9]))
                if receiver is not None:
                    drops = int(fields[-1])  # since the socket was opened
                    new += drops - receiver.kernel_drops
                    receiver.kernel_drops = drops
        if new:
            logger.warning(
                "%d datagrams were lost before they were read: the master is too busy, or the UDP"
                " buffers are too small (sysctl net.core.rmem_max)",
                new,
            )
        return new
