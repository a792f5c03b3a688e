"""Clients that Python programs use: websockets, httpx, niquests, aioquic."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections import deque
from typing import Any

import httpx
import pytest
import websockets
import wsproto
import wsproto.events
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent
from websockets.asyncio.client import connect as connect_websocket

from tests.support.apps import pattern
from tests.support.certificates import certificates
from tests.support.server import Server

pytestmark = pytest.mark.slow

CONTENT = pattern(2_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PATIENCE = 30.0


def trusting() -> ssl.SSLContext:
    context = certificates().client_context()
    assert context is not None
    return context


# websockets


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_websockets(server: Server, compression: str | None):
    url = f"wss://localhost:{server.port}/"
    async with connect_websocket(
        url, ssl=trusting(), compression=compression, subprotocols=["chat"], max_size=None
    ) as socket:
        assert socket.subprotocol == "chat"
        for message in ("", "hello", "€" * 100_000, CONTENT):
            await socket.send(message)
            assert await socket.recv() == message
        await socket.send(["in ", "three ", "frames"])
        assert await socket.recv() == "in three frames"
        async with asyncio.timeout(PATIENCE):
            await (await socket.ping())
        await socket.close(4000, "bye")
    assert socket.close_code == 4000


async def test_websockets_is_told_what_it_sends_wrong(server: Server):
    async with connect_websocket(f"wss://localhost:{server.port}/", ssl=trusting()) as socket:
        await socket.send(b"\xff", text=True)
        with pytest.raises(websockets.ConnectionClosedError) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1007


# httpx


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])
async def test_httpx(server: Server, version: str):
    http2 = version == "HTTP/2"
    async with httpx.AsyncClient(
        base_url=server.url, verify=trusting(), http2=http2, http1=not http2, trust_env=False
    ) as client:
        answers = await asyncio.gather(*[client.get(f"/hello?n={n}") for n in range(20)])
        assert {answer.text for answer in answers} == {"Hello, world!"}
        assert {answer.http_version for answer in answers} == {version}
        told = (await client.post("/hash", content=CONTENT)).json()
        assert (told["size"], told["sha256"]) == (len(CONTENT), DIGEST)
        async with client.stream("GET", "/bytes?size=2000000&chunked=1") as response:
            size = sum([len(part) async for part in response.aiter_bytes()])
        assert size == 2_000_000


# niquests


@pytest.mark.parametrize("version", [11, 20, 30])
async def test_niquests(server: Server, version: int):
    niquests = pytest.importorskip("niquests", reason="niquests is missing")
    others = {name: True for number, name in NIQUESTS_SWITCHES.items() if number != version}
    told_before = {("localhost", server.port): ("localhost", server.port)}
    async with niquests.AsyncSession(quic_cache_layer=told_before, **others) as session:
        session.verify = str(certificates().authority)
        session.trust_env = False
        for _ in range(3):
            response = await session.get(f"{server.url}/hello")
            assert (response.text, response.http_version) == ("Hello, world!", version)
        response = await session.post(f"{server.url}/hash", data=CONTENT)
        assert response.json()["sha256"] == DIGEST
        response = await session.get(f"{server.url}/bytes?size=2000000")
        assert len(response.content) == 2_000_000


NIQUESTS_SWITCHES = {11: "disable_http1", 20: "disable_http2", 30: "disable_http3"}


# aioquic, as in its examples


class Client(QuicConnectionProtocol):
    """HTTP/3, and WebSockets over it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.events: dict[int, deque[H3Event]] = {}
        self.arrived = asyncio.Event()

    def begin(self, method: bytes, path: bytes, *more: tuple[bytes, bytes], ended: bool) -> int:
        stream_id = self._quic.get_next_available_stream_id()
        self.events[stream_id] = deque()
        fields = [
            (b":method", method),
            (b":scheme", b"https"),
            (b":authority", b"localhost"),
            (b":path", path),
        ]
        self.http.send_headers(stream_id, [*fields, *more], end_stream=ended)
        self.transmit()
        return stream_id

    def send(self, stream_id: int, data: bytes, *, ended: bool) -> None:
        self.http.send_data(stream_id, data, end_stream=ended)
        self.transmit()

    async def next_event(self, stream_id: int) -> H3Event:
        async with asyncio.timeout(PATIENCE):
            while not self.events[stream_id]:
                self.arrived.clear()
                await self.arrived.wait()
        return self.events[stream_id].popleft()

    async def read_response(self, stream_id: int) -> tuple[bytes, bytes]:
        head = await self.next_event(stream_id)
        assert isinstance(head, HeadersReceived)
        body, ended = b"", head.stream_ended
        while not ended:
            part = await self.next_event(stream_id)
            assert isinstance(part, DataReceived)
            body += part.data
            ended = part.stream_ended
        return dict(head.headers)[b":status"], body

    def quic_event_received(self, event: QuicEvent) -> None:
        for http_event in self.http.handle_event(event):
            self.events[http_event.stream_id].append(http_event)  # type: ignore[attr-defined]
        self.arrived.set()


def connect_client(server: Server) -> Any:
    configuration = QuicConfiguration(alpn_protocols=["h3"])
    configuration.load_verify_locations(str(certificates().authority))
    return connect("localhost", server.port, configuration=configuration, create_protocol=Client)


async def test_aioquic(server: Server):
    async with connect_client(server) as client:
        streams = [client.begin(b"GET", b"/hello", ended=True) for _ in range(10)]
        for stream in streams:
            assert await client.read_response(stream) == (b"200", b"Hello, world!")
        stream = client.begin(b"POST", b"/hash", ended=False)
        client.send(stream, CONTENT, ended=True)
        status, body = await client.read_response(stream)
        assert (status, json.loads(body)["sha256"]) == (b"200", DIGEST)


async def test_aioquic_and_wsproto(server: Server):
    async with connect_client(server) as client:
        version = (b"sec-websocket-version", b"13")
        stream = client.begin(b"CONNECT", b"/", (b":protocol", b"websocket"), version, ended=False)
        head = await client.next_event(stream)
        assert dict(head.headers)[b":status"] == b"200"
        socket = wsproto.Connection(wsproto.ConnectionType.CLIENT)
        for text in ("hello", "€" * 10_000):
            client.send(stream, socket.send(wsproto.events.TextMessage(text)), ended=False)
            received = ""
            while received != text:
                socket.receive_data((await client.next_event(stream)).data)
                received += "".join(event.data for event in socket.events())
        close = wsproto.events.CloseConnection(4000, "bye")
        client.send(stream, socket.send(close), ended=False)
        socket.receive_data((await client.next_event(stream)).data)
        (closed,) = socket.events()
        assert closed.code == 4000
