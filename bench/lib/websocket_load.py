"""A WebSocket client that costs little: frames made beforehand, one message at a time.

Run as a program, on a processor of its own: HOST PORT PATH CONNECTIONS SIZE SECONDS. Each
connection sends a binary message and waits for what comes back. On /all one sends, and everybody
waits for it. Prints how many messages came from the server.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

import uvloop

OPENING = (
    "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def masked_frame(size: int) -> bytes:
    """A binary message of random bytes. (Masked with a key that is not zero, as clients must.)"""
    if size < 126:
        head = bytes([0x82, 0x80 | size])
    elif size < 65536:
        head = b"\x82\xfe" + size.to_bytes(2)
    else:
        head = b"\x82\xff" + size.to_bytes(8)
    return head + b"\x12\x34\x56\x78" + os.urandom(size)


def frame_length(data: bytearray) -> tuple[int, int, bool] | None:
    """Length of the head and of the payload, and whether the message ends in it."""
    if len(data) < 2:
        return None
    length, start = data[1] & 0x7F, 2
    if length >= 126:
        wide = 2 if length == 126 else 8
        if len(data) < 2 + wide:
            return None
        length, start = int.from_bytes(data[2 : 2 + wide]), 2 + wide
    return start, length, bool(data[0] & 0x80)


class Peer(asyncio.Protocol):
    def __init__(self, opening: bytes, on_open: object, on_message: object) -> None:
        self._opening = opening
        self._on_open, self._on_message = on_open, on_message
        self._open = False
        self._data = bytearray()
        self._skip = 0
        self._last = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(self._opening)

    def data_received(self, data: bytes) -> None:
        if self._skip >= len(data):  # in the middle of a payload
            self._skip -= len(data)
            if not self._skip and self._last:
                self._on_message(self)  # type: ignore[operator]
            return
        self._data += data[self._skip :]
        if self._skip:
            self._skip = 0
            if self._last:
                self._on_message(self)  # type: ignore[operator]
        if not self._open:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self._data.startswith(b"HTTP/1.1 101"):
                raise SystemExit(bytes(self._data[:end]).decode())
            del self._data[: end + 4]
            self._open = True
            self._on_open(self)  # type: ignore[operator]
        while (found := frame_length(self._data)) is not None:
            start, length, self._last = found
            here = min(length, len(self._data) - start)
            del self._data[: start + here]
            self._skip = length - here
            if self._skip:
                return
            if self._last:
                self._on_message(self)  # type: ignore[operator]


async def run(host: str, port: int, path: str, connections: int, size: int, seconds: float) -> int:
    loop = asyncio.get_running_loop()
    frame = masked_frame(size)
    to_all = path == "/all"
    count = waiting = opened = 0
    ready = loop.create_future()

    def on_open(_: Peer) -> None:
        nonlocal opened
        opened += 1
        if opened == connections:
            ready.set_result(None)

    def on_message(peer: Peer) -> None:
        nonlocal count, waiting
        count += 1
        if not to_all:
            peer.transport.write(frame)
            return
        waiting -= 1
        if not waiting:
            waiting = connections
            peers[0].transport.write(frame)

    opening = OPENING.format(path=path, host=host, port=port).encode()
    peers = []
    for _ in range(connections):
        _, peer = await loop.create_connection(
            lambda: Peer(opening, on_open, on_message), host, port
        )
        peers.append(peer)
    await ready
    waiting = connections
    for peer in peers[:1] if to_all else peers:
        peer.transport.write(frame)
    await asyncio.sleep(0.5)
    begin, before = time.monotonic(), count
    print("warm", flush=True)
    await asyncio.sleep(seconds)
    done = count - before
    print(f"{done} messages, {done / (time.monotonic() - begin):.0f} per second", flush=True)
    sys.stdin.readline()
    return done


if __name__ == "__main__":
    host, port, path, connections, size, seconds = sys.argv[1:]
    uvloop.run(run(host, int(port), path, int(connections), int(size), float(seconds)))
