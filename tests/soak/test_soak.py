"""The soak in short, and that it would notice."""

from __future__ import annotations

import dataclasses
import time

import pytest

from tests.soak import census
from tests.soak.census import Census, Usage
from tests.soak.crowd import Blame
from tests.soak.run import Plan, soak
from tests.support.load import Http3, KeepAlive
from tests.support.server import serve


@pytest.mark.slow
async def test_a_short_soak_fails_nobody_and_leaves_nothing():
    report = await soak(Plan(seconds=0, cycle=0, answers=1, worker_stopped=0.3))
    print("\n".join(report.lines()))
    assert not report.complaints
    assert set(report.injected.values()) == {1}
    assert len(report.injected) == 7


@pytest.fixture
async def blame():
    blame = Blame()
    blame.killed(7)
    return blame


def client(kind: type, *, worker: int | None, opened: float, port: int = 1):
    now = time.monotonic()
    found = kind(name="client", server=None, port=port)
    found.worker, found.opened, found.asked = worker, now + opened, now + opened
    return found


async def test_a_kill_excuses_whom_the_worker_served_and_nobody_else(blame: Blame):
    excused = [
        client(Http3, worker=7, opened=-1),
        client(Http3, worker=None, opened=-1),
        client(KeepAlive, worker=8, opened=-1),  # may have moved to the other one
    ]
    blamed = [
        client(Http3, worker=8, opened=-1),
        client(Http3, worker=7, opened=1),
        client(Http3, worker=None, opened=1),
        client(KeepAlive, worker=8, opened=1),
    ]
    assert all(map(blame.excuse, excused))
    assert not any(map(blame.excuse, blamed))


async def test_a_cut_excuses_who_went_that_way(blame: Blame):
    blame.cut(9)
    assert blame.excuse(client(Http3, worker=8, opened=-1, port=9))
    assert not blame.excuse(client(Http3, worker=8, opened=-1, port=1))
    assert not blame.excuse(client(Http3, worker=8, opened=1, port=9))


async def test_a_client_whose_failure_nothing_explains_has_failed():
    found = client(Http3, worker=8, opened=-1)
    found.excuse = Blame().excuse
    found.fail(EOFError("gone"))
    assert found.failures == ["client: EOFError: gone"]
    assert not found.excused


USUAL = Usage(descriptors=20, memory=40 << 20, tasks=3, objects=1000)
LOOK = Census(at=0.0, master=USUAL, admin=USUAL, workers={1: USUAL, 2: USUAL})


def test_what_stays_as_it_was_has_not_grown():
    other = dataclasses.replace(LOOK, workers={3: dataclasses.replace(USUAL, tasks=4)})
    assert census.growth([LOOK, other]) == []


@pytest.mark.parametrize(
    "more",
    [{"descriptors": 24}, {"memory": 80 << 20}, {"tasks": 6}],
    ids=["descriptors", "memory", "tasks"],
)
def test_growth_is_noticed(more: dict[str, int]):
    usage = dataclasses.replace(USUAL, **more)
    assert census.growth([LOOK, dataclasses.replace(LOOK, workers={3: usage})])
    if "tasks" not in more:
        assert census.growth([LOOK, dataclasses.replace(LOOK, master=usage)])


@pytest.mark.slow
async def test_this_process_is_measured():
    async with serve("tests.soak.app:app", workers=1) as server:
        look = await census.take(server, server.pid, server.worker_pids)
        assert look.workers[server.workers[0]].tasks
        assert look.master.memory > 1 << 20
