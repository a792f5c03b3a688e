"""The largest message, over every version, with the limits that the server has by default."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.behaviour.versions import connect_http1, connect_http2, connect_http3
from tests.support.apps import pattern
from tests.support.server import Server, ServerOptions
from tests.support.websocket_client import Opcode, open_websocket

pytestmark = pytest.mark.slow

LIMIT = 16 << 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server.start(
        ServerOptions(workers=1, tls=True, options={"http3": True, "graceful_timeout": 2})
    )
    yield server
    server.stop()


@pytest.fixture(params=[connect_http1, connect_http2, connect_http3])
async def socket(request: pytest.FixtureRequest, server: Server):
    connection = await request.param(server)
    yield await open_websocket(connection, "/")
    await connection.close()


async def test_a_message_of_16_mib_comes_back(socket):
    message = pattern(LIMIT)
    await socket.send_bytes(message)
    assert await socket.read_message() == message


async def test_a_message_of_16_mib_in_frames_comes_back(socket):
    message, size = pattern(LIMIT), 1 << 20
    for start in range(0, LIMIT, size):
        opcode = Opcode.BINARY if start == 0 else Opcode.CONTINUATION
        await socket.send_frame(opcode, message[start : start + size], fin=start + size == LIMIT)
    assert await socket.read_message() == message


async def test_one_byte_more_is_too_big(socket):
    await socket.send_frame(Opcode.BINARY, bytes(LIMIT), fin=False)
    await socket.send_frame(Opcode.CONTINUATION, b"x")
    assert (await socket.read_close())[0] == 1009
    await socket.wait_ended()
