"""The application of the quick start: `asgiri asgiri.demo:app`. Plain ASGI, nothing but Python.

/           a page that shows which HTTP version and which worker serve it, live
/hello      text
/echo       the request's body, streamed back
/stream     ?n= chunks of ?size= bytes
/events     server-sent events: a clock, ?n= ticks every ?ms=
/whoami     JSON: HTTP version, process, slot, client
/slow       keeps the processor busy for ?ms=
/ws         WebSocket echo
"""

import asyncio
import contextlib
import functools
import json
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qs

__all__ = ["app"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_CHUNKS: Final = 1_000_000
MAX_CHUNK_SIZE: Final = 1 << 20
MAX_SLOW_MS: Final = 10_000
"""Whoever can reach the demo can keep a worker busy; not for ever."""
POLICY: Final = (
    b"default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    b"connect-src 'self' ws: wss:"
)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one scope."""
    match scope["type"]:
        case "lifespan":
            await _lifespan(receive, send)
        case "websocket":
            await _websocket(scope, receive, send)
        case "http":
            respond = ROUTES.get(scope["path"], _not_found)
            await respond(scope, receive, send)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


# HTTP


async def _page(scope: Scope, _: Receive, send: Send) -> None:
    facts = json.dumps(_facts(scope)).replace("<", "\\u003c")  # it stands inside <script>
    body = _page_source().replace("{/*facts*/}", facts).encode()
    await _answer(send, body, b"text/html; charset=utf-8", (b"content-security-policy", POLICY))


async def _hello(_: Scope, __: Receive, send: Send) -> None:
    await _answer(send, b"Hello, world!\n", b"text/plain; charset=utf-8")


async def _whoami(scope: Scope, _: Receive, send: Send) -> None:
    body = json.dumps(_facts(scope)).encode()
    await _answer(send, body, b"application/json", (b"cache-control", b"no-store"))


async def _echo(scope: Scope, receive: Receive, send: Send) -> None:
    wanted = (b"content-type", b"content-length")
    headers = [(name, value) for name, value in scope["headers"] if name in wanted]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
        body = message.get("body", b"")
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def _stream(scope: Scope, __: Receive, send: Send) -> None:
    count = _number(scope, "n", default=10, maximum=MAX_CHUNKS)
    size = _number(scope, "size", default=1024, maximum=MAX_CHUNK_SIZE)
    headers = [(b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    chunk = b"." * size
    for _ in range(count):
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _events(scope: Scope, receive: Receive, send: Send) -> None:
    count = _number(scope, "n", default=MAX_CHUNKS, maximum=MAX_CHUNKS)
    pause = _number(scope, "ms", default=1000, maximum=60_000) / 1000
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    gone = asyncio.ensure_future(_wait_disconnect(receive))
    try:
        for _ in range(count):
            fact = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **_worker()}
            body = f"event: clock\ndata: {json.dumps(fact)}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
            done, _pending = await asyncio.wait([gone], timeout=pause)
            if done:
                return
        await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone


async def _wait_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _slow(scope: Scope, _: Receive, send: Send) -> None:
    milliseconds = _number(scope, "ms", default=200, maximum=MAX_SLOW_MS)
    # Holds the event loop on purpose: this is what an application does that computes.
    end = time.thread_time() + milliseconds / 1000
    while time.thread_time() < end:
        pass
    body = json.dumps({"ms": milliseconds, **_worker()}).encode()
    await _answer(send, body, b"application/json", (b"cache-control", b"no-store"))


async def _not_found(_: Scope, __: Receive, send: Send) -> None:
    await _answer(send, b"Not found\n", b"text/plain; charset=utf-8", status=404)


async def _answer(
    send: Send, body: bytes, content_type: bytes, *more: tuple[bytes, bytes], status: int = 200
) -> None:
    length = str(len(body)).encode()
    headers = [(b"content-type", content_type), (b"content-length", length), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


ROUTES: Final = {
    "/": _page,
    "/hello": _hello,
    "/whoami": _whoami,
    "/echo": _echo,
    "/stream": _stream,
    "/events": _events,
    "/slow": _slow,
}


# WebSocket


async def _websocket(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    if scope["path"] != "/ws":
        await send({"type": "websocket.close", "code": 1000})
        return
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        text = message.get("text")
        content = {"bytes": message.get("bytes")} if text is None else {"text": text}
        await send({"type": "websocket.send", **content})


# Facts


def _worker() -> dict[str, int]:
    """Say who answers. Read each time: preloading imports this before there is a worker."""
    return {"pid": os.getpid(), "slot": int(os.environ.get("ASGIRI_WORKER_SLOT", "0"))}


def _facts(scope: Scope) -> dict[str, Any]:
    client = scope.get("client")
    return {
        "http_version": scope["http_version"],
        "scheme": scope["scheme"],
        "client": list(client) if client else None,
        "generation": int(os.environ.get("ASGIRI_GENERATION", "0")),
        **_worker(),
    }


def _number(scope: Scope, name: str, *, default: int, maximum: int) -> int:
    """Read a number from the query; a larger one than allowed counts as the largest allowed."""
    values = parse_qs(scope["query_string"].decode("latin-1")).get(name, [])
    if not values or not values[-1].isascii() or not values[-1].isdigit():
        return default
    return min(int(values[-1][:9]), maximum)


@functools.cache
def _page_source() -> str:
    return resources.files("asgiri").joinpath("demo.html").read_text(encoding="utf-8")
