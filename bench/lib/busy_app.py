"""A trivial page, and a handler that computes: /busy?MILLISECONDS keeps its event loop for that
long."""

from __future__ import annotations

import os
import time
from typing import Any

HEADERS = [(b"content-type", b"text/plain")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    if scope["path"] == "/busy":
        compute(float(scope["query_string"]) / 1000)
    body = b"%d" % os.getpid()
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, length]})
    await send({"type": "http.response.body", "body": body})


def compute(seconds: float) -> None:
    """Use the processor, as a model or an image would; processor time, so that every server has to
    do as much."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))
