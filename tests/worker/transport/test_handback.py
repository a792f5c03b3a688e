"""Connections that a worker gives back between requests, with the test as their master: what moves,
what stays, and that nothing is lost or read twice on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asgiri.ipc.channel import OVERDUE, ConnectionChannel
from asgiri.ipc.scoreboard import PAGE_SIZE, AssignmentCell, Assignments, Cell
from asgiri.worker.transport.handback import HandBack
from tests.support.worker import PATIENCE, AppWorker, Connection, DirectLoop, serve_app

ON_BOTH_EVENT_LOOPS = True
WITHOUT_TRANSPORTS_TOO = True


@dataclass
class Scene:
    """A worker and its master's ends."""

    worker: AppWorker
    channel: ConnectionChannel
    assignments: Assignments
    theirs: ConnectionChannel

    def want(self, wanted: bool = True) -> None:
        self.assignments.set(AssignmentCell.HAND_BACK, int(wanted))

    async def given_back(self) -> tuple[int, int, int]:
        """The next (listener, descriptor, age)."""
        received: list[tuple[int, int, int]] = []
        async with asyncio.timeout(PATIENCE):
            while not received:
                await asyncio.sleep(0.001)
                received = self.channel.receive_aged()
        (one,) = received
        return one

    async def cycle(self, client: Connection, fd: int | None = None) -> int:
        """One request, on a connection that the worker is given for it; where it is after it."""
        if fd is not None:
            self.worker.endpoint.adopt(
                0, fd, directly=isinstance(asyncio.get_running_loop(), DirectLoop)
            )
        client.get("/")
        assert (await client.read_response())[0] == 200
        return (await self.given_back())[1]

    def handed_back(self) -> int:
        return self.worker.count(Cell.TCP_HANDED_BACK)


@contextlib.asynccontextmanager
async def scene(app: Any, **options: Any) -> AsyncIterator[Scene]:
    async with serve_app(app, **options) as worker:
        ours, theirs = ConnectionChannel.pair()
        assignments = Assignments(memoryview(bytearray(PAGE_SIZE)))
        board = worker.services.scoreboard
        worker.services.hand_back = HandBack(theirs, assignments, board)
        made = Scene(worker, ours, assignments, theirs)
        made.want()
        try:
            yield made
        finally:
            made.want(False)
            if ours.fileno() >= 0:
                for _, fd in ours.recover():
                    os.close(fd)
            ours.close()
            theirs.close()
            # `serve_app` ends with adopted == closed; what moved on is closed elsewhere.
            board.add(Cell.TCP_CLOSED, board.get(Cell.TCP_HANDED_BACK))


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    body = f"{scope['client']}".encode()
    fields = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def test_a_connection_moves_between_requests_and_its_client_sees_nothing_of_it():
    async with scene(hello) as it, await it.worker.connect() as client:
        fd = await it.cycle(client)
        for _ in range(20):
            fd = await it.cycle(client, fd)
        os.close(fd)
        assert await client.read_to_end() == b""
        assert it.worker.count(Cell.TCP_ADOPTED) == it.handed_back() == 21
        assert it.worker.count(Cell.TCP_OPEN) == 0
        await it.worker.wait_until(lambda: not it.worker.services.sessions)
        assert it.worker.count(Cell.TCP_CLOSED) == 0


async def test_the_application_sees_the_same_client_wherever_it_is_served():
    async with scene(hello) as it, await it.worker.connect() as client:
        fd = await it.cycle(client)
        it.worker.endpoint.adopt(0, fd)
        client.get("/")
        _, _, body = await client.read_response()
        assert body.decode() == str(client.writer.get_extra_info("sockname"))
        os.close((await it.given_back())[1])


async def test_connections_stay_while_the_master_does_not_want_them():
    async with scene(hello) as it, await it.worker.connect() as client:
        it.want(False)
        for _ in range(5):
            client.get("/")
            assert (await client.read_response())[0] == 200
        assert it.channel.receive() == []
        assert it.worker.count(Cell.TCP_OPEN) == 1
        it.want()
        os.close(await it.cycle(client))


async def test_pipelined_requests_are_all_answered_before_it_moves():
    async with scene(hello) as it, await it.worker.connect() as client:
        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        client.writer.write(request * 7)
        for _ in range(7):
            assert (await client.read_response())[0] == 200
        os.close((await it.given_back())[1])
        assert it.handed_back() == 1


async def test_a_half_read_request_stays():
    async with scene(hello) as it, await it.worker.connect() as client:
        client.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /second HT")
        assert (await client.read_response())[0] == 200
        async with await it.worker.connect() as other:
            os.close(await it.cycle(other))  # whatever was about to move has moved by now
        assert it.worker.count(Cell.TCP_OPEN) == 1
        client.writer.write(b"TP/1.1\r\nHost: x\r\n\r\n")
        assert (await client.read_response())[0] == 200
        os.close((await it.given_back())[1])


async def test_bytes_that_come_on_the_way_wait_in_the_socket():
    async with scene(hello) as it, await it.worker.connect() as client:
        fd = await it.cycle(client)
        client.get("/while-it-was-the-masters")
        await client.writer.drain()
        with socket.socket(fileno=os.dup(fd)) as peeking:
            peeking.setblocking(True)
            assert peeking.recv(7, socket.MSG_PEEK) == b"GET /wh"
        it.worker.endpoint.adopt(0, fd)
        assert (await client.read_response())[0] == 200
        os.close((await it.given_back())[1])


async def test_a_response_that_its_client_does_not_take_keeps_the_connection_here():
    size = 8 << 20

    async def large(scope: Any, receive: Any, send: Any) -> None:
        fields = [(b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": bytes(size)})

    async with scene(large) as it, await it.worker.connect() as client:
        client.get("/")
        status, fields = await client.read_head()
        assert status == 200
        assert it.channel.receive() == []
        assert len(await client.read_body(fields)) == size
        assert it.worker.count(Cell.TCP_CLOSED) == 0


async def test_a_websocket_stays():
    async with scene(hello) as it, await it.worker.connect() as client:
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", key)
        client.get("/", *upgrade)
        assert (await client.read_head())[0] == 101
        async with await it.worker.connect() as other:
            os.close(await it.cycle(other))
        assert it.worker.count(Cell.TCP_OPEN) == 1
        client.reset()
        await it.worker.wait_until(lambda: it.worker.count(Cell.TCP_OPEN) == 0)
        assert it.handed_back() == 1


async def test_an_upgrade_to_http2_stays():
    async with scene(hello) as it, await it.worker.connect() as client:
        client.get("/", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: ")
        assert (await client.read_head())[0] == 101
        async with await it.worker.connect() as other:
            os.close(await it.cycle(other))
        assert it.worker.count(Cell.TCP_OPEN) == 1


async def test_tls_stays():
    async with scene(hello, secure=True) as it, await it.worker.connect() as client:
        for _ in range(3):
            client.get("/")
            assert (await client.read_response())[0] == 200
        assert it.handed_back() == 0
        assert it.channel.receive() == []


async def test_unix_connections_move_too(tmp_path: Path):
    path = str(tmp_path / "a.sock")
    async with scene(hello, unix_path=path) as it, await it.worker.connect() as client:
        fd = await it.cycle(client)
        fd = await it.cycle(client, fd)
        os.close(fd)


async def test_when_the_channel_is_full_connections_are_served_on_here():
    async with scene(hello) as it, await it.worker.connect() as client:
        while it.theirs.send(b"\0", [0]):
            pass
        for _ in range(3):
            client.get("/")
            assert (await client.read_response())[0] == 200
        assert it.handed_back() == 0
        for _, fd in it.channel.recover():
            os.close(fd)
        os.close(await it.cycle(client))


async def test_when_the_master_is_gone_connections_are_served_on_here():
    async with scene(hello) as it, await it.worker.connect() as client:
        it.channel.close()
        for _ in range(3):
            client.get("/")
            assert (await client.read_response())[0] == 200
        assert it.handed_back() == 0


async def test_a_client_that_goes_is_not_handed_back():
    async with scene(hello) as it, await it.worker.connect() as client:
        client.get("/", "Connection: close")
        assert (await client.read_response())[0] == 200
        assert await client.read_to_end() == b""
        assert it.handed_back() == 0


async def test_what_was_idle_for_long_says_so():
    async with (
        scene(hello, http1={"keep_alive": 30.0}) as it,
        await it.worker.connect() as client,
    ):
        it.want(False)
        client.get("/")
        assert (await client.read_response())[0] == 200
        (session,) = it.worker.services.sessions
        session.deadline -= 15.0  # half of its time is over
        it.want()
        session.hand_back_if_idle()
        listener, fd, age = await it.given_back()
        assert (listener, age) == (0, pytest.approx(127, abs=2))
        os.close(fd)


async def test_a_worker_that_drains_gives_away_what_is_idle_and_what_has_said_nothing():
    async with (
        scene(hello) as it,
        await it.worker.connect() as idle,
        await it.worker.connect() as silent,
    ):
        it.want(False)
        idle.get("/")
        assert (await idle.read_response())[0] == 200
        await it.worker.wait_until(lambda: it.worker.count(Cell.TCP_OPEN) == 2)
        it.want()
        it.worker.endpoint.hand_back_unopened()
        it.worker.drain()
        moved = [(await it.given_back())[1] for _ in range(2)]
        await it.worker.wait_until(lambda: not it.worker.services.sessions)
        for fd in moved:
            os.close(fd)
        assert await silent.read_to_end() == b""


async def test_a_request_that_waited_too_long_in_the_master_is_refused_and_the_next_served():
    async with scene(hello) as it, await it.worker.connect() as client:
        fd = await it.cycle(client)
        it.worker.endpoint.adopt(OVERDUE, fd)
        client.get("/")
        status, fields, _ = await client.read_response()
        assert (status, fields["retry-after"]) == (503, "1")
        assert it.worker.refusals == {"concurrency_limit": 1}
        fd = (await it.given_back())[1]
        os.close(await it.cycle(client, fd))


async def test_a_connection_lost_on_the_way_is_just_closed():
    async with scene(hello) as it:
        client = await it.worker.connect()
        fd = await it.cycle(client)
        client.reset()
        await asyncio.sleep(0)
        it.worker.endpoint.adopt(0, fd)
        await it.worker.wait_until(lambda: it.worker.count(Cell.TCP_OPEN) == 0)
        assert it.worker.count(Cell.TCP_CLOSED) == 1
