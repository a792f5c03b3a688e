"""The ASGI callables, and the two interfaces between an exchange and the transport that serves
it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from asgiri.worker.protocol.events import Headers, ResponseHead

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class ResponseSink(Protocol):
    """What an exchange may ask of the connection that serves it (implemented by
    `transport.session`).

    Every method returns at once. An exchange that was told to pause (`Exchange.pause_writing`)
    waits before it sends more. After `Exchange.disconnected` all of them do nothing.
    """

    number: int
    """Of the connection in this worker."""

    def send_informational(self, stream_id: int, status: int, headers: Headers) -> None: ...

    def send_response(
        self, stream_id: int, head: ResponseHead, body: bytes, *, ended: bool
    ) -> None: ...

    def send_body(self, stream_id: int, data: bytes, *, ended: bool) -> None: ...

    def send_trailers(self, stream_id: int, headers: Headers) -> None: ...

    sends_files: bool
    """`send_file` may be called: the system copies from file to socket."""

    async def send_file(
        self, stream_id: int, file: int, offset: int, count: int, *, ended: bool
    ) -> None:
        """Send a part of an open file as a part of the body, behind the head. Returns when it has
        left; raises ClientDisconnected, or AppError when it does not fit or becomes shorter.
        """

    def accept_tunnel(self, stream_id: int, headers: Headers) -> None: ...

    def send_tunnel(self, stream_id: int, parts: list[bytes]) -> None:
        """Send bytes of an accepted tunnel, which go together."""

    def reset_stream(self, stream_id: int) -> None: ...

    def acknowledge(self, stream_id: int, credit: int) -> None:
        """The application took `credit` bytes: the peer may send as many more."""

    def exchange_ended(self, stream_id: int) -> None:
        """The application's call returned: the stream's slot is free (HTTP/1.1 goes on with the
        next request)."""


class Exchange(Protocol):
    """One ASGI call, driven by the transport: an HTTP request or a WebSocket."""

    def body_received(self, data: bytes, credit: int) -> None: ...

    def body_ended(self) -> None: ...

    def half_closed(self) -> None:
        """The peer closed its side behind a complete request: it may be gone, or wait for the
        answer."""

    def disconnected(self) -> None:
        """The peer is gone, or gave this stream up. The application sees http.disconnect /
        websocket.disconnect 1005/1006."""

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def drain(self) -> None:
        """The worker drains: a WebSocket closes with 1012 as configured; an HTTP exchange just goes
        on."""

    def cancel(self) -> None:
        """The worker's patience is over: cancel the application's task."""
