"""What a server must make of WebSocket frames: what is sent, the section that decides, the verdict.

RFC 6455 unless a section says otherwise. The application sends each message back. Behind the frames
of a case that does not end in a close comes a ping, which is answered.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

from tests.support.websocket_client import Frame, Opcode, encode_frame

TEXT, BINARY, CONTINUATION = Opcode.TEXT, Opcode.BINARY, Opcode.CONTINUATION
PING, PONG, CLOSE = Opcode.PING, Opcode.PONG, Opcode.CLOSE

MAX_MESSAGE: Final = 1 << 20
"""The limit that the server of the cases has."""


@dataclass(frozen=True, slots=True)
class Case:
    section: str
    name: str
    sent: bytes
    expected: tuple[Frame, ...]
    """Of a close without its reason, which is for people. Compressed messages inflated."""
    deflate: bool = False
    """permessage-deflate (RFC 7692) is agreed."""

    @property
    def id(self) -> str:
        return f"{self.section}-{self.name}".replace(" ", "_")

    @property
    def ends(self) -> bool:
        return bool(self.expected) and self.expected[-1].opcode is CLOSE


CASES: list[Case] = []


def _accept(section: str, name: str, sent: bytes, *expected: Frame, deflate: bool = False) -> None:
    CASES.append(Case(section, name, sent, expected, deflate))


def _close(section: str, name: str, code: int, sent: bytes, *, deflate: bool = False) -> None:
    """The server closes with this code. Messages before may have come back, or not any more."""
    CASES.append(Case(section, name, sent, (closed(code),), deflate))


def closed(code: int) -> Frame:
    return Frame(CLOSE, struct.pack("!H", code))


def closing(code: int, reason: bytes = b"") -> bytes:
    return encode_frame(CLOSE, struct.pack("!H", code) + reason)


def headed(first: int, length: bytes, payload: bytes) -> bytes:
    """A frame whose length is written as given, with a mask of zeros."""
    return bytes((first, 0x80 | length[0])) + length[1:] + bytes(4) + payload


S = "§5.1"
for opcode in (TEXT, BINARY, PING, PONG, CLOSE):
    _close(S, f"{opcode.name} without a mask", 1002, encode_frame(opcode, b"", masked=False))
_close(
    S,
    "second frame without a mask",
    1002,
    encode_frame(TEXT, b"a") + encode_frame(TEXT, b"b", masked=False),
)
_close(
    S,
    "continuation without a mask",
    1002,
    encode_frame(TEXT, b"a", fin=False) + encode_frame(CONTINUATION, b"b", masked=False),
)
_accept("§5.3", "mask of zeros", encode_frame(TEXT, b"abc", mask=bytes(4)), Frame(TEXT, b"abc"))
_accept("§5.3", "mask of ones", encode_frame(TEXT, b"abc", mask=b"\xff" * 4), Frame(TEXT, b"abc"))

S = "§5.2"
for bits in range(1, 8):
    _close(S, f"reserved bits {bits:03b}", 1002, encode_frame(TEXT, b"a", rsv=bits))
    _close(S, f"reserved bits {bits:03b} of a ping", 1002, encode_frame(PING, b"a", rsv=bits))
for bits in (1, 2, 4):
    first = encode_frame(TEXT, b"a", fin=False)
    sent = first + encode_frame(CONTINUATION, b"b", rsv=bits)
    _close(S, f"reserved bits {bits:03b} of a continuation", 1002, sent)
    _close(S, f"reserved bits {bits:03b} of a close", 1002, encode_frame(CLOSE, b"", rsv=bits))
for number in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
    _close(S, f"opcode {number}", 1002, encode_frame(number, b"a"))
    _close(S, f"opcode {number} without content", 1002, encode_frame(number))
for size in (0, 1, 125, 126, 127, 65535, 65536):
    payload = b"x" * size
    _accept(S, f"message of {size} bytes", encode_frame(BINARY, payload), Frame(BINARY, payload))
_close(S, "length of 125 in 16 bits", 1002, headed(0x82, b"\x7e\0\x7d", bytes(125)))
_close(S, "length of 0 in 16 bits", 1002, headed(0x82, b"\x7e\0\0", b""))
_close(
    S, "length of 65535 in 64 bits", 1002, headed(0x82, b"\x7f" + (65535).to_bytes(8), bytes(65535))
)
_close(S, "length of 2^63", 1002, headed(0x82, b"\x7f\x80" + bytes(7), b""))

S = "§5.4"
_accept(
    S,
    "two fragments",
    encode_frame(TEXT, b"a", fin=False) + encode_frame(CONTINUATION, b"b"),
    Frame(TEXT, b"ab"),
)
_accept(
    S,
    "fragments without content",
    encode_frame(TEXT, fin=False)
    + encode_frame(CONTINUATION, fin=False)
    + encode_frame(CONTINUATION),
    Frame(TEXT, b""),
)
_accept(
    S,
    "control frames between fragments",
    encode_frame(TEXT, b"a", fin=False)
    + encode_frame(PING, b"1")
    + encode_frame(PONG)
    + encode_frame(CONTINUATION, b"b"),
    Frame(PONG, b"1"),
    Frame(TEXT, b"ab"),
)
_close(S, "continuation of nothing", 1002, encode_frame(CONTINUATION, b"a"))
_close(S, "continuation of nothing, without an end", 1002, encode_frame(CONTINUATION, fin=False))
_close(
    S,
    "continuation behind a whole message",
    1002,
    encode_frame(TEXT, b"a") + encode_frame(CONTINUATION, b"b"),
)
_close(
    S,
    "continuation behind the last fragment",
    1002,
    encode_frame(TEXT, b"a", fin=False)
    + encode_frame(CONTINUATION, b"b")
    + encode_frame(CONTINUATION, b"c"),
)
for opcode in (TEXT, BINARY):
    sent = encode_frame(TEXT, b"a", fin=False) + encode_frame(opcode, b"b")
    _close(S, f"{opcode.name} within a message", 1002, sent)

S = "§5.5"
for opcode in (PING, PONG, CLOSE):
    _close(S, f"{opcode.name} in fragments", 1002, encode_frame(opcode, b"", fin=False))
    _close(S, f"{opcode.name} of 126 bytes", 1002, encode_frame(opcode, bytes(126)))
_close(S, "PING of 65536 bytes", 1002, encode_frame(PING, bytes(65536)))
S = "§5.5.1"
_accept(S, "close without a code", encode_frame(CLOSE), Frame(CLOSE, b""))
_close(S, "close of 1 byte", 1002, encode_frame(CLOSE, b"\x03"))
_close(S, "the code comes back", 1000, closing(1000, b"reason"))
_close(S, "the longest reason", 1000, closing(1000, bytes(123)))
_close(
    S,
    "nothing is read behind a close",
    1001,
    closing(1001) + encode_frame(TEXT, b"late") + encode_frame(PING) + b"\xff\xff",
)
_close(S, "close behind a message", 1000, encode_frame(TEXT, b"a") + closing(1000))
_close(S, "close within a message", 1000, encode_frame(TEXT, b"a", fin=False) + closing(1000))
S = "§5.5.2"
_accept(S, "ping without content", encode_frame(PING), Frame(PONG, b""))
_accept(
    S, "ping of 125 bytes", encode_frame(PING, bytes(range(125))), Frame(PONG, bytes(range(125)))
)
_accept(
    "§5.5.3",
    "pong that nobody asked for",
    encode_frame(PONG, b"x") + encode_frame(PING, b"1"),
    Frame(PONG, b"1"),
)

S = "§7.4.1"
for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013):
    _close(S, f"code {code}", code, closing(code))
for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1999, 2000, 2999):
    _close(S, f"code {code}, which nobody may send", 1002, closing(code))
S = "§7.4.2"
for code in (3000, 3999, 4000, 4999):
    _close(S, f"code {code}", code, closing(code))
for code in (5000, 65535):
    _close(S, f"code {code}, which does not exist", 1002, closing(code))

S = "§8.1"
GOOD_TEXT: Final = (
    "",
    "a",
    "\0",
    "µ@ßöäüàá",
    "€",
    "😀",
    "\u0080",
    "\u07ff",
    "\u0800",
    "\ud7ff",
    "\ue000",
    "\ufffd",
    "\uffff",
    "\U00010000",
    "\U0010ffff",
)
BAD_TEXT: Final = (
    b"\x80",
    b"\xbf",
    b"\xc0\x80",
    b"\xc1\xbf",
    b"\xc0\xaf",
    b"\xe0\x80\xaf",
    b"\xe0\x9f\xbf",
    b"\xf0\x80\x80\xaf",
    b"\xf0\x8f\xbf\xbf",
    b"\xed\xa0\x80",
    b"\xed\xbf\xbf",
    b"\xf4\x90\x80\x80",
    b"\xf5\x80\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xfe",
    b"\xff",
    b"a\xe2\x82",
    b"\xe2\x82a",
    b"\xc3",
    b"\xc3(",
    b"\xf0\x9f\x98",
)
for text in GOOD_TEXT:
    payload = text.encode()
    _accept(S, f"text {text!r}", encode_frame(TEXT, payload), Frame(TEXT, payload))
for payload in BAD_TEXT:
    _close(S, f"text {payload!r}", 1007, encode_frame(TEXT, payload))
    halves = encode_frame(TEXT, b"ok" + payload[:1], fin=False)
    _close(
        S, f"text {payload!r} in two frames", 1007, halves + encode_frame(CONTINUATION, payload[1:])
    )
    _close("§5.5.1", f"reason {payload!r}", 1007, closing(1000, payload))
_close(S, "bad text is told before the message ends", 1007, encode_frame(TEXT, b"\xff", fin=False))
_accept(
    S,
    "character in two frames",
    encode_frame(TEXT, b"\xe2\x82", fin=False) + encode_frame(CONTINUATION, b"\xac"),
    Frame(TEXT, b"\xe2\x82\xac"),
)
_accept("§5.6", "binary is no text", encode_frame(BINARY, b"\xff\xfe"), Frame(BINARY, b"\xff\xfe"))

S = "§10.4"
_accept(
    S,
    "the largest message",
    encode_frame(BINARY, bytes(MAX_MESSAGE)),
    Frame(BINARY, bytes(MAX_MESSAGE)),
)
_close(S, "a byte more", 1009, encode_frame(BINARY, bytes(MAX_MESSAGE + 1)))
_close(
    S,
    "a byte more, in two frames",
    1009,
    encode_frame(BINARY, bytes(MAX_MESSAGE), fin=False) + encode_frame(CONTINUATION, b"x"),
)

# --------------------------------------------------------------------------------------------------
# RFC 7692


def _deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-15)
    return (deflater.compress(data) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]


WORDS: Final = b"the same words again and again, " * 20
SMALL: Final = _deflated(WORDS)
S = "RFC 7692 §6.1"
_accept(
    S, "message that is not compressed", encode_frame(TEXT, b"a"), Frame(TEXT, b"a"), deflate=True
)
_accept(
    S,
    "both kinds in turn",
    encode_frame(TEXT, SMALL, rsv=4) + encode_frame(TEXT, b"a"),
    Frame(TEXT, WORDS),
    Frame(TEXT, b"a"),
    deflate=True,
)
_close(
    S,
    "bit on a continuation",
    1002,
    encode_frame(TEXT, SMALL[:5], rsv=4, fin=False) + encode_frame(CONTINUATION, SMALL[5:], rsv=4),
    deflate=True,
)
_close(
    S,
    "bit on a continuation only",
    1002,
    encode_frame(TEXT, b"a", fin=False) + encode_frame(CONTINUATION, SMALL, rsv=4),
    deflate=True,
)
for opcode in (PING, PONG, CLOSE):
    _close(S, f"bit on a {opcode.name}", 1002, encode_frame(opcode, b"", rsv=4), deflate=True)
for bits in (1, 2, 5, 6):
    _close(S, f"reserved bits {bits:03b}", 1002, encode_frame(TEXT, SMALL, rsv=bits), deflate=True)
S = "RFC 7692 §7.2.2"
_accept(
    S, "message in one frame", encode_frame(TEXT, SMALL, rsv=4), Frame(TEXT, WORDS), deflate=True
)
_accept(
    S,
    "message in many frames",
    encode_frame(TEXT, SMALL[:1], rsv=4, fin=False)
    + b"".join(
        encode_frame(CONTINUATION, SMALL[at : at + 1], fin=False) for at in range(1, len(SMALL))
    )
    + encode_frame(CONTINUATION),
    Frame(TEXT, WORDS),
    deflate=True,
)
_accept(
    S, "message without content", encode_frame(TEXT, b"\0", rsv=4), Frame(TEXT, b""), deflate=True
)
_accept(
    "RFC 7692 §7.2.3.3",
    "block without compression",
    encode_frame(TEXT, b"\0\x05\0\xfa\xffHello\0", rsv=4),
    Frame(TEXT, b"Hello"),
    deflate=True,
)
_accept(
    "RFC 7692 §7.2.3.4",
    "final block",
    encode_frame(TEXT, b"\xf3\x48\xcd\xc9\xc9\x07\0\0", rsv=4),
    Frame(TEXT, b"Hello"),
    deflate=True,
)
_accept(
    "RFC 7692 §7.2.3.5",
    "two blocks",
    encode_frame(TEXT, b"\xf2\x48\x05\0\0\0\xff\xff\xca\xc9\xc9\x07\0", rsv=4),
    Frame(TEXT, b"Hello"),
    deflate=True,
)
_close(
    "§8.1",
    "bad text within deflate",
    1007,
    encode_frame(TEXT, _deflated(b"\xff"), rsv=4),
    deflate=True,
)
_close(S, "no deflate stream", 1007, encode_frame(BINARY, b"\xff" * 10, rsv=4), deflate=True)
_close(
    "RFC 7692 §8",
    "a bomb of 64 MiB",
    1009,
    encode_frame(BINARY, _deflated(bytes(64 << 20)), rsv=4),
    deflate=True,
)

# --------------------------------------------------------------------------------------------------
# Negotiation: an offer, and whether it is taken

S = "RFC 7692 §7.1"
OFFERS: Final = {
    "permessage-deflate": True,
    "permessage-deflate; client_max_window_bits": True,
    "permessage-deflate; client_max_window_bits=15": True,
    "permessage-deflate; client_max_window_bits=9": True,
    'permessage-deflate; client_max_window_bits="10"': True,
    "permessage-deflate; server_max_window_bits=10": True,
    "permessage-deflate; server_no_context_takeover": True,
    "permessage-deflate; client_no_context_takeover; server_no_context_takeover": True,
    "x-unknown, permessage-deflate": True,
    "permessage-deflate; unknown, permessage-deflate": True,
    "permessage-deflate; unknown": False,
    "permessage-deflate; server_max_window_bits": False,
    "permessage-deflate; server_max_window_bits=7": False,
    "permessage-deflate; server_max_window_bits=16": False,
    "permessage-deflate; server_max_window_bits=08": False,
    "permessage-deflate; client_max_window_bits=7": False,
    "permessage-deflate; client_max_window_bits=16": False,
    "permessage-deflate; client_max_window_bits=x": False,
    "permessage-deflate; server_no_context_takeover=1": False,
    "permessage-deflate; server_no_context_takeover; server_no_context_takeover": False,
    "permessage-bzip2": False,
    "x-webkit-deflate-frame": False,
}
