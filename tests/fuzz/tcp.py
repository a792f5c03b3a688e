"""Targets for what comes over TCP: sniffing, PROXY protocol, HTTP/1.1, HTTP/2, WebSocket, and the
fields in which proxies speak of clients."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

import h11
import hpack

from asgiri.config import FlowConfig, Http2Config
from asgiri.errors import AppError
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.asgi.forwarded import ForwardedReader
from asgiri.worker.asgi.trust import TrustedPeers
from asgiri.worker.protocol.client_hello import offered_protocols_untrusted
from asgiri.worker.protocol.events import ConnectionEnded, Event, Headers, PeerViolation
from asgiri.worker.protocol.headers import (
    Malformed,
    authority_is_valid,
    parse_request_untrusted,
    parse_trailers_untrusted,
    response_head,
)
from asgiri.worker.protocol.http1 import Http1Connection
from asgiri.worker.protocol.http2 import Http2Connection
from asgiri.worker.protocol.http2_frames import Flag, Frame, FrameType
from asgiri.worker.protocol.priority import parse_priority_untrusted
from asgiri.worker.protocol.proxy_protocol import MAX_V2, parse_proxy_header_untrusted
from asgiri.worker.protocol.sniff import HTTP2_PREFACE, Sniffed, sniff
from asgiri.worker.protocol.websocket import (
    CloseReceived,
    WebSocketCodec,
    WebSocketEvent,
    WebSocketViolation,
    negotiate_untrusted,
)
from asgiri.worker.protocol.websocket_deflate import Deflate
from tests.conformance.http1_cases import CASES
from tests.fuzz.application import Application
from tests.fuzz.script import Script, pack
from tests.fuzz.target import Target
from tests.support.http1_engine import (
    DEFAULTS,
    PARSERS,
    Request,
    Transcript,
    answer_200,
    connection,
    converse,
)
from tests.support.websocket_client import Opcode, encode_frame

# Sniffing


def run_sniff(data: bytes) -> None:
    before = Sniffed.NEED_MORE
    for size in range(min(len(data), len(HTTP2_PREFACE) + 2) + 1):
        verdict = sniff(data[:size])
        assert before is Sniffed.NEED_MORE or verdict is before, "a verdict stands"
        before = verdict
    names = offered_protocols_untrusted(data)
    assert names is None or b"".join(names) in data or len(data) > 5


def sniff_seeds() -> Iterable[bytes]:
    hello = (
        bytes.fromhex("1603010200010001fc0303")
        + bytes(32)
        + bytes.fromhex("00000213010100000c0010000800060268320268")
    )
    return [HTTP2_PREFACE, HTTP2_PREFACE[:7] + b"x", b"GET / HTTP/1.1\r\n", hello, hello[:9]]


# The PROXY protocol


def run_proxy(data: bytes) -> None:
    try:
        header = parse_proxy_header_untrusted(data)
    except ValueError:
        return
    if header is None:
        assert len(data) < MAX_V2, "more than the longest header, and no verdict"
        return
    assert 0 < header.size <= len(data)
    # What comes behind the header changes nothing, and what is missing is waited for.
    assert parse_proxy_header_untrusted(data[: header.size]) == header
    assert parse_proxy_header_untrusted(data[: header.size - 1]) is None


def proxy_seeds() -> Iterable[bytes]:
    signature = b"\r\n\r\n\x00\r\nQUIT\n"
    v4 = bytes([192, 0, 2, 1, 192, 0, 2, 2]) + b"\x01\xbb\x00\x50"
    return [
        b"PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\nGET / HTTP/1.1\r\n",
        b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n",
        b"PROXY UNKNOWN ffff\r\n",
        signature + b"\x21\x11\x00\x0c" + v4,
        signature + b"\x21\x21\x00\x24" + bytes(36) + b"GET",
        signature + b"\x20\x00\x00\x00",
        signature + b"\x21\x11\x00\x10" + v4 + b"\x03\x00\x01x",
        signature + b"\x21\x31\x00\xd8" + bytes(216),
    ]


# HTTP/1.1


def run_http1(data: bytes) -> None:
    """Both parsers, in one piece and in several: one reading, or none."""
    script = Script(data)
    eof = bool(script.byte() & 1)
    cuts = Script(script.raw(4))
    stream = script.rest()
    parts = cuts.cut(stream)
    readings = [
        converse(connection(parser()), arriving, _answer_http1, eof=eof)
        for parser in PARSERS.values()
        for arriving in (parts, [stream] if stream else [])
    ]
    first, *others = [_comparable(reading) for reading in readings]
    for other in others:
        assert other == first


def _answer_http1(engine: Http1Connection, stream_id: int, request: Request) -> list[Event]:
    if request.protocol == "websocket":
        events = engine.accept_tunnel(stream_id, [])
        return events + engine.send_body(stream_id, b"", ended=True)
    return answer_200(engine, stream_id, request)


def _comparable(transcript: Transcript) -> Transcript:
    """Without the words in which libraries complain."""
    transcript.violations = [(reason, "") for reason, _ in transcript.violations]
    transcript.ended = transcript.ended and "ended"
    return transcript


def http1_seeds() -> Iterable[bytes]:
    requests = [case.request for case in CASES if len(case.request) < 2000]
    return [pack(index & 1, 2, 5, 9, 0) + request for index, request in enumerate(requests)]


# Responses: an application may pass on what a client has sent


def run_response(data: bytes) -> None:
    """What is written is what was meant, as h11 reads it, or the application is told."""
    script = Script(data)
    status = script.choice((200, 204, 304, 404, 599))
    fields: Headers = []
    while script:
        fields.append((script.choice(_RESPONSE_NAMES) or script.take(), script.take()))
    engine = connection()
    engine.receive_data(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    try:
        head = response_head(status, fields, defaults=DEFAULTS)
        engine.send_response(1, head, b"ok", ended=True)
    except AppError:
        return
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(engine.data_to_send())
    client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == status
    meant = [(name.lower(), value.strip(b" \t")) for name, value in fields]
    for name, value in response.headers:
        assert (name, value) in meant or name in _WRITTEN_BY_US
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert body == (b"" if status in (204, 304) else b"ok")
    assert client.trailing_data[0] == b""


_RESPONSE_NAMES = (b"", b"content-length", b"transfer-encoding", b"connection", b"set-cookie", b"x")
_WRITTEN_BY_US = (b"server", b"connection", b"content-length", b"transfer-encoding")


def response_seeds() -> Iterable[bytes]:
    return [
        pack(0, 1, b"2", 4, b"a=b; Secure", 5, b" y\t"),
        pack(0, 2, b"chunked", 3, b"close"),
        pack(1, 1, b"0") + pack(0, b"X-Y", b"z"),
        pack(2, 5, b"a\r\nx-evil: 1"),
        pack(3, 0, b"x\r\ny", b"\xff") + pack(5, b"\0"),
    ]


# HTTP/2

_REQUESTS: tuple[Headers, ...] = (
    [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/")],
    [
        *((b":method", b"POST"), (b":scheme", b"https"), (b":authority", b"a"), (b":path", b"/p")),
        *((b"content-length", b"5"), (b"expect", b"100-continue")),
    ],
    [
        *((b":method", b"CONNECT"), (b":protocol", b"websocket"), (b":scheme", b"https")),
        *((b":authority", b"a"), (b":path", b"/w"), (b"sec-websocket-version", b"13")),
    ],
    [(b":method", b"CONNECT"), (b":authority", b"a:443")],
    [(b"x-sum", b"1")],
    [(b":method", b"GET"), (b":path", b"/"), (b"Upper", b"x"), (b"te", b"gzip"), (b"a", b"b\n")],
)
_MOST_OUTPUT = 4 << 20
"""Bytes that one script may have waiting: its bodies, and answers bounded by the floods' limits."""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class _Slow(Http2Connection):
    """Has h2 see every HEADERS frame."""

    def _opens_stream(self, received: Frame, events: list[Event]) -> bool:
        return False


def run_http2(data: bytes) -> None:
    """Twice: requests whose fields came before must not be told from others."""
    assert _serve_http2(data, Http2Connection) == _serve_http2(data, _Slow)


def _serve_http2(data: bytes, engine_type: type[Http2Connection]) -> tuple[list[Event], bytes]:
    """Return the events and what was sent."""
    script = Script(data)
    clock = Clock()
    engine = engine_type(Http2Config(max_concurrent_streams=8), FlowConfig(), now=clock)
    application = Application(engine)
    encoder = hpack.Encoder()
    if script.byte() & 1:
        application.handle(engine.receive_data(script.rest()))
    else:
        application.handle(engine.receive_data(HTTP2_PREFACE))
    sent = b""
    while script and not application.is_over:
        step = script.byte()
        if step < 96:
            arriving = _frame(script, encoder)
            application.handle(engine.receive_data(arriving))
        elif step < 160:
            application.act(script)
        elif step < 176:
            clock.now += script.byte()
            application.handle(engine.drop_stalled(30.0))
        elif step < 192:
            application.handle(engine.receive_data(script.take()))
        else:
            sent += engine.data_to_send()
            application.handle(engine.sent_events())
    for _ in range(100):
        left = engine.data_to_send()
        sent += left
        if not left:
            break
    assert len(sent) <= _MOST_OUTPUT
    for event in application.seen:
        # Without words: some have an object's address in them.
        if isinstance(event, PeerViolation):
            event.detail = ""
        elif isinstance(event, ConnectionEnded):
            event.reason = ""
    return application.seen, sent


def _frame(script: Script, encoder: hpack.Encoder) -> bytes:
    kind = script.choice((*FrameType, 0xB, 0xFF))
    flags = script.byte()
    stream_id = script.byte()
    payload = script.take()
    if kind in (FrameType.HEADERS, FrameType.CONTINUATION) and not payload:
        payload = encoder.encode(script.choice(_REQUESTS))
        flags &= ~0x28  # neither padding nor priority
    head = len(payload).to_bytes(3) + bytes((int(kind), flags)) + stream_id.to_bytes(4)
    return head + payload


def http2_seeds() -> Iterable[bytes]:
    kinds = {kind: index for index, kind in enumerate(FrameType)}
    ended = Flag.END_STREAM | Flag.END_HEADERS

    def frame(kind: FrameType, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
        return pack(0, kinds[kind], flags, stream_id, payload)

    def request(which: int, stream_id: int = 1, flags: int = ended) -> bytes:
        return frame(FrameType.HEADERS, flags, stream_id) + pack(which)

    settings = frame(FrameType.SETTINGS, 0, 0)
    answer, flush = pack(100, 21, 0, 2, 0), pack(200)
    body = frame(FrameType.DATA, 1, 1, b"hello")
    return [
        pack(0) + steps
        for steps in (
            settings + request(0) + answer + flush + pack(100, 1, 0),
            settings + request(0) + request(0, 3) + answer * 2 + request(0, 5) + flush,
            settings
            + request(1, flags=4)
            + request(1, 3, 4)
            + request(1, 5, 4)
            + body
            + request(1),
            settings + request(1, flags=4) + body + pack(100, 0, 0) + answer + flush,
            settings + request(2, flags=4) + pack(100, 5, 0) + frame(FrameType.DATA, 0, 1, b"ws"),
            settings + request(3) + request(4) + request(5, 3),
            settings + request(0, flags=1) + frame(FrameType.CONTINUATION, 4, 1, b"\x82"),
            settings + request(0) + frame(FrameType.RST_STREAM, 0, 1, b"\0\0\0\x08"),
            settings + request(0, flags=4) + body + request(4) + answer,
            frame(FrameType.SETTINGS, 0, 0, b"\0\x04\0\0\0\0")
            + request(0)
            + pack(100, 5, 0, 4, 0)
            + flush
            + frame(FrameType.WINDOW_UPDATE, 0, 1, b"\0\0\xff\xff")
            + flush
            + pack(160, 99),
            frame(FrameType.SETTINGS, 1, 0) + frame(FrameType.PING, 0, 0, bytes(8)) * 3 + flush,
            frame(FrameType.PRIORITY, 0, 3, bytes(5))
            + frame(FrameType.PRIORITY_UPDATE, 0, 0, b"\0\0\0\x03u=1, i")
            + request(0, 3),
            frame(FrameType.GOAWAY, 0, 0, bytes(8)) + pack(100, 255) + pack(100, 254),
            frame(FrameType.PUSH_PROMISE, 4, 1, b"\0\0\0\x02\x82"),
        )
    ] + [pack(1) + HTTP2_PREFACE + b"\0\0\0\4\0\0\0\0\0", pack(1) + b"GET / HTTP/1.1\r\n\r\n"]


# Field sections of HTTP/2 and HTTP/3, decoded


def run_fields(data: bytes) -> None:
    script = Script(data)
    fields: Headers = []
    while script:
        name = script.choice(_NAMES) or script.take()
        fields.append((name, script.take()))
    parts = parse_request_untrusted(fields)
    if not isinstance(parts, Malformed):
        names = [name for name, _ in parts.headers]
        assert not any(name.startswith(b":") or name.lower() != name for name in names)
        assert not any(set(value) & {0, 10, 13} for _, value in parts.headers)
        assert names.count(b"host") <= 1
    trailers = parse_trailers_untrusted(fields)
    if not isinstance(trailers, Malformed):
        assert not any(name.startswith(b":") for name, _ in trailers)
    for _, value in fields:
        parse_priority_untrusted(value)
    negotiate_untrusted(fields, deflate=True, max_message_size=1 << 16)


_NAMES = (
    b"", b":method", b":scheme", b":authority", b":path", b":protocol", b":status", b"host",
    b"content-length", b"transfer-encoding", b"connection", b"te", b"cookie", b"expect",
    b"priority", b"sec-websocket-extensions", b"sec-websocket-protocol", b"sec-websocket-version",
)  # fmt: skip


def fields_seeds() -> Iterable[bytes]:
    for request in _REQUESTS:
        yield b"".join(pack(*_packed_name(name), value) for name, value in request)
    yield pack(15, b'permessage-deflate; client_max_window_bits, x; y="8"') + pack(14, b"u=3, i")
    yield pack(0, b"x-custom", b"value") + pack(7, b"a.example:80") + pack(12, b"a=b; c=d")


def _packed_name(name: bytes) -> tuple[int | bytes, ...]:
    return (_NAMES.index(name),) if name in _NAMES else (0, name)


# Forwarded, X-Forwarded-*


def run_forwarded(data: bytes) -> None:
    script = Script(data)
    fields: Headers = []
    while script:
        fields.append((script.choice(_FORWARDED_NAMES), script.take()))
    trusted = TrustedPeers(["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"])
    refused: list[Refusal] = []
    for family in ("forwarded", "x-forwarded"):
        found = ForwardedReader(trusted, family, refused.append).read_untrusted(fields)
        assert found.scheme in ("", "http", "https")
        assert not found.host or authority_is_valid(found.host)
        assert re.fullmatch(r"(?:/[!-~]+)?", found.prefix)
        if found.client is not None:
            assert 0 <= (found.client[1] or 0) < 65536


_FORWARDED_NAMES = (
    b"forwarded", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host",
    b"x-forwarded-port", b"x-forwarded-prefix",
)  # fmt: skip


def forwarded_seeds() -> Iterable[bytes]:
    return [
        pack(0, b'for=192.0.2.1;proto=https;host="a.example:8443", for="[2001:db8::1]:80"'),
        pack(0, b'for="_hidden";by=10.0.0.1, for=unknown') + pack(0, b'for="\\1"'),
        pack(1, b"192.0.2.1, 10.1.2.3")
        + pack(2, b"https, http")
        + pack(3, b"a, b")
        + pack(4, b"1"),
        pack(1, b"[2001:db8::7]:443,2001:db8::8") + pack(5, b"/app/") + pack(3, b"a.example"),
    ]


# WebSocket


def run_websocket(data: bytes) -> None:
    """Whole and in parts, by our own reader and by wsproto alone: the same events."""
    script = Script(data)
    mode = script.byte()
    limit = (1 << 16, 100)[mode >> 1 & 1]
    cuts = Script(script.raw(4))
    frames = [_websocket_frame(script)]
    while script:
        frames.append(_websocket_frame(script))
    stream = b"".join(frames)
    readings = [
        _read_websocket(parts, limit=limit, deflate=bool(mode & 1), alone=alone)
        for parts, alone in itertools.product(([stream], cuts.cut(stream)), (False, True))
    ]
    for other in readings[1:]:
        assert other == readings[0]


def _websocket_frame(script: Script) -> bytes:
    kind = script.byte()
    if kind > 250:
        return script.take()  # no frame, perhaps
    payload = script.take()
    if kind > 240:
        payload *= 200
    first = script.byte()
    mask = script.raw(4).ljust(4, b"m") if kind & 4 else b"mask"
    raw = encode_frame(Opcode.BINARY, payload, masked=not kind & 8, mask=mask)
    return bytes((first,)) + raw[1:]


def _read_websocket(
    parts: list[bytes], *, limit: int, deflate: bool, alone: bool
) -> list[WebSocketEvent]:
    extension = Deflate({}, max_message_size=limit) if deflate else None
    codec = WebSocketCodec(max_message_size=limit, deflate=extension)
    if alone:
        codec._plain = None
    events: list[WebSocketEvent] = []
    # What ends a frame that is not complete: wsproto complains of bad text before that.
    for part in (*parts, bytes(1 << 17)):
        codec.receive_data(part)
        while (event := codec.next_event()) is not None:
            assert not events or not isinstance(events[-1], CloseReceived | WebSocketViolation)
            size = getattr(event, "size", 0)
            assert size <= limit
            if isinstance(event, WebSocketViolation):
                # Of two rules that it breaks, which is seen first depends on what has come.
                event = WebSocketViolation(0, Refusal.WEBSOCKET_PROTOCOL_ERROR, "")
            events.append(event)
    return events


def websocket_seeds() -> Iterator[bytes]:
    deflated = bytes.fromhex("f248cdc9c90700")
    frames = {
        "text": pack(0, b"hello", 0x81),
        "binary": pack(0, bytes(130), 0x82),
        "large": pack(241, b"0123456789" * 20, 0x82),
        "bad text": pack(0, b"\xc3\x28", 0x81),
        "fragments": pack(0, b"a", 0x01) + pack(0, b"", 0x00) + pack(0, b"b", 0x80),
        "ping between": pack(0, b"a", 0x01) + pack(0, b"p", 0x89) + pack(0, b"b", 0x80),
        "pong": pack(0, b"", 0x8A),
        "close": pack(0, b"\x03\xe8bye", 0x88),
        "close without code": pack(0, b"", 0x88),
        "close with a bad code": pack(0, b"\x03\xed", 0x88),
        "deflated": pack(0, deflated, 0xC1),
        "deflated fragments": pack(0, deflated[:3], 0x41) + pack(0, deflated[3:], 0x80),
        "unmasked": pack(8, b"x", 0x81),
        "reserved": pack(0, b"x", 0xB1) + pack(0, b"x", 0x83),
        "long ping": pack(0, bytes(126), 0x89),
        "raw": pack(255, b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
    }
    for index, seed in enumerate(frames.values()):
        yield pack(index & 3, 2, 1, 3, 0) + seed


TARGETS = {
    "sniff": Target(run_sniff, sniff_seeds, longest=1024),
    "proxy": Target(run_proxy, proxy_seeds),
    "http1": Target(run_http1, http1_seeds),
    "response": Target(run_response, response_seeds, longest=1024),
    "http2": Target(run_http2, http2_seeds),
    "fields": Target(run_fields, fields_seeds),
    "forwarded": Target(run_forwarded, forwarded_seeds),
    "websocket": Target(run_websocket, websocket_seeds),
}
