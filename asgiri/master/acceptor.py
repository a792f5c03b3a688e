"""Accept connections, let the dispatcher decide, hand them to workers. Reads not one byte of them.

A connection belongs to exactly one process at each moment: to the master from accept until the
message with its descriptor is sent, then to whoever reads that message. The worker normally does;
the master does when the worker died, or stands still while others are free (`recover`,
`take_back`).

What nobody can take now waits in the central queue, in order, until a worker's counters move. When
the queue is full the listeners rest and the kernel's backlog holds the others. What waited for
longer than `queue_timeout` is given to whoever reads, to be refused with 503.

While requests are balanced, connections in cleartext wait for their first byte like idle ones: a
worker that has one and no request of it yet might begin with something long.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import resource
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from asgiri.errors import ChannelClosedError
from asgiri.ipc.channel import OVERDUE, largest_batch
from asgiri.ipc.scoreboard import AssignmentCell
from asgiri.master.binding import Listener
from asgiri.master.idle import DEFAULT_LIMIT, Connection, IdlePool, readable
from asgiri.master.loop import EventLoop, Timer
from asgiri.master.processes import WorkerHandle

logger = logging.getLogger("asgiri.master")

ACCEPTS_PER_TURN: Final = 64
"""Connections taken from one listener before the others get their turn: one full message."""
QUEUE_SIZE: Final = 256
"""Connections that wait in the master. Each holds a descriptor; the backlog holds more for
nothing."""
FILES_SHARE: Final = 4
"""Part of the process's limit of open files that connections may hold which wait for a worker, and
again that idle ones may. The other half is for listeners and workers, for what a dead worker had
not read, and for starting its successor: a master whose files were all connections that wait for a
worker could not start one."""
QUEUE_INTERVAL: Final = 0.005
"""Seconds between two looks at the workers' counters while connections wait."""
LOOK_INTERVAL: Final = 0.0045
"""Seconds after a hand-off until a look whether the worker has read it. A little more than the
dispatcher's LATE_AFTER. Costs 20 us, so 0.5 % of the master's time while connections come."""
EXHAUSTED_PAUSE: Final = 0.1
"""Seconds without accepting after the system ran out of descriptors or memory."""
EXHAUSTED_LOG_INTERVAL: Final = 60.0
"""Seconds between two lines about that."""
LAST_ACCEPTS: Final = 4096
"""Connections taken out of a backlog before its listener closes, which would reset them."""

COUNTERS: Final = (
    "accepted",
    "handed_off",
    "queued",
    "recovered",
    "taken_back",
    "aborted",
    "exhausted",
    "abandoned",
    "handed_back",
)
"""What goes on counting when the master is exchanged."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Chooser(Protocol):
    """The part of `dispatcher.Dispatcher` that concerns connections."""

    def choose_tcp(self, now: float, client_ip: str = "") -> int | None: ...
    def assigned_tcp(self, worker_id: int, count: int = 1) -> int: ...
    def withdrawn_tcp(self, worker_id: int, count: int = 1) -> int: ...
    def choose_anyway(self, now: float) -> int | None: ...
    def take_back(self, now: float) -> list[int]: ...
    @property
    def has_unread(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptorStatistics:
    """Counters since the start, and the queue's length."""

    accepted: int
    handed_off: int
    queued: int
    """Connections that had to wait for a worker."""
    waiting: int
    recovered: int
    """Connections read back from workers that had died."""
    taken_back: int
    """Connections read back from workers that stood still."""
    aborted: int
    """Connections that were gone before they were accepted."""
    exhausted: int
    """Times that the system was out of descriptors or memory."""
    abandoned: int
    """Connections that were closed unserved when the server stopped."""
    handed_back: int
    """Times that a worker gave an idle connection back."""
    idle: int
    """Connections that wait in the master for their next request."""
    expired: int
    """Connections that were closed because it did not come in time."""
    overdue: int
    """Connections that waited for too long and were given away to be refused."""


class Acceptor:
    """Owns accepted connections until a worker does. Listeners belong to whoever passes them."""

    def __init__(
        self,
        loop: EventLoop,
        chooser: Chooser,
        workers: Mapping[int, WorkerHandle],
        *,
        keep_alive: float,
        queue_timeout: float = math.inf,
        tls: bool = False,
        by_client_ip: bool = False,
    ) -> None:
        """`keep_alive`: seconds that a connection handed back may wait for its next request.
        `queue_timeout`: seconds that one may wait for a worker. `tls`: listeners speak it unless
        they say otherwise. `by_client_ip`: the chooser asks for the client's address.
        """
        self._loop = loop
        self._chooser = chooser
        self._workers = workers
        self._by_client_ip = by_client_ip
        self._queue_timeout = queue_timeout
        self._tls = tls
        self.balances_requests = False
        """Connections in cleartext are given away when there is something to read."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._batch_size = largest_batch(files)
        self._queue_size = max(1, min(QUEUE_SIZE, files // FILES_SHARE))
        limit = min(DEFAULT_LIMIT, files // FILES_SHARE)
        self._idle = IdlePool(loop, self._awake, keep_alive=keep_alive, limit=limit)
        self._listeners: Sequence[Listener] = ()
        self.stopping = False
        """What has been accepted is still served, by workers that drain."""
        self._resting = True
        self._queue: deque[tuple[Connection, float]] = deque()
        """With the times at which they came."""
        self._look_timer: Timer | None = None
        self._woken: list[Connection] = []
        self._queue_timer: Timer | None = None
        self._pause: Timer | None = None
        self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._quiet_until = 0.0
        self._accepted = self._handed_off = self._queued = self._recovered = 0
        self._taken_back = self._aborted = self._exhausted = self._abandoned = 0
        self._handed_back = self._overdue = 0

    def configure(self, *, keep_alive: float, queue_timeout: float, by_client_ip: bool) -> None:
        """Go on with other values of these. Who is idle already waits for as long as before."""
        self._idle.keep_alive = keep_alive
        self._queue_timeout = queue_timeout
        self._by_client_ip = by_client_ip

    # Listening

    def start(self, listeners: Sequence[Listener]) -> None:
        """Begin to accept."""
        self._listeners = listeners
        self._wake()

    def stop(self) -> None:
        """Accept what is in the backlogs, for a listener resets it as it closes; then no more."""
        for listener in self._listeners:
            for _ in range(0, LAST_ACCEPTS, ACCEPTS_PER_TURN):
                # However many wait: what stays behind is reset.
                if self._accept_batch(listener, ACCEPTS_PER_TURN) < ACCEPTS_PER_TURN:
                    break
        self._rest()
        self.stopping = True
        self._listeners = ()
        if self._pause is not None:
            self._pause.cancel()
        self._idle.close()
        self._dispatch_woken()
        self._say_what_waits()

    def close(self) -> None:
        """Close what was never served. Workers have what they have."""
        self._rest()
        self._idle.close()
        if self._pause is not None:
            self._pause.cancel()
        for timer in (self._queue_timer, self._look_timer):
            if timer is not None:
                timer.cancel()
        self._abandoned += len(self._queue) + len(self._woken)
        for connection in self._woken:
            os.close(connection.fd)
        self._woken.clear()
        while self._queue:
            os.close(self._queue.popleft()[0].fd)
        if self._spare_fd >= 0:
            os.close(self._spare_fd)
            self._spare_fd = -1

    def _wake(self) -> None:
        paused = self._pause is not None and self._pause.pending
        if self._resting and self._listeners and not paused:
            self._resting = False
            for listener in self._listeners:
                self._loop.watch_readable(listener.fileno(), _Accept(self, listener))

    def _rest(self) -> None:
        if not self._resting:
            self._resting = True
            for listener in self._listeners:
                self._loop.unwatch(listener.fileno())

    # Accepting

    def accept_some(self, listener: Listener) -> None:
        """Take what waits at one listener, up to a turn's worth. Called when it is readable."""
        room = self._queue_size - len(self._queue)
        self._accept_batch(listener, min(ACCEPTS_PER_TURN, room))
        if len(self._queue) >= self._queue_size:
            self._rest()

    def _accept_batch(self, listener: Listener, room: int) -> int:
        # socket.accept() builds a socket object that nobody needs: 1.8 of 4.9 us.
        accept = listener.socket._accept  # type: ignore[attr-defined]  # noqa: SLF001
        has_ip = listener.kind == "tcp"
        connections: list[Connection] = []
        try:
            while len(connections) < room:
                fd, address = accept()
                connections.append(Connection(listener.index, fd, address[0] if has_ip else ""))
        except BlockingIOError:
            pass
        except OSError as error:
            self._accept_failed(error, listener, connections)
        self._accepted += len(connections)
        if self.balances_requests and not (self._tls and not listener.insecure):
            self.dispatch([each for each in connections if not self._idle.add(each)])
        else:
            self.dispatch(connections)
        return len(connections)

    def _accept_failed(
        self, error: OSError, listener: Listener, connections: list[Connection]
    ) -> None:
        if error.errno not in _EXHAUSTED:
            # accept(2): errors that the network left on the new connection. Only that one is lost.
            self._aborted += 1
            return
        self._exhausted += 1
        if connections:
            return  # handing these off frees their descriptors
        if self._spare_fd >= 0:
            self._accept_with_spare(listener, connections)
        self._rest()
        self._pause = self._loop.call_later(EXHAUSTED_PAUSE, self._resume)
        if self._loop.now >= self._quiet_until:
            self._quiet_until = self._loop.now + EXHAUSTED_LOG_INTERVAL
            logger.error(
                "cannot accept connections: %s; raise the limit of open files (ulimit -n, or"
                " LimitNOFILE= of systemd); clients wait meanwhile",
                error.strerror,
            )

    def _accept_with_spare(self, listener: Listener, connections: list[Connection]) -> None:
        """Take one connection in the place of the spare descriptor, so that one at a time moves.

        Accepting only to close it, as others do, turns clients away that could as well wait.
        """
        os.close(self._spare_fd)
        self._spare_fd = -1
        with contextlib.suppress(OSError):
            fd, address = listener.socket._accept()  # type: ignore[attr-defined]  # noqa: SLF001
            ip = address[0] if listener.kind == "tcp" else ""
            connections.append(Connection(listener.index, fd, ip))

    def _resume(self) -> None:
        if self._spare_fd < 0:
            with contextlib.suppress(OSError):
                self._spare_fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        if len(self._queue) < self._queue_size:
            self._wake()

    # Handing off

    def dispatch(self, connections: Sequence[Connection]) -> None:
        """Give each connection to a worker; behind those that wait already."""
        held = connections if self._queue else self._hand_out(connections)
        self._queued += len(held)
        now = self._loop.now
        self._hold([(connection, now) for connection in held])

    def _hand_out(self, connections: Sequence[Connection]) -> Sequence[Connection]:
        """Give out as many as there are takers for; return the others in order."""
        now = self._loop.now
        choose, assigned = self._chooser.choose_tcp, self._chooser.assigned_tcp
        batches: dict[int, list[Connection]] = {}
        taken = 0
        for connection in connections:
            worker_id = choose(now, connection.client_ip)
            if worker_id is None:
                break
            taken += 1
            # Counted before it is sent, so that the next choice of this batch knows.
            assigned(worker_id)
            batches.setdefault(worker_id, []).append(connection)
        undelivered: list[Connection] = []
        for worker_id, batch in batches.items():
            # One by one, a worker can leave the second unread while it serves the first.
            size = 1 if self.balances_requests else self._batch_size
            for start in range(0, len(batch), size):
                part = batch[start : start + size]
                if not self._hand_off(worker_id, part):
                    undelivered += part
        if not undelivered:
            return connections[taken:]
        return [*undelivered, *connections[taken:]]

    def _hand_off(self, worker_id: int, batch: Sequence[Connection], mark: int = 0) -> bool:
        worker = self._workers[worker_id]
        fds = [connection.fd for connection in batch]
        try:
            sent = worker.connections.send(bytes([one.listener | mark for one in batch]), fds)
        except ChannelClosedError:
            sent = 0  # it died; its exit follows
        if not sent:
            self._chooser.withdrawn_tcp(worker_id, len(fds))
            return False
        worker.assignments.add(AssignmentCell.TCP_ASSIGNED, sent)
        self._handed_off += sent
        for fd in fds:
            os.close(fd)
        if self._look_timer is None or not self._look_timer.pending:
            self._look_timer = self._loop.call_later(LOOK_INTERVAL, self.take_back_late)
        return True

    def _hold(self, waiting: Sequence[tuple[Connection, float]]) -> None:
        self._queue.extend(waiting)
        if self.stopping:
            self._say_what_waits()
        if self._queue and (self._queue_timer is None or not self._queue_timer.pending):
            self._queue_timer = self._loop.call_later(QUEUE_INTERVAL, self.serve_queue)

    def _say_what_waits(self) -> None:
        # After those that were handed off: a worker that reads 0 finds all of them in its channel.
        for worker in self._workers.values():
            worker.assignments.set(AssignmentCell.WAITING, len(self._queue))

    def serve_queue(self) -> None:
        """Try again with what waits. Called when counters may have moved."""
        came = {connection.fd: at for connection, at in self._queue}
        waiting = [connection for connection, _ in self._queue]
        self._queue.clear()
        # What could not be delivered comes first in what is left, so times are looked up.
        left = self._hand_out(waiting)
        self._hold([(connection, came[connection.fd]) for connection in left])
        self._refuse_overdue()
        if len(self._queue) < self._queue_size:
            self._wake()

    def _refuse_overdue(self) -> None:
        """Let a worker answer those that have waited for too long."""
        now = self._loop.now
        while self._queue and now - self._queue[0][1] > self._queue_timeout:
            worker_id = self._chooser.choose_anyway(now)
            if worker_id is None:
                return
            connection, came = self._queue.popleft()
            self._chooser.assigned_tcp(worker_id)
            if not self._hand_off(worker_id, [connection], OVERDUE):
                self._queue.appendleft((connection, came))
                return
            self._overdue += 1

    # A takeover

    def to_state(self) -> dict[str, Any]:
        """Name the connections that are the master's; the counters, too."""
        return {
            "waiting": [list(connection) for connection in self._unserved()],
            "idle": [list(connection) for connection in self._idle.connections()],
            "counters": {name: getattr(self, f"_{name}") for name in COUNTERS},
        }

    def inherited_fds(self) -> list[int]:
        """Return the descriptors that `to_state` names."""
        return [connection.fd for connection in (*self._unserved(), *self._idle.connections())]

    def _unserved(self) -> list[Connection]:
        """Return those that have something to read. Some may have woken in this very turn."""
        return [*(connection for connection, _ in self._queue), *self._woken]

    def resume(self, state: Mapping[str, Any]) -> None:
        """Own the connections that `to_state` named; before `start`."""
        for name in COUNTERS:
            setattr(self, f"_{name}", int(state["counters"].get(name, 0)))
        for kind in ("idle", "waiting"):
            for index, fd, ip in state[kind]:
                os.set_inheritable(fd, False)
                connection = Connection(index, fd, ip)
                if kind == "waiting" or not self._idle.add(connection):
                    self.dispatch([connection])  # nobody is ready yet: it waits

    # Idle connections

    @property
    def takes_back(self) -> bool:
        """Whether there will be workers for what is handed back: not while the server stops."""
        return bool(self._listeners)

    def handed_back(self, connections: Sequence[tuple[int, int, int]]) -> None:
        """Own connections that a worker gave back: (listener, descriptor, age), see `channel`."""
        self._handed_back += len(connections)
        for index, fd, age in connections:
            connection = Connection(index, fd, client_ip(fd) if self._by_client_ip else "")
            if self.takes_back:
                if not self._idle.add(connection, age / 255):
                    self.dispatch([connection])
            elif readable([fd]):
                self.dispatch([connection])
            else:
                os.close(fd)
        if self._queue:
            self.serve_queue()  # this worker is free

    def _awake(self, connection: Connection) -> None:
        # All that wake up in one turn of the loop go together: one message for each worker.
        if not self._woken:
            self._loop.call_at(self._loop.now, self._dispatch_woken)
        self._woken.append(connection)

    def _dispatch_woken(self) -> None:
        woken, self._woken = self._woken, []
        self.dispatch(woken)

    # Reading back

    def take_back_late(self) -> None:
        """Take back from every worker that stands still or is late what others could serve now.
        Called a moment after each hand-off, and with each look at the beats.
        """
        for worker_id in self._chooser.take_back(self._loop.now):
            self.take_back(self._workers[worker_id])
        if self._chooser.has_unread and (self._look_timer is None or not self._look_timer.pending):
            self._look_timer = self._loop.call_later(LOOK_INTERVAL, self.take_back_late)

    def recover(self, worker: WorkerHandle) -> int:
        """Serve by others what a dead worker had not read; return how many there were.

        The chooser has forgotten the worker by now, with what was counted for it.
        """
        count = 0
        # As many at a time as there is room for: giving them away makes room for the others.
        while connections := self._read_back(worker):
            count += len(connections)
            self.dispatch(connections)
        if worker.has_undelivered:
            logger.error("%s: connections it had not read are lost: too many open files", worker)
        self._recovered += count
        return count

    def take_back(self, worker: WorkerHandle) -> int:
        """Serve by others what a worker that stands still has not read (D23): as much of it as the
        master has room for. The others wait there, until it goes on or we look again.
        """
        connections = self._read_back(worker)
        if connections:
            self._taken_back += len(connections)
            self._chooser.withdrawn_tcp(worker.worker_id, len(connections))
            worker.assignments.add(AssignmentCell.TCP_ASSIGNED, -len(connections))
            worker.assignments.add(AssignmentCell.TAKEN_BACK, len(connections))
            self.dispatch(connections)
        return len(connections)

    def _read_back(self, worker: WorkerHandle) -> list[Connection]:
        return [Connection(index & ~OVERDUE, fd, client_ip(fd)) for index, fd in worker.recover()]

    def statistics(self) -> AcceptorStatistics:
        """Return the counters."""
        return AcceptorStatistics(
            accepted=self._accepted,
            handed_off=self._handed_off,
            queued=self._queued,
            waiting=len(self._queue),
            recovered=self._recovered,
            taken_back=self._taken_back,
            aborted=self._aborted,
            exhausted=self._exhausted,
            abandoned=self._abandoned,
            handed_back=self._handed_back,
            idle=len(self._idle),
            expired=self._idle.expired,
            overdue=self._overdue,
        )


class _Accept:
    """The callback of one listener."""

    __slots__ = ("_acceptor", "_listener")

    def __init__(self, acceptor: Acceptor, listener: Listener) -> None:
        self._acceptor = acceptor
        self._listener = listener

    def __call__(self) -> None:
        self._acceptor.accept_some(self._listener)


def client_ip(fd: int) -> str:
    """Ask the system who is at the other end; "" for a Unix socket or one that is gone."""
    connection = socket.socket(fileno=fd)
    try:
        address = connection.getpeername()
        return address[0] if connection.family != socket.AF_UNIX else ""
    except OSError:
        return ""
    finally:
        connection.detach()
