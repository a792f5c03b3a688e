"""What a server must make of frames of HTTP/2: what is sent, the section that decides, the verdict.

RFC 9113 unless a section says otherwise. Behind the frames of a case comes a probe: a request on a
stream of its own, which is answered unless the verdict is that the connection ends. "An endpoint
MAY choose to treat a stream error as a connection error" (§5.4.1); this server does so only where a
case says that it does, because others use the connection.

The application answers 200 once it has the whole body; on /_wait it never answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from tests.support.http2_frames import (
    ACK,
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    GET,
    GOAWAY,
    PADDED,
    PING,
    POST,
    PREFACE,
    PRIORITY,
    PRIORITY_UPDATE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    block,
    data,
    frame,
    goaway,
    headers,
    integer,
    literal,
    ping,
    request,
    rst_stream,
    settings,
    window_update,
)


class Code(IntEnum):
    """§7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB


PROTOCOL, FLOW, SIZE = Code.PROTOCOL_ERROR, Code.FLOW_CONTROL_ERROR, Code.FRAME_SIZE_ERROR
CLOSED, COMPRESSION = Code.STREAM_CLOSED, Code.COMPRESSION_ERROR


@dataclass(frozen=True, slots=True)
class Case:
    section: str
    name: str
    sent: bytes
    """Behind the preface and SETTINGS without content, unless `raw`."""
    answers: Mapping[int, int] = field(default_factory=dict)
    """Streams to the status of their response."""
    resets: Mapping[int, Code] = field(default_factory=dict)
    """Streams to the code of their stream error."""
    goaway: Code | None = None
    """The code of the connection error."""
    pongs: tuple[bytes, ...] = ()
    raw: bool = False

    @property
    def id(self) -> str:
        return f"{self.section}-{self.name}".replace(" ", "_")


CASES: list[Case] = []


def _accept(
    section: str, name: str, *sent: bytes, answers: Mapping[int, int] | None = None
) -> None:
    """Served: one response on stream 1 unless told otherwise."""
    CASES.append(Case(section, name, b"".join(sent), {1: 200} if answers is None else answers))


def _ignore(section: str, name: str, *sent: bytes) -> None:
    """Nothing comes of it."""
    _accept(section, name, *sent, answers={})


def _reset(section: str, name: str, code: Code, *sent: bytes, stream: int = 1) -> None:
    """A stream error."""
    CASES.append(Case(section, name, b"".join(sent), resets={stream: code}))


def _end(section: str, name: str, code: Code, *sent: bytes, raw: bool = False) -> None:
    """A connection error."""
    CASES.append(Case(section, name, b"".join(sent), goaway=code, raw=raw))


OPEN: Final = headers(1, POST, END_HEADERS)
"""Stream 1 with its body to come."""
WAITING: Final = headers(1, request(b"POST", b"/_wait"), END_HEADERS)
"""The same, and never answered."""
HALF_CLOSED: Final = headers(1, request(b"GET", b"/_wait"))
"""Stream 1 half-closed (remote), and never answered."""
RESET: Final = WAITING + rst_stream(1)
"""Stream 1 closed by the client."""

# --------------------------------------------------------------------------------------------------
# §3.4: connection preface

S = "§3.4"
_end(S, "no SETTINGS first but PING", PROTOCOL, PREFACE + ping(), raw=True)
_end(S, "no SETTINGS first but HEADERS", PROTOCOL, PREFACE + headers(), raw=True)
_end(S, "no SETTINGS first but WINDOW_UPDATE", PROTOCOL, PREFACE + window_update(0, 1), raw=True)
_end(
    S,
    "no SETTINGS first but their acknowledgment",
    PROTOCOL,
    PREFACE + settings(flags=ACK),
    raw=True,
)
_end(S, "no SETTINGS first but an unknown frame", PROTOCOL, PREFACE + frame(0x42), raw=True)
_end(S, "no SETTINGS first but GOAWAY", PROTOCOL, PREFACE + goaway(), raw=True)
_ignore(S, "SETTINGS without content")

# --------------------------------------------------------------------------------------------------
# §4: frames

S = "§4.1"
_ignore(S, "frame of an unknown type", frame(0x42, 0, b"content", 0xFF))
_ignore(S, "frame of an unknown type on an idle stream", frame(0xFE, 9, b"content"))
_accept(S, "frame of an unknown type on an open stream", OPEN, frame(0x42, 1, b"x"), data())
_accept(S, "reserved bit of the stream", headers(0x80000001))
_accept(S, "unknown flags of HEADERS", headers(1, GET, END_STREAM | END_HEADERS | 0xD2))
_accept(S, "unknown flags of DATA", OPEN, data(1, b"x", END_STREAM | 0xF6))
_ignore(S, "unknown flags of SETTINGS", settings(flags=0xFE))
_accept(S, "unknown flags of RST_STREAM", RESET[:-4] + bytes(4), headers(3), answers={3: 200})
CASES.append(Case(S, "unknown flags of PING", ping(b"12345678", 0xFE), pongs=(b"12345678",)))

S = "§4.2"
_accept(S, "DATA of 16384 bytes", OPEN, data(1, b"x" * 16384))
_accept(
    S,
    "HEADERS of 16384 bytes",
    headers(1, block(GET) + literal(b"x", b"y" * (16384 - len(block(GET)) - 6))),
)
_end(S, "DATA of 16385 bytes", SIZE, OPEN, data(1, bytes(16385)))
_end(S, "HEADERS of 16385 bytes", SIZE, headers(1, block(GET) + literal(b"x", b"y" * 16385)))
_end(S, "unknown frame of 16385 bytes", SIZE, frame(0x42, 0, bytes(16385)))
_end(S, "SETTINGS of 2^24 - 1 bytes, the head of it", SIZE, b"\xff\xff\xff\x04\0\0\0\0\0")

S = "§4.3"
_end(S, "field block that is no HPACK", COMPRESSION, headers(1, b"\x80"))
_end(S, "field block that ends within a field", COMPRESSION, headers(1, block(GET)[:-3]))
_end(S, "trailers that are no HPACK", COMPRESSION, OPEN, headers(1, b"\x80"))
_end(
    S,
    "field block of a refused stream that is no HPACK",
    COMPRESSION,
    RESET,
    headers(3, b"\xff\xff\xff\xff\xff\x0f"),
)
INDEXED: Final = block(GET) + literal(b"x-indexed", b"1", 0x40)
AGAIN: Final = block(GET) + b"\xbe"
MALFORMED: Final = headers(1, block([(b"X", b"")]) + INDEXED)
CASES.append(
    Case(
        S,
        "state of a malformed request's block is kept",
        MALFORMED + headers(3, AGAIN),
        answers={3: 200},
        resets={1: PROTOCOL},
    )
)
UNWELCOME: Final = headers(1, request(b"POST", b"/", (b"te", b"x")), END_HEADERS)
CASES.append(
    Case(
        S,
        "state of a block on a stream we reset is kept",
        UNWELCOME + headers(1, literal(b"x-indexed", b"1", 0x40)) + headers(3, AGAIN),
        answers={3: 200},
        resets={1: PROTOCOL},
    )
)

# --------------------------------------------------------------------------------------------------
# §5.1: stream states

S = "§5.1 idle"
_end(S, "DATA", PROTOCOL, data(1, b"x"))
_end(S, "DATA behind a later stream", PROTOCOL, headers(5), data(7, b"x"))
_end(S, "RST_STREAM", PROTOCOL, rst_stream(1))
_end(S, "WINDOW_UPDATE", PROTOCOL, window_update(1, 1))
_end(S, "CONTINUATION", PROTOCOL, frame(CONTINUATION, 1, block(GET), END_HEADERS))
_end(S, "DATA on a stream of the server", PROTOCOL, data(2, b"x"))
_end(S, "WINDOW_UPDATE on a stream of the server", PROTOCOL, window_update(2, 1))
_end(S, "RST_STREAM on a stream of the server", PROTOCOL, rst_stream(2))
_ignore(S, "PRIORITY", frame(PRIORITY, 1, bytes(5)))
S = "§5.1 half-closed (remote)"
_reset(S, "DATA", CLOSED, HALF_CLOSED, data(1, b"x"))
_reset(S, "DATA without content", CLOSED, HALF_CLOSED, data(1))
_reset(S, "HEADERS", CLOSED, HALF_CLOSED, headers(1))
_reset(
    S,
    "trailers behind trailers",
    CLOSED,
    WAITING,
    headers(1, [(b"x", b"1")]),
    headers(1, [(b"x", b"1")]),
)
_reset(S, "DATA behind trailers", CLOSED, WAITING, headers(1, [(b"x", b"1")]), data(1, b"x"))
_end(S, "CONTINUATION", PROTOCOL, HALF_CLOSED, frame(CONTINUATION, 1, b"", END_HEADERS))
_ignore(S, "WINDOW_UPDATE", HALF_CLOSED, window_update(1, 1))
_ignore(S, "PRIORITY", HALF_CLOSED, frame(PRIORITY, 1, bytes(5)))
_ignore(S, "RST_STREAM", HALF_CLOSED, rst_stream(1))
S = "§5.1 closed"
_ignore(S, "PRIORITY", RESET, frame(PRIORITY, 1, bytes(5)))
_ignore(S, "WINDOW_UPDATE behind RST_STREAM", RESET, window_update(1, 1))
_ignore(S, "RST_STREAM behind RST_STREAM", RESET, rst_stream(1))
_end(S, "HEADERS on a stream skipped by a later one", PROTOCOL, headers(5), headers(3))
_end(S, "CONTINUATION", PROTOCOL, RESET, frame(CONTINUATION, 1, b"", END_HEADERS))

S = "§5.1.1"
_end(S, "even stream", PROTOCOL, headers(2))
_end(S, "stream below the last one", PROTOCOL, headers(5), headers(3))
_accept(S, "streams may be skipped", headers(1), headers(1001), answers={1: 200, 1001: 200})
_accept(S, "last stream but one", headers(0x7FFFFFFB), answers={0x7FFFFFFB: 200})
S = "§5.1.2"
_ignore(
    S,
    "100 streams, then 100 others",
    *(headers(n, request(b"GET", b"/_wait")) + rst_stream(n) for n in range(1, 199, 2)),
)
S = "§5.3.2"
_accept(
    S,
    "HEADERS with a priority",
    headers(1, GET, END_STREAM | END_HEADERS | WITH_PRIORITY, bytes(5)),
)
_accept(
    S,
    "exclusive dependency on a stream to come",
    headers(1, GET, END_STREAM | END_HEADERS | WITH_PRIORITY, b"\x80\0\0\x09\xff"),
)
_ignore(S, "PRIORITY of a stream that depends on itself", frame(PRIORITY, 1, b"\0\0\0\x01\x10"))
_accept(
    S,
    "HEADERS of a stream that depends on itself",
    headers(1, GET, END_STREAM | END_HEADERS | WITH_PRIORITY, b"\0\0\0\x01\x10"),
)
S = "§5.5"
_end(
    S,
    "unknown frame within a field block",
    PROTOCOL,
    headers(1, GET, END_STREAM),
    frame(0x42, 1),
    frame(CONTINUATION, 1, b"", END_HEADERS),
)
_ignore(S, "unknown setting", settings((0x4242, 0xFFFFFFFF), (0, 1)))

# --------------------------------------------------------------------------------------------------
# §6.1 to §6.4

S = "§6.1"
_end(S, "DATA on stream 0", PROTOCOL, data(0, b"x"))
_accept(S, "padding", OPEN, data(1, b"\x03abc" + bytes(3), END_STREAM | PADDED))
_accept(S, "padding alone", OPEN, data(1, b"\x03" + bytes(3), END_STREAM | PADDED))
_accept(S, "padding of no byte", OPEN, data(1, b"\0abc", END_STREAM | PADDED))
_accept(S, "padding that is not zero", OPEN, data(1, b"\x03abcxyz", END_STREAM | PADDED))
_accept(S, "many empty frames before the end", OPEN, data(1, b"", 0) * 50, data(1))
_end(S, "padding as long as the payload", PROTOCOL, OPEN, data(1, b"\x04abc", END_STREAM | PADDED))
_end(S, "padding longer than the payload", PROTOCOL, OPEN, data(1, b"\xff", END_STREAM | PADDED))
_end(S, "padded without a length", SIZE, OPEN, data(1, b"", END_STREAM | PADDED))

S = "§6.2"
_end(S, "HEADERS on stream 0", PROTOCOL, headers(0))
_accept(S, "padding", headers(1, GET, END_STREAM | END_HEADERS | PADDED, b"\x05", bytes(5)))
_accept(
    S,
    "padding and priority",
    headers(
        1, GET, END_STREAM | END_HEADERS | PADDED | WITH_PRIORITY, b"\x05" + bytes(5), bytes(5)
    ),
)
_end(
    S,
    "padding longer than the payload",
    PROTOCOL,
    headers(1, GET, END_STREAM | END_HEADERS | PADDED, b"\xff"),
)
_end(S, "padded without a length", SIZE, headers(1, b"", END_STREAM | END_HEADERS | PADDED))
_end(
    S, "priority that is cut", SIZE, headers(1, b"\0\0\0", END_STREAM | END_HEADERS | WITH_PRIORITY)
)
_end(S, "SETTINGS within a field block", PROTOCOL, headers(1, GET, END_STREAM), settings())
_end(S, "DATA within a field block", PROTOCOL, headers(1, POST, 0), data())
_end(S, "PING within a field block", PROTOCOL, headers(1, GET, END_STREAM), ping())
_end(
    S,
    "PRIORITY within a field block",
    PROTOCOL,
    headers(1, GET, END_STREAM),
    frame(PRIORITY, 1, bytes(5)),
)
_end(
    S,
    "WINDOW_UPDATE within a field block",
    PROTOCOL,
    headers(1, GET, END_STREAM),
    window_update(0, 1),
)
_end(S, "RST_STREAM within a field block", PROTOCOL, headers(1, GET, END_STREAM), rst_stream(1))
_end(S, "GOAWAY within a field block", PROTOCOL, headers(1, GET, END_STREAM), goaway())
_end(S, "HEADERS within a field block", PROTOCOL, headers(1, GET, END_STREAM), headers(3))

S = "§6.3"
_end(S, "PRIORITY on stream 0", PROTOCOL, frame(PRIORITY, 0, bytes(5)))
for size in (0, 4, 6):
    _reset(S, f"PRIORITY of {size} bytes", SIZE, WAITING, frame(PRIORITY, 1, bytes(size)))

S = "§6.4"
_end(S, "RST_STREAM on stream 0", PROTOCOL, rst_stream(0))
for size in (0, 3, 5, 8):
    _end(S, f"RST_STREAM of {size} bytes", SIZE, WAITING, frame(RST_STREAM, 1, bytes(size)))
_ignore(S, "RST_STREAM with an unknown code", WAITING, rst_stream(1, 0xFFFFFFFF))
_accept(S, "RST_STREAM, then another stream", RESET, headers(3), answers={3: 200})

# --------------------------------------------------------------------------------------------------
# §6.5: SETTINGS

S = "§6.5"
_end(S, "acknowledgment with content", SIZE, settings((4, 65535), flags=ACK))
_end(S, "on a stream", PROTOCOL, frame(SETTINGS, 1))
_end(S, "on a stream with content", PROTOCOL, WAITING, frame(SETTINGS, 1, bytes(6)))
for size in (1, 5, 7):
    _end(S, f"of {size} bytes", SIZE, frame(SETTINGS, 0, bytes(size)))
_ignore(S, "acknowledgment that nothing asked for", settings(flags=ACK) * 3)
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, WINDOW, FRAME_SIZE, LIST_SIZE = range(1, 7)
CONNECT_PROTOCOL, NO_PRIORITIES = 8, 9
S = "§6.5.2"
for number, value, code in (
    (ENABLE_PUSH, 2, PROTOCOL),
    (ENABLE_PUSH, 0xFFFFFFFF, PROTOCOL),
    (WINDOW, 1 << 31, FLOW),
    (WINDOW, 0xFFFFFFFF, FLOW),
    (FRAME_SIZE, 16383, PROTOCOL),
    (FRAME_SIZE, 0, PROTOCOL),
    (FRAME_SIZE, 1 << 24, PROTOCOL),
    (CONNECT_PROTOCOL, 2, PROTOCOL),
    (NO_PRIORITIES, 2, PROTOCOL),
):
    rfc = {CONNECT_PROTOCOL: "RFC 8441 §3", NO_PRIORITIES: "RFC 9218 §2.1"}.get(number, S)
    _end(rfc, f"setting {number} is {value}", code, settings((number, value)))
for number, value in (
    (ENABLE_PUSH, 0), (ENABLE_PUSH, 1), (MAX_STREAMS, 0), (WINDOW, (1 << 31) - 1),
    (FRAME_SIZE, 16384), (FRAME_SIZE, (1 << 24) - 1), (HEADER_TABLE_SIZE, 0),
    (HEADER_TABLE_SIZE, 0xFFFFFFFF), (LIST_SIZE, 0xFFFFFFFF), (CONNECT_PROTOCOL, 0),
    (CONNECT_PROTOCOL, 1), (NO_PRIORITIES, 0), (NO_PRIORITIES, 1),
):  # fmt: skip
    _accept(S, f"setting {number} is {value}", settings((number, value)), headers(1))
S = "§6.5.3"
_accept(S, "the last value of a setting counts", settings((WINDOW, 0), (WINDOW, 65535)), headers(1))
_end(S, "values are read in order", FLOW, settings((WINDOW, 1 << 31), (WINDOW, 65535)))

# --------------------------------------------------------------------------------------------------
# §6.6 to §6.10

S = "§8.4"
_end(
    S,
    "PUSH_PROMISE on a new stream",
    PROTOCOL,
    frame(PUSH_PROMISE, 1, b"\0\0\0\x02" + block(GET), END_HEADERS),
)
_end(
    S,
    "PUSH_PROMISE on an open stream",
    PROTOCOL,
    WAITING,
    frame(PUSH_PROMISE, 1, b"\0\0\0\x02" + block(GET), END_HEADERS),
)
_end(S, "PUSH_PROMISE on stream 0", PROTOCOL, frame(PUSH_PROMISE, 0, b"\0\0\0\x02", END_HEADERS))
S = "§6.7"
CASES.append(Case(S, "answered with its content", ping(b"abcdefgh"), pongs=(b"abcdefgh",)))
CASES.append(
    Case(
        S,
        "each is answered, in order",
        ping(b"11111111") + ping(b"22222222"),
        pongs=(b"11111111", b"22222222"),
    )
)
_ignore(S, "an answer is not answered", ping(b"abcdefgh", ACK))
_end(S, "on a stream", PROTOCOL, frame(PING, 1, bytes(8)))
for size in (0, 7, 9):
    _end(S, f"of {size} bytes", SIZE, frame(PING, 0, bytes(size)))
S = "§6.8"
_end(S, "on a stream", PROTOCOL, frame(GOAWAY, 1, bytes(8)))
_end(S, "of 7 bytes", SIZE, frame(GOAWAY, 0, bytes(7)))
S = "§6.9"
_reset(S, "increment of 0", PROTOCOL, WAITING, window_update(1, 0))
_end(S, "increment of 0 for the connection", PROTOCOL, window_update(0, 0))
_accept(S, "reserved bit of an increment", OPEN, window_update(1, 0x80000001), data())
for size in (0, 3, 5):
    _end(S, f"of {size} bytes", SIZE, frame(WINDOW_UPDATE, 0, bytes(size)))
    _end(S, f"of {size} bytes on a stream", SIZE, WAITING, frame(WINDOW_UPDATE, 1, bytes(size)))
S = "§6.9.1"
_reset(S, "window beyond 2^31 - 1", FLOW, WAITING, window_update(1, (1 << 31) - 1))
_reset(
    S,
    "window beyond 2^31 - 1 in two steps",
    FLOW,
    WAITING,
    window_update(1, 1 << 30),
    window_update(1, 1 << 30),
)
_end(S, "window of the connection beyond 2^31 - 1", FLOW, window_update(0, (1 << 31) - 1))
_accept(S, "window of 2^31 - 1", OPEN, window_update(1, (1 << 31) - 1 - 65535), data())
_accept(
    S, "window of the connection of 2^31 - 1", window_update(0, (1 << 31) - 1 - 65535), headers()
)
_end(S, "more than the stream's window", FLOW, WAITING, data(1, bytes(16384), 0) * 65)
S = "§6.9.2"
_end(
    S,
    "settings that take a window beyond 2^31 - 1",
    FLOW,
    WAITING,
    window_update(1, (1 << 31) - 1 - 65535),
    settings((WINDOW, 65536)),
)

S = "§6.10"
PARTS: Final = [block(GET)[start : start + 5] for start in range(0, len(block(GET)), 5)]
_accept(
    S,
    "field block in many parts",
    headers(1, PARTS[0], END_STREAM),
    *(frame(CONTINUATION, 1, part) for part in PARTS[1:-1]),
    frame(CONTINUATION, 1, PARTS[-1], END_HEADERS),
)
_accept(
    S,
    "HEADERS without a part of it",
    headers(1, b"", END_STREAM),
    frame(CONTINUATION, 1, block(GET), END_HEADERS),
)
_accept(
    S,
    "CONTINUATION without a part of it",
    headers(1, GET, END_STREAM),
    frame(CONTINUATION, 1, b"", END_HEADERS),
)
_accept(
    S,
    "trailers in two parts",
    OPEN,
    headers(1, b"", END_STREAM),
    frame(CONTINUATION, 1, literal(b"x", b"1"), END_HEADERS),
)
_end(S, "without HEADERS", PROTOCOL, frame(CONTINUATION, 1, block(GET), END_HEADERS))
_end(S, "behind the end of a block", PROTOCOL, WAITING, frame(CONTINUATION, 1, b"", END_HEADERS))
_end(
    S,
    "behind the end of a block in two parts",
    PROTOCOL,
    headers(1, request(b"GET", b"/_wait"), END_STREAM),
    frame(CONTINUATION, 1, b"", END_HEADERS) * 2,
)
_end(
    S, "behind DATA", PROTOCOL, WAITING, data(1, b"x", 0), frame(CONTINUATION, 1, b"", END_HEADERS)
)
_end(
    S,
    "on another stream",
    PROTOCOL,
    headers(1, GET, END_STREAM),
    frame(CONTINUATION, 3, b"", END_HEADERS),
)
_end(
    S,
    "on stream 0",
    PROTOCOL,
    headers(1, GET, END_STREAM),
    frame(CONTINUATION, 0, b"", END_HEADERS),
)

# --------------------------------------------------------------------------------------------------
# §8.1: messages

S = "§8.1"
_accept(S, "body", OPEN, data(1, b"hello"))
_accept(S, "body and trailers", OPEN, data(1, b"hello", 0), headers(1, [(b"x-sum", b"1")]))
_accept(S, "trailers without a body", OPEN, headers(1, [(b"x-sum", b"1")]))
_reset(S, "trailers without END_STREAM", PROTOCOL, OPEN, headers(1, [(b"x", b"1")], END_HEADERS))
_reset(S, "pseudo-header field in trailers", PROTOCOL, OPEN, headers(1, [(b":method", b"GET")]))
_reset(S, "status in trailers", PROTOCOL, OPEN, headers(1, [(b":status", b"200")]))
_reset(S, "upper case in trailers", PROTOCOL, OPEN, headers(1, [(b"X", b"1")]))
_reset(
    S,
    "connection-specific field in trailers",
    PROTOCOL,
    OPEN,
    headers(1, [(b"connection", b"close")]),
)
S = "§8.1.1"
LENGTH_5: Final = headers(1, request(b"POST", b"/", (b"content-length", b"5")), END_HEADERS)
_accept(S, "content-length is the body's", LENGTH_5, data(1, b"hello"))
_accept(
    S,
    "content-length does not count padding",
    LENGTH_5,
    data(1, b"\x03hello" + bytes(3), END_STREAM | PADDED),
)
_accept(
    S, "content-length and trailers", LENGTH_5, data(1, b"hello", 0), headers(1, [(b"x", b"1")])
)
_accept(
    S,
    "content-length 0 without a body",
    headers(1, request(b"GET", b"/", (b"content-length", b"0"))),
)
_reset(S, "body shorter than its content-length", PROTOCOL, LENGTH_5, data(1, b"hell"))
_reset(S, "body longer than its content-length", PROTOCOL, LENGTH_5, data(1, b"hello!"))
_reset(
    S, "body longer in its second frame", PROTOCOL, LENGTH_5, data(1, b"hello", 0), data(1, b"!", 0)
)
_reset(
    S,
    "no body for a content-length",
    PROTOCOL,
    headers(1, request(b"POST", b"/", (b"content-length", b"5"))),
)
_reset(
    S,
    "trailers before the content-length is reached",
    PROTOCOL,
    LENGTH_5,
    data(1, b"hell", 0),
    headers(1, [(b"x", b"1")]),
)
for value in (b"", b"5x", b"-5", b"+5", b"5, 5", b"0x5", b"99999999999999999999"):
    _reset(
        S,
        f"content-length {value!r}",
        PROTOCOL,
        headers(1, request(b"POST", b"/", (b"content-length", value)), END_HEADERS),
    )
_reset(
    S,
    "two content-lengths",
    PROTOCOL,
    headers(
        1, request(b"POST", b"/", (b"content-length", b"5"), (b"content-length", b"6")), END_HEADERS
    ),
)

# --------------------------------------------------------------------------------------------------
# §8.2: fields


def _with(*fields: tuple[bytes, bytes]) -> bytes:
    return headers(1, request(b"GET", b"/", *fields))


S = "§8.2.1"
for name in (
    b"X", b"x-Upper", b"", b" x", b"x ", b"x y", b"x\t", b"x\0", b"x\x01", b"x\x7f", b"x\x80",
    b"x:y", b"x(", b"x\r", b"x\n", b"x,y", b'"x"', b"x\xff",
):  # fmt: skip
    _reset(S, f"field name {name!r}", PROTOCOL, _with((name, b"y")))
for value in (
    b"a\0b",
    b"a\rb",
    b"a\nb",
    b"a\r\nb: c",
    b" a",
    b"a ",
    b"\ta",
    b"a\t",
    b" ",
    b"\x01",
    b"\x7f",
):
    _reset(S, f"field value {value!r}", PROTOCOL, _with((b"x", value)))
for value in (b"", b"a", b"a b\tc", b"\x80\xff", b"caf\xc3\xa9", b"a:b", b'"a"', b"x" * 5000):
    _accept(S, f"field value {value[:20]!r}", _with((b"x", value)))
S = "§8.2.2"
for name in (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"):
    _reset(S, f"field {name.decode()}", PROTOCOL, _with((name, b"x")))
for value in (b"gzip", b"trailers, gzip", b"", b"trailers;q=1"):
    _reset(S, f"te: {value.decode()!r}", PROTOCOL, _with((b"te", value)))
_accept(S, "te: trailers", _with((b"te", b"trailers")))
_accept("§8.2.3", "cookie in parts", _with((b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2")))

S = "§8.3"
FIELDS: Final = dict(GET)


def _pseudo(**changes: bytes | None) -> list[tuple[bytes, bytes]]:
    """GET with pseudo-header fields left out (None) or changed, named without the colon."""
    fields = {**FIELDS, **{b":" + name.encode(): value for name, value in changes.items()}}
    return [(name, value) for name, value in fields.items() if value is not None]


_reset(S, "unknown pseudo-header field", PROTOCOL, headers(1, [*GET, (b":unknown", b"x")]))
_reset(S, "pseudo-header field of a response", PROTOCOL, headers(1, [*GET, (b":status", b"200")]))
_reset(
    S, "pseudo-header field behind another", PROTOCOL, headers(1, [*GET[:3], (b"x", b"y"), GET[3]])
)
for name in (b":method", b":scheme", b":path", b":authority"):
    _reset(S, f"two fields {name.decode()}", PROTOCOL, headers(1, [*GET, (name, FIELDS[name])]))
_reset(
    S, "upper case in a pseudo-header field", PROTOCOL, headers(1, [(b":Method", b"GET"), *GET[1:]])
)
_accept(S, "pseudo-header fields in another order", headers(1, GET[::-1]))
S = "§8.3.1"
for name in ("method", "scheme", "path"):
    _reset(S, f"no :{name}", PROTOCOL, headers(1, _pseudo(**{name: None})))
    _reset(S, f"empty :{name}", PROTOCOL, headers(1, _pseudo(**{name: b""})))
_reset(S, "no fields", PROTOCOL, headers(1, b""))
for value in (b"G T", b"GE\tT", b"GET\0", b"G\xc9T", b"GET:"):
    _reset(S, f":method {value!r}", PROTOCOL, headers(1, _pseudo(method=value)))
for value in (
    b"a",
    b"a/b",
    b"*",
    b"?a",
    b"/a b",
    b"/a\0",
    b"/a\r\n",
    b"/a#b",
    b"/\x7f",
    b"/\xe9",
    b"http://a/",
):
    _reset(S, f":path {value!r}", PROTOCOL, headers(1, _pseudo(path=value)))
for value in (b"/?", b"/a?b=c", b"//", b"/%00", b"/a;b"):
    _accept(S, f":path {value.decode()}", headers(1, _pseudo(path=value)))
_accept(S, "OPTIONS *", headers(1, _pseudo(method=b"OPTIONS", path=b"*")))
for value in (b"1http", b"ht tp", b"http:", b"http/"):
    _reset(S, f":scheme {value!r}", PROTOCOL, headers(1, _pseudo(scheme=value)))
for value in (
    b"u@a.example",
    b"u:p@a.example",
    b"a b",
    b"a/b",
    b"a.example:x",
    b"a\0",
    b"",
    b":80",
    b"[::1",
):
    _reset(S, f":authority {value!r}", PROTOCOL, headers(1, _pseudo(authority=value)))
_accept(S, "host instead of :authority", headers(1, [*GET[:3], (b"host", b"a.example")]))
_accept(S, "host like :authority", headers(1, [*GET, (b"host", b"a.example")]))
_reset(S, "host unlike :authority", PROTOCOL, headers(1, [*GET, (b"host", b"b.example")]))
_reset(S, "two hosts", PROTOCOL, headers(1, [*GET[:3], (b"host", b"a"), (b"host", b"b")]))
_reset(S, "neither host nor :authority", PROTOCOL, headers(1, GET[:3]))

S = "§8.5"
CONNECT: Final = [(b":method", b"CONNECT"), (b":authority", b"b.example:443")]
_accept(S, "CONNECT is not implemented", headers(1, CONNECT), answers={1: 501})
_reset(S, "CONNECT with :scheme", PROTOCOL, headers(1, [*CONNECT, (b":scheme", b"http")]))
_reset(S, "CONNECT with :path", PROTOCOL, headers(1, [*CONNECT, (b":path", b"/")]))
_reset(S, "CONNECT without :authority", PROTOCOL, headers(1, CONNECT[:1]))
_reset(
    S, "CONNECT without a port", PROTOCOL, headers(1, [CONNECT[0], (b":authority", b"b.example")])
)
S = "RFC 8441 §4"
TUNNEL: Final = [*request(b"CONNECT", b"/_echo"), (b":protocol", b"websocket")]
TUNNEL_MORE: Final = (b"sec-websocket-version", b"13")
_reset(S, ":protocol with GET", PROTOCOL, headers(1, [*GET, (b":protocol", b"websocket")]))
_accept(
    S,
    "unknown :protocol",
    headers(1, [*TUNNEL[:4], (b":protocol", b"nonsense")], END_HEADERS),
    answers={1: 501},
)
for missing in (b":scheme", b":path", b":authority"):
    fields = [item for item in TUNNEL if item[0] != missing]
    _reset(
        S,
        f"extended CONNECT without {missing.decode()}",
        PROTOCOL,
        headers(1, [*fields, TUNNEL_MORE], END_HEADERS),
    )
_reset(S, "empty :protocol", PROTOCOL, headers(1, [*TUNNEL[:4], (b":protocol", b"")], END_HEADERS))
S = "RFC 9218 §7.1"
_ignore(S, "PRIORITY_UPDATE", frame(PRIORITY_UPDATE, 0, b"\0\0\0\x01u=1"))
_ignore(
    S, "PRIORITY_UPDATE that is no structured field", frame(PRIORITY_UPDATE, 0, b"\0\0\0\x01\xff=;")
)
_end(S, "PRIORITY_UPDATE on a stream", PROTOCOL, frame(PRIORITY_UPDATE, 1, b"\0\0\0\x01u=1"))
_end(S, "PRIORITY_UPDATE of stream 0", PROTOCOL, frame(PRIORITY_UPDATE, 0, b"\0\0\0\0u=1"))
_end(S, "PRIORITY_UPDATE of 3 bytes", SIZE, frame(PRIORITY_UPDATE, 0, b"\0\0\0"))

# --------------------------------------------------------------------------------------------------
# RFC 7541


def _block(
    section: str, name: str, *parts: bytes, answers: Mapping[int, int] | None = None
) -> None:
    _accept(f"RFC 7541 {section}", name, headers(1, b"".join(parts)), answers=answers)


def _broken(section: str, name: str, *parts: bytes) -> None:
    _end(f"RFC 7541 {section}", name, COMPRESSION, headers(1, b"".join(parts)))


PLAIN: Final = block(GET)
_block("§2.3.1", "fields of the static table", b"\x82\x86\x84", literal(b":authority", b"a"))
_block("§2.3.2", "field of the dynamic table", PLAIN, literal(b"x", b"1", 0x40), b"\xbe")
_broken("§2.3.3", "index behind an empty dynamic table", PLAIN, b"\xbe")
_broken("§2.3.3", "index behind the dynamic table", PLAIN, literal(b"x", b"1", 0x40), b"\xbf")
_broken("§2.3.3", "index of a name behind the table", PLAIN, integer(62, 4), b"\x01x")
_broken(
    "§4.4",
    "index of an entry that was evicted",
    b"\x3f\xe1\x07\x20",
    PLAIN,
    literal(b"x", b"1", 0x40),
    b"\xbe",
)
_block("§4.4", "entry larger than the table", PLAIN, literal(b"x", b"y" * 4096, 0x40))
_broken(
    "§4.4",
    "entry larger than the table empties it",
    PLAIN,
    literal(b"x", b"1", 0x40),
    literal(b"x", b"y" * 4096, 0x40),
    b"\xbe",
)
_block("§4.2", "table size 0, then the largest", b"\x20", integer(4096, 5, 0x20), PLAIN)
_broken("§4.2", "table size behind a field", PLAIN, b"\x20")
_broken("§6.3", "table size beyond the limit", integer(4097, 5, 0x20), PLAIN)
_broken("§6.3", "table size far beyond the limit", integer(1 << 30, 5, 0x20), PLAIN)
_block(
    "§5.1",
    "integer with zeros behind it",
    PLAIN,
    b"\x00\x01x\x7f\x81\x80\x00" + bytes(0),
    b"y" * 128,
)
_broken("§5.1", "integer without end", PLAIN, b"\xff" + b"\xff" * 20)
_broken("§5.1", "integer that is cut", PLAIN, b"\xff\xff")
_broken("§5.1", "integer of 2^70", PLAIN, b"\x00\x7f" + b"\xff" * 9 + b"\x7f")
_broken("§5.2", "string longer than its block", PLAIN, b"\x00\x01x\x05ab")
_broken("§5.2", "name longer than its block", PLAIN, b"\x00\x7e")
_block("§5.2", "Huffman", PLAIN, b"\x00\x01x\x81\x1f")
_broken("§5.2", "Huffman padding of 8 bits", PLAIN, b"\x00\x01x\x82\x1f\xff")
_broken("§5.2", "Huffman padding that is not of the end", PLAIN, b"\x00\x01x\x81\x18")
_broken("§5.2", "Huffman with the end of string", PLAIN, b"\x00\x01x\x84\xff\xff\xff\xff")
_broken("§6.1", "index 0", PLAIN, b"\x80")
_block("§6.2.1", "literal that is indexed", PLAIN, literal(b"x", b"y", 0x40))
_block("§6.2.2", "literal that is not indexed", PLAIN, literal(b"x", b"y", 0x00))
_block("§6.2.3", "literal that is never indexed", PLAIN, literal(b"x", b"y", 0x10))
_block("§6.2.1", "literal with a name of the static table", PLAIN, b"\x7a\x01y")
_broken("§6.2", "literal without a value", PLAIN, b"\x00\x01x")
_broken("§6.2", "literal without a name", PLAIN, b"\x40")

# --------------------------------------------------------------------------------------------------
# The same once the client repeats itself: fields that are nothing but indices may be remembered


def _repeated(*fields: tuple[bytes, bytes], flags: int) -> bytes:
    """Streams 1, 3 and 5, the fields of the last two by their indices."""
    indexed = b"".join(literal(name, value, 0x40) for name, value in fields)
    indices = bytes(0x80 | 61 + number for number in range(len(fields), 0, -1))
    return b"".join(
        headers(number, indexed if number == 1 else indices, flags) for number in (1, 3, 5)
    )


ALL: Final = {1: 200, 3: 200, 5: 200}
AGAIN_GET: Final = _repeated(*GET, flags=END_STREAM | END_HEADERS)
AGAIN_WAITING: Final = _repeated(*request(path=b"/_wait"), flags=END_STREAM | END_HEADERS)
AGAIN_OPEN: Final = _repeated(*request(b"POST", b"/_wait"), flags=END_HEADERS)
AGAIN_POST: Final = _repeated(*POST, flags=END_HEADERS)
ENDS: Final = data(1) + data(3)
AGAIN_LENGTH: Final = _repeated(*POST, (b"content-length", b"5"), flags=END_HEADERS)
LENGTHS: Final = data(1, b"hello") + data(3, b"hello")
INDICES: Final = bytes((0xC1, 0xC0, 0xBF, 0xBE))

_accept("RFC 7541 §6.1", "request of indices, again", AGAIN_GET, answers=ALL)
_accept("§8.1", "body behind indices, again", AGAIN_POST, ENDS, data(5, b"hello"), answers=ALL)
_accept(
    "§8.1",
    "trailers behind indices, again",
    AGAIN_POST,
    ENDS,
    headers(5, [(b"x", b"1")]),
    answers=ALL,
)
_accept(
    "§8.1",
    "trailers in two parts behind indices, again",
    AGAIN_POST,
    ENDS,
    headers(5, b"", END_STREAM),
    frame(CONTINUATION, 5, literal(b"x", b"1"), END_HEADERS),
    answers=ALL,
)
_accept(
    "§6.2",
    "padding around indices that came before",
    AGAIN_GET,
    headers(7, INDICES, END_STREAM | END_HEADERS | PADDED, b"\x02", bytes(2)),
    answers={**ALL, 7: 200},
)
_accept(
    "§6.2",
    "priority before indices that came before",
    AGAIN_GET,
    headers(7, INDICES, END_STREAM | END_HEADERS | WITH_PRIORITY, bytes(5)),
    answers={**ALL, 7: 200},
)
_accept(
    "§6.10",
    "indices that came before, in two parts",
    AGAIN_GET,
    headers(7, INDICES[:2], END_STREAM),
    frame(CONTINUATION, 7, INDICES[2:], END_HEADERS),
    answers={**ALL, 7: 200},
)
_accept(
    "§5.1",
    "WINDOW_UPDATE behind indices, again",
    AGAIN_POST,
    window_update(5, 100),
    ENDS,
    data(5),
    answers=ALL,
)
_reset(
    "§5.1 half-closed (remote)",
    "DATA behind indices, again",
    CLOSED,
    AGAIN_WAITING,
    data(5, b"x"),
    stream=5,
)
_reset(
    "§5.1 half-closed (remote)",
    "the same indices on the same stream",
    CLOSED,
    AGAIN_WAITING,
    headers(5, INDICES),
    stream=5,
)
_reset(
    "§6.9",
    "increment of 0 behind indices, again",
    PROTOCOL,
    AGAIN_OPEN,
    window_update(5, 0),
    stream=5,
)
_reset(
    "§6.9.1",
    "window beyond 2^31 - 1 behind indices, again",
    FLOW,
    AGAIN_OPEN,
    window_update(5, (1 << 31) - 1),
    stream=5,
)
_reset(
    "§8.1",
    "trailers that are indices and no end",
    PROTOCOL,
    AGAIN_OPEN,
    headers(5, INDICES, END_HEADERS),
    stream=5,
)
_reset(
    "§8.1",
    "trailers that are the same indices",
    PROTOCOL,
    AGAIN_OPEN,
    headers(5, INDICES),
    stream=5,
)
_ignore(
    "§5.1 closed",
    "RST_STREAM behind indices, again, and what was on its way",
    AGAIN_OPEN,
    rst_stream(5),
    window_update(5, 1),
)
_end(
    "§5.1.1",
    "indices that came before on an even stream",
    PROTOCOL,
    AGAIN_WAITING,
    headers(6, INDICES),
)
_end(
    "§5.1.1",
    "indices that came before below the last stream",
    PROTOCOL,
    AGAIN_WAITING,
    headers(9),
    headers(7, INDICES),
)
_end("§6.2", "indices that came before on stream 0", PROTOCOL, AGAIN_WAITING, headers(0, INDICES))
_end(
    "§5.1 idle",
    "DATA behind indices, again, on the next stream",
    PROTOCOL,
    AGAIN_WAITING,
    data(7, b"x"),
)
_end(
    "§6.9.1",
    "more than the window behind indices, again",
    FLOW,
    AGAIN_OPEN,
    data(5, bytes(16384), 0) * 65,
)
_end(
    "§6.10",
    "CONTINUATION behind indices, again",
    PROTOCOL,
    AGAIN_WAITING,
    frame(CONTINUATION, 5, b"", END_HEADERS),
)
CASES.append(
    Case(
        "§8.1.1",
        "shorter than its content-length behind indices, again",
        AGAIN_LENGTH + LENGTHS + data(5, b"hell"),
        {1: 200, 3: 200},
        {5: PROTOCOL},
    )
)
CASES.append(
    Case(
        "§8.1.1",
        "no body for a content-length behind indices, again",
        AGAIN_LENGTH
        + LENGTHS
        + data(5, b"hello")
        + headers(7, bytes((0xC2, 0xC1, 0xC0, 0xBF, 0xBE))),
        ALL,
        {7: PROTOCOL},
    )
)
_accept(
    "§4.3",
    "a block that changes the table makes the same indices mean another",
    AGAIN_GET,
    headers(7, INDICES + literal(b"x", b"1", 0x40)),
    headers(9, bytes((0xC2, 0xC1, 0xC0, 0xBF))),
    answers={**ALL, 7: 200, 9: 200},
)
