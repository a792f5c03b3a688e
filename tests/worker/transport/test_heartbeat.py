"""The loop says that it turns, and how late it is."""

import asyncio
import time

import pytest

from asgiri.ipc.scoreboard import PAGE_SIZE, Cell, Scoreboard
from asgiri.worker.asgi.application import Application
from asgiri.worker.runtime import make_services
from asgiri.worker.transport.heartbeat import (
    INTERVAL,
    MAIN_CELLS,
    STILL,
    WORKER_CELLS,
    Heartbeat,
    application_pulse,
)
from tests.support.worker import make_config

ON_BOTH_EVENT_LOOPS = True


class Beating:
    """A heartbeat on the running loop, with a parent that the test kills."""

    def __init__(self, cells=WORKER_CELLS):
        loop = asyncio.get_running_loop()
        self.scoreboard = Scoreboard(memoryview(bytearray(PAGE_SIZE)))
        self.services = make_services(
            Application(None, loop), config=make_config(), scoreboard=self.scoreboard, loop=loop
        )
        self.master_is_dead = False
        self.orphaned = []
        self.heartbeat = Heartbeat(
            loop,
            self.scoreboard,
            self.services.requests,
            orphaned=lambda: self.master_is_dead,
            on_orphaned=lambda: self.orphaned.append(self.count),
            each_beat=lambda: None,
            cells=cells,
        )

    @property
    def count(self):
        return self.scoreboard.get(Cell.BEAT_COUNT)

    async def wait_beats(self, number):
        until = self.count + number
        async with asyncio.timeout(10):
            while self.count < until:
                await asyncio.sleep(INTERVAL / 10)

    def close(self):
        self.heartbeat.close()
        self.services.deadlines.close()


@pytest.fixture
async def beating():
    made = Beating()
    yield made
    made.close()


async def test_first_beat_is_at_once(beating):
    assert beating.count == 1
    assert abs(beating.scoreboard.get(Cell.BEAT_NS) - time.monotonic_ns()) < 1e9
    assert beating.scoreboard.get(Cell.RSS_BYTES) > 1 << 20


async def test_beats_follow_and_carry_the_counters(beating):
    beating.services.requests.counters.app_errors += 1
    before = beating.scoreboard.get(Cell.BEAT_NS)
    await beating.wait_beats(2)
    assert beating.scoreboard.get(Cell.BEAT_NS) - before >= 2 * INTERVAL * 0.9e9
    assert beating.scoreboard.get(Cell.APP_ERRORS) == 1


async def test_blocked_loop_does_not_beat_and_is_late_afterwards(beating):
    await beating.wait_beats(1)
    before = beating.count
    time.sleep(4 * INTERVAL)
    assert beating.count == before
    await beating.wait_beats(1)
    assert beating.scoreboard.get(Cell.LAG_MAX_US) >= 2.5 * INTERVAL * 1e6
    assert beating.scoreboard.get(Cell.LAG_EWMA_US) > 0


async def test_average_of_the_lag_sinks_again(beating):
    await beating.wait_beats(1)
    time.sleep(4 * INTERVAL)
    await beating.wait_beats(1)
    late = beating.scoreboard.get(Cell.LAG_EWMA_US)
    await beating.wait_beats(4)
    assert beating.scoreboard.get(Cell.LAG_EWMA_US) < late


async def test_death_of_the_master_is_noticed_once(beating):
    await beating.wait_beats(1)
    assert beating.orphaned == []
    beating.master_is_dead = True
    await beating.wait_beats(3)
    assert len(beating.orphaned) == 1


async def test_date_of_responses_is_renewed(beating):
    dates = set()
    async with asyncio.timeout(10):
        while len(dates) < 2:
            dates.add(dict(beating.services.requests.defaults.fields)[b"date"])
            await asyncio.sleep(INTERVAL)


async def test_closed_heartbeat_publishes_a_last_time(beating):
    beating.services.requests.counters.app_errors += 1
    before = beating.count
    beating.heartbeat.close()
    assert beating.scoreboard.get(Cell.APP_ERRORS) == 1
    await asyncio.sleep(2 * INTERVAL)
    assert beating.count == before


# Beside an application with a loop of its own


async def test_main_loop_beats_elsewhere_beside_the_applications_loop():
    beating = Beating(MAIN_CELLS)
    try:
        assert beating.scoreboard.get(Cell.BEAT_NS) == 0
        assert abs(beating.scoreboard.get(Cell.MAIN_BEAT_NS) - time.monotonic_ns()) < 1e9
        beating.services.requests.counters.app_errors += 1
        async with asyncio.timeout(10):
            while not beating.scoreboard.get(Cell.APP_ERRORS):
                await asyncio.sleep(INTERVAL / 10)
        assert beating.scoreboard.get(Cell.MAIN_BEAT_COUNT) > 1
    finally:
        beating.close()


async def test_applications_loop_beats_for_the_worker_while_the_main_loop_does():
    scoreboard = Scoreboard(memoryview(bytearray(PAGE_SIZE)))
    scoreboard.set(Cell.MAIN_BEAT_NS, time.monotonic_ns())
    pulse = application_pulse(asyncio.get_running_loop(), scoreboard)
    try:
        assert abs(scoreboard.get(Cell.BEAT_NS) - time.monotonic_ns()) < 1e9
        assert scoreboard.get(Cell.MAIN_BEAT_COUNT) == 0
        scoreboard.set(Cell.MAIN_BEAT_NS, time.monotonic_ns() - int(2 * STILL * 1e9))
        before = scoreboard.get(Cell.BEAT_COUNT)
        await asyncio.sleep(3 * INTERVAL)
        assert scoreboard.get(Cell.BEAT_COUNT) == before
        scoreboard.set(Cell.MAIN_BEAT_NS, time.monotonic_ns())
        async with asyncio.timeout(10):
            while scoreboard.get(Cell.BEAT_COUNT) == before:
                await asyncio.sleep(INTERVAL / 10)
    finally:
        pulse.close()
