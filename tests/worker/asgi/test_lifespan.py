"""The application hears that the worker starts and stops, if it wants to."""

import asyncio
import logging

import pytest

from asgiri.errors import AppError
from asgiri.worker.asgi import lifespan as module
from asgiri.worker.asgi.application import Application
from asgiri.worker.asgi.lifespan import Lifespan, LifespanError


async def started(call, mode="auto", scope=None):
    lifespan = make(call, mode, scope)
    await lifespan.startup()
    return lifespan


def make(call, mode="auto", scope=None):
    application = Application(call, asyncio.get_running_loop())
    return Lifespan(application, {"type": "lifespan"} if scope is None else scope, mode)


class Recorder:
    """An application that follows the protocol and remembers what it heard."""

    def __init__(self):
        self.heard = []
        self.scope = None

    async def __call__(self, scope, receive, send):
        self.scope = scope
        for event in ("startup", "shutdown"):
            self.heard.append((await receive())["type"])
            await send({"type": f"lifespan.{event}.complete"})
        self.heard.append("returned")


@pytest.mark.parametrize("mode", ["auto", "on"])
async def test_application_hears_startup_and_shutdown(mode):
    app, scope = Recorder(), {"type": "lifespan", "state": {}}
    lifespan = await started(app, mode, scope)
    assert app.heard == ["lifespan.startup"]
    assert app.scope is scope
    await lifespan.shutdown(1)
    assert app.heard == ["lifespan.startup", "lifespan.shutdown", "returned"]


async def test_startup_waits_until_the_application_is_ready():
    ready = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await ready.wait()
        await send({"type": "lifespan.startup.complete"})

    starting = asyncio.create_task(started(app))
    done, _ = await asyncio.wait({starting}, timeout=0.01)
    assert not done
    ready.set()
    await starting


async def test_off_calls_nothing():
    async def app(scope, receive, send):
        raise AssertionError("called")

    lifespan = await started(app, "off")
    await lifespan.shutdown(1)


async def raises(scope, receive, send):
    raise ValueError("only http here")


async def returns(scope, receive, send):
    pass


async def raises_after_receive(scope, receive, send):
    await receive()
    raise ValueError("only http here")


async def exits(scope, receive, send):
    raise SystemExit(3)


@pytest.mark.parametrize("call", [raises, returns, raises_after_receive, exits])
async def test_auto_goes_on_without_an_application_that_does_not_know_it(call):
    lifespan = await started(call)
    await lifespan.shutdown(1)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (raises, "ValueError: only http here"),
        (exits, "SystemExit: 3"),
        (returns, "returned before it was started"),
    ],
)
async def test_on_refuses_an_application_that_does_not_know_it(call, told):
    with pytest.raises(LifespanError, match=told) as caught:
        await started(call, "on")
    assert (call.__name__ in caught.value.traceback) is (call is not returns)


@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize(
    ("fields", "told"), [({"message": "no database"}, "no database"), ({}, "no reason given")]
)
async def test_failed_startup_is_told_in_one_line(mode, fields, told):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", **fields})

    with pytest.raises(LifespanError, match=f"lifespan startup failed: {told}"):
        await started(app, mode)


async def test_application_that_goes_on_after_failing_is_cancelled(monkeypatch):
    monkeypatch.setattr(module, "ENDING_TIMEOUT", 0.01)
    cancelled = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed"})
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(LifespanError):
        await started(app)
    assert cancelled.is_set()


async def test_shutdown_that_takes_too_long_is_cancelled_and_told(caplog):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.Event().wait()

    lifespan = await started(app)
    with caplog.at_level(logging.ERROR):
        await lifespan.shutdown(0.01)
    assert "did not end within 0.01 s" in caplog.text


async def test_failed_shutdown_is_told(caplog):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.failed", "message": "queue not empty"})

    lifespan = await started(app)
    with caplog.at_level(logging.ERROR):
        await lifespan.shutdown(1)
    assert "lifespan shutdown failed: queue not empty" in caplog.text


@pytest.mark.parametrize("during", ["between", "shutdown"])
async def test_exception_after_startup_is_logged_when_the_worker_stops(caplog, during):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.complete"})
        if during == "shutdown":
            await receive()
        raise ValueError("broken")

    lifespan = await started(app)
    with caplog.at_level(logging.ERROR):
        await lifespan.shutdown(1)
    assert "ValueError: broken" in caplog.text


async def test_second_shutdown_does_nothing():
    app = Recorder()
    lifespan = await started(app)
    await lifespan.shutdown(1)
    await lifespan.shutdown(1)
    assert app.heard.count("lifespan.shutdown") == 1


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        (["lifespan.shutdown.complete"], "'lifespan.shutdown.complete' while .* is starting"),
        (
            ["lifespan.startup.complete", "lifespan.startup.complete"],
            "'lifespan.startup.complete' while .* is started",
        ),
        (["http.response.start"], "'http.response.start' while"),
        ([None], "None while"),
    ],
)
async def test_message_out_of_order_raises_in_the_application(messages, told):
    caught = []

    async def app(scope, receive, send):
        await receive()
        try:
            for message in messages:
                await send({"type": message})
        except AppError as error:
            caught.append(str(error))

    lifespan = await started(app)
    await lifespan.shutdown(1)
    (text,) = caught
    assert pytest.raises(AssertionError, match=told).matches(AssertionError(text))


async def test_variables_set_by_lifespan_do_not_leak_into_the_worker():
    import contextvars

    variable = contextvars.ContextVar("variable", default="unset")

    async def app(scope, receive, send):
        variable.set("lifespan's own")
        await receive()
        await send({"type": "lifespan.startup.complete"})

    await started(app)
    assert variable.get() == "unset"
