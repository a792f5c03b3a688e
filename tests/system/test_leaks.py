"""Nothing piles up: descriptors of the master and of the workers, over connections and deaths."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.support.fetch import fetch, http1
from tests.support.http1_client import Http1Connection
from tests.support.server import Server, serve

pytestmark = pytest.mark.slow


SLACK = 3
"""What may be open at a moment: a spare, a connection that is just ending. A leak has hundreds."""


def descriptors(server: Server) -> dict[str, int]:
    pids = {"master": server.pid, **{f"worker {slot}": pid for slot, pid in server.workers.items()}}
    return {name: len(os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()}


async def assert_no_more(server: Server, before: dict[str, int]) -> None:
    """Connections close a moment after their clients, so look again before complaining."""
    for _ in range(500):
        more = {name: n - before[name] for name, n in descriptors(server).items()}
        if max(more.values()) <= SLACK:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"descriptors more than before: {more}")


async def test_connections_leave_no_descriptor():
    async with serve() as server:
        await asyncio.gather(*(fetch(server) for _ in range(8)))
        before = descriptors(server)
        for _ in range(50):
            await asyncio.gather(*(fetch(server) for _ in range(20)))
        await assert_no_more(server, before)


async def test_connections_that_end_badly_leave_no_descriptor():
    async with serve(tls=True) as server:
        await asyncio.gather(*(fetch(server) for _ in range(8)))
        before = descriptors(server)
        for _ in range(50):
            connection = await Http1Connection.connect("127.0.0.1", server.port)
            await connection.send(b"\x16\x03\x01rubbish")
            await connection.abort()
            async with http1(server) as secure:
                await secure.start("POST", "/echo", body=None)
                await secure.abort()
        await assert_no_more(server, before)


async def test_dead_workers_leave_no_descriptor_in_the_master():
    async with serve(tls=True, http3=True) as server:
        await fetch(server)
        before = descriptors(server)
        for _ in range(5):  # each has at least a channel, a segment, two counters and a pidfd
            pid = server.kill_worker(0)
            await server.wait_replaced(0, pid)
        await assert_no_more(server, before)
