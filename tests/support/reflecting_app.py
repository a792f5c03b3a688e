"""Answers with what it saw, in the field `x-seen`, so that a test can compare it with what it sent.

Paths that begin with /_ do something else; over HTTP/1.1 any other one is a case of a suite.
"""

from __future__ import annotations

import json
from typing import Any

SIZE = 1 << 20


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "websocket":
        await (echo if scope["path"] == "/_echo" else deny)(scope, receive, send)
    elif scope["path"] == "/_wait":
        # Reads nothing, and ends with the client.
        while (await receive())["type"] != "http.disconnect":
            pass
    elif scope["path"] == "/_large":
        await start(send, [(b"content-length", b"%d" % SIZE)])
        await send({"type": "http.response.body", "body": bytes(SIZE)})
    elif scope["path"] == "/_header":
        await start(send, [(b"x-injected", query(scope))])
        await send({"type": "http.response.body"})
    else:
        await reflect(scope, receive, send)


async def reflect(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await start(send, [(b"content-length", b"2"), (b"x-seen", seen(scope, body))])
    await send({"type": "http.response.body", "body": b"ok"})


async def deny(scope: dict[str, Any], receive: Any, send: Any) -> None:
    fields = [(b"content-length", b"2"), (b"x-seen", seen(scope, b""))]
    await send({"type": "websocket.http.response.start", "status": 403, "headers": fields})
    await send({"type": "websocket.http.response.body", "body": b"ok"})


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        kind = "bytes" if message.get("text") is None else "text"
        await send({"type": "websocket.send", kind: message[kind]})


async def lifespan(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def start(send: Any, fields: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": fields})


def query(scope: dict[str, Any]) -> bytes:
    """The query, its hexadecimal digits as bytes."""
    return bytes.fromhex(scope["query_string"].decode())


def seen(scope: dict[str, Any], body: bytes) -> bytes:
    """In ASCII, as a field's value has to be."""
    return json.dumps(
        {
            "type": scope["type"],
            "method": scope.get("method", "GET"),
            "path": scope["raw_path"].decode("latin-1"),
            "query": scope["query_string"].decode("latin-1"),
            "version": scope["http_version"],
            "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in scope["headers"]],
            "body": body.decode("latin-1"),
        }
    ).encode()
