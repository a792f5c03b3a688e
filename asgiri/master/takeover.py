"""Exchange the master's program in place (SIGUSR2): same process, new code, nothing closed.

Not a second master: two of them on one UDP socket would split its datagrams at random. execve keeps
the process ID, the children (whose death signal does not fire) and every descriptor that may be
inherited; connections and datagrams that come meanwhile wait in the kernel.

    1  pre-flight   a subprocess of the new code imports it, reads the configuration and the state.
                    If it does not like them, nothing happens but a line in the log.
    2  state        what the tables know goes into a memfd: see `MasterState`. A reload that is
                    under way ends first.
    3  execve       signals that come from here on stay pending until the new program has handlers.
                    If it fails, everything goes on as before.
    4  resume       the new program adopts sockets, workers and connections, then reloads, so that
                    the workers get the new code as well.

QUIC connections live on because keys, worker IDs and rings do. A program that cannot read the state
after all ends the workers and starts from nothing (`start_cold`); their clients are reset.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Final, NoReturn, Self

import orjson

from asgiri.errors import StartError, TakeoverError
from asgiri.master.kept import NAME as KEPT_NAME
from asgiri.master.listeners import FIRST_INHERITED_FD
from asgiri.master.loop import EventLoop, Timer
from asgiri.master.processes import child_environment, interpreter

logger = logging.getLogger("asgiri.master")

STATE_VARIABLE: Final = "ASGIRI_TAKEOVER_FD"
CHECK_OPTION: Final = "--check-upgrade"
"""First argument of the pre-flight."""
FORMAT: Final = 1
"""Number of the state's format: a program reads its own only."""
PREFLIGHT_TIMEOUT: Final = 30.0
"""Seconds for the pre-flight. It takes as long as the start of a master, half a second."""
PREFLIGHT_OUTPUT: Final = 4096
"""Bytes of what the pre-flight said that are logged, from the end."""
RETRY_INTERVAL: Final = 0.2
"""Seconds between two looks whether a reload that is under way has ended."""
COLD_PATIENCE: Final = 8.0
"""Seconds for the workers of an unreadable state: SIGTERM gives them 5."""


@dataclass(frozen=True, slots=True)
class MasterState:
    """What one program of the master tells the next. Descriptors are numbers."""

    secrets: dict[str, Any] | None
    """Those the living connection IDs were made with; None without HTTP/3."""
    tls: bool
    listeners: list[dict[str, Any]]
    workers: list[dict[str, Any]]
    supervisor: dict[str, Any]
    acceptor: dict[str, Any]
    begun: list[tuple[str, int]]
    """QUIC connections that are known by a client-chosen ID only, in hex, and their workers."""
    reporting: dict[str, Any] = field(default_factory=dict)
    """What was counted, as far as the parts above do not carry it."""
    oversight: dict[str, Any] = field(default_factory=dict)
    """The admin worker."""
    attendants: list[int] = field(default_factory=list)
    """Process IDs. They end by themselves, and want to be reaped."""

    def encode(self) -> bytes:
        """Write it down."""
        return orjson.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def decode(cls, document: bytes) -> Self:
        """Read what `encode` wrote. Raises TakeoverError."""
        try:
            values = orjson.loads(document)
            if values.pop("format") != FORMAT:
                raise TakeoverError("the state has another format: restart instead of SIGUSR2")
            state = cls(**values)
            known = {worker["worker_id"] for worker in state.workers}
            if known != {worker["worker_id"] for worker in state.supervisor["roster"]["workers"]}:
                raise TakeoverError("the state contradicts itself")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise TakeoverError(f"the state cannot be read: {error!r}") from None
        return state


# The program that comes


def inherited_state(environ: MutableMapping[str, str]) -> int:
    """Take the descriptor of a state out of the environment; -1 when this is an ordinary start."""
    text = environ.pop(STATE_VARIABLE, "")
    return int(text) if text.isdecimal() else -1


def read_state(fd: int) -> MasterState:
    """Read the state from its descriptor, and close that. Raises TakeoverError."""
    try:
        with os.fdopen(fd, "rb") as file:
            file.seek(0)
            return MasterState.decode(file.read())
    except OSError as error:
        raise TakeoverError(f"the state cannot be read: {error}") from None


def start_cold(
    command: Sequence[str],
    reason: object,
    listeners: Sequence[Mapping[str, Any]] = (),
    *,
    folder: str = "",
) -> NoReturn:
    """End the workers of an earlier program and begin anew, in this process. Returns never.

    `listeners`, of its state, are passed on as a service manager does: who waits there is served.
    `folder` is where the command was given, when that is another one by now.
    """
    import psutil  # noqa: PLC0415  (10 ms of each start)

    logger.error("cannot take over, all connections end: %s", reason)
    children = psutil.Process().children()
    for child in children:
        with contextlib.suppress(psutil.Error):
            child.terminate()
    # They hold the UDP sockets open, whose ports we need.
    _, left = psutil.wait_procs(children, COLD_PATIENCE)
    for child in left:
        with contextlib.suppress(psutil.Error):
            child.kill()
    psutil.wait_procs(left, 1.0)
    environment = {**child_environment(), **_pass_on(listeners)}
    if folder:
        os.chdir(folder)
    os.execve(command[0], list(command), environment)  # noqa: S606 (no shell is wanted)


def _pass_on(listeners: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Leave these sockets open, from FIRST_INHERITED_FD on, and nothing else above them."""
    end = FIRST_INHERITED_FD + len(listeners)
    copies, names = [], []
    for listener in listeners:
        with contextlib.suppress(OSError, LookupError, TypeError):  # the state may be the trouble
            name = listener["name"] if listener["inherited"] else KEPT_NAME
            # Out of the way first: one may have a number that another one is about to get.
            copies.append(fcntl.fcntl(listener["fd"], fcntl.F_DUPFD, end))
            names.append(name)
    for number, copy in enumerate(copies, FIRST_INHERITED_FD):
        os.dup2(copy, number)
    os.closerange(FIRST_INHERITED_FD + len(copies), os.sysconf("SC_OPEN_MAX"))
    return {
        "LISTEN_PID": str(os.getpid()),
        "LISTEN_FDS": str(len(copies)),
        "LISTEN_FDNAMES": ":".join(names),
    }


# The program that goes


class Takeover:
    """Carries one SIGUSR2 out after the other."""

    def __init__(
        self,
        loop: EventLoop,
        words: Sequence[str] | None,
        folder: str = "",
        *,
        snapshot: Callable[[], tuple[MasterState, list[int]]],
        is_settled: Callable[[], bool],
        before: Callable[[], None],
        bystanders: dict[int, Callable[[], None]],
    ) -> None:
        """`words`: the command line behind the program's name; None when there was none. `folder`:
        where it was given, when that is another one by now.

        `snapshot` tells the state and its descriptors, `before` is called last of all. Children
        in `bystanders` are reaped by their callbacks, when this is a container's first process.
        """
        self._loop = loop
        self._words = words
        self._folder = folder
        self._snapshot = snapshot
        self._is_settled = is_settled
        self._before = before
        self._bystanders = bystanders
        self._preflight: _Preflight | None = None
        self._timer: Timer | None = None

    def request(self) -> None:
        """Begin with the pre-flight. Asked again meanwhile, it is the same request."""
        if self._words is None:
            logger.error("upgrade refused: the server was not started by its command")
            return
        if self._preflight is not None or (self._timer is not None and self._timer.pending):
            logger.info("upgrade is under way")
            return
        state, _ = self._snapshot()
        try:
            command = [*interpreter(), "-m", "asgiri", CHECK_OPTION, *self._words]
            self._preflight = _Preflight(
                self._loop, command, self._folder, state.encode(), self._checked
            )
        except (OSError, StartError) as error:
            logger.error("upgrade refused: the new program cannot be started: %s", error)
        else:
            self._bystanders[self._preflight.pid] = self._preflight.look
            logger.info("upgrade: checking the new program")

    def _checked(self, refusal: str) -> None:
        assert self._preflight is not None
        del self._bystanders[self._preflight.pid]
        self._preflight = None
        if refusal:
            logger.error("upgrade refused, everything stays as it is: %s", refusal)
        else:
            # Not from here: signals that were taken with SIGCHLD would be lost.
            self._timer = self._loop.call_later(0.0, self._try)

    def _try(self) -> None:
        if not self._is_settled():
            self._timer = self._loop.call_later(RETRY_INTERVAL, self._try)
            return
        assert self._words is not None
        state, fds = self._snapshot()
        logger.info("upgrade: the new program takes over")
        command = [*interpreter(), "-m", "asgiri", *self._words]
        try:
            replace_program(command, state.encode(), fds, self._before, self._folder)
        except OSError as error:
            logger.error("upgrade failed, everything goes on as before: %s", error)

    def cancel(self) -> None:
        """The server stops: nothing is taken over any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._preflight is not None:
            self._preflight.kill()


class _Preflight:
    """One run of the new code with the present state. `done` gets "" or the reason against it."""

    def __init__(
        self,
        loop: EventLoop,
        command: Sequence[str],
        folder: str,
        state: bytes,
        done: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._done = done
        self._late = False
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed when it ends)
        memory = _create_memory(state)
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(memory,),
                cwd=folder or None,
                env={**child_environment(), STATE_VARIABLE: str(memory)},
            )
        finally:
            os.close(memory)
        self.pid = self._process.pid
        self._deadline = time.monotonic() + PREFLIGHT_TIMEOUT
        self._timer = loop.call_later(RETRY_INTERVAL, self.look)

    def kill(self) -> None:
        """End it."""
        self._process.kill()

    def look(self) -> None:
        """See whether it has ended."""
        self._timer.cancel()
        status = self._process.poll()
        if status is None:
            if time.monotonic() >= self._deadline and not self._late:
                self._late = True
                self._process.kill()
            self._timer = self._loop.call_later(RETRY_INTERVAL, self.look)
            return
        self._output.seek(0)
        output = self._output.read()[-PREFLIGHT_OUTPUT:].decode(errors="replace").strip()
        self._output.close()
        if self._late:
            self._done(f"its check took longer than {PREFLIGHT_TIMEOUT:g} s")
        elif status:
            self._done(f"its check ended with status {status}\n{output}".strip())
        else:
            self._done("")


def replace_program(
    command: Sequence[str],
    state: bytes,
    fds: Iterable[int],
    before: Callable[[], None],
    folder: str = "",
) -> None:
    """Become another program that has the state and these descriptors. Raises OSError.

    It begins in `folder`, where the paths of its command line are right.
    """
    memory = _create_memory(state)
    here = os.open(os.curdir, os.O_RDONLY) if folder else -1
    passed = [memory, *fds]
    # A signal whose handler is gone would end the process; a pending one waits for the next.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        for fd in passed:
            os.set_inheritable(fd, True)
        before()
        sys.stdout.flush()
        sys.stderr.flush()
        environment = {**child_environment(), STATE_VARIABLE: str(memory)}
        if folder:
            os.chdir(folder)
        os.execve(command[0], list(command), environment)  # noqa: S606 (no shell is wanted)
    finally:  # reached only when it failed
        for fd in passed:
            os.set_inheritable(fd, False)
        os.close(memory)
        if folder:
            os.fchdir(here)
            os.close(here)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _create_memory(content: bytes) -> int:
    """Return a descriptor of memory with this content: it holds secrets, so it has no name."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("asgiri-state")
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(content)
    return fd
