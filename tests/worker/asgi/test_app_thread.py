"""The application's thread, and what the two threads have each other do."""

import asyncio
import contextlib
import sys
import threading

import pytest

from asgiri.worker.asgi.app_thread import SWITCH_INTERVAL, TURN, AppThread, Mailbox

PATIENCE = 10.0


class CountingLoop:
    """An event loop that only remembers what it is to call."""

    def __init__(self):
        self.calls = []
        self.wakes = 0

    def call_soon_threadsafe(self, callback, context):
        self.wakes += 1
        self.calls.append(callback)

    def call_soon(self, callback, context):
        self.calls.append(callback)

    def turn(self):
        calls, self.calls = self.calls, []
        for callback in calls:
            callback()


@pytest.fixture
def loop():
    return CountingLoop()


@pytest.fixture
async def thread():
    interval = sys.getswitchinterval()
    made = AppThread(None, asyncio.new_event_loop(), asyncio.get_running_loop())
    made.start()
    yield made
    await made.stop(PATIENCE)
    sys.setswitchinterval(interval)
    assert made.loop.is_closed()


async def over_there(thread, function):
    """What it returns in the application's thread."""
    result = asyncio.get_running_loop().create_future()
    thread.to_app.post(lambda: thread.to_main.post(result.set_result, function()))
    return await asyncio.wait_for(result, PATIENCE)


# Mailbox


def test_what_is_posted_is_called_in_order_after_one_wake_up(loop):
    mailbox, called = Mailbox(loop), []
    for number in range(3):
        mailbox.post(called.append, number)
    assert (loop.wakes, called) == (1, [])
    loop.turn()
    assert called == [0, 1, 2]
    mailbox.post(called.append, 3)
    assert loop.wakes == 2


def test_what_takes_long_leaves_the_rest_to_the_next_turn(loop):
    mailbox, called = Mailbox(loop), []
    asleep = threading.Event()
    mailbox.post(asleep.wait, 2 * TURN)
    mailbox.post(called.append, "next")
    loop.turn()
    assert called == []
    loop.turn()
    assert called == ["next"]
    loop.turn()
    assert loop.calls == []


def test_a_call_that_raises_takes_nothing_along(loop):
    mailbox, called = Mailbox(loop), []
    mailbox.post(int, "no number")
    mailbox.post(called.append, "next")
    with pytest.raises(ValueError, match="no number"):
        loop.turn()
    loop.turn()
    assert called == ["next"]


async def test_nothing_is_lost_between_two_threads(thread):
    """Each thread posts while the other one opens its box."""
    count, received, done = 20_000, [], asyncio.Event()

    def take(number):
        received.append(number)
        if number == count - 1:
            done.set()

    for number in range(count):
        thread.to_app.post(thread.to_main.post, take, number)
        if number % 97 == 0:
            await asyncio.sleep(0)
    await asyncio.wait_for(done.wait(), PATIENCE)
    assert received == list(range(count))


async def test_to_a_closed_loop_nothing_is_posted():
    closed = asyncio.new_event_loop()
    closed.close()
    Mailbox(closed).post(pytest.fail, "called")


# Thread


async def test_it_has_a_loop_of_its_own_and_threads_take_turns_quickly(thread):
    assert await over_there(thread, asyncio.get_running_loop) is thread.loop
    assert await over_there(thread, asyncio.get_event_loop) is thread.loop
    assert await over_there(thread, threading.current_thread) is not threading.current_thread()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL)


async def test_at_the_end_its_tasks_are_cancelled_and_may_clean_up():
    thread = AppThread(None, asyncio.new_event_loop(), asyncio.get_running_loop())
    seen = []

    async def stay():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    thread.start()
    tasks = []
    await over_there(thread, lambda: tasks.append(thread.loop.create_task(stay())))
    await thread.stop(PATIENCE)
    assert seen == ["cleaned up"]
    assert tasks[0].cancelled()
    assert thread.loop.is_closed()


async def test_who_does_not_come_back_is_left_behind():
    thread = AppThread(None, asyncio.new_event_loop(), asyncio.get_running_loop())
    released, standing = threading.Event(), asyncio.Event()

    def stand():
        thread.to_main.post(standing.set)
        released.wait()

    thread.start()
    thread.to_app.post(stand)
    await standing.wait()
    await thread.stop(0.01)
    assert thread.ended
    assert not thread.loop.is_closed()
    released.set()
    await thread.stop(PATIENCE)
    assert thread.loop.is_closed()


def test_a_task_that_exits_ends_the_worker():
    """As it does when there is one loop only."""

    async def main():
        thread = AppThread(None, asyncio.new_event_loop(), asyncio.get_running_loop())

        async def leave():
            raise SystemExit(7)

        thread.start()
        thread.to_app.post(lambda: tasks.append(thread.loop.create_task(leave())))
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    tasks = []
    with pytest.raises(SystemExit, match="7"):
        asyncio.run(main())
    assert isinstance(tasks[0].exception(), SystemExit)
    tasks[0].get_loop().close()
