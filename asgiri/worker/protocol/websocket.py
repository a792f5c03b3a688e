"""WebSocket (RFC 6455), server side. Sans-IO, over the bytes of a tunnel.

The tunnel is whatever the HTTP version gives: the connection after 101, or the DATA of one stream
(RFC 8441, RFC 9220). wsproto owns the parsing of frames, masking and UTF-8, but for the frames that
most messages are (`websocket_frames`); this module owns negotiation, messages and their bounds, and
what we send: a server's frames are a header of ten bytes at most, and wsproto copies the payload
four times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from wsproto.extensions import Extension
from wsproto.frame_protocol import (
    CloseReason,
    Frame,
    FrameProtocol,
    Opcode,
    ParseFailed,
    RsvBits,
)

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.events import Headers
from asgiri.worker.protocol.websocket_deflate import Deflate, parse_offer
from asgiri.worker.protocol.websocket_frames import (
    BINARY,
    FOREIGN,
    NEED_MORE,
    PING,
    TEXT,
    TOO_BIG,
    FrameReader,
)

VERSION: Final = b"13"
NO_CODE: Final = 1005
"""Stands for a close frame without a code; never sent (RFC 6455 §7.4.1)."""
MAX_FRAGMENTS: Final = 262144
"""Frames of one message. The bound on its size does not bound their number, but each costs time and
100 bytes until they are joined. 16 MiB in frames of 64 bytes, which is what Autobahn's smallest
have."""
MAX_REASON: Final = 123
"""Bytes of a close frame's reason (RFC 6455 §5.5)."""

_FIN: Final = 0x80
_COMPRESSED: Final = 0x40

_FAILURES: Final = {
    CloseReason.INVALID_FRAME_PAYLOAD_DATA: Refusal.WEBSOCKET_BAD_TEXT,
    CloseReason.MESSAGE_TOO_BIG: Refusal.WEBSOCKET_TOO_BIG,
}
_SENDABLE: Final = frozenset(
    (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014)
)


@dataclass(slots=True)
class MessageReceived:
    """A whole message: str for a text one, bytes for a binary one."""

    content: str | bytes
    size: int
    """In bytes."""


@dataclass(slots=True)
class PingReceived:
    """Answer it with `send_pong`; of several the last is enough (RFC 6455 §5.5.3)."""

    payload: bytes


@dataclass(slots=True)
class PongReceived:
    """A sign of life."""

    payload: bytes


@dataclass(slots=True)
class CloseReceived:
    """The peer closes. `code` is 1005 when it gave none; nothing more follows."""

    code: int
    reason: str


@dataclass(slots=True)
class WebSocketViolation:
    """The peer broke a rule; close with `code` (RFC 6455 §7.1.7). Nothing more follows."""

    code: int
    reason: Refusal
    detail: str


WebSocketEvent = MessageReceived | PingReceived | PongReceived | CloseReceived | WebSocketViolation


@dataclass(slots=True)
class Negotiation:
    """What the request's fields offer and what is taken of it."""

    version_is_known: bool
    subprotocols: list[str]
    deflate: Deflate | None


def negotiate_untrusted(headers: Headers, *, deflate: bool, max_message_size: int) -> Negotiation:
    """Read what the client offers. Never raises: what is malformed is not taken."""
    versions: list[bytes] = []
    subprotocols: list[str] = []
    offers: list[str] = []
    for name, value in headers:
        if name == b"sec-websocket-version":
            versions.append(value)
        elif name == b"sec-websocket-protocol":
            subprotocols += _members(value)
        elif name == b"sec-websocket-extensions" and deflate:
            offers += _members(value)
    for offer in offers:
        if (parameters := parse_offer(offer)) is not None:
            extension = Deflate(parameters, max_message_size=max_message_size)
            return Negotiation(versions == [VERSION], subprotocols, extension)
    return Negotiation(versions == [VERSION], subprotocols, None)


def _members(value: bytes) -> list[str]:
    members = (member.strip(b" \t") for member in value.split(b","))
    return [member.decode("ascii") for member in members if member and member.isascii()]


class _Announced(Extension):
    """Refuses a frame by its header when it brings more than its message may have. Not compressed
    ones: their length says little of what comes out of them, which has a bound of its own.
    """

    name = "announced"

    def __init__(self, codec: WebSocketCodec) -> None:
        self._codec = codec

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        return False  # nothing of it is ever on the wire

    def frame_inbound_header(
        self, proto: Any, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        if not opcode.iscontrol() and payload_length > self._codec.room:
            return CloseReason.MESSAGE_TOO_BIG
        return RsvBits(False, False, False)


class WebSocketCodec:
    """Feed `receive_data`, take `next_event` until it gives None; write what the `send_*` methods
    return.

    Events are parsed one by one as they are taken, so that a reader who is behind holds bytes, not
    messages.
    """

    def __init__(self, *, max_message_size: int, deflate: Deflate | None = None) -> None:
        extensions: list[Extension] = [deflate or _Announced(self)]
        self._frames = FrameProtocol(client=False, extensions=extensions)
        self._received: Iterator[Frame] = iter(())
        self._plain: FrameReader | None = FrameReader(max_size=max_message_size)
        """None once something came that only wsproto reads: it would have to tell us where its
        frames end.
        """
        self._deflate = deflate
        self._max_message_size = max_message_size
        self._parts: list[Any] = []
        self._size = 0
        self._ended = False

    @property
    def room(self) -> int:
        """Bytes that the message which has begun may still have."""
        return self._max_message_size - self._size

    # Receiving

    def receive_data(self, data: bytes) -> None:
        """Feed bytes from the peer."""
        if self._ended:
            return
        if self._plain is not None:
            self._plain.receive(data)
        else:
            self._frames.receive_bytes(data)
            self._received = self._frames.received_frames()

    def next_event(self) -> WebSocketEvent | None:
        """Give the next event; None when more bytes are needed. Never raises."""
        if self._plain is not None and not self._ended:
            plain = self._plain.next_frame()
            if plain is NEED_MORE:
                return None
            if plain is TOO_BIG:
                return self._too_big()
            if plain is not FOREIGN:
                return self._translate_plain(*plain)
            rest, self._plain = self._plain.take_rest(), None
            self.receive_data(rest)
        try:
            while not self._ended and (frame := next(self._received, None)) is not None:
                if (event := self._translate(frame)) is not None:
                    return event
        except ParseFailed as failure:
            reason = _FAILURES.get(failure.code, Refusal.WEBSOCKET_PROTOCOL_ERROR)
            return self._violation(failure.code, reason, str(failure))
        return None

    def _translate_plain(self, first: int, payload: bytes) -> WebSocketEvent:
        if first == BINARY:
            return MessageReceived(payload, len(payload))
        if first == TEXT:
            try:
                return MessageReceived(payload.decode(), len(payload))
            except UnicodeDecodeError as error:
                return self._violation(1007, Refusal.WEBSOCKET_BAD_TEXT, str(error))
        return PingReceived(payload) if first == PING else PongReceived(payload)

    def _translate(self, frame: Frame) -> WebSocketEvent | None:
        payload: Any = frame.payload  # (code, reason) of a close frame, else str or bytes
        match frame.opcode:
            case Opcode.PING:
                return PingReceived(payload)
            case Opcode.PONG:
                return PongReceived(payload)
            case Opcode.CLOSE:
                self._ended = True
                return CloseReceived(int(payload[0]), payload[1])
        return self._message_part(payload, finished=frame.message_finished)

    def _message_part(self, part: str | bytes, *, finished: bool) -> WebSocketEvent | None:
        self._size += len(part) if isinstance(part, bytes) or part.isascii() else len(part.encode())
        if self._size > self._max_message_size:
            return self._too_big()
        self._parts.append(part)
        if len(self._parts) > MAX_FRAGMENTS:
            detail = f"message of more than {MAX_FRAGMENTS} parts"
            return self._violation(1008, Refusal.WEBSOCKET_FRAGMENT_FLOOD, detail)
        if not finished:
            return None
        parts, self._parts = self._parts, []
        size, self._size = self._size, 0
        return MessageReceived(part if len(parts) == 1 else type(part)().join(parts), size)

    def _too_big(self) -> WebSocketViolation:
        detail = f"message of more than {self._max_message_size} bytes"
        return self._violation(1009, Refusal.WEBSOCKET_TOO_BIG, detail)

    def _violation(self, code: int, reason: Refusal, detail: str) -> WebSocketViolation:
        self._ended = True
        self._parts = []
        return WebSocketViolation(int(code), reason, detail)

    # Sending

    def send_message(self, content: str | bytes) -> list[bytes]:
        """Write one message in one frame. Its parts, so that a long payload is not copied."""
        opcode = Opcode.BINARY
        if isinstance(content, str):
            opcode = Opcode.TEXT
            content = content.encode()
        if self._deflate is None:
            return _frame(_FIN | opcode, content)
        return _frame(_FIN | _COMPRESSED | opcode, self._deflate.compress(content))

    def send_ping(self, payload: bytes) -> bytes:
        """Write a ping of at most 125 bytes."""
        return _control_frame(Opcode.PING, payload)

    def send_pong(self, payload: bytes) -> bytes:
        """Write the answer to a ping."""
        return _control_frame(Opcode.PONG, payload)

    def send_close(self, code: int, reason: str = "") -> bytes:
        """Write the close frame, without a code for 1005; a longer reason than 123 bytes is cut."""
        if code == NO_CODE:
            return _control_frame(Opcode.CLOSE, b"")
        text = reason.encode()
        if len(text) > MAX_REASON:
            text = text[:MAX_REASON].decode(errors="ignore").encode()
        return _control_frame(Opcode.CLOSE, code.to_bytes(2) + text)


JOINED_PAYLOAD: Final = 16384
"""Longest payload that is copied behind its header, to be one write."""


def _frame(first: int, payload: bytes) -> list[bytes]:
    size = len(payload)
    if size < 126:
        return [b"%c%c%b" % (first, size, payload)]
    if size <= JOINED_PAYLOAD:
        return [b"%c\x7e%b%b" % (first, size.to_bytes(2), payload)]
    if size < 65536:
        return [b"%c\x7e%b" % (first, size.to_bytes(2)), payload]
    return [b"%c\x7f%b" % (first, size.to_bytes(8)), payload]


def _control_frame(opcode: Opcode, payload: bytes) -> bytes:
    assert len(payload) < 126
    return b"%c%c%b" % (_FIN | opcode, len(payload), payload)


def close_code_is_valid(code: int) -> bool:
    """What an application may close with: RFC 6455 §7.4.1 and §7.4.2, and the codes IANA added."""
    return code in _SENDABLE or 3000 <= code <= 4999
