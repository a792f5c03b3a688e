"""The application that the real servers of these tests run.

One `app` serves every test that can share a server: the path chooses what it does, and a request
with `x-remote-app` is driven by the test itself (see `remote_app`). Everything here is plain ASGI.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qs

from tests.support.remote_app import HEADER, DeliberateError, remote_app

Scope = dict[str, Any]
Handler = Callable[[Scope, Any, Any], Coroutine[Any, Any, None]]

PART = 65536
HANDLERS: dict[str, Handler] = {}
requests_served = 0


class BrokenAppError(DeliberateError):
    """What an application's bug looks like."""


class ClientGoneError(DeliberateError):
    """As frameworks raise when a body ends early; a server logs it as any other error."""


def path(name: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS[name] = handler
        return handler

    return register


async def respond(
    send: Any,
    body: bytes = b"",
    *,
    status: int = 200,
    content_type: bytes = b"text/plain",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    fields = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


async def respond_json(send: Any, value: Any) -> None:
    await respond(send, json.dumps(value).encode(), content_type=b"application/json")


def query(scope: Scope, name: str, default: int) -> int:
    values = parse_qs(scope["query_string"].decode()).get(name)
    return int(values[0]) if values else default


async def body_parts(receive: Any) -> Any:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("before the body was complete")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


# Handlers


@path("/hello")
async def hello(scope: Scope, receive: Any, send: Any) -> None:
    await respond(send, b"Hello, world!")


@path("/pid")
async def pid(scope: Scope, receive: Any, send: Any) -> None:
    await respond(send, b"%d" % os.getpid())


@path("/scope")
async def show_scope(scope: Scope, receive: Any, send: Any) -> None:
    def plain(value: Any) -> Any:
        match value:
            case bytes():
                return value.decode("latin-1")
            case dict():
                return {name: plain(item) for name, item in value.items()}
            case list() | tuple():
                return [plain(item) for item in value]
            case str() | int() | None:
                return value
            case _:
                return repr(value)

    await respond_json(send, plain(scope))


@path("/state")
async def count_in_state(scope: Scope, receive: Any, send: Any) -> None:
    """Lifespan state: shared objects are the worker's, added keys are the request's."""
    state = scope["state"]
    state["calls"].append(1)
    fresh = "mine" not in state
    state["mine"] = True
    await respond_json(
        send, {"pid": os.getpid(), "calls": len(state["calls"]), "copied_per_request": fresh}
    )


@path("/echo")
async def echo(scope: Scope, receive: Any, send: Any) -> None:
    """Every part of the body as it comes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    async for part in body_parts(receive):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body"})


@path("/hash")
async def hash_body(scope: Scope, receive: Any, send: Any) -> None:
    digest, size = hashlib.sha256(), 0
    async for part in body_parts(receive):
        digest.update(part)
        size += len(part)
    await respond_json(send, {"size": size, "sha256": digest.hexdigest(), "pid": os.getpid()})


@path("/slow-hash")
async def slow_hash(scope: Scope, receive: Any, send: Any) -> None:
    """Read `pause` milliseconds apart: what arrives meanwhile has to wait somewhere."""
    pause = query(scope, "pause", 1) / 1000
    digest, size = hashlib.sha256(), 0
    async for part in body_parts(receive):
        digest.update(part)
        size += len(part)
        await asyncio.sleep(pause)
    await respond_json(send, {"size": size, "sha256": digest.hexdigest(), "pid": os.getpid()})


@path("/bytes")
async def send_bytes(scope: Scope, receive: Any, send: Any) -> None:
    """`size` bytes of `pattern` in parts of `part`; with a content-length unless `chunked=1`."""
    size, part = query(scope, "size", 1 << 20), query(scope, "part", PART)
    headers = [(b"x-pid", b"%d" % os.getpid())]
    if not query(scope, "chunked", 0):
        headers.append((b"content-length", b"%d" % size))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    block = pattern(part)
    for start in range(0, size, part):
        body = block[: size - start]
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body"})


def pattern(size: int) -> bytes:
    """Bytes in which a loss, a repetition or a swap of a part shows."""
    return b"".join(b"%015d\n" % number for number in range(size // 16 + 1))[:size]


@path("/raise")
async def raise_before_start(scope: Scope, receive: Any, send: Any) -> None:
    raise BrokenAppError("before the response started")


@path("/raise-late")
async def raise_after_start(scope: Scope, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"some", "more_body": True})
    raise BrokenAppError("after the response started")


@path("/nothing")
async def return_without_response(scope: Scope, receive: Any, send: Any) -> None:
    pass


@path("/block")
async def block(scope: Scope, receive: Any, send: Any) -> None:
    """Hold the event loop, as code that computes does."""
    loop = asyncio.get_running_loop()
    until = loop.time() + query(scope, "milliseconds", 1000) / 1000
    while loop.time() < until:
        pass
    await respond(send, b"%d" % os.getpid())


@path("/sleep")
async def sleep(scope: Scope, receive: Any, send: Any) -> None:
    await asyncio.sleep(query(scope, "milliseconds", 1000) / 1000)
    await respond(send, b"%d" % os.getpid())


@path("/early-hint")
async def early_hint(scope: Scope, receive: Any, send: Any) -> None:
    links = [b"</style.css>; rel=preload; as=style", b"</script.js>; rel=preload; as=script"]
    await send({"type": "http.response.early_hint", "links": links})
    await respond(send, b"hinted")


@path("/trailers")
async def trailers(scope: Scope, receive: Any, send: Any) -> None:
    headers = [(b"trailer", b"x-digest")]
    await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
    await send({"type": "http.response.body", "body": b"body"})
    fields = [(b"x-digest", hashlib.sha256(b"body").hexdigest().encode())]
    await send({"type": "http.response.trailers", "headers": fields, "more_trailers": False})


@path("/pathsend")
async def path_send(scope: Scope, receive: Any, send: Any) -> None:
    """The file named by the header `x-file`."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.pathsend", "path": header(scope, b"x-file")})


@path("/zerocopysend")
async def zero_copy_send(scope: Scope, receive: Any, send: Any) -> None:
    """The same in two parts, between two of its own."""
    with open(header(scope, b"x-file"), "rb") as file:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<", "more_body": True})
        more = {"type": "http.response.zerocopysend", "file": file, "more_body": True}
        await send({**more, "count": 100_000})
        await send(more)
        await send({"type": "http.response.body", "body": b">"})


def header(scope: Scope, name: bytes) -> str:
    return dict(scope["headers"])[name].decode()


# Entry points


async def websocket_echo(scope: Scope, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    offered = scope["subprotocols"]
    await send({"type": "websocket.accept", "subprotocol": offered[0] if offered else None})
    if scope["path"] == "/version":
        await send({"type": "websocket.send", "text": scope["http_version"]})
    while (message := await receive())["type"] == "websocket.receive":
        if message.get("text") is not None:
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})


async def lifespan(scope: Scope, receive: Any, send: Any) -> None:
    """Tell the file named in the environment what happens, so that a test can see it."""
    assert (await receive())["type"] == "lifespan.startup"
    if "state" in scope:
        scope["state"]["calls"] = []
    note("startup")
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    note("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


def note(event: str) -> None:
    if file := os.environ.get("TEST_LIFESPAN_FILE"):
        with open(file, "a") as notes:
            notes.write(f"{event} {os.getpid()}\n")


async def app(scope: Scope, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
    elif any(name == HEADER for name, _ in scope["headers"]):
        await remote_app(scope, receive, send)
    elif scope["type"] == "websocket":
        await websocket_echo(scope, receive, send)
    elif handler := HANDLERS.get(scope["path"].removeprefix(scope.get("root_path", ""))):
        await handler(scope, receive, send)
    else:
        await respond(send, b"not found", status=404)


async def without_lifespan(scope: Scope, receive: Any, send: Any) -> None:
    """Supports HTTP only, and says so the way most small applications do."""
    assert scope["type"] == "http"
    await app(scope, receive, send)


async def failing_lifespan(scope: Scope, receive: Any, send: Any) -> None:
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def raising_lifespan(scope: Scope, receive: Any, send: Any) -> None:
    """Takes part in the lifespan protocol, then breaks."""
    if scope["type"] == "lifespan":
        await receive()
        raise DeliberateError("startup broke")
    await app(scope, receive, send)


def factory() -> Any:
    return app


def double_callable(scope: Scope) -> Any:
    """ASGI 2."""

    async def instance(receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    return instance


class Holder:
    class inner:  # noqa: N801
        app = staticmethod(app)


not_callable = 42
