"""A file straight to a TCP socket: the system copies, Python sees no byte of it.

os.sendfile reads the file in its own thread, because a disk may be slow and the event loop may not
wait for it. The socket does not block; when it is full, the event loop tells when it is not.

Both descriptors are duplicates: those of the application and of the transport may be closed while a
thread is at work, and their numbers given to other files.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from asgiri.errors import AppError, ClientDisconnected

CHUNK: Final = 1 << 20
"""Bytes that one call may send: how long a thread is kept from other files."""


class SendTimeoutError(Exception):
    """The peer has taken nothing for too long."""


class FileSending:
    """One file on its way. `stop` ends it from outside: the connection is over."""

    def __init__(
        self,
        socket: int,
        file: int,
        *,
        loop: asyncio.AbstractEventLoop,
        threads: ThreadPoolExecutor,
        patience: float | None,
    ) -> None:
        self._loop = loop
        self._threads = threads
        self._patience = patience
        self._stopped = False
        self._writable: asyncio.Future[None] | None = None
        self._job: Future[int | None] | None = None
        self._socket = os.dup(socket)
        try:
            self._file = os.dup(file)
        except OSError:
            os.close(self._socket)
            raise

    async def run(self, offset: int, count: int) -> None:
        """Send `count` bytes. Raises ClientDisconnected, SendTimeoutError, or AppError when the
        file has become shorter or can't be read.
        """
        try:
            while count:
                sent = await self._send_some(offset, min(count, CHUNK))
                if sent is None:
                    await self._wait_writable()
                elif sent == 0:
                    raise AppError(f"the file ended {count} bytes before its end")
                else:
                    offset += sent
                    count -= sent
        finally:
            self._close()

    def stop(self) -> None:
        """Send no more."""
        self._stopped = True
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    async def _send_some(self, offset: int, count: int) -> int | None:
        if self._stopped:
            raise ClientDisconnected("the client has gone")
        self._job = self._threads.submit(_sendfile, self._socket, self._file, offset, count)
        try:
            return await asyncio.wrap_future(self._job, loop=self._loop)
        except ConnectionError as error:
            raise ClientDisconnected("the client has gone") from error
        except OSError as error:
            raise AppError(f"the file cannot be sent: {error.strerror}") from error

    async def _wait_writable(self) -> None:
        if self._stopped:
            return
        self._writable = self._loop.create_future()
        self._loop.add_writer(self._socket, self._wake)
        try:
            async with asyncio.timeout(self._patience):
                await self._writable
        except TimeoutError:
            raise SendTimeoutError from None
        finally:
            self._loop.remove_writer(self._socket)

    def _wake(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _close(self) -> None:
        if self._job is None or self._job.done():
            self._close_descriptors()
        else:
            # The application was cancelled while a thread is at work.
            self._job.add_done_callback(lambda _: self._close_descriptors())

    def _close_descriptors(self) -> None:
        os.close(self._socket)
        os.close(self._file)


def _sendfile(socket: int, file: int, offset: int, count: int) -> int | None:
    try:
        return os.sendfile(socket, file, offset, count)
    except BlockingIOError:
        return None
