"""A client's byte stream over TCP, TLS or a Unix socket that reads nothing by itself.

`asyncio` streams read ahead as soon as they are connected, so a test cannot be a client that does
not read. Here every `recv` is the test's own; what waits lies in the kernel, in a bounded buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from types import TracebackType
from typing import Self

READ_SIZE = 65536


class ByteStream:
    """Plain bytes over a non-blocking socket."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected

    # Opening and closing

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str = "localhost",
        receive_buffer: int | None = None,
        local_address: str | None = None,
    ) -> ByteStream:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        connecting = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer is not None:  # only before connect does it bound the window
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if local_address is not None:
            connecting.bind((local_address, 0))
        return await cls._connect(connecting, (host, port), tls, server_name)

    @classmethod
    async def connect_unix(cls, path: str | os.PathLike[str]) -> ByteStream:
        return await cls._connect(socket.socket(socket.AF_UNIX), os.fspath(path), None, "")

    @classmethod
    async def _connect(
        cls,
        connecting: socket.socket,
        address: tuple[str, int] | str,
        tls: ssl.SSLContext | None,
        server_name: str,
    ) -> ByteStream:
        connecting.setblocking(False)
        try:
            if connecting.family != socket.AF_UNIX:
                connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(connecting, address)
            if tls is None:
                return ByteStream(connecting)
            stream = TlsStream(connecting, tls, server_name)
            await stream.handshake()
            return stream
        except BaseException:
            connecting.close()
            raise

    def close(self) -> None:
        self.socket.close()

    def abort(self) -> None:
        """Close with a RST instead of a FIN."""
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Bytes

    async def read(self, limit: int = READ_SIZE) -> bytes:
        """What has arrived, up to `limit` bytes; b"" when the peer ended its side."""
        return await asyncio.get_running_loop().sock_recv(self.socket, limit)

    async def write(self, data: bytes) -> None:
        """Return when the kernel took everything."""
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def end_writes(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    async def read_exactly(self, count: int) -> bytes:
        received = bytearray()
        while len(received) < count:
            part = await self.read(count - len(received))
            if not part:
                raise EOFError(f"{len(received)} of {count} bytes, then the end")
            received += part
        return bytes(received)

    async def read_to_end(self) -> bytes:
        received = bytearray()
        while part := await self.read():
            received += part
        return bytes(received)

    async def wait_closed(self) -> bool:
        """Read until the peer closes; True when it did so in order, False for a RST."""
        try:
            await self.read_to_end()
        except ConnectionError:
            return False
        return True

    @property
    def local_address(self) -> tuple[str, int]:
        host, port = self.socket.getsockname()[:2]
        return host, port

    @property
    def alpn(self) -> str | None:
        return None


class TlsStream(ByteStream):
    """The same over TLS. Reading and writing may go on in two tasks at once."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, server_name: str) -> None:
        super().__init__(connected)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_name)
        self._sending = asyncio.Lock()

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fill():
                    raise ConnectionResetError("closed during the TLS handshake") from None
            except ssl.SSLError:
                await self._flush()  # the alert
                raise
            else:
                await self._flush()
                return

    async def read(self, limit: int = READ_SIZE) -> bytes:
        while True:
            try:
                return self.tls.read(limit)
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._fill():
                    return b""

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.tls.write(view[:READ_SIZE]) :]
            await self._flush()

    async def end_writes(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.unwrap()
        await self._flush()
        await super().end_writes()

    @property
    def alpn(self) -> str | None:
        return self.tls.selected_alpn_protocol()

    async def _fill(self) -> bool:
        data = await super().read()
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return bool(data)

    async def _flush(self) -> None:
        async with self._sending:
            if self._outgoing.pending:
                await super().write(self._outgoing.read())
