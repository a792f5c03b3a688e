"""Answers that nobody takes: the worker keeps so much of them and no more."""

from __future__ import annotations

import asyncio

from asgiri.config import FlowConfig
from asgiri.ipc.scoreboard import Cell, Refusal
from asgiri.worker.transport.unsent import (
    PAUSE,
    REQUESTS_BEGUN,
    SETTLE_TURNS,
    UnsentAnswers,
)
from tests.support.apps import app
from tests.support.client import request
from tests.support.http2_client import Http2Connection
from tests.support.http3_client import Http3Connection
from tests.support.quic_worker import quic_worker
from tests.support.stream import ByteStream
from tests.support.worker import serve_app

LIMIT = 1 << 20


class Connection:
    """Keeps `size` bytes for a peer that takes nothing since `since`."""

    def __init__(self, kept: UnsentAnswers, size: int, since: float) -> None:
        self.kept = kept
        self.since = since
        kept.report(self, size)

    def give_up_stalled(self, now: float, patience: float) -> None:
        if self.since + patience <= now:
            self.kept.report(self, 0)


class Scene:
    def __init__(self, limit: int) -> None:
        self.now = 100.0
        self.soon: list = []
        self.later: list = []
        self.reliefs = 0
        self.kept = UnsentAnswers(
            limit,
            now=lambda: self.now,
            soon=self.soon.append,
            later=lambda delay, call: self.later.append((delay, call)),
            relieved=self.relieved,
        )

    def relieved(self) -> None:
        self.reliefs += 1

    def turn(self) -> None:
        calls, self.soon[:] = list(self.soon), []
        for call in calls:
            call()


def test_below_the_limit_nobody_is_given_up():
    scene = Scene(100)
    for _ in range(10):
        Connection(scene.kept, 10, 0.0)
    assert (scene.kept.total, scene.soon) == (100, [])


def test_above_it_those_go_first_that_have_taken_nothing_for_longest():
    scene = Scene(100)
    slow = Connection(scene.kept, 30, scene.now)
    stalled = [Connection(scene.kept, 30, scene.now - age) for age in (9.0, 3.0, 0.6)]
    scene.turn()
    assert slow in scene.kept._sizes
    assert stalled[0] not in scene.kept._sizes
    assert stalled[1] not in scene.kept._sizes
    assert stalled[2] in scene.kept._sizes
    assert (scene.kept.total, scene.reliefs) == (60, 2)


def test_of_those_the_largest():
    scene = Scene(100)
    small = [Connection(scene.kept, 10, 0.0) for _ in range(6)]
    large = Connection(scene.kept, 50, 0.0)
    scene.turn()
    assert set(scene.kept._sizes) == set(small)
    assert large not in scene.kept._sizes


def test_what_is_on_its_way_is_not_looked_at_again_at_once():
    scene = Scene(100)
    moving = Connection(scene.kept, 101, scene.now + 1)
    for _ in range(SETTLE_TURNS + 1):
        scene.turn()
    scene.kept.report(moving, 102)
    assert scene.soon == []
    ((delay, again),) = scene.later
    scene.now += delay
    again()
    assert (delay, scene.kept.total, scene.reliefs) == (PAUSE, 0, 1)
    scene.kept.report(moving, 50)
    assert len(scene.later) == 1


def test_requests_that_begin_in_great_numbers_get_turns_of_the_loop():
    scene = Scene(100)
    for _ in range(REQUESTS_BEGUN - 1):
        scene.kept.begun()
    assert not scene.kept.is_settling
    scene.kept.begun()
    for _ in range(SETTLE_TURNS):
        assert scene.kept.is_settling
        scene.turn()
    assert not scene.kept.is_settling
    assert scene.soon == []


async def test_http2_streams_without_a_window_are_broken_off():
    async with serve_app(app, flow={"max_unsent": LIMIT}) as worker:
        connections = [
            await Http2Connection.connect(*worker.address, stream_window=0) for _ in range(10)
        ]
        await asyncio.gather(
            *(
                connection.start("GET", "/bytes?size=9999999")
                for connection in connections
                for _ in range(20)
            )
        )
        kept = worker.services.unsent
        await worker.wait_until(
            lambda: worker.refusals.get("http2_stalled", 0) > 180 and kept.total <= LIMIT
        )
        assert worker.refusals["unsent_limit"] >= 9
        other = await Http2Connection.connect(*worker.address)
        assert len((await request(other, "GET", "/bytes?size=9999999")).body) == 9999999
        for connection in (*connections, other):
            await connection.close()
        await worker.wait_until(lambda: not worker.services.sessions)
        assert kept.total == 0


async def test_http1_readers_that_stand_still_are_broken_off():
    async with serve_app(app, flow={"max_unsent": LIMIT}) as worker:
        streams = [
            await ByteStream.connect(*worker.address, receive_buffer=4096) for _ in range(30)
        ]
        for stream in streams:
            await stream.write(b"GET /bytes?size=99999999 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        kept = worker.services.unsent
        await worker.wait_until(
            lambda: (
                worker.count(Cell.REQUESTS_HTTP1) == 30
                and worker.refusals.get("unsent_limit", 0) > 0
                and kept.total <= LIMIT
            )
        )
        assert worker.refusals["write_timeout"] == worker.refusals["unsent_limit"]
        for stream in streams:
            stream.abort()
        await worker.wait_until(lambda: not worker.services.sessions)
        assert kept.total == 0


async def test_http3_streams_without_credit_are_broken_off():
    async with quic_worker(app, flow=FlowConfig(max_unsent=LIMIT)) as worker:
        connection = await Http3Connection.connect("127.0.0.1", worker.port, stream_window=0)
        for _ in range(40):
            await connection.start("GET", "/bytes?size=9999999")
        async with asyncio.timeout(30):
            while not worker.refusals(Refusal.UNSENT_LIMIT):
                await connection.ping()
        assert worker.refusals(Refusal.HTTP3_STALLED) > 0
        assert worker.services.unsent.total <= LIMIT
        await connection.close()
