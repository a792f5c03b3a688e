"""The table of WebSocket, through a master and two workers, over the three versions of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.conformance.websocket_cases import (
    BINARY,
    CASES,
    CLOSE,
    OFFERS,
    PING,
    PONG,
    TEXT,
    Case,
)
from tests.support.client import ClientConnection
from tests.support.http1_client import Http1Connection
from tests.support.http2_client import Http2Connection
from tests.support.http3_client import Http3Connection
from tests.support.server import PATIENCE, Server
from tests.support.websocket_client import (
    Frame,
    WebSocketClient,
    encode_frame,
    open_websocket,
)

LAST = b"last"


@pytest.fixture(params=["http1", "http2", "http3"])
async def carrier(request: pytest.FixtureRequest) -> AsyncIterator[ClientConnection]:
    connection = await connect(request)
    async with asyncio.timeout(PATIENCE):
        yield connection
    await connection.close()


async def connect(request: pytest.FixtureRequest) -> ClientConnection:
    if request.param == "http3":
        secure: Server = request.getfixturevalue("secure_server")
        return await Http3Connection.connect(secure.host, secure.port)
    server: Server = request.getfixturevalue("cleartext_server")
    if request.param == "http2":
        return await Http2Connection.connect(server.host, server.port)
    return await Http1Connection.connect(server.host, server.port)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_case(case: Case, carrier: ClientConnection):
    socket = await open_websocket(carrier, "/_echo", deflate=case.deflate)
    assert socket.deflate is case.deflate
    await socket.send_raw(case.sent)
    for expected in case.expected:
        while (frame := await read_plain(socket)) != expected:
            assert case.ends
            assert frame.opcode in (TEXT, BINARY)
    if case.ends:
        await socket.wait_ended()
    else:
        await socket.send_raw(encode_frame(PING, LAST))
        assert await socket.read_frame() == Frame(PONG, LAST)


async def read_plain(socket: WebSocketClient) -> Frame:
    frame = await socket.read_frame()
    if frame.opcode is CLOSE:
        return Frame(CLOSE, frame.payload[:2])
    return Frame(frame.opcode, socket.inflate(frame.payload)) if frame.compressed else frame


@pytest.mark.parametrize("offer", OFFERS)
async def test_offer(offer: str, cleartext_server: Server):
    """RFC 7692 §7.1: what is malformed is declined, the next one may be taken."""
    connection = await Http1Connection.connect(cleartext_server.host, cleartext_server.port)
    socket = await open_websocket(connection, "/_echo", [("sec-websocket-extensions", offer)])
    assert socket.deflate is OFFERS[offer]
    answer = socket.head.header("sec-websocket-extensions") or ""
    # "If the received extension negotiation offer includes [it], the server MUST include it".
    assert ("server_no_context_takeover" in answer) is (
        OFFERS[offer] and "server_no_context_takeover" in offer
    )
    if not OFFERS[offer]:
        assert answer == ""
    await connection.close()
