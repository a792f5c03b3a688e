"""Logs that cannot be written: serving goes on, and what is missing is counted."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from asgiri.ctl import ControlClient
from asgiri.status import ProcessTable, build_status, read_board
from tests.support.client import request
from tests.support.http1_client import Http1Connection
from tests.support.server import PATIENCE, Server, ServerOptions

pytestmark = [pytest.mark.slow, pytest.mark.linux]

SMALLEST_PIPE = 4096


class UnheardServer:
    """A server whose log tells nothing, so that its listener is ours and its control socket is
    asked instead."""

    def __init__(self, server: Server, address: tuple[str, int], control_socket: Path) -> None:
        self.server = server
        self._address = address
        self._control_socket = control_socket

    async def ask(self, count: int) -> None:
        """Requests on one connection; the first waits in the backlog until there are workers."""
        async with asyncio.timeout(PATIENCE):
            connection = await Http1Connection.connect(*self._address)
            for _ in range(count):
                assert (await request(connection, "GET", "/hello")).status == 200
            await connection.close()

    async def wait_status(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """The first status of which this is true."""
        return await asyncio.to_thread(self._wait_status, condition)

    def _wait_status(self, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        with contextlib.closing(ControlClient(self._control_socket)) as client:
            with client.watch() as reader:
                while True:
                    snapshot = read_board(reader)
                    status = snapshot and build_status(snapshot, ProcessTable())
                    if status and condition(status):
                        return status
                    assert time.monotonic() < deadline, status


@contextlib.asynccontextmanager
async def serve_unheard(
    tmp_path: Path, redirections: str, pass_fds: Sequence[int] = (), **options: Any
) -> AsyncIterator[UnheardServer]:
    path = tmp_path / "control.sock"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        described = ServerOptions(
            workers=2,
            options={
                "bind": f"fd://{listener.fileno()}",
                "access_log": True,
                "control_socket": path,
                **options,
            },
        )
        command = ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", *described.command()]
        server = Server(command, described, (listener.fileno(), *pass_fds))
        try:
            yield UnheardServer(server, listener.getsockname(), path)
        except BaseException:
            server._destroy()
            raise
    await asyncio.to_thread(server.stop)


async def live_through_a_day(unheard: UnheardServer) -> None:
    """Requests, a reload and the death of a worker."""
    await unheard.ask(50)
    unheard.server.send_signal(signal.SIGHUP)
    await unheard.wait_status(lambda status: status["generation"] == 2)
    await unheard.ask(50)
    status = await unheard.wait_status(lambda status: status["counts"]["ready"] == 2)
    killed = status["workers"][0]["pid"]
    os.kill(killed, signal.SIGKILL)
    await unheard.wait_status(
        lambda status: (
            status["counts"]["ready"] == 2
            and killed not in [worker["pid"] for worker in status["workers"]]
        )
    )
    await unheard.ask(50)


async def lines_dropped_everywhere(unheard: UnheardServer) -> None:
    """Also the metrics `asgiri_log_lines_dropped_total` are made of these."""
    await unheard.wait_status(
        lambda status: (
            status["master"]["log_lines_dropped"] > 0
            and status["totals"]["log_lines_dropped"] >= 50
        )
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
async def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path):
    files = {"error_logfile": "/dev/full", "access_logfile": "/dev/full"}
    async with serve_unheard(tmp_path, "", **files) as unheard:
        await live_through_a_day(unheard)
        unheard.server.send_signal(signal.SIGUSR1)
        await unheard.ask(1)
        await lines_dropped_everywhere(unheard)


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
async def test_closed_standard_streams_cost_nothing(tmp_path: Path, closed: str):
    """Their numbers must not be given to sockets, in the master or in workers."""
    async with serve_unheard(tmp_path, closed) as unheard:
        await live_through_a_day(unheard)
        status = await unheard.wait_status(lambda _: True)
        for pid in [unheard.server.pid, *(worker["pid"] for worker in status["workers"])]:
            assert os.readlink(f"/proc/{pid}/fd/2") == "/dev/null"


async def test_a_pipe_that_nobody_reads_costs_lines_and_nothing_else(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
    try:
        async with serve_unheard(tmp_path, f"1>{pipe} 2>&1") as unheard:
            await live_through_a_day(unheard)
            await lines_dropped_everywhere(unheard)
            os.read(reading, SMALLEST_PIPE)
            await unheard.ask(1)
            assert select.select([reading], [], [], PATIENCE)[0]
            assert b"GET /hello" in os.read(reading, SMALLEST_PIPE)
    finally:
        os.close(reading)
