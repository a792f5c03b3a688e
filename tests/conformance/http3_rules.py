"""What a server must make of HTTP/3: RFC 9114, its QPACK (RFC 9204), WebSockets over it (RFC 9220,
RFC 8441), priorities (RFC 9218) and datagrams (RFC 9297). A table, by sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import pylsqpack

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.http3_frames import (
    CANCEL_PUSH,
    DATA,
    GOAWAY,
    HEADERS,
    MAX_PUSH_ID,
    PRIORITY_UPDATE,
    PRIORITY_UPDATE_PUSH,
    PUSH_PROMISE,
    SETTINGS,
    ErrorCode,
    frame,
    write_integer,
    write_settings,
)
from tests.conformance.quic_verdicts import (
    Act,
    Answered,
    Closed,
    ClosedByHttp,
    Ignored,
    Reset,
    Rule,
    Verdict,
    counter_of,
)
from tests.support.quic_probe import GET, POST, Probe

RULES: list[Rule] = []
GREASE: Final = 0x21 + 0x1F * 11
E = ErrorCode
Fields = Sequence[tuple[bytes, bytes]]


def section(fields: Fields) -> bytes:
    """A field section without the dynamic table, in its HEADERS frame."""
    return frame(HEADERS, pylsqpack.Encoder().encode(0, list(fields))[1])


def raw_section(lines: bytes, prefix: bytes = b"\0\0") -> bytes:
    return frame(HEADERS, prefix + lines)


def literal(name: bytes, value: bytes) -> bytes:
    """A literal field line with a literal name, as it stands (RFC 9204 §4.5.6)."""
    assert len(name) < 7
    assert len(value) < 127
    return bytes([0x20 | len(name)]) + name + bytes([len(value)]) + value


def raw_get(lines: bytes = b"") -> bytes:
    """GET https://localhost/hello by indices of the static table, and more lines."""
    authority = b"\x50\x09localhost"
    path = b"\x51\x06/hello"
    return raw_section(b"\xd1\xd7" + authority + path + lines)


def rule(
    where: str,
    name: str,
    verdict: Verdict,
    act: Act,
    counted: Refusal | None = None,
    **options: Any,
) -> None:
    RULES.append(Rule(where, name, act, verdict, options, counted or counter_of(verdict)))


def on_request(
    where: str,
    name: str,
    verdict: Verdict,
    data: bytes,
    *,
    ended: bool = True,
    counted: Refusal | None = None,
) -> None:
    rule(where, name, verdict, lambda probe: probe.open(data, ended=ended), counted)


def on_control(where: str, name: str, verdict: Verdict, data: bytes) -> None:
    rule(where, name, verdict, lambda probe: probe.send(2, data))


def first_on_control(where: str, name: str, verdict: Verdict, data: bytes) -> None:
    act: Act = lambda probe: probe.send(2, b"\0" + data)  # noqa: E731
    rule(where, name, verdict, act, settings=None)


def on_stream(where: str, name: str, verdict: Verdict, data: bytes, *, ended: bool = False) -> None:
    """On another unidirectional stream than the control stream."""
    rule(where, name, verdict, lambda probe: probe.send(6, data, ended=ended))


def without(name: bytes, fields: Fields = GET) -> list[tuple[bytes, bytes]]:
    return [field for field in fields if field[0] != name]


def replaced(name: bytes, value: bytes, fields: Fields = GET) -> list[tuple[bytes, bytes]]:
    return [(key, value if key == name else old) for key, old in fields]


grease = frame(GREASE, b"grease")
body = frame(DATA, b"body")
MALFORMED = Reset(E.H3_MESSAGE_ERROR)
UNEXPECTED = ClosedByHttp(E.H3_FRAME_UNEXPECTED)
BAD_FRAME = ClosedByHttp(E.H3_FRAME_ERROR)

# --------------------------------------------------------------------------------------------------
# RFC 9114 §4.1: HTTP message framing

S = "RFC 9114 §4.1"
on_request(S, "a request", Answered(), section(GET))
on_request(S, "a request with a body", Answered(), section(POST) + body)
on_request(S, "a request with trailers", Answered(), section(POST) + body + section([(b"a", b"b")]))
on_request(S, "trailers without a body", Answered(), section(POST) + section([(b"a", b"b")]))
on_request(S, "unknown frames between all", Answered(), grease + section(GET) + grease)
on_request(S, "unknown frames in the body", Answered(), section(POST) + grease + body + grease)
on_request(S, "DATA before HEADERS", UNEXPECTED, body + section(GET))
on_request(S, "DATA behind trailers", UNEXPECTED, section(POST) + section([(b"a", b"b")]) + body)
on_request(
    S,
    "HEADERS behind trailers",
    UNEXPECTED,
    section(POST) + section([(b"a", b"b")]) * 2,
    ended=False,
)
on_request(S, "nothing at all", Reset(E.H3_REQUEST_INCOMPLETE), b"")
on_request(S, "only unknown frames", Reset(E.H3_REQUEST_INCOMPLETE), grease)
on_request(
    S, "an informational response from the client", MALFORMED, section([(b":status", b"103")])
)
on_request(S, "PUSH_PROMISE by a client", UNEXPECTED, frame(PUSH_PROMISE, b"\0\0\0"), ended=False)

# --------------------------------------------------------------------------------------------------
# RFC 9114 §4.1.1: request cancellation


async def cancel(probe: Probe) -> None:
    stream = probe.open(section(POST), ended=False)
    await probe.silence()
    probe.quic.reset_stream(stream, E.H3_REQUEST_CANCELLED)
    probe.flush()
    answer = await probe.response(stream)
    assert answer.reset_code == E.H3_REQUEST_CANCELLED


async def stop(probe: Probe) -> None:
    stream = probe.open(section(replaced(b":path", b"/bytes?size=50000000")), ended=True)
    await probe.wait_until(lambda: bool(probe.received(stream).data))
    probe.quic.stop_stream(stream, E.H3_REQUEST_CANCELLED)
    probe.flush()
    answer = await probe.response(stream)
    assert answer.reset_code == E.H3_REQUEST_CANCELLED


rule("RFC 9114 §4.1.1", "a request is cancelled by RESET_STREAM", Ignored(), cancel)
rule("RFC 9114 §4.1.1", "a response is cancelled by STOP_SENDING", Ignored(), stop)

# --------------------------------------------------------------------------------------------------
# RFC 9114 §4.1.2: malformed requests

S = "RFC 9114 §4.1.2"
for length in (b"3", b"5", b"0"):
    on_request(
        S,
        f"content-length {length.decode()} of a body of 4",
        MALFORMED,
        section([*POST, (b"content-length", length)]) + body,
        counted=Refusal.BODY_LENGTH_MISMATCH,
    )
on_request(
    S,
    "content-length and no body",
    MALFORMED,
    section([*POST, (b"content-length", b"4")]),
    counted=Refusal.BODY_LENGTH_MISMATCH,
)
on_request(
    S,
    "content-length that is right",
    Answered(),
    section([*POST, (b"content-length", b"4")]) + body,
)
on_request(
    S,
    "content-length twice",
    MALFORMED,
    section([*POST, (b"content-length", b"4"), (b"content-length", b"5")]) + body,
)
on_request(
    S,
    "content-length that is no number",
    MALFORMED,
    section([*POST, (b"content-length", b"4x")]) + body,
)
on_request(
    S,
    "content-length in two frames",
    Answered(),
    section([*POST, (b"content-length", b"8")]) + body * 2,
)

# --------------------------------------------------------------------------------------------------
# RFC 9114 §4.2: fields

S = "RFC 9114 §4.2"
for bad in (b"Accept", b"aB", b"a b", b"a\0", b"a:", b"a\r", b"a\n", b"a\x7f", b"\xff", b"a\t"):
    on_request(S, f"field name {bad!r}", MALFORMED, raw_get(literal(bad, b"x")))
for bad in (b"a\0b", b"a\rb", b"a\nb", b"a\r\nb: c"):
    on_request(S, f"field value {bad!r}", MALFORMED, raw_get(literal(b"x", bad)))
for name, value in (
    (b"connection", b"close"),
    (b"keep-alive", b"timeout=5"),
    (b"proxy-connection", b"close"),
    (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"websocket"),
    (b"te", b"gzip"),
    (b"te", b"trailers, deflate"),
):
    text = f"{name.decode()}: {value.decode()}"
    on_request(S, f"connection-specific {text}", MALFORMED, section([*GET, (name, value)]))
on_request(S, "te: trailers", Answered(), section([*GET, (b"te", b"trailers")]))
for name in (b"A", b":path", b":status", b"connection", b"transfer-encoding"):
    trailers = section([(name, b"/")])
    on_request(S, f"trailer {name.decode()}", MALFORMED, section(POST) + body + trailers)
cookies = section([*GET, (b"cookie", b"a=1"), (b"cookie", b"b=2")])
on_request("RFC 9114 §4.2.1", "cookies in several fields", Answered(), cookies)
large = section([*GET, *[(b"x-%d" % number, b"v" * 4000) for number in range(17)]])
on_request(
    "RFC 9114 §4.2.2",
    "fields beyond SETTINGS_MAX_FIELD_SECTION_SIZE",
    Answered(431),
    large,
    counted=Refusal.HTTP3_HEADERS_TOO_LARGE,
)

# --------------------------------------------------------------------------------------------------
# RFC 9114 §4.3: control data

S = "RFC 9114 §4.3"
on_request(S, "pseudo-header that is not defined", MALFORMED, section([*GET, (b":query", b"x")]))
on_request(S, "pseudo-header of responses", MALFORMED, section([*GET, (b":status", b"200")]))
on_request(S, "pseudo-header behind a field", MALFORMED, section([*GET[:3], (b"a", b"b"), GET[3]]))
S = "RFC 9114 §4.3.1"
for name in (b":method", b":scheme", b":path"):
    on_request(S, f"no {name.decode()}", MALFORMED, section(without(name)))
    on_request(S, f"{name.decode()} twice", MALFORMED, section([*GET, (name, dict(GET)[name])]))
    on_request(S, f"empty {name.decode()}", MALFORMED, section(replaced(name, b"")))
on_request(S, "neither :authority nor host", MALFORMED, section(without(b":authority")))
on_request(
    S,
    "host instead of :authority",
    Answered(),
    section([*without(b":authority"), (b"host", b"localhost")]),
)
on_request(S, "host that is :authority", Answered(), section([*GET, (b"host", b"localhost")]))
on_request(S, "host that is not :authority", MALFORMED, section([*GET, (b"host", b"other")]))
on_request(S, "empty :authority", MALFORMED, section(replaced(b":authority", b"")))
on_request(
    S, "two hosts", MALFORMED, section([*GET, (b"host", b"localhost"), (b"host", b"localhost")])
)
on_request(
    S, "userinfo in :authority", MALFORMED, section(replaced(b":authority", b"me@localhost"))
)
on_request(S, "space in :authority", MALFORMED, section(replaced(b":authority", b"a b")))
on_request(S, ":path without a slash", MALFORMED, section(replaced(b":path", b"hello")))
on_request(S, ":path with a space", MALFORMED, section(replaced(b":path", b"/a b")))
on_request(S, ":path with a fragment", MALFORMED, section(replaced(b":path", b"/a#b")))
on_request(
    S, ":path with NUL", MALFORMED, raw_section(b"\xd1\xd7\x50\x01a" + literal(b":path", b"/\0"))
)
on_request(S, ":method that is no token", MALFORMED, section(replaced(b":method", b"GE T")))
on_request(
    S, "OPTIONS *", Answered(404), section([(b":method", b"OPTIONS"), *GET[1:3], (b":path", b"*")])
)
on_request(S, "GET *", MALFORMED, section(replaced(b":path", b"*")))
S = "RFC 9114 §4.4"
CONNECT: Final = [(b":method", b"CONNECT"), (b":authority", b"localhost:80")]
on_request(S, "CONNECT with :path", MALFORMED, section([*CONNECT, (b":path", b"/")]))
on_request(S, "CONNECT with :scheme", MALFORMED, section([*CONNECT, (b":scheme", b"https")]))
on_request(S, "CONNECT without :authority", MALFORMED, section(CONNECT[:1]))
on_request(
    S, "HEADERS on a tunnel", UNEXPECTED, section(CONNECT) + section([(b"a", b"b")]), ended=False
)

# --------------------------------------------------------------------------------------------------
# RFC 9114 §4.6, §5: push, connection closure

S = "RFC 9114 §4.6"
on_control(S, "MAX_PUSH_ID", Ignored(), frame(MAX_PUSH_ID, b"\x05"))
on_control(
    S, "MAX_PUSH_ID that grows", Ignored(), frame(MAX_PUSH_ID, b"\5") + frame(MAX_PUSH_ID, b"\6")
)
S = "RFC 9114 §5.2"
on_control(S, "GOAWAY by a client", Ignored(), frame(GOAWAY, b"\x00"))
on_control(S, "GOAWAY that shrinks", Ignored(), frame(GOAWAY, b"\x08") + frame(GOAWAY, b"\x04"))
on_control(
    S, "GOAWAY that grows", ClosedByHttp(E.H3_ID_ERROR), frame(GOAWAY, b"\4") + frame(GOAWAY, b"\5")
)

# --------------------------------------------------------------------------------------------------
# RFC 9114 §6.2: unidirectional streams

S = "RFC 9114 §6.2"
on_stream(S, "a stream of unknown type", Ignored(), write_integer(GREASE) + bytes(500))
on_stream(
    S, "a stream of unknown type that ends", Ignored(), write_integer(GREASE) + b"x", ended=True
)
on_stream(S, "a stream that ends before its type", Ignored(), b"", ended=True)
on_stream(S, "a stream that ends in its type", Ignored(), b"\x40", ended=True)
on_stream(
    S,
    "a type in an integer longer than it needs",
    ClosedByHttp(E.H3_STREAM_CREATION_ERROR),
    b"\xc0" + bytes(7),
)


def eight_streams(probe: Probe) -> None:
    for number in range(1, 9):
        probe.send(2 + 4 * number, write_integer(GREASE + 0x1F * number) + bytes(1024))


def reset_before_type(probe: Probe) -> None:
    probe.send(6, b"\x40")
    probe.quic.reset_stream(6, 0)
    probe.flush()


rule(S, "three streams and more, 1,024 bytes on each", Ignored(), eight_streams)
rule(S, "a stream that is reset before its type", Ignored(), reset_before_type)
S = "RFC 9114 §6.2.1"
CRITICAL = ClosedByHttp(E.H3_CLOSED_CRITICAL_STREAM)
on_stream(S, "a second control stream", ClosedByHttp(E.H3_STREAM_CREATION_ERROR), b"\0")
rule(S, "the control stream ends", CRITICAL, lambda probe: probe.send(2, b"", ended=True))


def reset_control(probe: Probe) -> None:
    probe.quic.reset_stream(2, 0)
    probe.flush()


def stop_servers(stream_id: int) -> Act:
    async def act(probe: Probe) -> None:
        await probe.wait_until(lambda: bool(probe.received(stream_id).data))
        probe.quic.stop_stream(stream_id, 0)
        probe.flush()

    return act


rule(S, "the control stream is reset", CRITICAL, reset_control)
rule(S, "the server's control stream is stopped", CRITICAL, stop_servers(3))
rule("RFC 9204 §4.2", "the server's encoder stream is stopped", CRITICAL, stop_servers(7))
rule("RFC 9204 §4.2", "the server's decoder stream is stopped", CRITICAL, stop_servers(11))
for kind, what in (
    (DATA, "DATA"),
    (HEADERS, "HEADERS"),
    (GOAWAY, "GOAWAY"),
    (GREASE, "an unknown frame"),
):
    first_on_control(
        S, f"{what} before SETTINGS", ClosedByHttp(E.H3_MISSING_SETTINGS), frame(kind, b"\0")
    )
on_stream(
    "RFC 9114 §6.2.2",
    "a push stream by a client",
    ClosedByHttp(E.H3_STREAM_CREATION_ERROR),
    b"\1\0",
)

# --------------------------------------------------------------------------------------------------
# RFC 9114 §7: frames

S = "RFC 9114 §7.1"
for rest, what in (
    (b"\x00", "its type"),
    (b"\x00\x05abc", "DATA"),
    (b"\x01\x40", "its length"),
    (b"\x01\x05ab", "HEADERS"),
    (b"\x21\x05ab", "an unknown frame"),
):
    on_request(S, f"a stream ends in {what}", BAD_FRAME, section(POST) + rest)
on_control(S, "GOAWAY with a tail", BAD_FRAME, frame(GOAWAY, b"\x04\x04"))
on_control(S, "GOAWAY with half an integer", BAD_FRAME, frame(GOAWAY, b"\x44"))
on_control(S, "empty GOAWAY", BAD_FRAME, frame(GOAWAY, b""))
on_control(S, "MAX_PUSH_ID with a tail", BAD_FRAME, frame(MAX_PUSH_ID, b"\x04\x04"))
on_control(S, "SETTINGS that end in a setting", UNEXPECTED, frame(SETTINGS, b"\x06"))
first_on_control(S, "first SETTINGS end in a setting", BAD_FRAME, frame(SETTINGS, b"\x06\x40"))
on_control("RFC 9114 §7.2.1", "DATA on the control stream", UNEXPECTED, frame(DATA, b"x"))
on_control("RFC 9114 §7.2.2", "HEADERS on the control stream", UNEXPECTED, section(GET))
S = "RFC 9114 §7.2.3"
on_request(S, "CANCEL_PUSH on a request", UNEXPECTED, frame(CANCEL_PUSH, b"\0"), ended=False)
on_control(
    S,
    "CANCEL_PUSH of a push that was never promised",
    ClosedByHttp(E.H3_ID_ERROR),
    frame(CANCEL_PUSH, b"\7"),
)
S = "RFC 9114 §7.2.4"
on_control(S, "SETTINGS twice", UNEXPECTED, write_settings({}))
on_request(S, "SETTINGS on a request", UNEXPECTED, write_settings({}), ended=False)
BAD_SETTING = ClosedByHttp(E.H3_SETTINGS_ERROR)
first_on_control(S, "a setting twice", BAD_SETTING, frame(SETTINGS, b"\x06\x40\x64" * 2))
first_on_control(S, "unknown settings", Ignored(), write_settings({GREASE: 7, 0x4242: 1 << 60}))
first_on_control(
    S,
    "every setting that is defined",
    Ignored(),
    write_settings({1: 4096, 6: 1 << 20, 7: 100, 8: 1, 0x33: 1}),
)
S = "RFC 9114 §7.2.4.1"
for reserved in (0x00, 0x02, 0x03, 0x04, 0x05):
    first_on_control(
        S, f"setting {reserved:#x} of HTTP/2", BAD_SETTING, write_settings({reserved: 1})
    )
on_request(
    "RFC 9114 §7.2.5",
    "PUSH_PROMISE on a request",
    UNEXPECTED,
    section(POST) + frame(PUSH_PROMISE, b"\0"),
    ended=False,
)
on_control(
    "RFC 9114 §7.2.5", "PUSH_PROMISE on the control stream", UNEXPECTED, frame(PUSH_PROMISE, b"\0")
)
on_request("RFC 9114 §7.2.6", "GOAWAY on a request", UNEXPECTED, frame(GOAWAY, b"\0"), ended=False)
on_request(
    "RFC 9114 §7.2.7",
    "MAX_PUSH_ID on a request",
    UNEXPECTED,
    frame(MAX_PUSH_ID, b"\0"),
    ended=False,
)
on_control(
    "RFC 9114 §7.2.7",
    "MAX_PUSH_ID that shrinks",
    ClosedByHttp(E.H3_ID_ERROR),
    frame(MAX_PUSH_ID, b"\4") + frame(MAX_PUSH_ID, b"\3"),
)
S = "RFC 9114 §7.2.8"
for reserved in (0x02, 0x06, 0x08, 0x09):
    on_request(
        S,
        f"frame {reserved:#x} of HTTP/2 on a request",
        UNEXPECTED,
        frame(reserved, b""),
        ended=False,
    )
    on_control(
        S, f"frame {reserved:#x} of HTTP/2 on the control stream", UNEXPECTED, frame(reserved, b"")
    )
on_control(S, "reserved frames on the control stream", Ignored(), grease * 9)
on_control(S, "a long reserved frame", Ignored(), frame(GREASE, bytes(20_000)))
on_request(
    "RFC 9114 §9",
    "a frame of an extension nobody knows",
    Answered(),
    section(GET) + frame(0xF0705, b"x"),
)

# --------------------------------------------------------------------------------------------------
# RFC 9204: QPACK

DECOMPRESSION = ClosedByHttp(E.QPACK_DECOMPRESSION_FAILED)
ENCODER = ClosedByHttp(E.QPACK_ENCODER_STREAM_ERROR)
DECODER = ClosedByHttp(E.QPACK_DECODER_STREAM_ERROR)
SET_CAPACITY = b"\x3f\xe1\x1f"  # 4096
INSERT = b"\x43x-a\x01b"
S = "RFC 9204 §2.2.3"
on_request(
    S, "an entry that was never inserted, by relative index", DECOMPRESSION, raw_section(b"\x80")
)
on_request(S, "an entry that was never inserted, post-base", DECOMPRESSION, raw_section(b"\x10"))
on_request(S, "a name that was never inserted", DECOMPRESSION, raw_section(b"\x40\x01a"))
on_request("RFC 9204 §3.1", "static index 99", DECOMPRESSION, raw_section(b"\xff\x24"))
on_request(
    "RFC 9204 §3.1", "a name by static index 99", DECOMPRESSION, raw_section(b"\x5f\x54\x01a")
)
on_stream(
    "RFC 9204 §3.1",
    "an insertion by static index 99",
    ENCODER,
    b"\2" + SET_CAPACITY + b"\xff\x24\x01a",
)
on_stream(
    "RFC 9204 §3.2.2",
    "an entry beyond the capacity",
    ENCODER,
    b"\2" + b"\x3f\x01" + b"\x43x-a\x20" + b"b" * 32,
)
on_stream("RFC 9204 §3.2.3", "a capacity beyond the maximum", ENCODER, b"\2" + b"\x3f\xe2\x1f")
on_stream("RFC 9204 §3.2.3", "the capacity that was announced", Ignored(), b"\2" + SET_CAPACITY)
on_stream("RFC 9204 §4.1.1", "an integer without end", ENCODER, b"\2" + b"\x3f" + b"\xff" * 12)
on_request(
    "RFC 9204 §4.1.1",
    "an integer without end in a section",
    DECOMPRESSION,
    raw_section(b"\xff" + b"\xff" * 12),
)
S = "RFC 9204 §4.1.2"
on_request(
    S,
    "Huffman padding of zeros",
    DECOMPRESSION,
    raw_section(b"\xd1\xd7\x50\x81\x18" + b"\x51\x01/"),
)
on_request(
    S, "a string that goes on beyond its section", DECOMPRESSION, raw_section(b"\xd1\xd7\x50\x05a")
)
S = "RFC 9204 §4.2"
CREATION = ClosedByHttp(E.H3_STREAM_CREATION_ERROR)


def twice(kind: bytes) -> Act:
    def act(probe: Probe) -> None:
        probe.send(6, kind)
        probe.send(10, kind)

    return act


def begun_and_reset(kind: bytes) -> Act:
    async def act(probe: Probe) -> None:
        probe.send(6, kind)
        await probe.silence()
        probe.quic.reset_stream(6, 0)
        probe.flush()

    return act


for kind, what in ((b"\2", "encoder"), (b"\3", "decoder")):
    rule(S, f"two {what} streams", CREATION, twice(kind))
    rule(S, f"the {what} stream is reset", CRITICAL, begun_and_reset(kind))
    on_stream(S, f"the {what} stream ends", CRITICAL, kind, ended=True)
    on_stream(S, f"an {what} stream that says nothing", Ignored(), kind)
S = "RFC 9204 §4.3"
on_stream(S, "an entry and its duplicate", Ignored(), b"\2" + SET_CAPACITY + INSERT + b"\0")
on_stream(S, "a duplicate of nothing", ENCODER, b"\2" + SET_CAPACITY + b"\0")
on_stream(S, "an insertion by the name of nothing", ENCODER, b"\2" + SET_CAPACITY + b"\x80\x01a")
on_stream("RFC 9204 §4.4.1", "an acknowledgment of no section", DECODER, b"\3\x80")
on_stream("RFC 9204 §4.4.2", "a cancellation of a stream without references", Ignored(), b"\3\x40")
on_stream("RFC 9204 §4.4.3", "an insert count increment of 0", DECODER, b"\3\x00")
on_stream("RFC 9204 §4.4.3", "an insert count increment beyond what was sent", DECODER, b"\3\x01")
S = "RFC 9204 §4.5.1"
on_request(
    S,
    "a required insert count that cannot be",
    DECOMPRESSION,
    raw_section(b"\x80", b"\xff\xff\x7f\0"),
)
on_request(S, "a negative base", DECOMPRESSION, raw_section(b"\x80", b"\x00\x81"))
on_request(S, "a section that is no section", DECOMPRESSION, frame(HEADERS, b"\xff" * 9))
on_request(S, "no section", DECOMPRESSION, frame(HEADERS, b""))
REFERS_TO_FIRST = raw_section(b"\xd1\xd7\x50\x09localhost\x51\x06/hello\x80", b"\x02\x00")


async def blocked_then_served(probe: Probe) -> None:
    stream = probe.open(REFERS_TO_FIRST, ended=True)
    await probe.silence()
    assert not probe.received(stream).data
    probe.send(6, b"\2" + SET_CAPACITY + INSERT)
    answer = await probe.response(stream)
    assert answer.status == 200
    decoder = probe.received(11)
    await probe.wait_until(lambda: b"\x80" in decoder.data[1:])  # §4.4.1: acknowledged


def too_many_blocked(probe: Probe) -> None:
    for _ in range(17):
        probe.open(REFERS_TO_FIRST, ended=True)


async def cancelled_while_blocked(probe: Probe) -> None:
    stream = probe.open(REFERS_TO_FIRST)
    await probe.silence()
    probe.quic.reset_stream(stream, E.H3_REQUEST_CANCELLED)
    probe.flush()
    decoder = probe.received(11)
    await probe.wait_until(lambda: b"\x40" in decoder.data[1:])


rule("RFC 9204 §2.1.2", "a section waits for the encoder stream", Ignored(), blocked_then_served)
rule("RFC 9204 §2.1.2", "more blocked streams than announced", DECOMPRESSION, too_many_blocked)
rule("RFC 9204 §2.2.2.2", "a blocked request that is cancelled", Ignored(), cancelled_while_blocked)

# --------------------------------------------------------------------------------------------------
# RFC 9220 and RFC 8441: WebSockets

S = "RFC 9220 §3"
WEBSOCKET: Final = [
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    *GET[1:3],
    (b":path", b"/chat"),
    (b"sec-websocket-version", b"13"),
]


async def websocket(probe: Probe) -> None:
    stream = probe.open(section(WEBSOCKET))
    tunnel = probe.received(stream)
    await probe.wait_until(lambda: bool(tunnel.heads))
    assert tunnel.status == 200
    probe.send(stream, grease + frame(DATA, b"\x81\x85\0\0\0\0hello") + grease)
    await probe.wait_until(lambda: tunnel.body == b"\x81\x05hello")
    probe.send(stream, frame(DATA, b"\x88\x82\0\0\0\0\x03\xe8"), ended=True)
    await probe.response(stream)
    assert tunnel.body == b"\x81\x05hello\x88\x02\x03\xe8"
    assert tunnel.reset_code is None


async def websocket_reset(probe: Probe) -> None:
    stream = probe.open(section(WEBSOCKET))
    await probe.wait_until(lambda: bool(probe.received(stream).heads))
    probe.quic.reset_stream(stream, E.H3_REQUEST_CANCELLED)
    probe.flush()
    await probe.response(stream)


rule(S, "a WebSocket is echoed and closed", Ignored(), websocket)
rule(S, "a WebSocket is reset", Ignored(), websocket_reset)
on_request(
    S,
    "a protocol that we do not speak",
    Answered(501),
    section(replaced(b":protocol", b"connect-udp", WEBSOCKET)),
    ended=False,
)
S = "RFC 8441 §4"
on_request(S, ":protocol without CONNECT", MALFORMED, section([*GET, (b":protocol", b"websocket")]))
for name in (b":scheme", b":path", b":authority"):
    on_request(
        S, f"WebSocket without {name.decode()}", MALFORMED, section(without(name, WEBSOCKET))
    )
on_request(
    S,
    "HEADERS on a WebSocket",
    UNEXPECTED,
    section(WEBSOCKET) + section([(b"a", b"b")]),
    ended=False,
)
first_on_control("RFC 8441 §3", "ENABLE_CONNECT_PROTOCOL of 2", BAD_SETTING, write_settings({8: 2}))

# --------------------------------------------------------------------------------------------------
# RFC 9218 §7.2 and RFC 9297 §5.1

S = "RFC 9218 §7.2"
on_control(S, "a priority of a request to come", Ignored(), frame(PRIORITY_UPDATE, b"\0u=1, i"))
on_control(S, "a priority that cannot be read", Ignored(), frame(PRIORITY_UPDATE, b"\0u=?!"))
on_control(
    S,
    "a priority of a stream of the server's",
    ClosedByHttp(E.H3_ID_ERROR),
    frame(PRIORITY_UPDATE, b"\1u=1"),
)
on_control(
    S,
    "a priority of a unidirectional stream",
    ClosedByHttp(E.H3_ID_ERROR),
    frame(PRIORITY_UPDATE, b"\2u=1"),
)
on_control(
    S, "a priority of a push", ClosedByHttp(E.H3_ID_ERROR), frame(PRIORITY_UPDATE_PUSH, b"\0u=1")
)
on_control(S, "a priority of nothing", BAD_FRAME, frame(PRIORITY_UPDATE, b""))
for kind in (PRIORITY_UPDATE, PRIORITY_UPDATE_PUSH):
    on_request(S, f"frame {kind:#x} on a request", UNEXPECTED, frame(kind, b"\0u=1"), ended=False)
first_on_control("RFC 9297 §2.1.1", "H3_DATAGRAM of 2", BAD_SETTING, write_settings({0x33: 2}))


def datagram(probe: Probe) -> None:
    probe.send_packet(b"\x30\x00hello")


rule("RFC 9221 §3", "DATAGRAM that was not negotiated", Closed(0x0A), datagram)
