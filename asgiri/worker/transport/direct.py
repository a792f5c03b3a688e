"""Serves what an adopted connection has already sent without a transport of the event loop.

A connection that the master balances by request comes with a request in it, and goes back with the
answer: to make a transport for that, have it watched, read and closed, took two thirds of what
such a request cost a worker. So the socket is read and written here and now. Whatever is not over
with that gets its transport after all: more is to come, the application waits, the peer does not
take the answer at once.

Until then this stands in for the transport, and behind its back afterwards for who has kept it.
"""

from __future__ import annotations

import asyncio
import socket
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

READ_SIZE: Final = 65536
"""Bytes that are read at once: a request, and its body if it is small."""

HIGH_WATER: Final = 65536
"""Unsent bytes from which on the protocol is to pause, as in asyncio, unless it says otherwise."""


class DirectProtocol(asyncio.Protocol):
    """A protocol that can begin with a `DirectTransport`."""

    __slots__ = ()

    @abstractmethod
    def go_on_with(self, transport: asyncio.Transport) -> None:
        """The event loop's transport has come, and has been given all that was written. It reads
        from now on, whatever was said about that to the other.
        """


class DirectTransport(asyncio.Transport):
    """A connected socket, as a transport that never waits.

    The protocol is told of nothing by itself but the end: the caller gives it what `read` returns.
    """

    __slots__ = (
        "_closing",
        "_eof",
        "_held",
        "_limits",
        "_loop",
        "_promote",
        "_protocol",
        "_real",
        "_socket",
        "_unsent",
        "_unsent_size",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connected: socket.socket,
        protocol: DirectProtocol,
        promote: Callable[[Successor, socket.socket], None],
    ) -> None:
        """`promote` has the event loop make a transport for the socket and the successor."""
        connected.setblocking(False)
        self._loop = loop
        self._socket = connected
        self._protocol = protocol
        self._promote: Callable[[Successor, socket.socket], None] | None = promote
        self._real: asyncio.Transport | None = None
        self._unsent: list[bytes | memoryview] = []
        self._unsent_size = 0
        self._held = False
        """Whether the protocol was told to pause."""
        self._limits: tuple[int | None, int | None] = (None, None)
        self._eof = False
        self._closing: Callable[[asyncio.Transport], None] | None = None
        """How to end the real one: by its `close` or its `abort`."""

    # For the endpoint

    def read(self) -> bytes | None:
        """What has come; b"" when the peer has ended its side, None when nothing has come yet.
        Raises OSError.
        """
        try:
            return self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return None

    @property
    def is_over(self) -> bool:
        """Closed, or gone back to the master, and all that was written has left."""
        return self._closing is not None and self._promote is not None and not self._unsent

    def promote(self) -> None:
        """Let the event loop go on with the connection. The second call does nothing."""
        if self._promote is not None:
            promote, self._promote = self._promote, None
            promote(Successor(self), self._socket)

    def hand_over(self, real: asyncio.Transport) -> None:
        """Do with the real one what was asked of this one meanwhile."""
        self._real = real
        protocol = self._protocol
        real.set_protocol(protocol)
        real.set_write_buffer_limits(*self._limits)
        unsent, self._unsent = self._unsent, []
        for part in unsent:
            real.write(part)
        if (
            self._held
            and real.get_write_buffer_size() <= self._high_water  # else the real one does, in time
            and not real.is_closing()  # it is lost: who writes on would never wait again
        ):
            protocol.resume_writing()
        if self._eof:
            real.write_eof()
        protocol.go_on_with(real)
        if self._closing is not None:
            self._closing(real)

    # What protocols call

    def get_protocol(self) -> DirectProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(DirectProtocol, protocol)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if self._real is not None:
            return self._real.get_extra_info(name, default)
        return self._socket if name == "socket" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._real is not None:
            self._real.write(data)
            return
        if self._closing is not None:
            return
        if not self._unsent and self._promote is not None:
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.abort()
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._unsent.append(bytes(data) if isinstance(data, bytearray) else data)
        self._unsent_size += len(data)
        self.promote()
        self._hold()

    @property
    def _high_water(self) -> int:
        high = self._limits[0]
        return HIGH_WATER if high is None else high

    def _hold(self) -> None:
        """Let the protocol pause once too much is unsent."""
        if not self._held and self._unsent_size > self._high_water:
            self._held = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        for data in list_of_data:
            self.write(data)

    def write_eof(self) -> None:
        self._eof = True
        if self._real is not None:
            self._real.write_eof()
        elif not self._unsent:
            self._socket.shutdown(socket.SHUT_WR)

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        if self._real is not None:
            return self._real.get_write_buffer_size()
        return self._unsent_size

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._limits = high, low
        if self._real is not None:
            self._real.set_write_buffer_limits(high, low)
        else:
            self._hold()

    # Nothing is read here but what `read` is asked for; the real one its owner pauses anew.

    def pause_reading(self) -> None:
        if self._real is not None:
            self._real.pause_reading()

    def resume_reading(self) -> None:
        if self._real is not None:
            self._real.resume_reading()

    def is_closing(self) -> bool:
        return self._closing is not None

    def close(self) -> None:
        self._end(_close)

    def abort(self) -> None:
        if self._real is None:
            self._unsent.clear()
            self._unsent_size = 0
        self._end(_abort)

    def _end(self, how: Callable[[asyncio.Transport], None]) -> None:
        first, self._closing = self._closing is None, how
        if self._real is not None:
            how(self._real)
        elif first and self._promote is not None and not self._unsent:
            self._socket.close()
            self._loop.call_soon(self._protocol.connection_lost, None)


class Successor(asyncio.Protocol):
    """Stands where the protocol will stand until the event loop's transport is there: which it will
    be is not known before.
    """

    __slots__ = ("_direct",)

    def __init__(self, direct: DirectTransport) -> None:
        self._direct = direct

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._direct.hand_over(cast(asyncio.Transport, transport))

    def failed(self, error: OSError) -> None:
        """There will be none."""
        self._direct.get_protocol().connection_lost(error)


def _close(transport: asyncio.Transport) -> None:
    transport.close()


def _abort(transport: asyncio.Transport) -> None:
    transport.abort()
