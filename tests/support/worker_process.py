"""A real worker process, with the test as its master.

    async with spawn_worker("tests.support.apps:app") as worker:   # said hello, not yet ready
        await worker.wait(Ready)
        client = await worker.connect()

The test holds what the master would: control channel, connection channel, segment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from asgiri.errors import ChannelClosedError
from asgiri.ipc.channel import ConnectionChannel, ControlChannel
from asgiri.ipc.messages import Hello, ListenerInfo, Message
from asgiri.ipc.scoreboard import Cell, Scoreboard
from asgiri.ipc.segment import Segment
from tests.support.worker import Connection, make_config

PROJECT = Path(__file__).parents[2]
PATIENCE = 20.0
"""Longest wait for anything the worker should do, in seconds."""

M = TypeVar("M", bound=Message)


class WorkerProcess:
    """One worker, started by the test."""

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.control, theirs = ControlChannel.pair()
        self.connections, self._connections_end = ConnectionChannel.pair()
        self.segment = Segment.create(0)
        self.scoreboard = Scoreboard(self.segment.scoreboard)
        self.messages: list[Message] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        self.process = subprocess.Popen(
            [*command, sys.executable, "-P", "-m", "asgiri.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
        )
        theirs.close()

    def say_hello(self, config: dict[str, Any], *, master_pid: int, tls: bool) -> None:
        listener = ListenerInfo(0, "tcp", "127.0.0.1", 80, "", tls)
        hello = Hello(77, 3, 2, config, None, (listener,), None, False, master_pid)
        sent = self.control.send(hello, [self._connections_end.fileno(), self.segment.fd])
        assert sent

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode()

    def count(self, cell: Cell) -> int:
        return self.scoreboard.get(cell)

    # Talking to it

    async def wait(self, kind: type[M]) -> M:
        """The next message of this kind; others are kept in `messages`."""
        async with asyncio.timeout(PATIENCE):
            while True:
                if (message := self._receive()) is None:
                    await asyncio.sleep(0.005)
                    continue
                self.messages.append(message)
                if isinstance(message, kind):
                    return message

    def _receive(self) -> Message | None:
        received = self.control.receive()
        return None if received is None else received[0]

    async def wait_exit(self) -> int:
        """Its exit status; what it has said until then is in `messages`."""
        async with asyncio.timeout(PATIENCE):
            while self.process.poll() is None:
                await asyncio.sleep(0.01)
        with contextlib.suppress(ChannelClosedError):
            while (message := self._receive()) is not None:
                self.messages.append(message)
        return self.process.returncode

    async def wait_until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.005)

    async def connect(self, **options: Any) -> Connection:
        """A client whose connection the worker was given."""
        client = self.hand_over(1)[0]
        reader, writer = await asyncio.open_connection(sock=client, **options)
        return Connection(reader, writer)

    def hand_over(self, count: int) -> list[socket.socket]:
        """Make connections and send the worker their server's ends, in one message."""
        with socket.create_server(("127.0.0.1", 0), backlog=count) as listening:
            clients = [socket.create_connection(listening.getsockname()) for _ in range(count)]
            accepted = [listening.accept()[0] for _ in range(count)]
        assert self.connections.send(bytes(count), [each.fileno() for each in accepted]) == count
        for each in accepted:
            each.close()
        for client in clients:
            client.setblocking(False)
        return clients

    def close(self) -> None:
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.process.wait()
        self.control.close()
        self.connections.close()
        self._connections_end.close()
        self.scoreboard.release()
        self.segment.close()
        self._log.close()


@contextlib.asynccontextmanager
async def spawn_worker(
    target: str = "tests.support.apps:app",
    *,
    command: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    master_pid: int | None = None,
    secure: bool = False,
    config: dict[str, Any] | None = None,
    **sections: dict[str, Any],
) -> AsyncIterator[WorkerProcess]:
    """Start a worker and say hello; `config` replaces the configuration made of `sections`."""
    sections["app"] = {"target": target, **sections.get("app", {})}
    worker = WorkerProcess(command, environment or {})
    try:
        worker.say_hello(
            make_config(**sections).to_json() if config is None else config,
            master_pid=os.getpid() if master_pid is None else master_pid,
            tls=secure,
        )
        yield worker
    except BaseException as error:
        error.add_note(f"log of the worker:\n{worker.log}")
        raise
    finally:
        worker.close()
