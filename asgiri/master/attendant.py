"""The master's side of the attendant: start it, feed it, replace it, do without it.

See `asgiri.attendant` for what it is for and what is said. Nothing here waits but the start and the
end of the server. What the socket does not take is kept up to a limit; what is beyond is dropped:
lines of the log are counted with the others, hooks are told of in the log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

from asgiri import logs
from asgiri.config import Config, LogConfig
from asgiri.errors import ConfigError, StartError
from asgiri.hooks import ATTENDED, ServerFacts, WorkerFacts
from asgiri.master.loop import EventLoop, Timer
from asgiri.master.processes import AdoptedProcess, Process, start_process

__all__ = ["Attendance", "AttendantOrder"]

logger = logging.getLogger("asgiri.master")

MODULE: Final = "asgiri.attendant"
START_PATIENCE: Final = 10.0
"""Seconds for the first attendant to be ready: until then the server does not start."""
END_PATIENCE: Final = 2.0
"""Seconds for the last one to write what it was given, when the server ends."""
RESTART_INTERVAL: Final = 5.0
"""Seconds between the death of one and the next: somebody's code may end it each time."""
MAX_WAITING: Final = 1 << 20
"""Bytes kept for an attendant that does not read: some 5,000 lines of a log."""
CHUNK: Final = 65536


@dataclasses.dataclass(frozen=True, slots=True)
class AttendantOrder:
    """What an attendant is started with."""

    config: Config
    environment: Mapping[str, str]
    """Variables beside our own."""
    folder: str
    """Where it begins; "" for our own."""

    @property
    def is_needed(self) -> bool:
        """Whether there is something to do for one."""
        return bool(self.config.log.config) or self.has_hooks

    @property
    def has_hooks(self) -> bool:
        """Whether some are called there."""
        return any(name in ATTENDED for name in self.config.process.hooks)

    def to_json(self) -> dict[str, Any]:
        """Tell it to one."""
        config = self.config
        return {
            "log": dataclasses.asdict(config.log),
            "hooks": config.process.hooks_file if self.has_hooks else "",
            "app_folder": config.app.app_dir,
            "title": config.process.name or config.app.target,
        }


class _Attendant:
    """One process."""

    def __init__(self, order: AttendantOrder) -> None:
        """Raises OSError or StartError."""
        ours, theirs = socket.socketpair()
        try:
            self.process: Process = start_process(
                MODULE,
                theirs.fileno(),
                environment=order.environment,
                folder=order.folder or None,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self.socket = ours
        self._unsent = bytearray()
        self._received = bytearray()
        self.send({"configure": order.to_json()})

    def __str__(self) -> str:
        return f"attendant pid={self.process.pid}"

    @property
    def unsent(self) -> bool:
        """Whether something waits for the socket to be writable."""
        return bool(self._unsent)

    def send(self, document: Mapping[str, Any]) -> bool:
        """Say something, now or later; False when too much waits already."""
        line = orjson.dumps(document, default=str) + b"\n"
        if len(self._unsent) + len(line) > MAX_WAITING:
            return False
        self._unsent += line
        self.flush()
        return True

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it."""
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent[:CHUNK])]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()  # it is gone: the end of what it says tells that

    def receive(self) -> list[Any] | None:
        """Return what it has said; None when it will say no more that makes sense."""
        try:
            data = self.socket.recv(CHUNK)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            return None
        self._received += data
        *lines, rest = self._received.split(b"\n")
        self._received = bytearray(rest)
        answers = [_read_answer(line) for line in lines]
        # Its hooks are foreign code: one that has written into the socket is no attendant.
        return None if None in answers or len(rest) > MAX_WAITING else answers

    def close(self, patience: float = 0.0) -> None:
        """Let it end. What waits is sent within `patience`."""
        with contextlib.suppress(OSError):
            self.socket.settimeout(patience)
            self.socket.sendall(self._unsent)
        self.socket.close()


class Attendance:
    """Has an attendant at hand while the configuration asks for one."""

    def __init__(self, loop: EventLoop, former: Iterable[int] = ()) -> None:
        """`former`: those of an earlier program of this process, who end by themselves."""
        self._loop = loop
        self._order: AttendantOrder | None = None
        self._current: _Attendant | None = None
        """Who gets the log."""
        self._next: _Attendant | None = None
        """Who is about to. It gets the hooks already."""
        self._ending: list[Process] = [AdoptedProcess(pid) for pid in former]
        self._timer: Timer | None = None
        self._forwarded: LogConfig | None = None
        """What to write the log by, if the attendant does not; None when it does not anyhow."""

    @property
    def pids(self) -> list[int]:
        """Process IDs of all that have not ended."""
        known = [attendant.process for attendant in (self._current, self._next) if attendant]
        return [process.pid for process in (*known, *self._ending)]

    # From start to end

    def begin(self, order: AttendantOrder) -> None:
        """Start the first one and wait until it is ready. Raises ConfigError or StartError."""
        self._order = order
        if not order.is_needed:
            return
        try:
            attendant = _Attendant(order)
        except OSError as error:
            raise StartError.from_os_error(error, "the attendant cannot be started") from None
        deadline = time.monotonic() + START_PATIENCE
        while self._current is None:
            left = max(0.0, deadline - time.monotonic())
            ready = select.select([attendant.socket], [], [], left)[0]
            answers = attendant.receive() if ready else None
            if answers is None:
                attendant.process.send_signal(signal.SIGKILL)
                self._dismiss(attendant)
                raise StartError(f"{attendant}: ended or hung before it was ready")
            for answer in answers:
                if problem := answer.get("problem"):
                    self._dismiss(attendant)
                    raise _error(problem)
                self._employ(attendant, answer["level"])
        self._watch(attendant)

    def renew(self, order: AttendantOrder) -> None:
        """Have another one, or none."""
        self._order = order
        if self._next is not None:
            self._dismiss(self._next)
        if order.is_needed:
            self._start()
        elif self._current is not None:
            self._dismiss(self._current)

    def close(self, patience: float = END_PATIENCE) -> None:
        """The server ends: let it write what it has, and wait for that."""
        if self._timer is not None:
            self._timer.cancel()
        deadline = time.monotonic() + patience
        for attendant in (self._current, self._next):
            if attendant is not None:
                self._dismiss(attendant, patience)
        for process in self._ending:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))

    def release(self) -> None:
        """The program is about to be exchanged: the next one has its own."""
        for attendant in (self._current, self._next):
            if attendant is not None:
                self._dismiss(attendant)
        self._timer = self._loop.call_later(RESTART_INTERVAL, self._start)  # if it is not exchanged

    def reap(self) -> None:
        """Collect those that have ended."""
        self._ending = [process for process in self._ending if process.poll() is None]

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._order is None or not self._order.is_needed:
            return
        try:
            self._next = _Attendant(self._order)
        except (OSError, StartError) as error:
            logger.error("no attendant for the log and the hooks: %s", error)
            self._timer = self._loop.call_later(RESTART_INTERVAL, self._start)
        else:
            self._watch(self._next)

    def _watch(self, attendant: _Attendant) -> None:
        self._loop.watch_readable(attendant.socket.fileno(), lambda: self._on_readable(attendant))
        self._watch_unsent(attendant)

    def _watch_unsent(self, attendant: _Attendant) -> None:
        if attendant.unsent:
            fd = attendant.socket.fileno()
            self._loop.watch_writable(fd, lambda: self._on_writable(attendant))

    def _on_writable(self, attendant: _Attendant) -> None:
        attendant.flush()
        if not attendant.unsent:
            self._loop.unwatch_writable(attendant.socket.fileno())

    def _on_readable(self, attendant: _Attendant) -> None:
        if attendant not in (self._current, self._next):
            return
        answers = attendant.receive()
        if answers is None:
            self._lost(attendant)
            return
        for answer in answers:
            if problem := answer.get("problem"):
                self._dismiss(attendant)
                logger.error("the log and the hooks stay as they are: %s", _error(problem))
            else:
                if self._current is not None:
                    self._dismiss(self._current)
                self._employ(attendant, answer["level"])

    def _employ(self, attendant: _Attendant, level: int) -> None:
        assert self._order is not None
        self._current, self._next = attendant, None
        if self._order.config.log.config:
            logs.forward(self._send_record, level)
            self._forwarded = self._order.config.log

    def _dismiss(self, attendant: _Attendant, patience: float = 0.0) -> None:
        self._loop.unwatch(attendant.socket.fileno())
        attendant.close(patience)
        self._ending.append(attendant.process)
        if attendant is self._current:
            self._current = None
            if self._forwarded is not None:
                logs.configure(self._forwarded, "master")
                self._forwarded = None
        if attendant is self._next:
            self._next = None

    def _lost(self, attendant: _Attendant) -> None:
        self._dismiss(attendant)
        logger.error("%s: ended by itself; another one comes in %g s", attendant, RESTART_INTERVAL)
        if self._next is None:
            self._timer = self._loop.call_later(RESTART_INTERVAL, self._start)

    # What it is told

    def _send_record(self, record: Mapping[str, Any]) -> bool:
        attendant = self._current
        if attendant is None or not attendant.send({"record": record}):
            return False
        self._watch_unsent(attendant)
        return True

    def hook(self, name: str, server: ServerFacts, worker: WorkerFacts | None = None) -> None:
        """Have a hook called, if there is one of that name."""
        if self._order is None or name not in self._order.config.process.hooks:
            return
        attendant = self._next or self._current
        event = {"hook": name, "server": dataclasses.asdict(server)}
        if worker is not None:
            event["worker"] = dataclasses.asdict(worker)
        if attendant is None or not attendant.send(event):
            logger.error("%s was not called: there is no attendant, or it does not read", name)
        else:
            self._watch_unsent(attendant)

    def reopen(self) -> None:
        """Have the log files opened anew."""
        if self._current is not None and self._current.send({"reopen": True}):
            self._watch_unsent(self._current)


def _error(problem: Any) -> ConfigError | StartError:
    if isinstance(problem, list):
        return ConfigError(*problem)
    return StartError(str(problem))


def _read_answer(line: bytes | bytearray) -> dict[str, Any] | None:
    """Return a problem, or the level that it logs from; None for what is neither."""
    try:
        answer = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(answer, dict):
        return None
    problem, level = answer.get("problem"), answer.get("level")
    is_triple = isinstance(problem, list) and [type(part) for part in problem] == [str] * 3
    return answer if is_triple or isinstance(problem, str) or type(level) is int else None
