"""Limits of requests, over real connections: how many run, how long others wait, how long one may
take."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from asgiri.ipc.scoreboard import Cell
from asgiri.worker.asgi import limits
from tests.support.worker import AppWorker, Connection, serve_app


class GatedApp:
    """Answers when it is told to; records what it was asked and how it ended."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.most = 0
        self.began: list[str] = []
        self.cancelled: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    def open(self, path: str) -> None:
        self.gates.setdefault(path, asyncio.Event()).set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.began.append(path)
        self.running.append(path)
        self.most = max(self.most, len(self.running))
        try:
            await self.serve(path, receive, send)
        except asyncio.CancelledError:
            self.cancelled.append(path)
            raise
        finally:
            self.running.remove(path)

    async def serve(self, path: str, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": []}
        if path.startswith("/begun"):
            await send(start)
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await self.gates.setdefault(path, asyncio.Event()).wait()
        if not path.startswith("/begun"):
            await send(start)
        await send({"type": "http.response.body", "body": path.encode()})
        if path.startswith("/background"):
            await self.gates.setdefault(f"{path}/after", asyncio.Event()).wait()


@contextlib.asynccontextmanager
async def clients(worker: AppWorker, count: int) -> AsyncIterator[list[Connection]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(await worker.connect()) for _ in range(count)]


async def test_so_many_run_and_the_others_follow_in_their_order():
    app = GatedApp()
    async with (
        serve_app(app, http={"limit_concurrency": 2}) as worker,
        clients(worker, 6) as asking,
    ):
        for number, client in enumerate(asking):
            client.get(f"/{number}")
            active = number + 1
            await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == active)  # noqa: B023
        assert app.began == ["/0", "/1"]
        for number, client in enumerate(asking):
            app.open(f"/{number}")
            assert (await client.read_response())[2] == f"/{number}".encode()
        assert app.began == [f"/{number}" for number in range(6)]
        assert app.most == 2
        assert worker.refusals == {}


@pytest.mark.slow
async def test_who_waits_for_too_long_is_refused_and_the_connection_goes_on():
    app = GatedApp()
    async with (
        serve_app(app, http={"limit_concurrency": 1, "queue_timeout": 0.1}) as worker,
        clients(worker, 2) as (first, second),
    ):
        first.get("/first")
        await worker.wait_until(lambda: app.running)
        second.get("/second")
        status, fields, _ = await second.read_response()
        assert (status, fields["retry-after"]) == (503, "1")
        assert worker.refusals == {"concurrency_limit": 1}
        app.open("/first")
        assert (await first.read_response())[0] == 200
        app.open("/third")
        second.get("/third")
        assert (await second.read_response())[0] == 200
        assert app.began == ["/first", "/third"]


async def test_beyond_so_many_that_wait_requests_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
):
    app = GatedApp()
    async with (
        serve_app(app, http={"limit_concurrency": 1}) as worker,
        clients(worker, 3) as (first, second, third),
    ):
        assert worker.services.requests.limits is not None
        monkeypatch.setattr(worker.services.requests.limits, "_waiting_limit", 1)
        first.get("/first")
        await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 1)
        second.get("/second")
        await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 2)
        third.get("/third")
        assert (await third.read_response())[0] == 503
        app.open("/first")
        app.open("/second")
        assert (await first.read_response())[0] == (await second.read_response())[0] == 200
    assert limits.WAITING_LIMIT >= 100


async def test_who_goes_while_waiting_is_never_begun():
    app = GatedApp()
    async with (
        serve_app(app, http={"limit_concurrency": 1}) as worker,
        clients(worker, 3) as (first, second, third),
    ):
        first.get("/first")
        await worker.wait_until(lambda: app.running)
        second.get("/second")
        await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 2)
        third.get("/third")
        await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 3)
        second.reset()
        await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 2)
        app.open("/first")
        app.open("/third")
        assert (await first.read_response())[0] == (await third.read_response())[0] == 200
        assert app.began == ["/first", "/third"]


async def test_a_body_that_comes_meanwhile_is_kept():
    bodies = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        bodies.append(len(body))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    size = 1 << 20
    async with (
        serve_app(app, http={"limit_concurrency": 1}) as worker,
        clients(worker, 2) as (first, second),
    ):
        first.send("POST / HTTP/1.1", "Host: x", "Content-Length: 1")
        await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 1)
        second.send("POST / HTTP/1.1", "Host: x", f"Content-Length: {size}", body=bytes(size))
        await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 2)
        first.writer.write(b"x")
        assert (await first.read_response())[0] == 200
        assert (await second.read_response())[0] == 200
        assert bodies == [1, size]


async def test_a_worker_that_gives_up_refuses_what_still_waits():
    app = GatedApp()
    async with (
        serve_app(app, http={"limit_concurrency": 1}) as worker,
        clients(worker, 2) as (first, second),
    ):
        first.get("/first")
        await worker.wait_until(lambda: app.running)
        second.get("/second")
        await worker.wait_until(lambda: worker.count(Cell.REQUESTS_ACTIVE) == 2)
        for session in list(worker.services.sessions):
            session.cancel_exchanges()
        assert (await second.read_response())[0] == 503
        assert (await first.read_response())[0] == 503
        assert app.began == app.cancelled == ["/first"]


# How long one may take


async def test_a_response_that_is_not_begun_in_time_is_504_and_the_call_cancelled():
    app = GatedApp()
    async with (
        serve_app(app, http={"request_timeout": 0.1}) as worker,
        clients(worker, 1) as (client,),
    ):
        client.get("/slow")
        assert (await client.read_response())[0] == 504
        await worker.wait_until(lambda: app.cancelled == ["/slow"])
        assert worker.refusals == {"request_timeout": 1}
        app.open("/fast")
        client.get("/fast")
        assert (await client.read_response())[0] == 200


async def test_a_response_that_is_begun_is_broken_off():
    app = GatedApp()
    async with (
        serve_app(app, http={"request_timeout": 0.1}) as worker,
        clients(worker, 1) as (client,),
    ):
        client.get("/begun")
        assert (await client.read_head())[0] == 200
        assert await client.read_chunk() == b"part"
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.read_chunk()
        await worker.wait_until(lambda: app.cancelled == ["/begun"])


async def test_what_the_application_does_after_its_response_has_no_limit():
    app = GatedApp()
    app.open("/background")
    async with (
        serve_app(app, http={"request_timeout": 0.1}) as worker,
        clients(worker, 2) as (client, other),
    ):
        client.get("/background")
        assert (await client.read_response())[0] == 200
        other.get("/slow")
        assert (await other.read_response())[0] == 504  # so the limit has passed for both
        assert app.running == ["/background"]
        app.open("/background/after")
        await worker.wait_until(lambda: not app.running)
        assert app.cancelled == ["/slow"]


async def test_the_time_of_waiting_does_not_count():
    app = GatedApp()
    limited = {"limit_concurrency": 1, "request_timeout": 0.3}
    async with (
        serve_app(app, http=limited) as worker,
        clients(worker, 2) as (first, second),
    ):
        first.get("/first")
        await worker.wait_until(lambda: app.running)
        app.open("/second")
        second.get("/second")
        assert (await first.read_response())[0] == 504
        assert (await second.read_response())[0] == 200


async def test_without_limits_there_is_nothing_to_sweep():
    async with serve_app(GatedApp()) as worker:
        assert worker.services.requests.limits is None
