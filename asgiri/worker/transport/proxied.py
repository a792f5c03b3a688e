"""Reads the header of the PROXY protocol off an adopted connection, before anything else is read.

Not one byte more: what follows may be a TLS handshake, which the event loop reads itself.
"""

from __future__ import annotations

import asyncio
import socket

from asgiri.worker.protocol.proxy_protocol import (
    MAX_V2,
    ProxyHeader,
    parse_proxy_header_untrusted,
)


async def read_proxy_header(connection: socket.socket, patience: float) -> ProxyHeader:
    """Wait for the header for `patience` seconds and take it off.

    Raises ValueError for anything else, EOFError when the peer closes first, TimeoutError, OSError.
    """
    connection.setblocking(False)
    received = b""
    async with asyncio.timeout(patience):
        while True:
            try:
                peeked = connection.recv(MAX_V2, socket.MSG_PEEK)
            except BlockingIOError:
                await _readable(connection)
                continue
            if not peeked:
                raise EOFError("closed before a PROXY header")
            header = parse_proxy_header_untrusted(received + peeked)
            if header is not None:
                connection.recv(header.size - len(received))
                return header
            # All of it belongs to the header, so nothing is taken from what follows.
            received += connection.recv(len(peeked))


async def _readable(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(connection.fileno(), _done, readable)
    try:
        await readable
    finally:
        loop.remove_reader(connection.fileno())


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
