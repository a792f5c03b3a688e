"""A worker's first steps, before its event loop runs: hello, configuration, TLS, the application.

Importing the application happens outside of the running loop (Django's ORM refuses to work inside,
and so does an `asyncio.run()` in a module), but with the loop that will run set as the current one.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, cast

from setproctitle import setproctitle

from asgiri import logs
from asgiri.config import Config
from asgiri.errors import ChannelClosedError, ConfigError, ExitCode, StartError
from asgiri.ipc.channel import ConnectionChannel, ControlChannel
from asgiri.ipc.counter import PipeCounter
from asgiri.ipc.messages import Failed, Hello, MoldHello
from asgiri.ipc.records import RecordReader
from asgiri.ipc.ring import RingReader
from asgiri.ipc.segment import BoardMemory, Segment
from asgiri.ipc.stream import StreamReader
from asgiri.worker import process
from asgiri.worker.asgi.loader import LoadedApplication, LoadError, add_folder, load

if TYPE_CHECKING:
    from asgiri.worker.transport.tls import ServerTls

HELLO_TIMEOUT: Final = 10.0
"""How long the master may take to say hello. It does so right after it has started us."""

Stage = Literal["import", "lifespan", "tls", "selftest", "config"]
H = TypeVar("H", Hello, MoldHello)


class BootError(Exception):
    """The worker cannot start. Carries what the master is told."""

    def __init__(self, stage: Stage, summary: str, details: str, status: ExitCode) -> None:
        super().__init__(summary)
        self.failed = Failed(stage, summary, details)
        self.status = status


@dataclass(slots=True)
class Resources:
    """What came with the hello. The worker owns it."""

    connections: ConnectionChannel
    segment: Segment
    records: RecordReader | None
    """None without HTTP/3."""
    udp_sockets: list[socket.socket]
    """One per UDP listener, in their order. Their O_NONBLOCK is shared with the master: never call
    setblocking().
    """
    board: BoardMemory | None = None
    """For an admin worker."""
    accepting: list[socket.socket] = field(default_factory=list)
    """Sockets that an admin worker accepts from, one per listener."""


def receive_hello(control: ControlChannel) -> tuple[Hello, Resources]:
    """Wait for the master's first message. Raises ChannelClosedError when none comes."""
    hello, fds = receive_first(control, Hello)
    return hello, _take_resources(hello, fds)


def receive_first(control: ControlChannel, kind: type[H]) -> tuple[H, list[int]]:
    """Wait for the first message, and what comes with it. Raises ChannelClosedError."""
    poll = select.poll()
    poll.register(control.fileno(), select.POLLIN)
    deadline = time.monotonic() + HELLO_TIMEOUT
    while (left := deadline - time.monotonic()) > 0:
        poll.poll(left * 1000)
        received = control.receive()
        if received is not None and isinstance(received[0], kind):
            return received[0], received[1]
    raise ChannelClosedError(f"no hello within {HELLO_TIMEOUT:.0f} s")


def _take_resources(hello: Hello, fds: list[int]) -> Resources:
    rest = iter(fds)
    connections = ConnectionChannel.adopt(next(rest))
    segment = Segment.attach(next(rest))
    if hello.role == "admin":
        board = BoardMemory.attach(next(rest))
        accepting = [socket.socket(fileno=fd) for fd in rest]
        return Resources(connections, segment, None, [], board, accepting)
    records: RecordReader | None = None
    match hello.record_channel:
        case "ring":
            published = PipeCounter(reading=next(rest))
            consumed = PipeCounter(writing=next(rest))
            records = RingReader(segment.ring, published, consumed)
        case "stream":
            stream = socket.socket(fileno=next(rest))
            records = StreamReader(stream, hello.config["ring"]["size"])
    return Resources(connections, segment, records, [socket.socket(fileno=fd) for fd in rest])


def configure(hello: Hello) -> Config:
    """Read the configuration and apply what concerns the process."""
    config = _read_config(hello.config)
    admin = hello.role == "admin"
    title = "admin" if admin else f"worker {hello.slot}"
    setproctitle(f"asgiri: {title} gen {hello.generation} [{config.app.target}]")
    os.environ["ASGIRI_WORKER_SLOT"] = str(hello.slot)
    os.environ["ASGIRI_WORKER_ID"] = str(hello.worker_id)
    os.environ["ASGIRI_GENERATION"] = str(hello.generation)
    process.raise_file_limit()
    if config.workers.cpu_affinity:
        process.pin(hello.slot)
    _configure_logs(config, "admin" if admin else "worker")
    return config


def configure_mold(hello: MoldHello) -> Config:
    """Do the same for a mold, as far as it is the same for all its workers."""
    config = _read_config(hello.config)
    setproctitle(f"asgiri: mold gen {hello.generation} [{config.app.target}]")
    os.environ["ASGIRI_GENERATION"] = str(hello.generation)
    process.raise_file_limit()
    _configure_logs(config, "worker")
    return config


def _configure_logs(config: Config, role: logs.Role) -> None:
    if config.log.config:
        add_folder(config.app)  # it may name classes of the application
    try:
        logs.configure(config.log, role)
    except ConfigError as error:
        text = f"--log-config {error.value}: {error.remedy}"
        raise BootError("config", text, "", ExitCode.RUNTIME) from None
    except StartError as error:
        raise BootError("config", str(error), "", ExitCode.RUNTIME) from None


def _read_config(document: Mapping[str, Any]) -> Config:
    try:
        return Config.from_json(document)
    except Exception as error:  # a master that took over may run other code than ours
        raise BootError(
            "config", f"configuration: {error}", traceback.format_exc(), ExitCode.RUNTIME
        ) from None


def load_tls(config: Config) -> ServerTls | None:
    """Load the certificates, if TCP speaks TLS."""
    if not config.speaks_tls:
        return None
    from asgiri.worker.transport.tls import ServerTls, TlsError  # noqa: PLC0415  (import_protocols)

    try:
        return ServerTls(config.tls, config.http)
    except TlsError as error:
        raise BootError("tls", str(error), "", ExitCode.RUNTIME) from None


def import_protocols(config: Config) -> None:
    """Import what few workers need: aioquic, cryptography and what is built on them weigh 13 MiB
    and take 90 ms. Before the application, whose folder may have modules of these names.
    """
    if config.speaks_tls:
        import asgiri.worker.transport.tls  # noqa: PLC0415
    if config.http.http3:
        import asgiri.worker.transport.quic  # noqa: F401, PLC0415


def new_event_loop(config: Config) -> asyncio.AbstractEventLoop:
    """Make the event loop that the configuration names."""
    return event_loop_maker(config)()


def event_loop_maker(config: Config) -> Callable[[], asyncio.AbstractEventLoop]:
    """Import the event loop that the configuration names. Makes none."""
    if config.app.loop == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop  # noqa: PLC0415  (not on every platform)
    except ImportError:
        fault = "is not installed"
    else:
        fault = _fault_of_libuv()
        if not fault:
            return cast(Callable[[], asyncio.AbstractEventLoop], uvloop.new_event_loop)
    if config.app.loop == "uvloop":
        raise BootError("config", f"--loop uvloop: {fault}; leave it out", "", ExitCode.RUNTIME)
    return asyncio.new_event_loop


def _fault_of_libuv() -> str:
    """Why uvloop cannot run here: libuv wakes up by an eventfd, which a sandbox may refuse."""
    if sys.platform == "linux":
        try:
            os.close(os.eventfd(0))
        except OSError as error:
            return f"needs an eventfd: {error.strerror}"
    return ""


def import_application(config: Config) -> LoadedApplication:
    """Import the application, last of all: its folder comes first on sys.path from here on."""
    if config.reload.enabled:
        # Compiled files are known by their source's size and the second in which it was written:
        # of two changes in one second, the second one would be taken for the first.
        sys.dont_write_bytecode = True
    try:
        return load(config.app)
    except LoadError as error:
        raise BootError("import", error.summary, error.traceback, ExitCode.APP_FAILED) from None
