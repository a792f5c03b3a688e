"""Both sides of a remote application in one process: orders out, answers and exceptions back."""

from __future__ import annotations

import asyncio
import os

import pytest

from tests.support.remote_app import DeliberateError, RemoteRaised, remote_app, remote_apps


class FakeTransport:
    """receive() and send() of an ASGI call, from queues."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[dict[str, object]] = asyncio.Queue()
        self.sent: list[dict[str, object]] = []

    async def receive(self) -> dict[str, object]:
        return await self.incoming.get()

    async def send(self, message: dict[str, object]) -> None:
        if message["type"] == "refused":
            raise BrokenPipeError("gone")
        self.sent.append(message)


async def test_a_test_drives_a_call():
    transport = FakeTransport()
    async with remote_apps() as apps:
        scope = {"type": "http", "headers": apps.headers, "app": object()}
        task = asyncio.create_task(remote_app(scope, transport.receive, transport.send))
        call = await apps.wait_call()
        assert call.pid == os.getpid()
        assert call.scope == {"type": "http", "headers": apps.headers}

        receiving = call.start_receive()
        await call.start_response(201, [("a", "b")])  # while receive() still waits
        transport.incoming.put_nowait({"type": "http.request", "body": b"x"})
        assert (await receiving)["body"] == b"x"
        assert transport.sent == [
            {"type": "http.response.start", "status": 201, "headers": [(b"a", b"b")]}
        ]

        with pytest.raises(RemoteRaised) as raised:
            await call.send({"type": "refused"})
        assert raised.value.name == "BrokenPipeError"
        assert "OSError" in raised.value.bases

        call.finish()
        await task
        await call.wait_ended()


async def test_the_whole_body_is_received():
    transport = FakeTransport()
    transport.incoming.put_nowait({"type": "http.request", "body": b"ab", "more_body": True})
    transport.incoming.put_nowait({"type": "http.request", "body": b"c"})
    async with remote_apps() as apps:
        scope = {"headers": apps.headers}
        task = asyncio.create_task(remote_app(scope, transport.receive, transport.send))
        call = await apps.wait_call()
        assert await call.receive_all() == b"abc"
        call.finish()
        await task


async def test_failing_a_call_raises_in_the_application():
    transport = FakeTransport()
    async with remote_apps() as apps:
        scope = {"headers": apps.headers}
        task = asyncio.create_task(remote_app(scope, transport.receive, transport.send))
        call = await apps.wait_call()
        call.fail("now")
        with pytest.raises(DeliberateError, match="now"):
            await task


async def test_cancellation_of_the_application_is_told():
    transport = FakeTransport()
    async with remote_apps() as apps:
        scope = {"headers": apps.headers}
        task = asyncio.create_task(remote_app(scope, transport.receive, transport.send))
        call = await apps.wait_call()
        receiving = call.start_receive()
        task.cancel()
        await call.wait_cancelled()
        await call.wait_ended()
        assert receiving.cancelled()


async def test_the_application_ends_with_the_test():
    transport = FakeTransport()
    async with remote_apps() as apps:
        scope = {"headers": apps.headers}
        task = asyncio.create_task(remote_app(scope, transport.receive, transport.send))
        await apps.wait_call()
    await task
