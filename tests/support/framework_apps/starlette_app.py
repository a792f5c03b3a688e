"""Starlette as its users write it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket


@contextlib.asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[dict[str, str]]:
    yield {"greeting": "hello"}


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.state.greeting} {request.path_params['name']}")


async def upload(request: Request) -> JSONResponse:
    async with request.form() as form:
        content = await form["file"].read()  # type: ignore[union-attr]
        digest = hashlib.sha256(content).hexdigest()
        return JSONResponse({"name": form["name"], "size": len(content), "sha256": digest})


async def raw(request: Request) -> JSONResponse:
    size = 0
    async for part in request.stream():
        size += len(part)
    return JSONResponse({"size": size})


async def stream(_: Request) -> StreamingResponse:
    async def numbers() -> AsyncIterator[str]:
        for number in range(1000):
            yield f"{number}\n"

    return StreamingResponse(numbers(), media_type="text/plain")


async def file(_: Request) -> FileResponse:
    return FileResponse(__file__)


async def fail(_: Request) -> PlainTextResponse:
    raise RuntimeError("framework error on purpose")


async def room(socket: WebSocket) -> None:
    await socket.accept(subprotocol="chat")
    name = socket.path_params["name"]
    while (text := await socket.receive_text()) != "leave":
        await socket.send_text(f"{name}: {text}")
    await socket.close(4000, "bye")


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/hello/{name}", hello),
        Route("/upload", upload, methods=["POST"]),
        Route("/raw", raw, methods=["PUT"]),
        Route("/stream", stream),
        Route("/file", file),
        Route("/fail", fail),
        WebSocketRoute("/room/{name}", room),
        Mount("/static", StaticFiles(directory=Path(__file__).parent)),
    ],
)
