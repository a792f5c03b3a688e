"""WebSockets over every version: handshake, messages, control frames, both ways to end."""

from __future__ import annotations

import asyncio

import pytest

from tests.behaviour.conftest import Connect
from tests.behaviour.versions import MAX_MESSAGE, Version
from tests.support.client import ClientConnection, request
from tests.support.remote_app import AppCall, RemoteApps, RemoteRaised
from tests.support.websocket_client import (
    Opcode,
    WebSocketClient,
    WebSocketRefused,
    encode_frame,
    open_websocket,
)


async def accepted(
    connection: ClientConnection, apps: RemoteApps, **options: object
) -> tuple[WebSocketClient, AppCall]:
    """An open WebSocket whose application the test drives."""
    opening = asyncio.create_task(open_websocket(connection, "/ws?a=1", apps.headers, **options))
    call = await apps.wait_call()
    assert (await call.receive())["type"] == "websocket.connect"
    await call.send({"type": "websocket.accept"})
    return await opening, call


async def test_messages_are_echoed(connection: ClientConnection):
    socket = await open_websocket(connection, "/", subprotocols=("chat", "other"))
    assert socket.subprotocol == "chat"
    for text in ("", "hello", "€" * 1000, "x" * 70_000):
        await socket.send_text(text)
        assert await socket.read_message() == text
    await socket.send_bytes(bytes(range(256)))
    assert await socket.read_message() == bytes(range(256))
    await socket.send_close(1000, "bye")
    assert (await socket.read_close())[0] == 1000
    await socket.wait_ended()


async def test_the_scope_says_what_asgi_asks_for(
    connection: ClientConnection, apps: RemoteApps, version: Version
):
    socket, call = await accepted(connection, apps, subprotocols=("a", "b"))
    scope = call.scope
    assert scope["type"] == "websocket"
    assert scope["asgi"]["spec_version"] == "2.5"
    assert scope["http_version"] == version.http_version
    assert scope["scheme"] == ("wss" if version.tls else "ws")
    assert (scope["path"], scope["query_string"]) == ("/ws", b"a=1")
    assert scope["subprotocols"] == ["a", "b"]
    assert tuple(scope["client"]) == connection.local_address
    assert "websocket.http.response" in scope["extensions"]
    await call.send({"type": "websocket.close"})
    call.finish()
    assert (await socket.read_close())[0] == 1000


async def test_fragments_and_control_frames_between_them(
    connection: ClientConnection, apps: RemoteApps
):
    socket, call = await accepted(connection, apps)
    text = "über".encode()
    await socket.send_raw(encode_frame(Opcode.TEXT, text[:1], fin=False))  # cut inside of "ü"
    await socket.send_frame(Opcode.PING, b"between")
    await socket.send_raw(encode_frame(Opcode.CONTINUATION, text[1:], fin=True))
    assert (await call.receive())["text"] == "über"
    frame = await socket.read_frame()
    assert (frame.opcode, frame.payload) == (Opcode.PONG, b"between")
    call.finish()


async def test_compressed_messages(connection: ClientConnection):
    socket = await open_websocket(connection, "/", deflate=True)
    assert socket.deflate
    for _ in range(2):
        await socket.send_compressed(Opcode.TEXT, b"repeat " * 1000)
        assert await socket.read_message() == "repeat " * 1000


async def test_the_client_s_close_is_told_to_the_application(
    connection: ClientConnection, apps: RemoteApps
):
    socket, call = await accepted(connection, apps)
    await socket.send_close(3456, "enough")
    message = await call.receive()
    assert (message["type"], message["code"]) == ("websocket.disconnect", 3456)
    assert message["reason"] == "enough"
    assert (await socket.read_close())[0] == 3456
    await socket.wait_ended()
    with pytest.raises(RemoteRaised) as raised:
        await call.send({"type": "websocket.send", "text": "late"})
    assert "OSError" in raised.value.bases
    call.finish()


async def test_the_application_s_close_is_told_to_the_client(
    connection: ClientConnection, apps: RemoteApps
):
    socket, call = await accepted(connection, apps)
    await call.send({"type": "websocket.close", "code": 4001, "reason": "no more"})
    assert await socket.read_close() == (4001, "no more")
    await socket.send_close(4001)
    await socket.wait_ended()
    call.finish()


async def test_a_vanished_client_is_told_as_1006(
    connection: ClientConnection, apps: RemoteApps, version: Version
):
    _, call = await accepted(connection, apps)
    # Nobody tells a server that a QUIC client has vanished; it would wait for the idle timeout.
    await (connection.close() if version.http_version == "3" else connection.abort())
    message = await call.receive()
    assert (message["type"], message["code"]) == ("websocket.disconnect", 1006)
    call.finish()


async def test_an_application_may_refuse(connection: ClientConnection, apps: RemoteApps):
    opening = asyncio.create_task(open_websocket(connection, "/", apps.headers))
    call = await apps.wait_call()
    await call.receive()
    await call.send({"type": "websocket.close"})
    call.finish()
    with pytest.raises(WebSocketRefused) as refused:
        await opening
    assert refused.value.head.status == 403


async def test_an_application_may_refuse_with_a_response_of_its_own(
    connection: ClientConnection, apps: RemoteApps
):
    opening = asyncio.create_task(open_websocket(connection, "/", apps.headers))
    call = await apps.wait_call()
    await call.receive()
    headers = [(b"www-authenticate", b"Basic")]
    await call.send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
    await call.send({"type": "websocket.http.response.body", "body": b"who are you?"})
    call.finish()
    with pytest.raises(WebSocketRefused) as refused:
        await opening
    assert refused.value.head.status == 401
    assert refused.value.head.header("www-authenticate") == "Basic"


async def test_an_error_of_the_application_is_1011(connection: ClientConnection, apps: RemoteApps):
    socket, call = await accepted(connection, apps)
    call.fail()
    assert (await socket.read_close())[0] == 1011


VIOLATIONS = {
    "not masked": (encode_frame(Opcode.TEXT, b"x", masked=False), 1002),
    "reserved opcode": (encode_frame(3, b"x"), 1002),
    "reserved bit": (encode_frame(Opcode.TEXT, b"x", rsv=1), 1002),
    "continuation of nothing": (encode_frame(Opcode.CONTINUATION, b"x"), 1002),
    "fragmented ping": (encode_frame(Opcode.PING, b"x", fin=False), 1002),
    "long ping": (encode_frame(Opcode.PING, b"x" * 126), 1002),
    "not utf-8": (encode_frame(Opcode.TEXT, b"\xff\xfe"), 1007),
    "close of one byte": (encode_frame(Opcode.CLOSE, b"\x03"), 1002),
    "close code 1005": (encode_frame(Opcode.CLOSE, b"\x03\xed"), 1002),
    "too large": (encode_frame(Opcode.BINARY, bytes(MAX_MESSAGE + 1)), 1009),
    "too large in parts": (
        encode_frame(Opcode.BINARY, bytes(MAX_MESSAGE), fin=False)
        + encode_frame(Opcode.CONTINUATION, bytes(1)),
        1009,
    ),
}


@pytest.mark.parametrize(("wire", "code"), VIOLATIONS.values(), ids=VIOLATIONS.keys())
async def test_a_violation_is_answered_with_its_code(
    connection: ClientConnection, apps: RemoteApps, wire: bytes, code: int
):
    socket, call = await accepted(connection, apps)
    await socket.send_raw(wire)
    assert (await socket.read_close())[0] == code
    message = await call.receive()
    assert (message["type"], message["code"]) in (
        ("websocket.disconnect", code),
        ("websocket.disconnect", 1006),
    )
    call.finish()


async def test_http_requests_go_on_beside_a_websocket(connect: Connect, version: Version):
    connection = await connect()
    socket = await open_websocket(connection, "/")
    other = connection if version.multiplexed else await connect()
    assert (await request(other, "GET", "/hello")).status == 200
    await socket.send_text("still here")
    assert await socket.read_message() == "still here"
