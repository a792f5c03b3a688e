"""The application of the comparisons: as little as ASGI allows.

/           13 bytes
/download   1 MiB in one message
/upload     takes the whole body, joins it, and says how long it was
WebSocket   /echo sends back what comes; /all sends it to everybody who is connected
"""

from __future__ import annotations

from typing import Any

BODY = b"Hello, world!"
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"13")],
}
END = {"type": "http.response.body", "body": BODY}

MIB = bytes(1 << 20)
DOWNLOAD = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/octet-stream"), (b"content-length", b"1048576")],
}

everybody: set[Any] = set()


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        path = scope["path"]
        if path == "/":
            await send(START)
            await send(END)
        elif path == "/download":
            await send(DOWNLOAD)
            await send({"type": "http.response.body", "body": MIB})
        else:
            await upload(receive, send)
    elif scope["type"] == "websocket":
        await websocket(scope["path"], receive, send)
    else:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def upload(receive: Any, send: Any) -> None:
    parts = []
    more = True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    text = b"%013d" % len(b"".join(parts))
    await send(START)
    await send({"type": "http.response.body", "body": text})


async def websocket(path: str, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    everybody.add(send)
    try:
        while (message := await receive())["type"] == "websocket.receive":
            answer = {"type": "websocket.send", "bytes": message.get("bytes")}
            for one in list(everybody) if path == "/all" else (send,):
                await one(answer)
    finally:
        everybody.discard(send)
