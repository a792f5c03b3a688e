"""Writes down each request that it begins, in a file that all workers append to: `RECORD` names it.

A line is the request's path and the worker's process ID. One write each, so that lines stay whole
and what was written before a kill is there.
"""

from __future__ import annotations

import os
from typing import Any


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    file = os.open(os.environ["RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{scope['path'][1:]} {os.getpid()}\n".encode())
    os.close(file)
    body = b"%d" % os.getpid()
    fields = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": body})
