"""FastAPI as its users write it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import fastapi
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel


class Item(BaseModel):
    name: str
    price: float


@contextlib.asynccontextmanager
async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[dict[str, str]]:
    yield {"greeting": "hello"}


app = fastapi.FastAPI(lifespan=lifespan)


@app.get("/hello/{name}", response_class=fastapi.responses.PlainTextResponse)
def hello(request: fastapi.Request, name: str) -> str:
    """Not a coroutine: runs in a thread."""
    return f"{request.state.greeting} {name}"


@app.post("/item")
async def item(item: Item) -> Item:
    return Item(name=item.name.upper(), price=item.price * 2)


@app.post("/upload")
async def upload(
    file: fastapi.UploadFile, name: Annotated[str, fastapi.Form()]
) -> dict[str, str | int]:
    content = await file.read()
    return {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@app.put("/raw")
async def raw(request: fastapi.Request) -> dict[str, int]:
    size = 0
    async for part in request.stream():
        size += len(part)
    return {"size": size}


@app.get("/stream")
def stream() -> StreamingResponse:
    def numbers() -> Iterator[str]:
        for number in range(1000):
            yield f"{number}\n"

    return StreamingResponse(numbers(), media_type="text/plain")


@app.get("/file")
def file() -> FileResponse:
    return FileResponse(__file__)


@app.get("/fail")
def fail() -> None:
    raise RuntimeError("framework error on purpose")


@app.websocket("/room/{name}")
async def room(socket: fastapi.WebSocket, name: str) -> None:
    await socket.accept(subprotocol="chat")
    async for text in socket.iter_text():
        if text == "leave":
            await socket.close(4000, "bye")
            return
        await socket.send_text(f"{name}: {text}")
