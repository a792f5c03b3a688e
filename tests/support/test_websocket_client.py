"""The WebSocket frame codec against wsproto, and against frames no server may send."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, TextMessage

from tests.support.client import Head, ServerViolation
from tests.support.websocket_client import (
    Frame,
    FrameReader,
    Opcode,
    WebSocketClient,
    encode_frame,
    xor,
)


class Canned:
    """A carrier that holds what a server sent and keeps what the client sends."""

    def __init__(self, incoming: bytes = b"") -> None:
        self.incoming = [incoming]
        self.sent = b""

    async def send_body(self, data: bytes) -> None:
        self.sent += data

    async def read(self) -> bytes:
        return self.incoming.pop() if self.incoming else b""


def client_of(incoming: bytes, extensions: bytes | None = None) -> WebSocketClient:
    headers = [] if extensions is None else [(b"sec-websocket-extensions", extensions)]
    return WebSocketClient(Canned(incoming), Head(101, headers))


@given(st.binary(max_size=70_000), st.binary(min_size=4, max_size=4))
def test_frames_are_read_by_wsproto(payload: bytes, mask: bytes):
    server = Connection(ConnectionType.SERVER)
    server.receive_data(encode_frame(Opcode.BINARY, payload, mask=mask))
    assert b"".join(event.data for event in server.events()) == payload  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
async def test_messages_of_wsproto_are_read(size: int):
    server = Connection(ConnectionType.SERVER)
    wire = server.send(TextMessage(data="é" * size)) + server.send(BytesMessage(data=b"x" * size))
    client = client_of(wire)
    assert await client.read_message() == "é" * size
    assert await client.read_message() == b"x" * size


async def test_fragments_are_joined_and_deflate_is_undone():
    from wsproto.extensions import PerMessageDeflate

    extension = PerMessageDeflate()
    offer = extension.accept("permessage-deflate")
    server = Connection(ConnectionType.SERVER, extensions=[extension])
    wire = server.send(TextMessage(data="abc", message_finished=False))
    wire += server.send(TextMessage(data="def" * 100))
    assert len(wire) < 100
    client = client_of(wire, f"permessage-deflate; {offer}".encode())
    assert await client.read_message() == "abc" + "def" * 100


async def test_compressed_messages_are_read_by_wsproto():
    from wsproto.extensions import PerMessageDeflate

    extension = PerMessageDeflate()
    extension.accept("permessage-deflate")
    server = Connection(ConnectionType.SERVER, extensions=[extension])
    carrier = Canned()
    client = WebSocketClient(carrier, Head(101, []))
    await client.send_compressed(Opcode.TEXT, b"hello")
    await client.send_compressed(Opcode.TEXT, b"hello")
    server.receive_data(carrier.sent)
    assert [event.data for event in server.events()] == ["hello", "hello"]  # type: ignore[attr-defined]


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_xor_masks_byte_by_byte(payload: bytes, key: bytes):
    assert xor(payload, key) == bytes(b ^ key[i % 4] for i, b in enumerate(payload))


@given(cut=st.integers(0, 131))
def test_frames_do_not_depend_on_how_bytes_arrive(cut: int):
    wire = encode_frame(Opcode.TEXT, b"a" * 126, masked=False) + b"\x89\x00"
    reader, frames = FrameReader(), []
    for part in (wire[:cut], wire[cut:]):
        reader.feed(part)
        while (frame := reader.next_frame()) is not None:
            frames.append(frame)
    assert frames == [Frame(Opcode.TEXT, b"a" * 126), Frame(Opcode.PING, b"")]


@pytest.mark.parametrize(
    "wire",
    [
        encode_frame(Opcode.TEXT, b"masked", mask=b"mask"),
        encode_frame(3, b"", masked=False),
        encode_frame(Opcode.PING, b"", fin=False, masked=False),
        encode_frame(Opcode.PING, b"x" * 126, masked=False),
        encode_frame(Opcode.TEXT, b"", rsv=4, masked=False),
        b"\x81\x7e\x00\x01a",
        b"\x81\x7f\x00\x00\x00\x00\x00\x00\x00\x01a",
        encode_frame(Opcode.CONTINUATION, b"", masked=False),
        encode_frame(Opcode.TEXT, b"", fin=False, masked=False) + b"\x81\x00",
    ],
)
async def test_what_a_server_must_not_send_is_a_violation(wire: bytes):
    with pytest.raises(ServerViolation):
        await client_of(wire).read_message()


async def test_a_close_frame_is_read_and_nothing_may_follow():
    client = client_of(b"\x88\x07\x03\xf4going" + b"\x89\x00")
    assert await client.read_close() == (1012, "going")
    with pytest.raises(ServerViolation):
        await client.wait_ended()
