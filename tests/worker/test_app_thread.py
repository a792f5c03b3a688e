"""A worker process whose application runs in a thread of its own, with the test as its master."""

import asyncio
import signal
import time

import pytest

from asgiri.ipc.messages import Drain, Drained, Failed, Ready
from asgiri.ipc.scoreboard import Cell, WorkerState
from tests.support.worker_process import spawn_worker

pytestmark = pytest.mark.slow

APP = "tests.worker.runtime_apps:"


def threaded(target="tests.support.apps:app", **options):
    return spawn_worker(target, workers={"app_thread": True}, **options)


async def ask(worker, target, *fields):
    async with await worker.connect() as client:
        client.get(target, *fields)
        return (await client.read_response())[2].decode()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_application_finds_its_own_loop_from_its_import_on(loop):
    async with threaded(APP + "surroundings", app={"loop": loop}) as worker:
        await worker.wait(Ready)
        facts = await ask(worker, "/")
        assert "loop_at_import=True running_at_import=False" in facts
        assert f"loop={loop}" in facts


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_application_may_start_programs(loop):
    async with threaded(APP + "awaits_a_program", app={"loop": loop}) as worker:
        await worker.wait(Ready)
        assert await ask(worker, "/") == "hello 3"


async def test_lifespan_spans_the_workers_life(tmp_path):
    notes = tmp_path / "notes"
    async with threaded(environment={"TEST_LIFESPAN_FILE": str(notes)}) as worker:
        await worker.wait(Ready)
        worker.control.send(Drain(30))
        await worker.wait(Drained)
        assert await worker.wait_exit() == 0
        assert [line.split()[0] for line in notes.read_text().splitlines()] == [
            "startup",
            "shutdown",
        ]


async def test_failing_lifespan_is_told():
    async with threaded("tests.support.apps:failing_lifespan") as worker:
        assert "no database" in (await worker.wait(Failed)).summary
        assert await worker.wait_exit() == 3


async def test_while_a_handler_computes_only_the_applications_loop_stands_still():
    async with threaded(APP + "blocks_first") as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/block-for-ever")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            await worker.wait_until(lambda: age(worker.count(Cell.BEAT_NS)) > 0.3)
            assert age(worker.count(Cell.MAIN_BEAT_NS)) < 0.3
            before = worker.count(Cell.MAIN_BEAT_COUNT)
            await worker.wait_until(lambda: worker.count(Cell.MAIN_BEAT_COUNT) > before + 1)


def age(beat_ns):
    return (time.monotonic_ns() - beat_ns) / 1e9


async def test_meanwhile_connections_stay_where_the_master_can_take_them_back():
    async with threaded(APP + "blocks_first") as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/block-for-ever")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            late = worker.hand_over(3)
            before = worker.count(Cell.MAIN_BEAT_COUNT)
            await worker.wait_until(lambda: worker.count(Cell.MAIN_BEAT_COUNT) > before + 3)
            assert worker.count(Cell.TCP_ADOPTED) == 1
            assert len(worker._connections_end.recover()) == 3
            for each in late:
                each.close()


async def test_connections_that_nobody_takes_back_are_served_afterwards():
    async with threaded(APP + "blocks_first") as worker:
        await worker.wait(Ready)
        async with await worker.connect() as first:
            first.get("/block")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            assert await ask(worker, "/") == ""
            assert (await first.read_response())[0] == 200


async def test_a_response_that_takes_too_long_is_ended_in_time_although_its_handler_computes():
    async with threaded("tests.support.apps:app", http={"request_timeout": 0.5}) as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            began = time.monotonic()
            client.get("/block?milliseconds=20000")
            status, _, _ = await client.read_response()
            assert status == 504
            assert time.monotonic() - began < 10


async def test_a_request_whose_time_was_over_before_the_loop_came_to_it_is_never_begun(tmp_path):
    done = tmp_path / "done"
    async with threaded(
        APP + "notes_calls",
        http={"request_timeout": 1},
        environment={"BLOCK_UNTIL": str(done)},
    ) as worker:
        await worker.wait(Ready)
        async with await worker.connect() as blocking, await worker.connect() as late:
            # Both are adopted before the application's loop stands still.
            await worker.wait_until(lambda: worker.count(Cell.TCP_ADOPTED) == 2)
            blocking.get("/block")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            late.get("/late")
            assert (await late.read_response())[0] == 504
            assert (await blocking.read_response())[0] == 504
            done.touch()
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 0)
        assert "called: /block" in worker.log
        assert "called: /late" not in worker.log


async def test_drain_finishes_what_runs():
    async with threaded() as worker:
        await worker.wait(Ready)
        async with await worker.connect() as running:
            running.get("/sleep?milliseconds=300")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            worker.control.send(Drain(30))
            assert (await running.read_response())[0] == 200
        assert await worker.wait_exit() == 0
        assert worker.count(Cell.STATE) == WorkerState.DRAINED


async def test_drain_that_takes_too_long_cancels_what_runs():
    async with threaded() as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/sleep?milliseconds=60000")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            worker.control.send(Drain(0.2))
            assert (await client.read_response())[0] == 503
        assert await worker.wait_exit() == 0


async def test_worker_ends_in_order_although_its_application_stands_still():
    async with threaded(APP + "blocks_first") as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/block-for-ever")
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE))
            began = time.monotonic()
            worker.control.send(Drain(0.2))
            assert await worker.wait_exit() == 0
            assert time.monotonic() - began < 15
        assert isinstance(worker.messages[-1], Drained)
        assert "Task was destroyed" not in worker.log
        assert "exception" not in worker.log


async def test_tasks_left_by_the_application_are_cancelled():
    async with threaded(APP + "leaves_a_task") as worker:
        await worker.wait(Ready)
        await ask(worker, "/")
        worker.control.send(Drain(5))
        assert await worker.wait_exit() == 0
        assert "left task: cancelled" in worker.log


@pytest.mark.parametrize("app_thread", [False, True])
async def test_a_task_that_exits_ends_the_worker(app_thread):
    async with spawn_worker(APP + "exits_in_a_task", workers={"app_thread": app_thread}) as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/")
            await worker.wait_exit()
        assert worker.process.returncode == 7


async def test_sigabrt_prints_the_stacks_of_both_threads():
    async with threaded(APP + "blocks_first") as worker:
        await worker.wait(Ready)
        async with await worker.connect() as client:
            client.get("/block-for-ever")
            await worker.wait_until(lambda: "blocks" in worker.log)
            worker.process.send_signal(signal.SIGABRT)
            assert await worker.wait_exit() == -signal.SIGABRT
        assert "in block" in worker.log
        assert "in run_until_complete" in worker.log or "runtime.py" in worker.log


async def test_many_connections_at_once_are_all_adopted():
    async with threaded() as worker:
        await worker.wait(Ready)
        clients = [await worker.connect() for _ in range(200)]
        for client in clients:
            client.get("/hello")
        for response in await asyncio.gather(*(client.read_response() for client in clients)):
            assert response[0] == 200
        for client in clients:
            client.reset()
        await worker.wait_until(lambda: worker.count(Cell.TCP_CLOSED) == 200)
