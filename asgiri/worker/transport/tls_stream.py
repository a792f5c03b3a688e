"""TLS between a transport of the event loop and an asyncio protocol, in place of asyncio's.

asyncio and uvloop read until OpenSSL raises that there is no more, with a buffer of 256 KiB each
time. Here nothing is asked of OpenSSL that the bytes that came do not answer: a hello costs 4 us
less (bench/all.py --only TLS).

Alerts by which a connection fails are sent (RFC 8446 §6.2), which the others forget. The end: we
say close_notify, throw away what still comes, and close when the peer has said its own, or closed,
or SHUTDOWN_TIMEOUT is over; so that no RST destroys what it has not read yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from asgiri.worker.protocol.client_hello import (
    NO_APPLICATION_PROTOCOL,
    offered_protocols_untrusted,
)

SHUTDOWN_TIMEOUT: Final = 10.0
"""How long a peer may take for its close_notify, and for the last 64 KiB before it."""
MAX_PLAINTEXT: Final = 16384
"""Of one record (RFC 8446 §5.1): what is read at once leaves nothing in OpenSSL."""
WRITE_SIZE: Final = 65536
"""Bytes encrypted at once. OpenSSL's buffer grows to this, and stays so for as long as the
connection."""


class NoCommonProtocolError(ssl.SSLError):
    """The client offers protocols, and none of ours."""

    reason = "NO_APPLICATION_PROTOCOL"  # as OpenSSL calls it


class State(enum.Enum):
    """How far a connection has come."""

    HANDSHAKE = enum.auto()
    OPEN = enum.auto()
    CLOSING = enum.auto()
    """Our close_notify is written; the peer's has not come."""
    CLOSED = enum.auto()
    """The transport below is told to end, or has."""


HANDSHAKE: Final = State.HANDSHAKE
OPEN: Final = State.OPEN
CLOSING: Final = State.CLOSING
CLOSED: Final = State.CLOSED
NOBODY: Final = asyncio.Protocol()
"""Stands where a protocol was that is to hear no more."""


class TlsTransport(asyncio.Transport, asyncio.Protocol):
    """The server's side of one connection: protocol of the transport below, transport of the
    protocol above. That one hears nothing before the handshake is complete.
    """

    __slots__ = (
        "_context",
        "_failed",
        "_handshake_timeout",
        "_incoming",
        "_loop",
        "_offered",
        "_outgoing",
        "_paused",
        "_protocol",
        "_state",
        "_timer",
        "_tls",
        "_wire",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol: asyncio.Protocol,
        context: ssl.SSLContext,
        *,
        offered: frozenset[bytes],
        handshake_timeout: float,
        failed: Callable[[Exception], None],
    ) -> None:
        """`offered`: our protocols; one of them has to be among what the client offers.
        `failed` is told, once, in place of the protocol when there will be no connection.
        """
        self._loop = loop
        self._protocol = protocol
        self._offered = offered
        self._failed: Callable[[Exception], None] | None = failed
        # What is put off runs in this: the caller's context may be that of one request.
        self._context = contextvars.copy_context()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._state = HANDSHAKE
        self._paused = False
        self._handshake_timeout = handshake_timeout
        self._wire: asyncio.Transport
        self._timer: asyncio.TimerHandle

    # asyncio.Protocol, for the transport below

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._wire = cast(asyncio.Transport, transport)
        self._timer = self._loop.call_later(self._handshake_timeout, self._handshake_timed_out)

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if self._state is OPEN:
            self._read()
        elif self._state is HANDSHAKE:
            self._shake_hands()
        elif self._state is CLOSING:
            self._discard()

    def eof_received(self) -> bool:
        """End at once what is not ended in order; the transport below closes itself."""
        if self._state is HANDSHAKE:
            self._give_up(ConnectionResetError("the client has closed in the handshake"))
        elif self._state is OPEN:
            self._read()
        if self._state is OPEN:
            self._say_close()
        self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = CLOSED
        if self._failed is not None:
            self._give_up(exc or ConnectionResetError("the client has gone in the handshake"))
        self._timer.cancel()
        protocol, self._protocol = self._protocol, NOBODY
        protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._state is not HANDSHAKE:
            self._protocol.pause_writing()

    def resume_writing(self) -> None:
        if self._state is not HANDSHAKE:
            self._protocol.resume_writing()

    # The handshake

    def _shake_hands(self) -> None:
        try:
            if self._offered:
                self._compare_protocols()
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return
        except ssl.SSLError as error:
            self._send()
            self._give_up(error)
            return
        self._send()
        self._timer.cancel()
        self._failed = None
        self._state = OPEN
        self._protocol.connection_made(self)
        self._read()

    def _compare_protocols(self) -> None:
        received = self._incoming.read()
        self._incoming.write(received)
        offered = offered_protocols_untrusted(received)
        if offered is None:
            # OpenSSL would take what there is of the hello.
            raise ssl.SSLWantReadError
        if offered and self._offered.isdisjoint(offered):
            self._outgoing.write(NO_APPLICATION_PROTOCOL)
            raise NoCommonProtocolError(f"the client offers {offered}")
        self._offered = frozenset()

    def _handshake_timed_out(self) -> None:
        # As asyncio says it.
        self._give_up(ConnectionAbortedError("the handshake takes too long"))

    def _give_up(self, error: Exception) -> None:
        failed, self._failed = self._failed, None
        self._protocol = NOBODY
        self._end()
        if failed is not None:
            failed(error)

    # Reading

    def _read(self) -> None:
        """Give the protocol what has come."""
        incoming, read = self._incoming, self._tls.read
        # An end may have come in the same bytes as what was read before.
        while incoming.pending and self._state is OPEN and not self._paused:
            try:
                data = read(MAX_PLAINTEXT)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError:
                self._send()  # the alert
                self._end()
                return
            if not data:
                # TLS could go on in one direction; HTTP/1.1 and 2 over it have no use for that.
                self._protocol.eof_received()
                self.close()
                return
            self._protocol.data_received(data)
        if self._outgoing.pending:
            self._send()  # the answer to a new key

    def _discard(self) -> None:
        """Throw away what comes before the peer's close_notify."""
        try:
            while self._tls.read(MAX_PLAINTEXT):
                pass
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError:
            pass  # its close_notify, since we have sent ours; or nonsense
        self._end()

    # asyncio.Transport, for the protocol above

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._tls if name == "ssl_object" else self._wire.get_extra_info(name, default)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._state is not OPEN or not data:
            return
        try:
            if len(data) <= WRITE_SIZE:
                self._tls.write(data)
                self._wire.write(self._outgoing.read())
            else:
                self._write_much(memoryview(data))
        except ssl.SSLError:
            self.abort()

    def _write_much(self, data: memoryview) -> None:
        for start in range(0, len(data), WRITE_SIZE):
            self._tls.write(data[start : start + WRITE_SIZE])
            self._wire.write(self._outgoing.read())

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        raise NotImplementedError("TLS ends in both directions")

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self._wire.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._wire.set_write_buffer_limits(high, low)

    def pause_reading(self) -> None:
        if not self._paused and not self.is_closing():
            self._paused = True
            self._wire.pause_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if not self.is_closing():
                # Not now, for the caller may not be done.
                self._loop.call_soon(self._read_on, context=self._context)

    def _read_on(self) -> None:
        """Read what has come before the pause, and more only when that was all: else each pause
        would leave more behind.
        """
        self._read()
        if self._state is OPEN and not self._paused:
            self._wire.resume_reading()

    def is_reading(self) -> bool:
        return not self._paused and not self.is_closing()

    def is_closing(self) -> bool:
        return self._state is not OPEN or self._wire.is_closing()

    def close(self) -> None:
        """End in order: what is written leaves, and close_notify behind it."""
        if self._state is not OPEN:
            return
        self._paused = False
        self._wire.resume_reading()
        self._state = CLOSING
        self._timer = self._loop.call_later(SHUTDOWN_TIMEOUT, self._wire.abort)
        # First: OpenSSL says close_notify only to who has nothing unread.
        with contextlib.suppress(ssl.SSLError):
            while self._tls.read(MAX_PLAINTEXT):
                pass
        if self._say_close():
            self._end()

    def abort(self) -> None:
        self._state = CLOSED
        self._wire.abort()

    # Internals

    def _end(self) -> None:
        """Let the transport below end, for which the peer has to take what is written."""
        self._state = CLOSED
        self._timer.cancel()
        self._timer = self._loop.call_later(SHUTDOWN_TIMEOUT, self._wire.abort)
        self._wire.close()

    def _say_close(self) -> bool:
        """Write close_notify; tell whether the peer's has come."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            return False
        finally:
            self._send()
        return True

    def _send(self) -> None:
        if data := self._outgoing.read():
            self._wire.write(data)
