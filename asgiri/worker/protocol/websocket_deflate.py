"""permessage-deflate (RFC 7692), server side: negotiation, and messages through zlib. Sans-IO.

wsproto's own extension inflates without a bound (CVE-2018-1000518 is of that kind), and a control
frame between the fragments of a compressed message makes it forget that it is compressed. This one
is plugged into wsproto's parser in its place.
"""

from __future__ import annotations

import re
import zlib
from typing import Final

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

NAME: Final = "permessage-deflate"
WINDOW_BITS: Final = 12
MEMORY_LEVEL: Final = 5
"""Of what we compress with, and ask the client to: 32 KiB for each connection's compressor instead
of the 256 KiB of zlib's defaults, for messages a few percent longer."""
SMALLEST_WINDOW: Final = 9
"""zlib cannot compress with a window of 2^8 bytes, the smallest that RFC 7692 knows."""

_FLUSH_TAIL: Final = b"\x00\x00\xff\xff"
_BEHIND_FINAL_BLOCK: Final = (_FLUSH_TAIL, b"\x00" + _FLUSH_TAIL)
_PARAMETER: Final = re.compile(
    r"(?P<name>client_no_context_takeover|server_no_context_takeover|client_max_window_bits"
    r"|server_max_window_bits)(?:\s*=\s*(?P<quote>\"?)(?P<bits>[89]|1[0-5])(?P=quote))?"
)


class Deflate(Extension):
    """One connection's compression, as agreed: `response` is what the handshake answers."""

    name = NAME

    def __init__(self, parameters: dict[str, int | None], *, max_message_size: int) -> None:
        """Accept what `parse_offer` has read."""
        self._max_message_size = max_message_size
        self._forget_sent = "server_no_context_takeover" in parameters
        self._forget_received = "client_no_context_takeover" in parameters
        self._window_sent = WINDOW_BITS
        self._window_received = zlib.MAX_WBITS
        answers = [NAME]
        if self._forget_sent:
            answers.append("server_no_context_takeover")
        if self._forget_received:
            answers.append("client_no_context_takeover")
        if (bits := parameters.get("server_max_window_bits")) is not None:
            self._window_sent = min(bits, WINDOW_BITS)
            answers.append(f"server_max_window_bits={self._window_sent}")
        if "client_max_window_bits" in parameters:
            bits = min(parameters["client_max_window_bits"] or zlib.MAX_WBITS, WINDOW_BITS)
            self._window_received = max(bits, SMALLEST_WINDOW)
            answers.append(f"client_max_window_bits={bits}")
        self.response: Final = "; ".join(answers).encode("ascii")
        # Sending
        self._deflater: zlib._Compress | None = None
        # Receiving
        self._inflater: zlib._Decompress | None = None
        self._message_compressed = False
        self._frame_compressed = False
        self._inflated = 0

    def compress(self, message: bytes) -> bytes:
        """Deflate a whole message."""
        deflater = self._deflater or zlib.compressobj(
            wbits=-self._window_sent, memLevel=MEMORY_LEVEL
        )
        self._deflater = None if self._forget_sent else deflater
        return (deflater.compress(message) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]

    # What wsproto's parser calls

    def enabled(self) -> bool:
        return True

    def offer(self) -> bool:
        return False  # a server makes none

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
        inflater = self._inflater
        assert inflater is not None
        if inflater.eof:
            # RFC 7692 §7.2.3.4: a final block, and behind it nothing but the end of the message.
            if inflater.unused_data not in _BEHIND_FINAL_BLOCK:
                return CloseReason.INVALID_FRAME_PAYLOAD_DATA
            self._inflater = None
        elif self._forget_received:
            self._inflater = None
        return rest

    def _inflate(self, compressed: bytes) -> bytes | CloseReason:
        if self._inflater is None:
            self._inflater = zlib.decompressobj(-self._window_received)
        room = self._max_message_size - self._inflated
        try:
            plain = self._inflater.decompress(compressed, room + 1)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self._inflated += len(plain)
        return plain if len(plain) <= room else CloseReason.MESSAGE_TOO_BIG


def parse_offer(offer: str) -> dict[str, int | None] | None:
    """Read one member of sec-websocket-extensions; None if it is not to be accepted.

    RFC 7692 §7.1: "a server MUST decline" an offer with unknown, repeated or invalid parameters.
    """
    name, *rest = (part.strip() for part in offer.split(";"))
    if name.lower() != NAME:
        return None
    parameters: dict[str, int | None] = {}
    for parameter in rest:
        match = _PARAMETER.fullmatch(parameter)
        if match is None or match["name"] in parameters:
            return None
        bits = None if match["bits"] is None else int(match["bits"])
        if bits is not None and not match["name"].endswith("bits"):
            return None
        if match["name"] == "server_max_window_bits" and (bits or 0) < SMALLEST_WINDOW:
            return None
        parameters[match["name"]] = bits
    return parameters
