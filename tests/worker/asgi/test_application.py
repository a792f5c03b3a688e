"""How a call of the application is started."""

import asyncio
import contextvars
import sys

import pytest

from asgiri.worker.asgi.application import Application

ON_BOTH_EVENT_LOOPS = True

variable = contextvars.ContextVar("variable", default="unset")


def make():
    return Application(None, asyncio.get_running_loop())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
async def test_call_that_never_waits_has_ended_when_start_returns():
    steps = []

    async def call():
        steps.append(asyncio.current_task())

    assert make().start(call()) is None
    assert steps
    assert steps[0] is not asyncio.current_task()


async def test_call_that_waits_goes_on_as_a_task():
    go, steps = asyncio.Event(), []

    async def call():
        steps.append(asyncio.current_task())
        await go.wait()
        steps.append(asyncio.current_task())

    task = make().start(call())
    go.set()
    await task
    assert steps == [task, task]


async def test_each_call_has_a_copy_of_the_variables_as_they_were_at_the_beginning():
    variable.set("at the beginning")
    application = make()
    variable.set("now")
    seen = []

    async def call():
        seen.append(variable.get())
        variable.set("its own")
        await asyncio.sleep(0)
        seen.append(variable.get())

    for _ in range(2):
        await application.start(call())
    assert seen == ["at the beginning", "its own"] * 2
    assert variable.get() == "now"


async def test_call_that_is_cancelled_right_after_its_start_sees_it():
    seen = []

    async def call():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    application = make()
    task = application.start(call())
    application.cancel(task)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["cancelled"]
