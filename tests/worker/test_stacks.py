"""Where a worker stands: its tasks by the coroutines that wait for each other."""

from __future__ import annotations

import asyncio

from asgiri.worker.stacks import MAX_DEPTH, MAX_TASKS, chain, describe_tasks


async def inner(event: asyncio.Event) -> None:
    await event.wait()


async def outer(event: asyncio.Event) -> None:
    await inner(event)


async def test_a_task_is_told_by_the_coroutines_that_wait_for_each_other():
    event = asyncio.Event()
    task = asyncio.create_task(outer(event), name="client 7")
    await asyncio.sleep(0)
    lines = list(describe_tasks([task]))
    assert lines[:2] == ["Tasks: 1", "Task client 7 (most recent call last):"]
    assert [line.rpartition(" ")[2] for line in lines[2:]] == ["outer", "inner", "wait"]
    assert all(f'"{__file__}"' in line for line in lines[2:4])
    event.set()
    await task
    assert list(chain(task.get_coro())) == []


async def test_generators_are_followed_too():
    event = asyncio.Event()

    async def numbers():
        await inner(event)
        yield 1

    async def count() -> None:
        async for _ in numbers():
            pass

    task = asyncio.create_task(count())
    await asyncio.sleep(0)
    assert next(code.co_name for code, _ in chain(task.get_coro())) == "count"
    event.set()
    await task


async def test_very_many_tasks_and_very_deep_ones_are_cut():
    event = asyncio.Event()

    async def deep(levels: int) -> None:
        await (deep(levels - 1) if levels else event.wait())

    tasks = [asyncio.create_task(outer(event)) for _ in range(MAX_TASKS + 3)]
    deepest = asyncio.create_task(deep(2 * MAX_DEPTH))
    await asyncio.sleep(0)
    lines = list(describe_tasks(tasks))
    assert sum(line.startswith("Task ") for line in lines) == MAX_TASKS
    assert lines[-1] == "and 3 more"
    assert len(list(chain(deepest.get_coro()))) == MAX_DEPTH
    event.set()
    await asyncio.gather(*tasks, deepest)
