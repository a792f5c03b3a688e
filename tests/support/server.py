"""Start the real server for a test, watch it, and make sure that nothing of it stays behind.

    async with serve(workers=2, http3=True) as server:  # returns once all workers reported ready
        ...                                             # server.port, server.kill_worker(0), ...

Options are the server's own, spelled as Python names: `http1_parser="h11"` is `--http1-parser h11`.
At the end the server is told to stop; processes that stay, a traceback that nobody announced or a
wrong exit status fail the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import re
import select
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.support.certificates import certificates

PROJECT = Path(__file__).parents[2]
APP = "tests.support.apps:app"
PATIENCE = 20.0
"""Longest wait for anything the server should do, in seconds; far above what it takes."""

WORKER_READY = re.compile(r"worker\[(\d+)\] pid=(\d+)[^:\n]*: ready$", re.MULTILINE)
FIRST_URL = re.compile(r"\blistening on .*?https?://([\w.]+|\[[\w:.]+\]):(\d+)")
LISTENING = re.compile(r"\blistening on\b")
COMPLAINTS = re.compile(
    r"^.*(?:never awaited|never retrieved|Exception ignored|ResourceWarning).*$", re.MULTILINE
)
OPTION_VARIABLE = re.compile("ASGIRI_|PORT$|WEB_CONCURRENCY$|FORWARDED_ALLOW_IPS$|NO_COLOR$")
CHAINED = re.compile("During handling of the above|The above exception was the direct")
DELIBERATE = r"DeliberateError|BrokenAppError|ClientGoneError"

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

T = TypeVar("T")


class ServerFailed(AssertionError):
    """The server did something that no test asked for."""


class ServerLog:
    """Lines of a process and its children, collected by a thread, with waiting for a line."""

    patience = PATIENCE

    def __init__(self) -> None:
        self._text = ""
        self._closed = False
        self._changed = threading.Condition()

    # Written by the thread

    def follow(self, file: int) -> threading.Thread:
        thread = threading.Thread(target=self._read, args=(file,), daemon=True)
        thread.start()
        return thread

    def _read(self, file: int) -> None:
        while data := os.read(file, 65536):
            self.append(data.decode(errors="replace"))
        os.close(file)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def append(self, text: str) -> None:
        with self._changed:
            self._text += text
            self._changed.notify_all()

    # Asked by the test

    @property
    def text(self) -> str:
        return self._text

    @property
    def end(self) -> int:
        """Position after everything logged so far: what `wait_line` may start at."""
        return len(self._text)

    def wait_until(self, answer: Callable[[str], T | None], what: str) -> T:
        """The first true answer to the text; ServerFailed when the log ends or time is up."""
        deadline = time.monotonic() + self.patience
        with self._changed:
            while not (found := answer(self._text)):
                left = deadline - time.monotonic()
                if self._closed or left <= 0:
                    why = "the log ended" if self._closed else f"{self.patience:.0f} s passed"
                    raise ServerFailed(f"{why} while waiting for {what}; log:\n{self._text}")
                self._changed.wait(left)
            return found

    def wait_line(self, pattern: str, start: int = 0) -> re.Match[str]:
        expression = re.compile(pattern, re.MULTILINE)
        return self.wait_until(lambda text: expression.search(text, start), f"{pattern!r}")

    def complaints(self, allowed: Sequence[str], start: int = 0) -> list[str]:
        """Tracebacks and warnings of the interpreter that match none of the allowed patterns."""
        text = self._text[start:]
        permit = re.compile("|".join([DELIBERATE, *allowed]))
        found = list(tracebacks(text.splitlines()))
        found += [match[0] for match in COMPLAINTS.finditer(text)]
        return [complaint for complaint in found if not permit.search(complaint)]


def tracebacks(lines: Sequence[str]) -> Iterator[str]:
    """Each traceback of a log, with the line before it and the exceptions it is chained to.

    The log indents what follows a record's first line, so only indentation tells where it ends.
    """
    index = 0
    while index < len(lines):
        if "Traceback (most recent call last):" not in lines[index]:
            index += 1
            continue
        start, indent = index, indent_of(lines[index])
        while index < len(lines):
            index += 1
            while index < len(lines) and is_inside(lines[index], indent):
                index += 1
            rest = lines[index + 1 : index + 3]  # after the exception's own line
            if not (len(rest) == 2 and not rest[0].strip() and CHAINED.search(rest[1])):
                break
            index += 4
        yield "\n".join(lines[max(0, start - 1) : index + 1])
        index += 1


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip())


def is_inside(line: str, indent: int) -> bool:
    return not line.strip() or indent_of(line) > indent or line.lstrip()[0] in "|+"


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How to start a server."""

    app: str | None = APP
    workers: int = 2
    tls: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path = PROJECT
    python: tuple[str, ...] = ()
    """Options of the interpreter."""

    def command(self) -> list[str]:
        defaults = {"bind": "127.0.0.1:0", "workers": self.workers, "access_log": False}
        options = {**defaults, **self.options}
        if self.tls:
            files = certificates()
            options |= {"certfile": files.certfile, "keyfile": files.keyfile}
        app = [] if self.app is None else [self.app]
        return [sys.executable, *self.python, "-m", "asgiri", *app, *arguments(options)]

    def full_environment(self) -> dict[str, str]:
        inherited = {n: v for n, v in os.environ.items() if not OPTION_VARIABLE.match(n)}
        return {**inherited, "PYTHONPATH": str(PROJECT), **self.environment}


def arguments(options: Mapping[str, Any]) -> Iterator[str]:
    """`{"http3": True, "access_log": False, "bind": ("a", "b")}` as a command line."""
    for name, value in options.items():
        flag = name.replace("_", "-")
        match value:
            case None:
                pass
            case True:
                yield f"--{flag}"
            case False:
                yield f"--no-{flag}"
            case tuple() | list():
                for item in value:
                    yield from (f"--{flag}", str(item))
            case _:
                yield from (f"--{flag}", str(value))


class Server:
    """A running server, master and workers. Its `async` methods are for coroutines."""

    def __init__(
        self, command: Sequence[str], options: ServerOptions, pass_fds: Sequence[int] = ()
    ) -> None:
        self.options = options
        self.log = ServerLog()
        self.allowed_in_log: list[str] = []
        """Patterns of tracebacks and warnings that this test provokes."""
        self.expected_exit: tuple[int, ...] = (0,)
        reading, writing = os.pipe()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                cwd=options.directory,
                env=options.full_environment(),
                pass_fds=pass_fds,
                start_new_session=True,  # so that whoever is left behind can be told by its session
                preexec_fn=die_with_parent,
            )
        finally:
            os.close(writing)
        self._log_thread = self.log.follow(reading)

    @classmethod
    def start(
        cls, options: ServerOptions, *, prefix: Sequence[str] = (), pass_fds: Sequence[int] = ()
    ) -> Server:
        """Return once all workers reported ready. `prefix` is a command that runs it."""
        server = cls([*prefix, *options.command()], options, pass_fds)
        try:
            server._wait_workers(options.workers)
        except BaseException:
            server._destroy()
            raise
        return server

    # Facts

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def workers(self) -> dict[int, int]:
        """Slot to pid of the worker that last reported ready there."""
        return {int(m[1]): int(m[2]) for m in WORKER_READY.finditer(self.log.text)}

    @property
    def worker_pids(self) -> list[int]:
        return [pid for _, pid in sorted(self.workers.items())]

    def live_pids(self) -> list[int]:
        """Processes of the server's session that are no zombies, the master first."""
        return sorted(session_members(self.pid), key=lambda pid: pid != self.pid)

    def addresses(self, kind: str = "tcp") -> list[tuple[str, int]]:
        """What the master listens on, as the kernel sees it: "tcp" or "udp"."""
        connections = psutil.Process(self.pid).net_connections(kind)
        return sorted(
            (c.laddr.ip, c.laddr.port)
            for c in connections
            if kind == "udp" or c.status == psutil.CONN_LISTEN
        )

    @functools.cached_property
    def _first_address(self) -> tuple[str, int]:
        """Of the first --bind that has one: the log lists them in the order of the options."""
        match = FIRST_URL.search(self.log.text)
        if match is None:
            raise ServerFailed(f"listens on no port; log:\n{self.log.text}")
        return match[1].strip("[]"), int(match[2])

    @property
    def port(self) -> int:
        """Where it can be reached, TCP and UDP alike."""
        return self._first_address[1]

    @property
    def host(self) -> str:
        return self._first_address[0]

    @property
    def secure(self) -> bool:
        return self.options.tls or bool(self.options.options.get("certfile"))

    @property
    def url(self) -> str:
        return f"{'https' if self.secure else 'http'}://localhost:{self.port}"

    def client_context(self, *alpn: str) -> ssl.SSLContext | None:
        """For clients of this server; None when it speaks cleartext."""
        return certificates().client_context(*alpn) if self.secure else None

    # Actions

    def send_signal(self, number: int) -> None:
        """Send the master a signal."""
        self.process.send_signal(number)

    def kill_worker(self, slot: int, number: int = signal.SIGKILL) -> int:
        """Send the worker in `slot` a signal; its pid."""
        pid = self.workers[slot]
        os.kill(pid, number)
        return pid

    def kill_master(self) -> None:
        self.expected_exit = (-signal.SIGKILL,)
        self.send_signal(signal.SIGKILL)

    # Waiting

    async def wait_line(self, pattern: str, start: int = 0) -> re.Match[str]:
        return await asyncio.to_thread(self.log.wait_line, pattern, start)

    async def wait_replaced(self, slot: int, pid: int) -> int:
        """The worker that comes after `pid` in `slot` is ready; its pid."""

        def other(_: str) -> int | None:
            current = self.workers[slot]
            return None if current == pid else current

        return await asyncio.to_thread(
            self.log.wait_until, other, f"another worker than {pid} in slot {slot}"
        )

    async def wait_exit(self) -> int:
        """The master has exited; its status."""
        return await asyncio.to_thread(self.process.wait, PATIENCE)

    async def wait_workers_gone(self, seconds: float) -> None:
        """All processes of the server are gone, at the latest after `seconds`."""
        left = await asyncio.to_thread(wait_all_gone, session_members(self.pid), seconds)
        if left:
            raise ServerFailed(f"still there after {seconds} s: {describe(left)}")

    def _wait_workers(self, count: int) -> None:
        def serving(text: str) -> bool:
            return len(self.workers) >= count and LISTENING.search(text) is not None

        self.log.wait_until(serving, f"{count} ready workers")

    # The end

    def stop(self) -> None:
        """Stop it with SIGTERM and check what it leaves."""
        problems = []
        try:
            if self.process.poll() is None:
                self.send_signal(signal.SIGTERM)
            try:
                status = self.process.wait(PATIENCE)
                if status not in self.expected_exit:
                    problems.append(f"exit status {status}, not {self.expected_exit}")
            except subprocess.TimeoutExpired:
                problems.append(f"did not stop within {PATIENCE:.0f} s of SIGTERM")
            # A worker whose master was killed has its own patience.
            if left := wait_all_gone(session_members(self.pid), 10.0):
                problems.append(f"left behind: {describe(left)}")
        finally:
            self._destroy()
        problems += self.log.complaints(self.allowed_in_log)
        if problems:
            raise ServerFailed("\n".join([*problems, "log:", self.log.text]))

    def _destroy(self) -> None:
        """Kill what is left, so that no test meets the processes of another."""
        for pid in session_members(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._log_thread.join(PATIENCE)


@contextlib.asynccontextmanager
async def serve(
    app: str | None = APP,
    *,
    workers: int = 2,
    tls: bool = False,
    environment: Mapping[str, str] | None = None,
    directory: Path = PROJECT,
    **options: Any,
) -> AsyncIterator[Server]:
    """Run the server around a test."""
    description = ServerOptions(
        app=app,
        workers=workers,
        tls=tls,
        options=options,
        environment=environment or {},
        directory=directory,
    )
    server = await asyncio.to_thread(Server.start, description)
    try:
        yield server
    except BaseException as error:
        error.add_note(f"log of the server:\n{server.log.text}")
        server.expected_exit = tuple(range(-64, 256))  # the test's own failure is the news
        with contextlib.suppress(ServerFailed):
            await asyncio.to_thread(server.stop)
        raise
    await asyncio.to_thread(server.stop)


def die_with_parent() -> None:
    """Run in the child: a test run that is killed cannot stop its servers, so the kernel does.

    Meant is the thread that starts it; those of `asyncio.to_thread` live as long as their test.
    """
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_to_end(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> tuple[int, str]:
    """Run the server where it should refuse to start: exit status and what it wrote.

    `prefix` is a command that runs it, as setpriv does.
    """
    options = ServerOptions(app=None, environment=environment or {})
    command = [*prefix, sys.executable, "-m", "asgiri", *arguments]
    server = Server(command, options)
    try:
        status = server.process.wait(PATIENCE)
        if left := wait_all_gone(session_members(server.pid), 5.0):
            raise ServerFailed(f"left behind: {describe(left)}; log:\n{server.log.text}")
    finally:
        server._destroy()
    return status, server.log.text


def session_members(session: int) -> list[int]:
    """Live processes of a session (zombies are not)."""
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.Error):
            if os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(pid)
    return members


def wait_all_gone(pids: Sequence[int], seconds: float) -> list[int]:
    """Wait for the end of processes that may not be our children; those that are still there."""
    deadline = time.monotonic() + seconds
    left = []
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            remaining = max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], remaining)[0]:
                left.append(pid)
        finally:
            os.close(descriptor)
    return left


def describe(pids: Sequence[int]) -> str:
    lines = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            lines.append(f"{pid} {process.status()} {' '.join(process.cmdline())}")
    return "; ".join(lines)
