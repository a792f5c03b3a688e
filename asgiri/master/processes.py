"""Start worker processes, talk to them, take them apart. The master's side of one worker each.

Workers are fresh interpreters (`python -m asgiri.worker FD`): no inherited locks, threads, event
loops or OpenSSL state, and new code is really new after a reload. Only the control channel is
inherited; everything else arrives over it with the hello, so that nothing secret is in argv or
the environment. With --preload they are forked by a mold instead (`foundry`), and get no more.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import site
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol, Self

import asgiri
from asgiri.config import RingConfig
from asgiri.errors import ChannelClosedError, FdsLostError, RingUnavailableError, StartError
from asgiri.ipc.channel import (
    ConnectionChannel,
    ControlChannel,
    close_untrusted,
    disarm_untrusted,
)
from asgiri.ipc.counter import PipeCounter
from asgiri.ipc.messages import DumpStacks, Hello, ListenerInfo, Message, decode_untrusted, encode
from asgiri.ipc.records import RecordWriter
from asgiri.ipc.ring import RingWriter
from asgiri.ipc.scoreboard import Assignments, Cell, Scoreboard
from asgiri.ipc.segment import Segment, create_ring, stacks_signal
from asgiri.ipc.stream import StreamWriter, record_stream_pair
from asgiri.master.notify import VARIABLES as SERVICE_VARIABLES

logger = logging.getLogger("asgiri.master")

MAX_UNSENT: Final = 64
"""Control messages kept for a worker that does not read. One that lets more wait is broken."""
MESSAGES_PER_TURN: Final = 64
"""Control messages read from one worker in one turn of the loop."""

WAIT_INTERVAL: Final = 0.01
"""Seconds between two looks whether an adopted child has ended."""

WORKER_MODULE: Final = "asgiri.worker"
MOLD_MODULE: Final = "asgiri.worker.mold"
# What a terminal or an operator sends to the whole process group must not kill a worker that has no
# handlers yet. It inherits this mask and lifts it once it has them.
_HELD_BACK: Final = frozenset(
    {
        *([number] if (number := stacks_signal()) is not None else []),
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTTIN,
        signal.SIGTTOU,
    }
)


def exit_text(status: int) -> str:
    """Say how a process ended; `status` as in subprocess: negative for a signal."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:  # a real-time signal
        name = f"signal {-status}"
    return f"was killed by {name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """Which incarnation of a worker this is."""

    worker_id: int
    slot: int
    generation: int
    role: Literal["worker", "admin"] = "worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOrder:
    """What workers of one generation are started with."""

    config: Mapping[str, Any]
    """`Config.to_json()`."""
    ring: RingConfig
    secrets: Mapping[str, Any] | None
    """None without HTTP/3."""
    listeners: Sequence[ListenerInfo]
    udp_fds: Sequence[int]
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables beside our own; see `Settings`."""
    folder: str | None = None
    """Where they begin; None for our own."""
    module: str = WORKER_MODULE
    mold: str = ""
    """Module of the mold that forks them, if one does."""
    role: Literal["worker", "admin"] = "worker"
    admin_fds: Sequence[int] = ()
    """For the admin worker: the board, and its listeners."""


class Process(Protocol):
    """The part of subprocess.Popen that a handle needs."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int, /) -> None: ...


class AdoptedProcess:
    """A child that an earlier program of this process has started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        """Collect the exit status as subprocess does; None while it runs."""
        if self._status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self._status = 0  # as subprocess: somebody else has collected it
            else:
                if pid:
                    self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. subprocess.TimeoutExpired says that it did not come."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout or 0.0)
            time.sleep(WAIT_INTERVAL)
        return status

    def send_signal(self, sig: int, /) -> None:
        """Send a signal unless it is known to have ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)


class _Records:
    """The record channel of a worker that is being started: our writer, its ends."""

    def __init__(self, ring: RingConfig, *, wanted: bool) -> None:
        self.segment: Segment
        self.writer: RecordWriter | None = None
        self.kind: Literal["ring", "stream"] | None = None
        self.size = ring.size
        self.fds: list[int] = []
        """Those that the worker gets."""
        self.counters: tuple[PipeCounter, ...] = ()
        """Of a ring: published and consumed."""
        self.stream_end: socket.socket | None = None
        if wanted and ring.channel != "stream":
            try:
                self.segment, published, consumed = create_ring(ring.size)
            except RingUnavailableError as error:
                if ring.channel == "ring":
                    raise StartError(f"{error}; use --ring-channel stream") from error
            else:
                self.kind = "ring"
                self.writer = RingWriter(self.segment.ring, published, consumed)
                self.counters = (published, consumed)
                self.fds = [published.reading, consumed.writing]
                return
        self.segment = Segment.create(0)
        if wanted:
            ours, self.stream_end = record_stream_pair()
            self.kind = "stream"
            self.writer = StreamWriter(ours, ring.size)
            self.fds = [self.stream_end.fileno()]

    @classmethod
    def adopt(cls, state: Mapping[str, Any]) -> Self:
        """Take over the master's ends from an earlier program of this process."""
        records = cls.__new__(cls)
        records.segment = Segment.attach(state["segment"])
        records.writer, records.kind = None, state["kind"]
        records.size = int(state["size"])
        records.fds, records.stream_end, records.counters = list(state["fds"]), None, ()
        match records.kind:
            case "ring":
                published = PipeCounter(writing=records.fds[0])
                consumed = PipeCounter(reading=records.fds[1])
                records.counters = (published, consumed)
                records.writer = RingWriter(records.segment.ring, published, consumed)
            case "stream":
                ours = socket.socket(fileno=records.fds[0])
                records.writer = StreamWriter(ours, records.size)
        if records.writer is not None:
            records.writer.restore(state["writer"])
        return records

    def our_fds(self) -> tuple[int, ...]:
        """Return the descriptors of the record channel that the master keeps."""
        if isinstance(self.writer, StreamWriter):
            return (self.writer.fileno(),)
        if self.counters:
            published, consumed = self.counters
            return (published.writing, consumed.reading)
        return ()

    def close_worker_ends(self) -> None:
        """Close what only the worker needs."""
        if self.counters:
            published, consumed = self.counters
            published.close_reading()
            consumed.close_writing()
        if self.stream_end is not None:
            self.stream_end.close()

    def close(self) -> None:
        self.close_worker_ends()
        if self.writer is not None:
            self.writer.close()
        self.segment.close()


class WorkerHandle:
    """The master's object for one worker process.

    Owns the process and everything shared with it.
    """

    def __init__(
        self,
        identity: WorkerIdentity,
        process: Process,
        control: ControlChannel,
        connections: tuple[ConnectionChannel, ConnectionChannel],
        records: _Records,
    ) -> None:
        self.identity = identity
        self.worker_id = identity.worker_id
        self.slot = identity.slot
        self.generation = identity.generation
        self.process = process
        self.pid = process.pid
        self.pidfd = open_pidfd(process.pid)
        """-1 where the system has none: then SIGCHLD says when to look."""
        self.control = control
        self.connections, self._undelivered = connections
        self.segment = records.segment
        self.scoreboard = Scoreboard(self.segment.scoreboard)
        self.assignments = Assignments(self.segment.assignments)
        self.records = records.writer
        self.record_channel = records.kind
        self.rubbish = 0
        """Messages from the worker that made no sense."""
        self.spawned_ns = time.monotonic_ns()
        self._record_fds = records.our_fds()
        self._record_size = records.size
        self._unsent: deque[Message] = deque()

    @classmethod
    def adopt(cls, state: Mapping[str, Any]) -> Self:
        """Take over a living worker from an earlier program of this process."""
        ours, theirs = (ConnectionChannel.adopt(fd) for fd in state["connections"])
        worker = cls(
            WorkerIdentity(
                worker_id=state["worker_id"],
                slot=state["slot"],
                generation=state["generation"],
                role=state["role"],
            ),
            AdoptedProcess(state["pid"]),
            ControlChannel.adopt(state["control"]),
            (ours, theirs),
            _Records.adopt(state["records"]),
        )
        worker.spawned_ns = int(state.get("spawned_ns", worker.spawned_ns))
        unsent = (decode_untrusted(bytes.fromhex(frame)) for frame in state["unsent"])
        worker._unsent.extend(message for message in unsent if message is not None)
        for fd in worker.inherited_fds():
            os.set_inheritable(fd, False)
        return worker

    def to_state(self) -> dict[str, Any]:
        """Describe it to the next program of this process, which `adopt`s it."""
        records = {
            "segment": self.segment.fd,
            "kind": self.record_channel,
            "fds": list(self._record_fds),
            "size": self._record_size,
            "writer": None if self.records is None else self.records.to_state(),
        }
        return {
            "worker_id": self.worker_id,
            "slot": self.slot,
            "generation": self.generation,
            "role": self.identity.role,
            "pid": self.pid,
            "spawned_ns": self.spawned_ns,
            "control": self.control.fileno(),
            "connections": [self.connections.fileno(), self._undelivered.fileno()],
            "records": records,
            "unsent": [encode(message).hex() for message in self._unsent],
        }

    def inherited_fds(self) -> list[int]:
        """Return the descriptors that `to_state` names."""
        return [
            self.control.fileno(),
            self.connections.fileno(),
            self._undelivered.fileno(),
            self.segment.fd,
            *self._record_fds,
        ]

    def __str__(self) -> str:
        name = "admin" if self.identity.role == "admin" else f"worker[{self.slot}]"
        return f"{name} pid={self.pid} gen={self.generation}"

    # Load, as `steering` asks for it

    @property
    def half_open(self) -> int:
        """QUIC connections whose handshake is not complete."""
        return self.scoreboard.get(Cell.QUIC_HALF_OPEN)

    @property
    def ring_fill(self) -> float:
        """Share of the record channel that waits to be read, 0 to 1."""
        return 0.0 if self.records is None else self.records.fill

    def record_bytes(self) -> tuple[int, int]:
        """Return how many bytes wait in the record channel, and how many may; 0 without HTTP/3."""
        return (0, 0) if self.records is None else (self.records.count_waiting(), self._record_size)

    # Messages

    @property
    def unsent(self) -> int:
        """Messages that wait for the worker to read: `flush` when the channel is writable."""
        return len(self._unsent)

    def send(self, message: Message) -> bool:
        """Send a message, now or later; False when the worker has stopped to read them."""
        if len(self._unsent) >= MAX_UNSENT:
            return False
        self._unsent.append(message)
        self.flush()
        return True

    def flush(self) -> None:
        """Send what waits, as far as the channel takes it."""
        try:
            while self._unsent and self.control.send(self._unsent[0]):
                self._unsent.popleft()
        except ChannelClosedError:
            self._unsent.clear()  # its exit follows

    def receive(self) -> Iterator[Message]:
        """Take what the worker said, some of it at a time. Raises ChannelClosedError at its end."""
        for _ in range(MESSAGES_PER_TURN):
            try:
                received = self.control.receive()
            except FdsLostError:
                self.rubbish += 1
                continue
            if received is None:
                return
            message, fds = received
            close_untrusted(fds)  # no message of a worker's carries any
            if message is None:
                self.rubbish += 1
            else:
                yield message

    def receive_handed_back(self) -> list[tuple[int, int, int]]:
        """Take one message of connections that it has nothing to do for, as `channel` has them.

        Raises ChannelClosedError at its end, FdsLostError when they were lost.
        """
        connections = []
        for listener, fd, age in self.connections.receive_aged():
            if disarm_untrusted(fd):
                connections.append((listener, fd, age))
            else:
                self.rubbish += 1
                os.close(fd)
        return connections

    # Where it stands

    def ask_for_stacks(self) -> None:
        """Have it write them: its threads at once, its tasks when its loop turns."""
        self.segment.clear_stacks()
        number = stacks_signal()
        if number is not None and self.scoreboard.get(Cell.TELLS_STACKS):
            self.signal(number)
        self.send(DumpStacks())

    # The process

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when the process is gone. Never to a number used again."""
        try:
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, number)
            else:
                self.process.send_signal(number)
        except ProcessLookupError:
            pass  # not reaped yet
        except PermissionError:
            logger.error("%s: may not be sent signal %d: it runs as another user", self, number)

    def reap(self) -> int | None:
        """Collect the exit status (negative: a signal), None while the process runs."""
        return self.process.poll()

    def recover(self) -> list[tuple[int, int]]:
        """Read back (listener, descriptor) of what the worker has not read, as much of it as this
        process has room for; the caller owns it.
        """
        refused = self._undelivered.refused
        recovered = self._undelivered.recover()
        if self._undelivered.refused > refused:
            logger.error(
                "%s: lost up to %d messages with connections: too many open files",
                self,
                self._undelivered.refused - refused,
            )
        return recovered

    @property
    def has_undelivered(self) -> bool:
        """There is something that it has not read."""
        return self._undelivered.has_message

    def close(self) -> None:
        """Give everything back. The process must have been reaped, or be left to itself."""
        self.control.close()
        self.connections.close()
        self._undelivered.close()
        if self.records is not None:
            self.records.close()
        self.scoreboard.release()
        self.assignments.release()
        self.segment.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Outfit:
    """What a worker is given, before it is a process. Owns all of it until `employ`."""

    def __init__(self, order: WorkerOrder) -> None:
        """Raises OSError or StartError and leaves nothing behind."""
        with contextlib.ExitStack() as undo:
            self._records = _Records(order.ring, wanted=order.secrets is not None)
            undo.callback(self._records.close)
            self._connections = ConnectionChannel.pair()
            for channel in self._connections:
                undo.callback(channel.close)
            self._control, self.worker_control = ControlChannel.pair()
            undo.callback(self._control.close)
            undo.callback(self.worker_control.close)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Give everything back. A process that was not employed ends with its channel."""
        self._undo.close()

    def employ(
        self, identity: WorkerIdentity, process: Process, order: WorkerOrder, *, selftest: bool
    ) -> WorkerHandle:
        """Say hello, and hand everything to the worker's handle. Raises OSError."""
        hello = Hello(
            worker_id=identity.worker_id,
            slot=identity.slot,
            generation=identity.generation,
            config=dict(order.config),
            secrets=None if order.secrets is None else dict(order.secrets),
            listeners=tuple(order.listeners),
            record_channel=self._records.kind,
            selftest=selftest,
            master_pid=os.getpid(),
            role=order.role,
        )
        theirs = self._connections[1].fileno()
        fds = [theirs, self._records.segment.fd, *self._records.fds]
        fds += [*order.udp_fds, *order.admin_fds]
        with contextlib.suppress(ChannelClosedError):  # dead already: found by its exit
            if not self._control.send(hello, fds):
                raise OSError(errno.ENOBUFS, "the hello does not fit the control channel")
        self._records.close_worker_ends()
        self.worker_control.close()
        handle = WorkerHandle(identity, process, self._control, self._connections, self._records)
        handle.assignments.claim(identity.worker_id, identity.generation)
        self._undo.pop_all()
        return handle


def spawn(identity: WorkerIdentity, order: WorkerOrder, *, selftest: bool) -> WorkerHandle:
    """Start a worker and say hello. Raises OSError or StartError and leaves nothing behind."""
    with contextlib.ExitStack() as undo:
        outfit = Outfit(order)
        undo.callback(outfit.close)
        process = start_process(
            order.module,
            outfit.worker_control.fileno(),
            environment=order.environment,
            folder=order.folder,
        )
        outfit.worker_control.close()
        undo.callback(process.wait)
        undo.callback(process.kill)
        handle = outfit.employ(identity, process, order, selftest=selftest)
        undo.pop_all()
    return handle


def start_process(
    module: str, fd: int, *, environment: Mapping[str, str], folder: str | None = None
) -> subprocess.Popen[bytes]:
    """Start an interpreter that runs a module of ours and inherits one descriptor."""
    command = [*interpreter(), "-m", module, str(fd)]
    # The mask goes through fork and exec; see _HELD_BACK.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        return subprocess.Popen(
            command, pass_fds=(fd,), env={**worker_environment(), **environment}, cwd=folder
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def interpreter() -> list[str]:
    """Return this interpreter with its own options (-X, -W, -O, ...), and without the current
    folder.

    The application's folder comes first on the worker's path, but only once our own modules are
    imported: a `logging.py` there is the application's business, not ours.
    """
    if not sys.executable:
        raise StartError("cannot start workers: the path of this Python interpreter is unknown")
    # multiprocessing uses the same function; there is no public one.
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001
    return [sys.executable, *flags, *([] if "-P" in flags or "-I" in flags else ["-P"])]


def child_environment() -> dict[str, str]:
    """Return our environment, extended so that a worker finds the same asgiri."""
    environment = dict(os.environ)
    package_folder = str(Path(asgiri.__file__).resolve().parent.parent)
    if package_folder not in {*site.getsitepackages(), site.getusersitepackages()}:
        # Run from a checkout. Not added otherwise: whatever is on PYTHONPATH hides the standard
        # library, and site-packages must not.
        path = environment.get("PYTHONPATH", "")
        if package_folder not in path.split(os.pathsep):
            environment["PYTHONPATH"] = package_folder + (os.pathsep + path if path else "")
    return environment


def worker_environment() -> dict[str, str]:
    """Return the environment of workers: without what a service manager meant for us alone."""
    environment = child_environment()
    for name in SERVICE_VARIABLES:
        environment.pop(name, None)
    return environment


def open_pidfd(pid: int) -> int:
    """Return a descriptor that is readable once the process has ended; -1 where there is none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # macOS; a kernel before 5.3; seccomp
        return -1
