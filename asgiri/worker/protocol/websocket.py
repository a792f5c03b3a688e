"""WebSocket (RFC 6455) with permessage-deflate (RFC 7692), server side. Sans-IO, over the bytes of
a tunnel.

The tunnel is whatever the HTTP version gives: the connection after 101, or the DATA of one stream
(RFC 8441, RFC 9220). wsproto owns frames, masking and UTF-8; this module owns negotiation, messages
and the two bounds that wsproto lacks: on a message, and on what a compressed one inflates to.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import (
    CloseReason,
    Frame,
    FrameDecoder,
    FrameProtocol,
    Opcode,
    ParseFailed,
    RsvBits,
)

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.events import Headers

NO_CODE: Final = 1005
"""Stands for a close frame without a code; never sent (RFC 6455 §7.4.1)."""
MAX_FRAGMENTS: Final = 65536
"""Frames of one message. Their number is no bound on memory once joined, but each costs time:
16 MiB in frames of 256 bytes is more than any client sends."""
_FLUSH_TAIL: Final = b"\x00\x00\xff\xff"
_OFFER: Final = re.compile(
    r"(?P<name>client_no_context_takeover|server_no_context_takeover|client_max_window_bits"
    r"|server_max_window_bits)(?:\s*=\s*\"?(?P<bits>[89]|1[0-5])\"?)?"
)

_FAILURES: Final = {
    CloseReason.INVALID_FRAME_PAYLOAD_DATA: Refusal.WEBSOCKET_BAD_TEXT,
    CloseReason.MESSAGE_TOO_BIG: Refusal.WEBSOCKET_TOO_BIG,
}


@dataclass(slots=True)
class MessageReceived:
    """A whole message: str for a text one, bytes for a binary one."""

    content: str | bytes


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

    subprotocols: list[str]
    deflate: PerMessageDeflate | None
    extension_field: bytes | None
    """Value of sec-websocket-extensions in the answer."""


def negotiate_untrusted(headers: Headers, *, deflate: bool, max_message_size: int) -> Negotiation:
    """Read sec-websocket-protocol and -extensions. Never raises: what is malformed is not taken."""
    subprotocols: list[str] = []
    offers: list[str] = []
    for name, value in headers:
        if name == b"sec-websocket-protocol":
            subprotocols += _members(value)
        elif name == b"sec-websocket-extensions":
            offers += _members(value)
    if deflate:
        for offer in offers:
            extension = _BoundedDeflate(max_message_size)
            if (parameters := _accept_deflate(extension, offer)) is not None:
                field = "; ".join(("permessage-deflate", *parameters)).encode("ascii")
                return Negotiation(subprotocols, extension, field)
    return Negotiation(subprotocols, None, None)


def _members(value: bytes) -> list[str]:
    members = (member.strip(b" \t") for member in value.split(b","))
    return [member.decode("ascii") for member in members if member and member.isascii()]


def _accept_deflate(extension: PerMessageDeflate, offer: str) -> list[str] | None:
    """RFC 7692 §7.1: "a server MUST decline" an offer with unknown, repeated or invalid
    parameters.
    """
    name, *parameters = (part.strip() for part in offer.split(";"))
    if name.lower() != extension.name:
        return None
    seen: set[str] = set()
    for parameter in parameters:
        match = _OFFER.fullmatch(parameter)
        if match is None or match["name"] in seen:
            return None
        takes_bits = match["name"].endswith("bits")
        if (match["bits"] is not None) > takes_bits:
            return None
        if match["name"] == "server_max_window_bits" and match["bits"] is None:
            return None
        seen.add(match["name"])
    # zlib has no window of 2^8 bytes, and wsproto refuses it: then another offer, or none, is
    # taken.
    accepted = extension.accept(offer.replace('"', ""))
    if not isinstance(accepted, str):
        return None
    return accepted.split("; ") if accepted else []


class _BoundedDeflate(PerMessageDeflate):
    """wsproto's extension with the receiving side written anew: it inflates without a bound, and a
    control frame between the fragments of a compressed message makes it forget that it is
    compressed.
    """

    def __init__(self, max_message_size: int) -> None:
        super().__init__()
        self._max_message_size = max_message_size
        self._inflater: zlib._Decompress | None = None
        self._message_compressed = False
        self._frame_compressed = False
        self._inflated = 0

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        if opcode.iscontrol() or opcode is Opcode.CONTINUATION:
            # RFC 7692 §6.1: only the first frame of a message carries the bit.
            if rsv.rsv1:
                return CloseReason.PROTOCOL_ERROR
            self._frame_compressed = self._message_compressed and not opcode.iscontrol()
        else:
            self._message_compressed = self._frame_compressed = rsv.rsv1
            self._inflated = 0
        return RsvBits(True, False, False)

    def frame_inbound_payload_data(
        self, proto: FrameDecoder | FrameProtocol, data: bytes
    ) -> bytes | CloseReason:
        return self._inflate(data) if self._frame_compressed else data

    def frame_inbound_complete(
        self, proto: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        if not (fin and self._frame_compressed):
            return None
        rest = self._inflate(_FLUSH_TAIL)
        if self.client_no_context_takeover or (self._inflater and self._inflater.eof):
            self._inflater = None
        return rest

    def _inflate(self, compressed: bytes) -> bytes | CloseReason:
        if self._inflater is None:
            self._inflater = zlib.decompressobj(-self.client_max_window_bits)
        room = self._max_message_size - self._inflated
        try:
            plain = self._inflater.decompress(compressed, room + 1)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self._inflated += len(plain)
        return plain if len(plain) <= room else CloseReason.MESSAGE_TOO_BIG


class WebSocketCodec:
    """Feed `receive_data`, take `next_event` until it gives None; write what the `send_*` methods
    return.

    Events are parsed one by one as they are taken, so that a reader who is behind holds bytes, not
    messages.
    """

    def __init__(self, *, max_message_size: int, deflate: PerMessageDeflate | None = None) -> None:
        extensions: list[Extension] = [] if deflate is None else [deflate]
        self._frames = FrameProtocol(client=False, extensions=extensions)
        self._received: Iterator[Frame] = iter(())
        self._max_message_size = max_message_size
        self._parts: list[str | bytes] = []
        self._size = 0
        self._ended = False

    # Receiving

    def receive_data(self, data: bytes) -> None:
        """Feed bytes from the peer."""
        if not self._ended:
            self._frames.receive_bytes(data)
            self._received = self._frames.received_frames()

    def next_event(self) -> WebSocketEvent | None:
        """Give the next event; None when more bytes are needed. Never raises."""
        try:
            while not self._ended and (frame := next(self._received, None)) is not None:
                if (event := self._translate(frame)) is not None:
                    return event
        except ParseFailed as failure:
            reason = _FAILURES.get(failure.code, Refusal.WEBSOCKET_PROTOCOL_ERROR)
            return self._violation(failure.code, reason, str(failure))
        return None

    def _translate(self, frame: Frame) -> WebSocketEvent | None:
        payload: Any = frame.payload  # (code, reason) of a close frame, else str or bytes
        match frame.opcode:
            case Opcode.PING:
                return PingReceived(payload)
            case Opcode.PONG:
                return PongReceived(payload)
            case Opcode.CLOSE:
                self._ended = True
                return CloseReceived(int(payload[0]), payload[1] or "")
        return self._message_part(payload, finished=frame.message_finished)

    def _message_part(self, part: str | bytes, *, finished: bool) -> WebSocketEvent | None:
        if finished and not self._parts and len(part) <= self._max_message_size // 4:
            # The usual case; a character has 4 bytes at most.
            return MessageReceived(part)
        self._parts.append(part)
        self._size += len(part) if isinstance(part, bytes) or part.isascii() else len(part.encode())
        if self._size > self._max_message_size:
            detail = f"message of more than {self._max_message_size} bytes"
            return self._violation(1009, Refusal.WEBSOCKET_TOO_BIG, detail)
        if len(self._parts) > MAX_FRAGMENTS:
            detail = f"message of more than {MAX_FRAGMENTS} parts"
            return self._violation(1008, Refusal.WEBSOCKET_FRAGMENT_FLOOD, detail)
        if not finished:
            return None
        joined = type(part)().join(self._parts)  # type: ignore[arg-type]
        self._parts = []
        self._size = 0
        return MessageReceived(joined)

    def _violation(self, code: int, reason: Refusal, detail: str) -> WebSocketViolation:
        self._ended = True
        self._parts = []
        return WebSocketViolation(int(code), reason, detail)

    # Sending

    def send_message(self, content: str | bytes) -> bytes:
        """Write one message in one frame."""
        return bytes(self._frames.send_data(content, fin=True))

    def send_ping(self, payload: bytes) -> bytes:
        """Write a ping of at most 125 bytes."""
        return bytes(self._frames.ping(payload))

    def send_pong(self, payload: bytes) -> bytes:
        """Write the answer to a ping."""
        return bytes(self._frames.pong(payload))

    def send_close(self, code: int, reason: str = "") -> bytes:
        """Write the close frame, without a code for 1005; a longer reason than 123 bytes is cut."""
        if code == NO_CODE:
            return bytes(self._frames.close())
        return bytes(self._frames.close(code, reason))


def close_code_is_valid(code: int) -> bool:
    """What an application may close with: RFC 6455 §7.4.1 and §7.4.2, and the codes IANA added."""
    return code in _SENDABLE or 3000 <= code <= 4999


_SENDABLE: Final = frozenset(
    (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014)
)
