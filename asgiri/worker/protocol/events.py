"""What every protocol engine says, and what can be asked of it. Sans-IO.

An engine (HTTP/1.1, HTTP/2, HTTP/3) turns bytes into the events below and method calls into bytes,
so that `asgi` and `transport` never learn which version they serve. One exchange is one *stream*;
HTTP/1.1 numbers its exchanges 1, 2, 3 ... and has one open at a time.

Events are mutable slotted dataclasses: freezing costs 0.9 us per object on the hot path, three
times the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from asgiri.ipc.scoreboard import Refusal

Headers = list[tuple[bytes, bytes]]
"""Field lines in order of arrival: lower-case name, value without surrounding white space."""


@dataclass(slots=True)
class RequestReceived:
    """A request's head is complete and keeps the rules of its version."""

    stream_id: int
    method: str
    target: bytes
    """Path and query as sent: origin-form; "*" for OPTIONS *; authority-form for a plain CONNECT.
    An absolute-form target (RFC 9112 §3.2.2) is already reduced to its origin-form, its authority
    is in `headers` as host."""
    headers: Headers
    """With `host` first when the peer sent :authority. No pseudo-header fields."""
    http_version: str
    """As ASGI spells it: "1.0", "1.1", "2", "3"."""
    ended: bool = False
    """No body follows. Then no `BodyEnded` comes either."""
    protocol: str | None = None
    """What the peer wants the stream to become: "websocket" (Upgrade, or :protocol of RFC 8441 and
    9220)."""
    expects_continue: bool = False
    """The peer waits for 100 (Continue) before it sends the body (RFC 9110 §10.1.1)."""


@dataclass(slots=True)
class BodyReceived:
    """Part of a request body, or bytes of an accepted tunnel."""

    stream_id: int
    data: bytes
    credit: int
    """Bytes of flow control to give back by `acknowledge` once the application took `data`: its
    length, padding included."""
    ended: bool = False
    """This was the last part; no `BodyEnded` follows."""


@dataclass(slots=True)
class BodyEnded:
    """The request body, or the peer's side of a tunnel, is complete."""

    stream_id: int
    trailers: Headers = field(default_factory=list)


@dataclass(slots=True)
class StreamReset:
    """The peer gave the exchange up (RST_STREAM, RESET_STREAM with STOP_SENDING). Nothing more can
    be sent on it."""

    stream_id: int


@dataclass(slots=True)
class StreamPaused:
    """More of this stream waits to be sent than `high_water`; the sender should wait for
    `StreamResumed`."""

    stream_id: int


@dataclass(slots=True)
class StreamResumed:
    """What waits to be sent on this stream fell below `low_water`."""

    stream_id: int


@dataclass(slots=True)
class PeerViolation:
    """The peer broke a rule. The engine has already queued the answer that the rule's RFC names."""

    reason: Refusal
    detail: str
    stream_id: int | None = None
    """The stream it ended; None when it ends the connection (`ConnectionEnded` follows)."""


@dataclass(slots=True)
class HalfClosed:
    """HTTP/1.1: the peer closed its side behind a complete request. It may be gone, or wait for the
    answer."""

    stream_id: int


@dataclass(slots=True)
class ConnectionEnded:
    """Nothing more will be read. Flush `data_to_send`, then close. Open exchanges are gone."""

    reason: str
    abort: bool = False
    """Close by RST: the peer could take an orderly end for the end of a response that is not
    complete."""


Event = (
    RequestReceived
    | BodyReceived
    | BodyEnded
    | StreamReset
    | StreamPaused
    | StreamResumed
    | PeerViolation
    | HalfClosed
    | ConnectionEnded
)


@dataclass(slots=True)
class ResponseHead:
    """A response head, already checked by `headers.response_head`: it can be written as it stands.
    Never changed: equal responses of one second share it.

    Connection-specific fields (RFC 9110 §7.6.1) are taken out; `close` tells that the application
    asked for `connection: close`. Server, date and configured default fields are in `headers`.
    """

    status: int
    headers: Headers
    content_length: int | None = None
    """From the content-length field; None when the length is not known in advance."""
    close: bool = False
    http1_lines: bytes = field(default=b"", repr=False, compare=False)
    """Status line and fields as HTTP/1.1 writes them, once its engine has."""


class HttpEngine(Protocol):
    """Server side of one connection. Call a `receive_*` or `send_*` method, handle the events it
    returns, then write `data_to_send()`.

    `receive_*` never raise for what a peer sent. `send_*` on a stream that the peer has reset or
    that is unknown do nothing: the exchange learns of the end by `StreamReset`.
    """

    http_version: str

    # Receiving

    def receive_data(self, data: bytes) -> list[Event]:
        """Feed bytes from the peer."""

    def receive_eof(self) -> list[Event]:
        """The peer will send no more bytes."""

    def acknowledge(self, stream_id: int, credit: int) -> list[Event]:
        """The application took `credit` bytes of the body: let the peer send as many."""

    # Sending

    def send_informational(self, stream_id: int, status: int, headers: Headers) -> list[Event]:
        """Queue a 1xx response (100, 103). Nothing for HTTP/1.0 peers."""

    def send_response(
        self, stream_id: int, head: ResponseHead, body: bytes, *, ended: bool
    ) -> list[Event]:
        """Queue the final response head and the first part of its body; `ended` when nothing
        follows.

        The engine omits the body where the method or status has none (HEAD, 204, 304).
        """

    def send_body(self, stream_id: int, data: bytes, *, ended: bool) -> list[Event]:
        """Queue a part of the body, or bytes of an accepted tunnel."""

    def send_trailers(self, stream_id: int, headers: Headers) -> list[Event]:
        """Queue the trailer section and end the stream."""

    def accept_tunnel(self, stream_id: int, headers: Headers) -> list[Event]:
        """Answer a request with `protocol`: 101 on HTTP/1.1, 200 on 2 and 3. From here `send_body`
        and `BodyReceived` carry the tunnel's bytes as they are."""

    def reset_stream(self, stream_id: int) -> list[Event]:
        """Give an exchange up after its response began: the peer must see that it is incomplete
        (RST_STREAM INTERNAL_ERROR; HTTP/1.1 closes the connection)."""

    def data_to_send(self) -> bytes:
        """Everything queued since the last call that windows allow; b"" when there is nothing."""

    def sent_events(self) -> list[Event]:
        """What sending brought about, to be asked for after `data_to_send` by transports of engines
        that multiplex: `StreamResumed`, and `ConnectionEnded` once a drained connection is
        empty."""

    # Ending

    def release(self, stream_id: int) -> list[Event]:
        """The application's call has returned. Until then a stream counts as open, also when the
        peer has reset it (CVE-2023-44487: a client must not start more work than it is allowed to
        have open)."""

    def begin_drain(self) -> list[Event]:
        """Take no new exchanges soon: `connection: close` on the next response, or GOAWAY with the
        highest id."""

    def finish_drain(self) -> list[Event]:
        """Take no new exchanges now: GOAWAY with the last id taken. HTTP/1.1: nothing more to
        do."""

    def close(self) -> list[Event]:
        """End the connection in order: GOAWAY NO_ERROR, CONNECTION_CLOSE H3_NO_ERROR."""

    @property
    def is_idle(self) -> bool:
        """No exchange is open and nothing of one has been received."""
