"""What the soaked server runs: the application of the other tests, event streams, and an account
of itself."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import Any

from tests.support import apps

EVENTS = 10
EVENT_PAUSE = 0.02


async def app(scope: Any, receive: Any, send: Any) -> None:
    pid = (b"x-pid", b"%d" % os.getpid())
    if scope["type"] == "websocket":
        await echo(receive, send, pid)
    elif scope["type"] == "http" and scope["path"] == "/events":
        await events(send, pid)
    elif scope["type"] == "http" and scope["path"] == "/account":
        gc.collect()
        account = {
            "pid": os.getpid(),
            "tasks": len(asyncio.all_tasks()),
            "objects": len(gc.get_objects()),
        }
        await apps.respond_json(send, account)
    else:
        await apps.app(scope, receive, send)


async def events(send: Any, pid: tuple[bytes, bytes]) -> None:
    """Server-sent events, one after the other."""
    headers = [(b"content-type", b"text/event-stream"), pid]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(EVENTS):
        event = b"id: %d\ndata: event %d\n\n" % (number, number)
        await send({"type": "http.response.body", "body": event, "more_body": True})
        await asyncio.sleep(EVENT_PAUSE)
    await send({"type": "http.response.body"})


async def echo(receive: Any, send: Any, pid: tuple[bytes, bytes]) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", "headers": [pid]})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})
