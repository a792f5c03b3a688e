"""HTTP/3 engine against a client that writes its frames by hand, in memory."""

from __future__ import annotations

import random
from typing import Any

import pylsqpack
import pytest
from aioquic.quic.connection import QuicConnection
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiri.errors import AppError
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol import http3, http3_control, http3_frames, http3_streams, qpack
from asgiri.worker.protocol.events import (
    BodyEnded,
    BodyReceived,
    ConnectionEnded,
    Event,
    PeerViolation,
    RequestReceived,
    ResponseHead,
    StreamPaused,
    StreamReset,
    StreamResumed,
)
from asgiri.worker.protocol.http3_frames import ErrorCode, frame, write_integer
from tests.support.quic_pair import GET, POST, SETTINGS, Pair, default_server

DATA, HEADERS = http3_frames.DATA, http3_frames.HEADERS
OK = ResponseHead(200, [(b"content-type", b"text/plain")])
GREASE = 0x21 + 0x1F * 7
CONNECT_WEBSOCKET = [
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":scheme", b"https"),
    (b":authority", b"a.test"),
    (b":path", b"/chat"),
]


@pytest.fixture
def pair() -> Pair:
    return Pair()


def kinds(events: list[Event]) -> list[type]:
    return [type(event) for event in events]


def only(events: list[Event], kind: type) -> Any:
    (found,) = [event for event in events if isinstance(event, kind)]
    return found


def with_field(name: bytes, value: bytes, fields: list[tuple[bytes, bytes]] = POST) -> Any:
    return [*fields, (name, value)]


# Requests


def test_a_request_without_a_body_comes_as_one_event(pair: Pair):
    stream = pair.request([*GET, (b"accept", b"*/*")])
    assert pair.run() == [
        RequestReceived(
            stream, "GET", b"/", [(b"host", b"a.test"), (b"accept", b"*/*")], "3", ended=True
        )
    ]


def test_a_body_comes_with_the_credit_it_costs(pair: Pair):
    stream = pair.request(POST, b"body")
    request, body = pair.run()
    assert isinstance(request, RequestReceived)
    assert not request.ended
    assert body == BodyReceived(stream, b"body", 4, ended=True)


def test_an_end_that_comes_alone_is_an_event(pair: Pair):
    stream = pair.open(pair.section(POST) + frame(DATA, b"x"))
    pair.run()
    pair.take_events()
    pair.send(stream, b"", ended=True)
    assert pair.run() == [BodyEnded(stream)]


def test_trailers_come_with_the_end(pair: Pair):
    trailers = pair.section([(b"x-sum", b"1"), (b"content-type", b"not/here")])
    stream = pair.open(pair.section(POST) + frame(DATA, b"x") + trailers, ended=True)
    assert pair.run()[-1] == BodyEnded(stream, [(b"x-sum", b"1")])


def test_trailers_may_follow_a_head_at_once(pair: Pair):
    stream = pair.open(pair.section(POST) + pair.section([(b"a", b"b")]), ended=True)
    request, ended = pair.run()
    assert isinstance(request, RequestReceived)
    assert not request.ended
    assert ended == BodyEnded(stream, [(b"a", b"b")])


def test_frames_of_unknown_type_are_skipped_everywhere(pair: Pair):
    """RFC 9114 §9: "Implementations MUST ignore unknown or unsupported values"."""
    grease = frame(GREASE, b"grease")
    data = grease + pair.section(POST) + grease + frame(DATA, b"x") + frame(GREASE, b"")
    pair.open(data, ended=True)
    pair.send(2, grease)
    events = pair.run()
    assert kinds(events) == [RequestReceived, BodyReceived]
    assert events[-1].ended
    assert pair.closed is None


def test_a_skipped_frame_may_be_longer_than_what_comes_at_once(pair: Pair):
    stream = pair.open(write_integer(GREASE) + write_integer(5000) + bytes(1000))
    pair.run()
    pair.send(stream, bytes(4000) + pair.section(GET), ended=True)
    assert kinds(pair.run()) == [RequestReceived]


def test_expect_100_continue_is_told(pair: Pair):
    pair.open(pair.section(with_field(b"expect", b"100-continue")))
    assert only(pair.run(), RequestReceived).expects_continue


def test_a_plain_connect_names_its_authority(pair: Pair):
    pair.open(pair.section([(b":method", b"CONNECT"), (b":authority", b"b.test:25")]))
    request = only(pair.run(), RequestReceived)
    assert (request.method, request.target, request.protocol) == ("CONNECT", b"b.test:25", None)


def script(pair: Pair) -> dict[int, bytes]:
    """Four requests, as bytes of their streams."""
    body = random.Random(3).randbytes(4000)
    long_head = [*POST, (b"x-long", b"v" * 3000), (b"content-length", b"4000")]
    data = pair.section(long_head) + frame(DATA, body[:3000]) + frame(GREASE, b"g" * 99)
    return {
        0: pair.section(GET),
        4: data + frame(DATA, body[3000:]) + pair.section([(b"x-sum", b"1")]),
        8: pair.section(POST) + frame(DATA, b"") + frame(DATA, b"short"),
        12: pair.section([*POST, (b"content-length", b"0")]),
    }


def told(events: list[Event]) -> dict[int, tuple[Any, ...]]:
    """What an application would know of each request."""
    result: dict[int, tuple[Any, ...]] = {}
    for event in events:
        stream = event.stream_id
        if isinstance(event, RequestReceived):
            assert stream not in result
            head = (event.method, event.target, tuple(event.headers))
            result[stream] = (head, b"", event.ended, ())
            continue
        head, body, ended, trailers = result[stream]
        assert not ended
        if isinstance(event, BodyReceived):
            result[stream] = (head, body + event.data, event.ended, trailers)
        else:
            assert isinstance(event, BodyEnded)
            result[stream] = (head, body, True, tuple(event.trailers))
    return result


def whole() -> dict[int, tuple[Any, ...]]:
    pair = Pair()
    for stream, data in script(pair).items():
        assert pair.open(data, ended=True) == stream
    pair.run(2.0)
    return told(pair.events)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, 1 << 32), st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 0.5))
def test_events_do_not_depend_on_how_bytes_arrive(
    seed: int, loss: float, repeats: float, swaps: float
):
    """Datagrams are lost, repeated and swapped; the streams are written in pieces, in turns."""
    randomness = random.Random(seed)
    kept: list[bytes] = []

    def network(datagram: bytes) -> list[bytes]:
        if randomness.random() < loss:
            return []
        if randomness.random() < swaps and not kept:
            kept.append(datagram)
            return []
        arriving = [datagram] * (2 if randomness.random() < repeats else 1) + kept
        kept.clear()
        return arriving

    pair = Pair()
    rest = script(pair)
    for stream in rest:
        assert pair.open() == stream
    pair.network = network
    while rest:
        stream = randomness.choice(list(rest))
        size = randomness.choice([1, 2, 7, 700, 5000])
        part, rest[stream] = rest[stream][:size], rest[stream][size:]
        pair.send(stream, part, ended=not rest[stream])
        if not rest[stream]:
            del rest[stream]
        pair.step()
    pair.run(1.0)
    # A network that stays so bad could lose every probe until the idle timeout.
    pair.network = lambda datagram: (datagram,)
    pair.run(25.0)
    assert told(pair.events) == WHOLE
    assert pair.closed is None


WHOLE = whole()


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_request_may_be_cut_anywhere(pair: Pair, cut: int):
    data = pair.section(with_field(b"x", b"y")) + frame(DATA, b"0123456789")
    stream = pair.open(data[:cut])
    pair.run()
    pair.send(stream, data[cut:], ended=True)
    pair.run()
    (_, body, ended, _) = told(pair.events)[stream]
    assert (body, ended) == (b"0123456789", True)


# Malformed requests: the stream ends, the connection goes on


MALFORMED = {
    "no :method": GET[1:],
    "no :path": GET[:3],
    "empty :path": [*GET[:3], (b":path", b"")],
    "no :scheme": [GET[0], *GET[2:]],
    "no authority": [*GET[:2], GET[3]],
    "two :path": [*GET, (b":path", b"/2")],
    "pseudo-header of a response": [*GET, (b":status", b"200")],
    "pseudo-header behind a field": [*GET[:3], (b"a", b"b"), GET[3]],
    "upper case": [*GET, (b"Accept", b"*/*")],
    "space in a name": [*GET, (b"a b", b"c")],
    "line break in a value": [*GET, (b"a", b"b\r\nc: d")],
    "nul in a value": [*GET, (b"a", b"b\x00c")],
    "connection": [*GET, (b"connection", b"close")],
    "transfer-encoding": [*GET, (b"transfer-encoding", b"chunked")],
    "te": [*GET, (b"te", b"gzip")],
    "content-length twice": [*POST, (b"content-length", b"1"), (b"content-length", b"2")],
    "content-length with a sign": [*POST, (b"content-length", b"+1")],
    ":protocol without CONNECT": [*GET, (b":protocol", b"websocket")],
    "CONNECT with :path": [(b":method", b"CONNECT"), *GET[2:]],
}


def assert_refused(pair: Pair, stream: int, code: ErrorCode, reason: Refusal) -> None:
    """The stream has ended with this code on both sides; another request is answered."""
    violation = only(pair.take_events(), PeerViolation)
    assert (violation.stream_id, violation.reason) == (stream, reason)
    assert pair.received(stream).reset_code == code
    assert pair.closed is None
    other = pair.request()
    pair.run()
    pair.engine.send_response(other, OK, b"fine", ended=True)
    pair.run()
    assert pair.received(other).body == b"fine"


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize("ended", [True, False])
def test_a_malformed_request_is_a_stream_error(pair: Pair, case: str, ended: bool):
    """RFC 9114 §4.1.2."""
    stream = pair.open(pair.section(MALFORMED[case]), ended=ended)
    pair.run()
    assert pair.received(stream).stop_code == (None if ended else ErrorCode.H3_MESSAGE_ERROR)
    assert RequestReceived not in kinds(pair.events)
    assert_refused(pair, stream, ErrorCode.H3_MESSAGE_ERROR, Refusal.HTTP3_BAD_HEADERS)


@pytest.mark.parametrize("trailer", [(b":path", b"/"), (b"A", b"b"), (b"connection", b"x")])
def test_malformed_trailers_are_a_stream_error(pair: Pair, trailer: tuple[bytes, bytes]):
    stream = pair.open(pair.section(POST) + pair.section([trailer]), ended=True)
    pair.run()
    assert_refused(pair, stream, ErrorCode.H3_MESSAGE_ERROR, Refusal.HTTP3_BAD_HEADERS)


@pytest.mark.parametrize("length", [b"3", b"5"])
def test_a_body_that_belies_its_content_length_is_a_stream_error(pair: Pair, length: bytes):
    fields = with_field(b"content-length", length)
    stream = pair.open(pair.section(fields) + frame(DATA, b"four"), ended=True)
    pair.run()
    assert_refused(pair, stream, ErrorCode.H3_MESSAGE_ERROR, Refusal.BODY_LENGTH_MISMATCH)


def test_a_body_beyond_its_content_length_is_refused_before_it_ends(pair: Pair):
    stream = pair.open(pair.section(with_field(b"content-length", b"3")) + frame(DATA, b"four"))
    pair.say()
    pair.send(stream, frame(DATA, b"more"))  # was under way: swallowed
    pair.run()
    assert pair.received(stream).stop_code == ErrorCode.H3_MESSAGE_ERROR
    assert_refused(pair, stream, ErrorCode.H3_MESSAGE_ERROR, Refusal.BODY_LENGTH_MISMATCH)


@pytest.mark.parametrize("data", [b"", frame(GREASE, b"x")])
def test_a_stream_that_ends_without_a_request_is_reset(pair: Pair, data: bytes):
    """RFC 9114 §4.1: H3_REQUEST_INCOMPLETE."""
    stream = pair.open(data, ended=True)
    pair.run()
    assert_refused(pair, stream, ErrorCode.H3_REQUEST_INCOMPLETE, Refusal.HTTP3_TRUNCATED)


# Frames in the wrong place: the connection ends


def assert_closed(pair: Pair, code: int, reason: Refusal) -> None:
    events = pair.take_events()
    assert only(events, PeerViolation).reason == reason
    assert isinstance(events[-1], ConnectionEnded)
    assert pair.closed is not None
    assert pair.closed.error_code == code
    assert pair.engine.is_closed
    assert pair.engine.is_idle


ON_REQUESTS = {
    "DATA first": (frame(DATA, b"x"), ErrorCode.H3_FRAME_UNEXPECTED),
    "empty DATA first": (frame(DATA, b""), ErrorCode.H3_FRAME_UNEXPECTED),
    "SETTINGS": (SETTINGS, ErrorCode.H3_FRAME_UNEXPECTED),
    "GOAWAY": (frame(http3_frames.GOAWAY, b"\x00"), ErrorCode.H3_FRAME_UNEXPECTED),
    "MAX_PUSH_ID": (frame(http3_frames.MAX_PUSH_ID, b"\x00"), ErrorCode.H3_FRAME_UNEXPECTED),
    "CANCEL_PUSH": (frame(http3_frames.CANCEL_PUSH, b"\x00"), ErrorCode.H3_FRAME_UNEXPECTED),
    "PUSH_PROMISE": (frame(http3_frames.PUSH_PROMISE, b"\x00"), ErrorCode.H3_FRAME_UNEXPECTED),
    "PRIORITY of HTTP/2": (frame(0x02, b""), ErrorCode.H3_FRAME_UNEXPECTED),
    "PING of HTTP/2": (frame(0x06, b""), ErrorCode.H3_FRAME_UNEXPECTED),
    "garbage as a field section": (
        frame(HEADERS, b"\xff" * 9),
        ErrorCode.QPACK_DECOMPRESSION_FAILED,
    ),
    "no field section": (frame(HEADERS, b""), ErrorCode.QPACK_DECOMPRESSION_FAILED),
}
REFUSAL_OF = {
    ErrorCode.H3_FRAME_UNEXPECTED: Refusal.HTTP3_BAD_FRAME,
    ErrorCode.H3_FRAME_ERROR: Refusal.HTTP3_BAD_FRAME,
    ErrorCode.H3_MISSING_SETTINGS: Refusal.HTTP3_BAD_FRAME,
    ErrorCode.H3_SETTINGS_ERROR: Refusal.HTTP3_BAD_FRAME,
    ErrorCode.H3_CLOSED_CRITICAL_STREAM: Refusal.HTTP3_CRITICAL_STREAM,
    ErrorCode.H3_EXCESSIVE_LOAD: Refusal.HTTP3_RESET_FLOOD,
    ErrorCode.H3_STREAM_CREATION_ERROR: Refusal.HTTP3_PROTOCOL_ERROR,
    ErrorCode.H3_ID_ERROR: Refusal.HTTP3_PROTOCOL_ERROR,
    ErrorCode.QPACK_DECOMPRESSION_FAILED: Refusal.HTTP3_COMPRESSION,
    ErrorCode.QPACK_ENCODER_STREAM_ERROR: Refusal.HTTP3_COMPRESSION,
    ErrorCode.QPACK_DECODER_STREAM_ERROR: Refusal.HTTP3_COMPRESSION,
}


@pytest.mark.parametrize("case", ON_REQUESTS)
def test_a_frame_that_has_no_place_on_a_request_ends_the_connection(pair: Pair, case: str):
    data, code = ON_REQUESTS[case]
    pair.open(data)
    pair.run()
    assert_closed(pair, code, REFUSAL_OF[code])


@pytest.mark.parametrize("kind", [DATA, HEADERS])
def test_nothing_follows_trailers(pair: Pair, kind: int):
    section = pair.section([(b"a", b"b")])
    pair.open(pair.section(POST) + section + (section if kind == HEADERS else frame(DATA, b"x")))
    pair.run()
    assert_closed(pair, ErrorCode.H3_FRAME_UNEXPECTED, Refusal.HTTP3_BAD_FRAME)


@pytest.mark.parametrize(
    "rest",
    [b"\x00", b"\x00\x05abc", b"\x01\x40", b"\x21\x05ab"],
    ids=["type", "DATA", "length", "?"],
)
def test_a_frame_cut_by_the_end_of_its_stream_ends_the_connection(pair: Pair, rest: bytes):
    """RFC 9114 §7.1: H3_FRAME_ERROR."""
    pair.open(pair.section(POST) + rest, ended=True)
    pair.run()
    assert_closed(pair, ErrorCode.H3_FRAME_ERROR, Refusal.HTTP3_BAD_FRAME)


ON_CONTROL = {
    "DATA": (frame(DATA, b""), ErrorCode.H3_FRAME_UNEXPECTED),
    "HEADERS": (frame(HEADERS, b""), ErrorCode.H3_FRAME_UNEXPECTED),
    "PUSH_PROMISE": (frame(http3_frames.PUSH_PROMISE, b""), ErrorCode.H3_FRAME_UNEXPECTED),
    "WINDOW_UPDATE of HTTP/2": (frame(0x08, b""), ErrorCode.H3_FRAME_UNEXPECTED),
    "second SETTINGS": (SETTINGS, ErrorCode.H3_FRAME_UNEXPECTED),
    "GOAWAY that grows": (
        frame(http3_frames.GOAWAY, b"\x04") + frame(http3_frames.GOAWAY, b"\x08"),
        ErrorCode.H3_ID_ERROR,
    ),
    "MAX_PUSH_ID that shrinks": (
        frame(http3_frames.MAX_PUSH_ID, b"\x04") + frame(http3_frames.MAX_PUSH_ID, b"\x03"),
        ErrorCode.H3_ID_ERROR,
    ),
    "GOAWAY with a tail": (frame(http3_frames.GOAWAY, b"\x04\x04"), ErrorCode.H3_FRAME_ERROR),
    "empty MAX_PUSH_ID": (frame(http3_frames.MAX_PUSH_ID, b""), ErrorCode.H3_FRAME_ERROR),
    "CANCEL_PUSH": (frame(http3_frames.CANCEL_PUSH, b"\x00"), ErrorCode.H3_ID_ERROR),
    "priority of a push": (
        frame(http3_frames.PRIORITY_UPDATE_PUSH, b"\x00u=1"),
        ErrorCode.H3_ID_ERROR,
    ),
    "priority of no request": (
        frame(http3_frames.PRIORITY_UPDATE, b"\x02u=1"),
        ErrorCode.H3_ID_ERROR,
    ),
    "priority of nothing": (frame(http3_frames.PRIORITY_UPDATE, b""), ErrorCode.H3_FRAME_ERROR),
    "a long GOAWAY": (
        write_integer(http3_frames.GOAWAY) + write_integer(http3_control.LARGEST_CONTROL_FRAME + 1),
        ErrorCode.H3_EXCESSIVE_LOAD,
    ),
}


@pytest.mark.parametrize("case", ON_CONTROL)
def test_what_the_control_stream_may_not_carry_ends_the_connection(pair: Pair, case: str):
    data, code = ON_CONTROL[case]
    pair.send(2, data)
    pair.run()
    assert_closed(pair, code, REFUSAL_OF[code])


@pytest.mark.parametrize("cut", range(1, 9))
def test_control_frames_may_be_cut_anywhere(pair: Pair, cut: int):
    data = frame(GREASE, b"12") + frame(http3_frames.GOAWAY, b"\x04") + frame(GREASE, b"")
    pair.send(2, data[:cut])
    pair.run()
    pair.send(2, data[cut:])
    pair.run()
    assert pair.closed is None
    pair.send(2, frame(http3_frames.GOAWAY, b"\x08"))
    pair.run()
    assert_closed(pair, ErrorCode.H3_ID_ERROR, Refusal.HTTP3_PROTOCOL_ERROR)


def fresh_pair() -> Pair:
    """Connected, with nothing said on a control stream."""
    pair = Pair(connect=False)
    pair.client.connect(("192.0.2.1", 443), now=pair.now)
    pair.run()
    return pair


SETTINGS_PAYLOADS = {
    "cut off": (b"\x06", ErrorCode.H3_FRAME_ERROR),
    "cut within a key": (b"\x40", ErrorCode.H3_FRAME_ERROR),
    "reserved": (b"\x02\x00", ErrorCode.H3_SETTINGS_ERROR),
    "twice": (b"\x06\x01\x06\x01", ErrorCode.H3_SETTINGS_ERROR),
    "no boolean": (b"\x08\x02", ErrorCode.H3_SETTINGS_ERROR),
}


@pytest.mark.parametrize("case", SETTINGS_PAYLOADS)
def test_bad_settings_end_the_connection(case: str):
    payload, code = SETTINGS_PAYLOADS[case]
    pair = fresh_pair()
    pair.send(2, b"\x00" + frame(http3_frames.SETTINGS, payload))
    pair.run()
    assert_closed(pair, code, Refusal.HTTP3_BAD_FRAME)


def test_unknown_settings_are_ignored():
    pair = fresh_pair()
    known = {http3_frames.Setting.ENABLE_CONNECT_PROTOCOL: 1, GREASE: 77, 0x33: 0}
    pair.send(2, b"\x00" + http3_frames.write_settings(known))
    pair.run()
    assert pair.closed is None


def test_the_control_stream_begins_with_settings():
    pair = fresh_pair()
    pair.send(2, b"\x00" + frame(GREASE, b""))
    pair.run()
    assert_closed(pair, ErrorCode.H3_MISSING_SETTINGS, Refusal.HTTP3_BAD_FRAME)


@pytest.mark.parametrize("kind", [0, 2, 3])
def test_critical_streams_come_once(pair: Pair, kind: int):
    if kind:
        pair.open_uni(write_integer(kind))
    pair.open_uni(write_integer(kind))
    pair.run()
    assert_closed(pair, ErrorCode.H3_STREAM_CREATION_ERROR, Refusal.HTTP3_PROTOCOL_ERROR)


def test_clients_do_not_push(pair: Pair):
    pair.open_uni(b"\x01\x00")
    pair.run()
    assert_closed(pair, ErrorCode.H3_STREAM_CREATION_ERROR, Refusal.HTTP3_PROTOCOL_ERROR)


@pytest.mark.parametrize("kind", [0, 2, 3])
@pytest.mark.parametrize("how", ["end", "reset"])
def test_critical_streams_must_stay(pair: Pair, kind: int, how: str):
    """RFC 9114 §6.2.1, RFC 9204 §4.2: H3_CLOSED_CRITICAL_STREAM."""
    stream = pair.open_uni(write_integer(kind)) if kind else 2
    pair.run()
    if how == "end":
        pair.send(stream, b"", ended=True)
    else:
        pair.client.reset_stream(stream, 0)
    pair.run()
    assert_closed(pair, ErrorCode.H3_CLOSED_CRITICAL_STREAM, Refusal.HTTP3_CRITICAL_STREAM)


@pytest.mark.parametrize("stream", [3, 7, 11])
def test_our_critical_streams_may_not_be_stopped(pair: Pair, stream: int):
    pair.client.stop_stream(stream, 0)
    pair.run()
    assert_closed(pair, ErrorCode.H3_CLOSED_CRITICAL_STREAM, Refusal.HTTP3_CRITICAL_STREAM)


@pytest.mark.parametrize("how", ["end", "reset"])
def test_streams_of_unknown_type_are_stopped(pair: Pair, how: str):
    """RFC 9114 §6.2: abort reading with H3_STREAM_CREATION_ERROR."""
    stream = pair.open_uni(write_integer(GREASE) + b"grease")
    pair.run()
    assert pair.received(stream).stop_code == ErrorCode.H3_STREAM_CREATION_ERROR
    other = pair.open_uni(write_integer(GREASE))
    if how == "end":
        pair.send(other, b"", ended=True)
    else:
        pair.client.reset_stream(other, 0)
    pair.run()
    assert pair.events == []
    assert pair.closed is None


def test_a_stream_may_end_before_it_says_its_type(pair: Pair):
    pair.send(pair.open_uni(b"\x40"), b"", ended=True)
    pair.client.reset_stream(pair.open_uni(b"\x40"), 0)
    pair.run()
    assert pair.closed is None


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_stream_type_may_be_cut_anywhere(pair: Pair, cut: int):
    data = (0x80000000 | 0x02).to_bytes(4, "big")
    stream = pair.open_uni(data[:cut])
    pair.run()
    pair.send(stream, data[cut:])
    pair.run()
    pair.open_uni(b"\x02")
    pair.run()
    assert_closed(pair, ErrorCode.H3_STREAM_CREATION_ERROR, Refusal.HTTP3_PROTOCOL_ERROR)


# QPACK


class DynamicClient:
    """A client whose encoder uses the dynamic table."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.encoder = pylsqpack.Encoder()
        self.instructions = self.encoder.apply_settings(
            max_table_capacity=qpack.TABLE_SIZE, blocked_streams=qpack.BLOCKED_STREAMS
        )
        self.stream = pair.open_uni(b"\x02" + self.instructions)
        pair.run()

    def section(self, stream: int, value: bytes = b"some-agent/1.0") -> tuple[bytes, bytes]:
        """A head that refers to the table, and the instructions it needs."""
        fields = [*GET, (b"user-agent", value), (b"x-name", value)]
        for _ in range(4):  # the encoder inserts what it has seen before
            instructions, block = self.encoder.encode(stream, fields)
            if instructions:
                return frame(HEADERS, block), instructions
        raise AssertionError("nothing was inserted")

    def acknowledge(self) -> None:
        self.encoder.feed_decoder(self.pair.received(11).data[1:])


def test_a_head_that_refers_to_the_table_waits_for_it(pair: Pair):
    client = DynamicClient(pair)
    head, instructions = client.section(0)
    stream = pair.open(head + frame(DATA, b"behind"), ended=True)
    assert pair.run() == []
    pair.send(client.stream, instructions)
    request, body = pair.run()
    assert (b"x-name", b"some-agent/1.0") in request.headers
    assert body == BodyReceived(stream, b"behind", 6, ended=True)
    client.acknowledge()  # raises unless the section was acknowledged (RFC 9204 §4.4.1)


def test_a_request_that_waits_may_be_given_up(pair: Pair):
    client = DynamicClient(pair)
    head, instructions = client.section(0)
    stream = pair.open(head + frame(DATA, b"behind"))
    pair.run()
    pair.client.reset_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
    pair.run()
    pair.send(client.stream, instructions)
    assert pair.run() == []
    client.acknowledge()
    assert pair.received(stream).reset_code == ErrorCode.H3_REQUEST_CANCELLED
    assert pair.engine.is_idle


def test_instructions_in_pieces_release_what_they_complete(pair: Pair):
    client = DynamicClient(pair)
    head, instructions = client.section(0)
    pair.open(head, ended=True)
    for octet in instructions[:-1]:
        pair.send(client.stream, bytes([octet]))
        assert pair.run() == []
    pair.send(client.stream, instructions[-1:])
    assert kinds(pair.run()) == [RequestReceived]


def test_trailers_may_wait_and_then_be_in_vain(pair: Pair):
    """The application answers while trailers wait for the table."""
    client = DynamicClient(pair)
    stream = pair.open(pair.section(POST) + frame(DATA, b"x"))
    pair.run()
    fields = [(b"x-sum", b"123456"), (b"x-sam", b"123456")]
    instructions, block = b"", b""
    while not instructions:
        instructions, block = client.encoder.encode(stream, fields)
    pair.send(stream, frame(HEADERS, block), ended=True)
    pair.run()
    pair.engine.send_response(stream, OK, b"early", ended=True)
    pair.run()
    pair.send(client.stream, instructions)
    pair.run()
    assert pair.received(stream).body == b"early"
    assert pair.closed is None
    assert pair.engine.is_idle


def test_too_many_waiting_requests_end_the_connection(pair: Pair):
    """RFC 9204 §2.1.2: a connection error of type QPACK_DECOMPRESSION_FAILED."""
    DynamicClient(pair)
    # Required insert count 1, of a table that stays empty: the reference is to what will come.
    for _ in range(qpack.BLOCKED_STREAMS + 1):
        pair.open(frame(HEADERS, b"\x02\x00\x80"))
    pair.run()
    assert_closed(pair, ErrorCode.QPACK_DECOMPRESSION_FAILED, Refusal.HTTP3_COMPRESSION)


def test_a_waiting_section_that_turns_out_to_be_garbage_ends_the_connection(pair: Pair):
    client = DynamicClient(pair)
    pair.open(frame(HEADERS, b"\x02\x00\x80\x81"))  # entry 0, and one that is not there
    pair.run()
    _, instructions = client.section(0)
    pair.send(client.stream, instructions)
    pair.run()
    assert_closed(pair, ErrorCode.QPACK_DECOMPRESSION_FAILED, Refusal.HTTP3_COMPRESSION)


@pytest.mark.parametrize(
    ("kind", "data", "code"),
    [
        (2, b"\x00", None),  # duplicate of entry 0 of an empty table, below
        (2, b"\x3f\xe2\x7f", ErrorCode.QPACK_ENCODER_STREAM_ERROR),  # more capacity than we allow
        (
            3,
            b"\xff\xff\xff\x7f",
            ErrorCode.QPACK_DECODER_STREAM_ERROR,
        ),  # acknowledges what never was
    ],
)
def test_wrong_instructions_end_the_connection(
    pair: Pair, kind: int, data: bytes, code: ErrorCode | None
):
    pair.open_uni(write_integer(kind) + data)
    pair.run()
    if code is not None:
        assert_closed(pair, code, Refusal.HTTP3_COMPRESSION)


def bomb(lines: int) -> bytes:
    """A field section that names the newest entry of the table again and again."""
    return frame(HEADERS, b"\x02\x00" + b"\x80" * lines)


@pytest.mark.parametrize("lines", [30, 1000, 60_000])
def test_a_qpack_bomb_is_answered_with_431_and_not_unpacked(pair: Pair, lines: int):
    """One octet stands for 4,000: 240 MB from one request if decoded (cf. CVE-2016-6581)."""
    value = b"v" * 3900
    length = bytearray()
    rest = len(value) - 127
    while rest >= 128:
        length.append(rest & 0x7F | 0x80)
        rest >>= 7
    length.append(rest)
    # Capacity 4096; insert with literal name "n" (RFC 9204 §4.3.1, §4.3.3).
    insert = b"\x3f\xe1\x1f" + b"\x41n\x7f" + bytes(length) + value
    pair.open_uni(b"\x02" + insert)
    pair.run()
    stream = pair.open(bomb(lines), ended=True)
    pair.run()
    violation = only(pair.take_events(), PeerViolation)
    assert (violation.reason, violation.stream_id) == (Refusal.HTTP3_HEADERS_TOO_LARGE, stream)
    assert pair.received(stream).status == 431
    assert pair.closed is None


def test_a_head_that_turns_out_too_large_when_the_table_comes_gets_431():
    pair = Pair(http3={"max_header_list_size": 300})
    client = DynamicClient(pair)
    head, instructions = client.section(0, b"v" * 100)
    stream = pair.open(head, ended=True)
    pair.run()
    pair.send(client.stream, instructions)
    pair.run()
    assert pair.received(stream).status == 431


def test_a_head_that_still_waits_is_left_alone(pair: Pair):
    client = DynamicClient(pair)
    head, instructions = client.section(0)
    stream = pair.open(head, ended=True)
    pair.run()
    pair.engine._resume(stream)
    assert pair.engine._requests[stream].blocked
    pair.send(client.stream, instructions)
    assert kinds(pair.run()) == [RequestReceived]


def test_empty_trailers_are_trailers(pair: Pair):
    stream = pair.open(pair.section(POST) + frame(HEADERS, b"\x00\x00"), ended=True)
    (request,) = pair.run()
    assert request == RequestReceived(stream, "POST", b"/", [(b"host", b"a.test")], "3", ended=True)


def test_a_head_may_wait_twice(pair: Pair):
    """What unblocks one stream says nothing of another."""
    client = DynamicClient(pair)
    first, instructions = client.section(0)
    second, more = client.section(4, b"another-agent/2.0")
    pair.open(first, ended=True)
    pair.open(second, ended=True)
    assert pair.run() == []
    pair.send(client.stream, instructions)
    pair.run()
    pair.send(client.stream, more)
    pair.run()
    assert [event.stream_id for event in pair.events] == [0, 4]


# Limits on field sections


def test_a_large_head_gets_431_and_the_connection_goes_on(pair: Pair):
    fields = [*GET, *[(b"x-%d" % number, b"v" * 1000) for number in range(70)]]
    stream = pair.open(pair.section(fields), ended=True)
    pair.run()
    violation = only(pair.take_events(), PeerViolation)
    assert violation.reason == Refusal.HTTP3_HEADERS_TOO_LARGE
    assert (pair.received(stream).status, pair.received(stream).ended) == (431, True)
    assert pair.closed is None


def test_a_head_announced_as_too_long_is_not_waited_for(pair: Pair):
    stream = pair.open(write_integer(HEADERS) + write_integer(1 << 30))
    pair.say()
    pair.send(stream, bytes(5000))  # was under way: swallowed
    pair.run()
    assert pair.received(stream).status == 431
    assert pair.received(stream).stop_code == ErrorCode.H3_NO_ERROR
    assert pair.closed is None
    assert pair.engine._requests == {}


def test_the_limit_is_announced_and_counts_as_the_rfc_says():
    """RFC 9114 §4.2.2: name, value and 32 bytes of each field."""
    pair = Pair(http3={"max_header_list_size": 500})
    settings_frame = http3_frames.read_settings(pair.received(3).data[3:])
    assert settings_frame[http3_frames.Setting.MAX_FIELD_SECTION_SIZE] == 500
    assert settings_frame[http3_frames.Setting.ENABLE_CONNECT_PROTOCOL] == 1
    used = sum(len(name) + len(value) + 32 for name, value in GET)
    for room, status in ((0, 200), (1, 431)):
        stream = pair.request([*GET, (b"x", b"v" * (500 - used - 33 + room))])
        pair.run()
        pair.engine.send_response(stream, OK, b"", ended=True)
        pair.run()
        assert pair.received(stream).status == status


def test_trailers_that_are_too_large_reset_the_stream(pair: Pair):
    stream = pair.open(pair.section(POST) + write_integer(HEADERS) + write_integer(1 << 20))
    pair.run()
    assert_refused(pair, stream, ErrorCode.H3_EXCESSIVE_LOAD, Refusal.HTTP3_HEADERS_TOO_LARGE)


# Responses


def test_a_response_is_head_body_and_end(pair: Pair):
    stream = pair.request()
    pair.run()
    pair.engine.send_response(stream, ResponseHead(404, [(b"x", b"y")]), b"gone", ended=True)
    pair.run()
    received = pair.received(stream)
    assert received.heads == [[(b":status", b"404"), (b"x", b"y")]]
    assert (received.body, received.ended) == (b"gone", True)
    assert pair.engine.is_idle


def test_a_response_may_come_in_parts_with_trailers(pair: Pair):
    stream = pair.request()
    pair.run()
    pair.engine.send_informational(stream, 103, [(b"link", b"</a>")])
    pair.engine.send_response(stream, OK, b"", ended=False)
    pair.engine.send_body(stream, b"one", ended=False)
    pair.engine.send_body(stream, b"", ended=False)
    pair.engine.send_body(stream, b"two" * 5000, ended=False)
    pair.engine.send_trailers(stream, [(b"x-sum", b"1")])
    pair.run(2.0)
    received = pair.received(stream)
    assert [head[0] for head in received.heads] == [
        (b":status", b"103"),
        (b":status", b"200"),
        (b"x-sum", b"1"),
    ]
    assert received.body == b"one" + b"two" * 5000
    assert received.ended


@pytest.mark.parametrize(
    ("fields", "status"), [([(b":method", b"HEAD"), *GET[1:]], 200), (GET, 204), (GET, 304)]
)
def test_where_no_body_belongs_none_is_sent(pair: Pair, fields: Any, status: int):
    stream = pair.request(fields)
    pair.run()
    pair.engine.send_response(stream, ResponseHead(status, []), b"body", ended=False)
    pair.engine.send_body(stream, b"more", ended=False)
    pair.engine.send_body(stream, b"last", ended=True)
    pair.run()
    received = pair.received(stream)
    assert [kind for kind, _ in received.frames] == [HEADERS]
    assert received.ended


@pytest.mark.parametrize("how", ["response", "body", "trailers"])
def test_a_body_that_belies_its_own_content_length_is_the_applications_fault(pair: Pair, how: str):
    stream = pair.request()
    pair.run()
    head = ResponseHead(200, [(b"content-length", b"4")], content_length=4)
    calls = {
        "response": lambda: pair.engine.send_response(stream, head, b"more than 4", ended=True),
        "body": lambda: pair.engine.send_body(stream, b"ur and more", ended=True),
        "trailers": lambda: pair.engine.send_trailers(stream, []),
    }
    if how != "response":
        pair.engine.send_response(stream, head, b"fo", ended=False)
    with pytest.raises(AppError):
        calls[how]()
    pair.run()
    assert not pair.received(stream).ended


def test_a_response_as_long_as_it_said_is_sent(pair: Pair):
    stream = pair.request()
    pair.run()
    head = ResponseHead(200, [(b"content-length", b"4")], content_length=4)
    pair.engine.send_response(stream, head, b"fo", ended=False)
    pair.engine.send_body(stream, b"ur", ended=True)
    pair.run()
    assert (pair.received(stream).body, pair.received(stream).ended) == (b"four", True)


def test_what_is_sent_on_no_stream_is_nothing(pair: Pair):
    engine = pair.engine
    stream = pair.request()
    pair.run()
    engine.send_response(stream, OK, b"", ended=True)
    pair.run()
    pair.take_events()
    for nobody in (stream, 400):
        assert engine.send_informational(nobody, 103, []) == []
        assert engine.send_response(nobody, OK, b"x", ended=True) == []
        assert engine.send_body(nobody, b"x", ended=True) == []
        assert engine.send_trailers(nobody, []) == []
        assert engine.accept_tunnel(nobody, []) == []
        assert engine.reset_stream(nobody) == []
        assert engine.acknowledge(nobody, 10) == []
        assert engine.release(nobody) == []
    pair.run()
    assert pair.closed is None


def test_a_field_that_qpack_cannot_carry_is_the_applications_fault(pair: Pair):
    stream = pair.request()
    pair.run()
    head = ResponseHead(200, [(b"x", b"v" * 70_000)])
    with pytest.raises(AppError, match="fields"):
        pair.engine.send_response(stream, head, b"", ended=True)
    pair.engine.send_response(stream, OK, b"sorry", ended=True)
    pair.run()
    assert pair.received(stream).body == b"sorry"


def test_a_broken_response_is_reset(pair: Pair):
    stream = pair.open(pair.section(POST))
    pair.run()
    pair.engine.send_response(stream, OK, b"half", ended=False)
    pair.run()
    pair.engine.reset_stream(stream)
    pair.run()
    assert pair.received(stream).reset_code == ErrorCode.H3_INTERNAL_ERROR
    assert pair.received(stream).stop_code == ErrorCode.H3_INTERNAL_ERROR


# Flow control


def test_a_response_waits_when_the_client_does_not_read():
    pair = Pair(client={"max_stream_data": 100_000})
    pair.client.grants_itself = False
    stream = pair.request()
    pair.run()
    part = bytes(60_000)
    pair.take_events()
    assert pair.engine.send_response(stream, OK, part, ended=False) == []
    assert pair.engine.send_body(stream, part, ended=False) == [StreamPaused(stream)]
    assert pair.engine.send_body(stream, b"more", ended=False) == []
    pair.run(5.0)
    # What the window takes has left: below the low-water mark of 16 KiB only 16 KiB may wait.
    assert pair.take_events() == []
    pair.client.grant(stream, 100_000)
    pair.run(5.0)
    assert pair.take_events() == [StreamResumed(stream)]
    pair.engine.send_body(stream, b"end", ended=True)
    pair.run(5.0)
    assert len(pair.received(stream).body) == 2 * 60_000 + len(b"moreend")
    assert pair.engine._quic.held(stream) == 0


def test_a_paused_response_that_ends_is_not_resumed():
    pair = Pair(client={"max_stream_data": 10_000})
    stream = pair.request()
    pair.run()
    assert pair.engine.send_response(stream, OK, bytes(100_000), ended=False) == [
        StreamPaused(stream)
    ]
    pair.engine.send_body(stream, b"", ended=True)
    pair.take_events()
    pair.run(10.0)
    assert pair.take_events() == []
    assert pair.received(stream).ended


def upload(pair: Pair, size: int, fields: Any = POST) -> int:
    return pair.open(pair.section(fields) + frame(DATA, bytes(size)), ended=True)


def body_size(events: list[Event]) -> int:
    return sum(len(event.data) for event in events if isinstance(event, BodyReceived))


def test_an_upload_stops_at_the_window_until_it_is_taken():
    """DISPATCH, trap 13: aioquic gives credit as data arrives, whoever reads."""
    pair = Pair(http3={"stream_window": 65_536, "connection_window": 131_072})
    stream = upload(pair, 1_000_000)
    taken = 0
    while taken < 1_000_000:
        pair.run(5.0)
        arrived = body_size(pair.take_events())
        assert 0 < arrived <= 65_536 + 65_536 // 4
        pair.engine.acknowledge(stream, arrived)
        taken += arrived
    assert taken == 1_000_000


def test_one_stream_that_is_not_read_leaves_the_others_room():
    pair = Pair(http3={"stream_window": 65_536, "connection_window": 262_144})
    stuck = upload(pair, 1_000_000)
    pair.run(5.0)
    pair.take_events()
    for _ in range(20):
        stream = upload(pair, 60_000)
        pair.run(5.0)
        assert body_size(pair.take_events()) == 60_000
        pair.engine.acknowledge(stream, 60_000)
        pair.engine.send_response(stream, OK, b"", ended=True)
    assert stuck in pair.engine._requests


def test_bodies_that_nobody_reads_do_not_use_the_connection_up():
    """hypercorn 0.18 stops answering after one."""
    pair = Pair(http3={"stream_window": 65_536, "connection_window": 131_072})
    for _ in range(30):
        stream = upload(pair, 60_000)
        pair.run(5.0)
        pair.engine.send_response(stream, OK, b"unread", ended=True)
        pair.engine.release(stream)
        pair.run(5.0)
        assert pair.received(stream).body == b"unread"


def test_an_early_response_stops_the_upload_and_returns_its_credit():
    """RFC 9114 §4.1: H3_NO_ERROR; DATA that comes after it is nobody's (hypercorn stops there)."""
    pair = Pair(http3={"stream_window": 65_536, "connection_window": 131_072})
    for _ in range(10):
        stream = pair.open(pair.section(POST) + frame(DATA, bytes(500_000)))
        pair.run(3.0)
        pair.engine.send_response(stream, OK, b"enough", ended=True)
        pair.engine.release(stream)
        pair.run(3.0)
        assert pair.received(stream).body == b"enough"
        assert pair.received(stream).ended
        assert pair.received(stream).stop_code == ErrorCode.H3_NO_ERROR
    assert pair.engine._requests == {}


def test_a_body_that_ends_with_its_early_response_is_not_stopped(pair: Pair):
    stream = pair.open(pair.section(POST) + frame(DATA, b"x"))
    pair.run()
    pair.engine.send_response(stream, OK, b"early", ended=True)
    pair.send(stream, frame(DATA, b"y"), ended=True)
    for datagram, _ in pair.client.datagrams_to_send(pair.now):
        pair.to_server(datagram)
    pair.run()
    assert pair.received(stream).stop_code is None
    assert pair.received(stream).body == b"early"


def test_a_reset_upload_returns_its_credit():
    pair = Pair(http3={"stream_window": 65_536, "connection_window": 131_072})
    for _ in range(10):
        stream = pair.open(pair.section(POST) + frame(DATA, bytes(500_000)))
        pair.run(3.0)
        pair.client.reset_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
        pair.run(3.0)
        assert StreamReset(stream) in pair.take_events()
        pair.engine.release(stream)
    upload(pair, 60_000)
    pair.run(5.0)
    assert body_size(pair.events) == 60_000


def test_more_credit_than_was_given_changes_nothing(pair: Pair):
    stream = upload(pair, 100)
    pair.run()
    limit = pair.quic._local_max_data.value
    pair.engine.acknowledge(stream, 10_000_000)
    assert pair.quic._local_max_data.value == limit + 100


# Giving up


def test_a_reset_request_is_told_and_its_response_ends(pair: Pair):
    stream = pair.open(pair.section(POST))
    pair.run()
    pair.take_events()
    pair.client.reset_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
    assert pair.run() == [StreamReset(stream)]
    assert pair.received(stream).reset_code == ErrorCode.H3_REQUEST_CANCELLED
    assert pair.engine._requests == {}


def test_a_response_nobody_wants_is_told(pair: Pair):
    stream = pair.open(pair.section(POST))
    pair.run()
    pair.engine.send_response(stream, OK, b"half", ended=False)
    pair.run()
    pair.take_events()
    pair.client.stop_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
    assert pair.run() == [StreamReset(stream)]
    assert pair.engine.send_body(stream, b"more", ended=True) == []
    assert pair.received(stream).stop_code == ErrorCode.H3_REQUEST_CANCELLED
    assert pair.received(stream).reset_code == ErrorCode.H3_REQUEST_CANCELLED
    pair.client.reset_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
    assert kinds(pair.run()) == [StreamReset]
    assert pair.engine._requests == {}


def test_a_stop_after_the_response_tells_nobody():
    pair = Pair(client={"max_stream_data": 1000})
    stream = pair.request()
    pair.run()
    pair.engine.send_response(stream, OK, bytes(5000), ended=True)
    pair.take_events()
    pair.client.stop_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
    assert pair.run() == []
    assert pair.engine.is_idle


def test_a_stop_after_an_early_response_tells_nobody():
    pair = Pair(client={"max_stream_data": 1000})
    stream = pair.open(pair.section(POST))
    pair.run()
    pair.engine.send_response(stream, OK, bytes(5000), ended=True)
    pair.take_events()
    pair.client.stop_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
    assert pair.run() == []


def test_a_request_given_up_before_it_began_is_none(pair: Pair):
    stream = pair.open()
    pair.client.reset_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
    assert pair.run() == []
    assert pair.received(stream).reset_code == ErrorCode.H3_REQUEST_CANCELLED


def test_a_stop_that_overtakes_its_request_cancels_it(pair: Pair):
    stream = pair.open(pair.section(GET), ended=True)
    stop = b"\x05" + write_integer(stream) + write_integer(ErrorCode.H3_REQUEST_CANCELLED)
    pair.to_server(pair.forge(stop))
    pair.run()
    assert pair.events == []
    assert pair.engine._requests == {}


def test_a_reset_of_an_answered_request_is_no_news(pair: Pair):
    stream = pair.open(pair.section(POST))
    pair.run()
    pair.engine.send_response(stream, OK, b"early", ended=True)
    pair.client.reset_stream(stream, ErrorCode.H3_NO_ERROR)
    pair.take_events()
    assert pair.run() == []
    assert pair.received(stream).body == b"early"


def test_a_client_that_gives_up_all_it_asks_for_is_sent_away():
    """CVE-2023-44487 in the words of HTTP/3: H3_EXCESSIVE_LOAD."""
    pair = Pair()
    given_up = 0
    while pair.closed is None:
        streams = [pair.request(POST) for _ in range(20)]
        if given_up % 40:
            pair.say()  # so that half of them start the application
        for stream in streams:
            pair.client.stop_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
        pair.run(0.03)
        for stream in streams:
            pair.engine.release(stream)
        given_up += len(streams)
        assert given_up < 2 * http3_streams.RESET_BURST
    assert given_up > http3_streams.RESET_BURST
    assert pair.closed.error_code == ErrorCode.H3_EXCESSIVE_LOAD
    assert PeerViolation in kinds(pair.events)


def test_a_client_that_retires_every_connection_id_is_sent_away(pair: Pair):
    """Each makes us mint another, and remember the old one."""
    retired = 0
    while pair.closed is None:
        pair.client.change_connection_id()
        pair.run(0.03)
        retired += 1
        assert retired < 2 * http3.RETIRED_BURST
    assert retired > http3.RETIRED_BURST
    assert pair.closed.error_code == ErrorCode.H3_EXCESSIVE_LOAD
    violation = next(event for event in pair.events if isinstance(event, PeerViolation))
    assert violation.reason is Refusal.QUIC_FRAME_FLOOD


def test_calls_that_still_run_count_as_open():
    """Also when their streams are reset: no client has more work done than it may ask for."""
    pair = Pair(http3={"max_streams": 4})
    for _ in range(4):
        stream = pair.request(POST)
        pair.say()
        pair.client.stop_stream(stream, ErrorCode.H3_REQUEST_CANCELLED)
        pair.run()
    pair.take_events()
    refused = pair.request()
    pair.run()
    violation = only(pair.take_events(), PeerViolation)
    assert (violation.stream_id, violation.reason) == (refused, Refusal.HTTP3_STREAM_LIMIT)
    assert pair.received(refused).reset_code == ErrorCode.H3_REQUEST_REJECTED
    pair.engine.release(0)
    accepted = pair.request()
    pair.run()
    assert only(pair.events, RequestReceived).stream_id == accepted


def test_streams_beyond_the_limit_are_quics_to_refuse():
    pair = Pair(http3={"max_streams": 2})
    streams = [pair.request() for _ in range(3)]
    pair.run()
    assert [event.stream_id for event in pair.take_events()] == streams[:2]
    pair.engine.send_response(0, OK, b"", ended=True)
    pair.engine.release(0)
    pair.run(1.0)
    assert [event.stream_id for event in pair.take_events()] == streams[2:]


# Priorities (RFC 9218)


def order_of_arrival(pair: Pair, streams: list[int], size: int = 30_000) -> list[int]:
    """Answer all of them at once; return them in the order in which they were complete."""
    pair.run()
    for stream in streams:
        pair.engine.send_response(stream, OK, bytes(size), ended=True)
    complete: list[int] = []
    while len(complete) < len(streams):
        pair.step()
        complete += [
            stream for stream in streams if stream not in complete and pair.received(stream).ended
        ]
    return complete


def test_the_more_urgent_response_comes_first(pair: Pair):
    streams = [
        pair.request([*GET, (b"priority", value)]) for value in (b"u=7", b"u=5", b"", b"u=0")
    ]
    assert order_of_arrival(pair, streams) == list(reversed(streams))


def test_equals_come_one_after_the_other_unless_parts_are_of_use(pair: Pair):
    one_by_one = [pair.request([*GET, (b"priority", b"u=3")]) for _ in range(4)]
    assert order_of_arrival(pair, one_by_one) == one_by_one
    shared = [pair.request([*GET, (b"priority", b"u=3, i")]) for _ in range(4)]
    pair.run()
    for stream in shared:
        pair.engine.send_response(stream, OK, bytes(60_000), ended=True)
    for _ in range(3):
        pair.step()
    parts = [len(pair.received(stream).data) for stream in shared]
    assert min(parts) > max(parts) / 3


def test_a_priority_may_change_while_the_response_waits(pair: Pair):
    streams = [pair.request([*GET, (b"priority", b"u=4")]) for _ in range(3)]
    pair.run()
    update = frame(http3_frames.PRIORITY_UPDATE, write_integer(streams[2]) + b"u=1")
    pair.send(2, update)
    assert order_of_arrival(pair, streams)[0] == streams[2]


def test_a_priority_may_come_before_its_request(pair: Pair):
    pair.send(2, frame(http3_frames.PRIORITY_UPDATE, write_integer(8) + b"u=1"))
    pair.run()
    streams = [pair.request([*GET, (b"priority", b"u=2")]) for _ in range(3)]
    assert order_of_arrival(pair, streams)[0] == 8


def test_priorities_of_requests_that_never_come_are_bounded():
    pair = Pair(http3={"max_streams": 4})
    for number in range(100):
        stream = 4 * (number % 8)
        pair.send(2, frame(http3_frames.PRIORITY_UPDATE, write_integer(stream) + b"u=1"))
        pair.run()
        assert len(pair.engine._early_priorities) <= 4


# What does not move


PATIENCE = {"head_patience": 10.0, "send_patience": 60.0}


def test_a_request_that_does_not_come_is_given_up(pair: Pair):
    stream = pair.open(b"\x01\x40")
    pair.run()
    assert pair.engine.drop_stalled(pair.now + 9, **PATIENCE) == []
    (violation,) = pair.engine.drop_stalled(pair.now + 10, **PATIENCE)
    assert (violation.reason, violation.stream_id) == (Refusal.HTTP3_STALLED, stream)
    pair.run()
    assert pair.received(stream).reset_code == ErrorCode.H3_REQUEST_INCOMPLETE
    assert pair.engine.drop_stalled(pair.now + 20, **PATIENCE) == []


@pytest.mark.parametrize("ended", [True, False])
def test_a_response_that_the_client_does_not_let_through_is_given_up(ended: bool):
    pair = Pair(client={"max_stream_data": 1000})
    pair.client.grants_itself = False
    stream = pair.request()
    pair.run()
    pair.engine.send_response(stream, OK, bytes(50_000), ended=ended)
    pair.run()
    now = pair.now
    assert pair.engine.is_waiting
    assert pair.engine.drop_stalled(now, **PATIENCE) == []
    assert pair.engine.drop_stalled(now + 59, **PATIENCE) == []
    pair.client.grant(stream, 1000)
    pair.run()
    assert pair.engine.drop_stalled(now + 61, **PATIENCE) == []
    assert pair.engine.drop_stalled(now + 120, **PATIENCE) == []
    (violation,) = pair.engine.drop_stalled(now + 122, **PATIENCE)
    assert (violation.reason, violation.stream_id) == (Refusal.HTTP3_STALLED, stream)
    pair.run()
    assert pair.received(stream).reset_code == ErrorCode.H3_REQUEST_CANCELLED
    assert not pair.engine.has_requests
    assert not pair.engine.is_waiting
    assert pair.engine.drop_stalled(now + 999, **PATIENCE) == []


def test_a_request_whose_body_does_not_come_is_answered_with_408(pair: Pair):
    stream = pair.open(pair.section(POST))
    pair.run()
    pair.take_events()
    (violation,) = pair.engine.time_out(stream)
    assert (violation.reason, violation.stream_id) == (Refusal.BODY_TIMEOUT, stream)
    pair.run()
    assert (pair.received(stream).status, pair.received(stream).ended) == (408, True)
    assert pair.engine.time_out(stream) == []


def test_a_response_that_waits_for_its_request_is_broken_off(pair: Pair):
    stream = pair.open(pair.section(POST))
    pair.run()
    pair.engine.send_response(stream, OK, b"half", ended=False)
    pair.run()
    assert kinds(pair.engine.time_out(stream)) == [PeerViolation]
    pair.run()
    assert pair.received(stream).reset_code == ErrorCode.H3_REQUEST_CANCELLED


# Tunnels (RFC 9220)


def test_a_tunnel_carries_bytes_both_ways(pair: Pair):
    stream = pair.open(pair.section(CONNECT_WEBSOCKET))
    request = only(pair.run(), RequestReceived)
    assert (request.method, request.protocol, request.target) == ("CONNECT", "websocket", b"/chat")
    assert not request.ended
    pair.take_events()
    pair.engine.accept_tunnel(stream, [(b"sec-websocket-protocol", b"chat")])
    pair.engine.send_body(stream, b"hello", ended=False)
    pair.send(stream, frame(DATA, b"hi"))
    assert pair.run() == [BodyReceived(stream, b"hi", 2)]
    assert pair.received(stream).heads[0][0] == (b":status", b"200")
    assert pair.received(stream).body == b"hello"
    pair.take_events()
    pair.send(stream, frame(DATA, b"bye"), ended=True)  # hypercorn stops here
    assert pair.run() == [BodyReceived(stream, b"bye", 3, ended=True)]
    pair.engine.send_body(stream, b"bye", ended=True)
    pair.run()
    assert pair.received(stream).ended
    assert pair.engine.is_idle


def test_a_tunnel_carries_data_only(pair: Pair):
    """RFC 9114 §4.4: any other known frame type is H3_FRAME_UNEXPECTED."""
    stream = pair.open(pair.section(CONNECT_WEBSOCKET))
    pair.run()
    pair.take_events()
    pair.engine.accept_tunnel(stream, [])
    pair.send(stream, frame(GREASE, b"x") + pair.section([(b"a", b"b")]))
    pair.run()
    assert_closed(pair, ErrorCode.H3_FRAME_UNEXPECTED, Refusal.HTTP3_BAD_FRAME)


@pytest.mark.parametrize("ended", [True, False])
def test_a_protocol_we_do_not_speak_is_answered_with_501(pair: Pair, ended: bool):
    fields = [
        (name, b"connect-udp" if name == b":protocol" else value)
        for name, value in CONNECT_WEBSOCKET
    ]
    stream = pair.open(pair.section(fields), ended=ended)
    assert pair.run() == []
    assert pair.received(stream).status == 501
    assert pair.received(stream).ended


# The end


def test_draining_refuses_late_requests_and_ends_with_the_last_response(pair: Pair):
    """RFC 9114 §5.2: first GOAWAY with the highest ID, then with the first that is refused."""
    first = pair.request()
    pair.run()
    pair.engine.begin_drain()
    pair.engine.begin_drain()
    second = pair.request()
    pair.run()
    assert [event.stream_id for event in pair.take_events()] == [first, second]
    assert goaways(pair) == [(1 << 62) - 4]
    assert pair.engine.finish_drain() == []
    assert pair.engine.finish_drain() == []
    late = pair.request()
    pair.run()
    assert goaways(pair) == [(1 << 62) - 4, second + 4]
    assert pair.received(late).reset_code == ErrorCode.H3_REQUEST_REJECTED
    for stream in (first, second):
        assert pair.closed is None
        pair.engine.send_response(stream, OK, b"answered", ended=True)
        pair.run()
        assert pair.received(stream).body == b"answered"
    assert pair.closed is not None
    assert pair.closed.error_code == ErrorCode.H3_NO_ERROR
    assert isinstance(pair.take_events()[-1], ConnectionEnded)


def goaways(pair: Pair) -> list[int]:
    control = pair.received(3)
    stream = type(control)()
    stream.data = control.data[1:]
    return [
        http3_frames.read_integer(payload, 0)[0]
        for kind, payload in stream.frames
        if kind == http3_frames.GOAWAY
    ]


def test_an_idle_connection_ends_when_its_client_has_heard_of_it(pair: Pair):
    pair.engine.begin_drain()
    pair.run()
    assert pair.engine.finish_drain() == []
    pair.run()
    assert goaways(pair) == [(1 << 62) - 4, 0]
    assert isinstance(pair.take_events()[-1], ConnectionEnded)
    assert pair.closed is not None
    assert pair.closed.error_code == ErrorCode.H3_NO_ERROR


def test_a_request_that_crosses_a_lost_goaway_is_rejected_and_may_be_repeated(pair: Pair):
    pair.engine.finish_drain()
    assert pair.from_server()  # which never arrives
    late = pair.request()
    pair.run(2.0)
    assert goaways(pair) == [0]
    assert pair.received(late).reset_code == ErrorCode.H3_REQUEST_REJECTED
    assert pair.closed is not None
    assert pair.closed.error_code == ErrorCode.H3_NO_ERROR


def test_a_client_that_is_gone_does_not_hold_up_a_drain(pair: Pair):
    pair.network = lambda datagram: ()
    pair.engine.finish_drain()
    pair.run(3.0)
    assert isinstance(pair.take_events()[-1], ConnectionEnded)


def test_a_request_rejected_while_draining_may_go_on_for_a_while(pair: Pair):
    kept = pair.open(pair.section(POST))
    pair.run()
    pair.engine.finish_drain()
    late = pair.open(pair.section(POST) + frame(DATA, b"x"))
    pair.say()
    pair.send(late, frame(DATA, b"y"), ended=True)
    pair.run()
    assert pair.received(late).stop_code == ErrorCode.H3_REQUEST_REJECTED
    assert list(pair.engine._requests) == [kept]


def test_a_connection_drained_within_its_handshake_says_so():
    pair = Pair(connect=False)
    pair.engine.begin_drain()
    pair.client.connect(("192.0.2.1", 443), now=pair.now)
    pair.run()
    assert goaways(pair) == [(1 << 62) - 4]


def test_closing_says_that_nothing_is_wrong(pair: Pair):
    pair.open(pair.section(POST))
    pair.run()
    assert kinds(pair.engine.close()) == [ConnectionEnded]
    assert pair.engine.close() == []
    pair.run()
    assert pair.closed is not None
    assert pair.closed.error_code == ErrorCode.H3_NO_ERROR
    assert pair.engine.is_closed


def test_a_client_that_closes_ends_it(pair: Pair):
    pair.client.close(error_code=ErrorCode.H3_NO_ERROR, reason_phrase="done")
    (ended,) = pair.run()
    assert ended == ConnectionEnded("0x100 done")
    assert pair.engine.is_closed


def test_what_follows_the_end_is_not_read(pair: Pair):
    pair.open(frame(DATA, b""))
    pair.request()
    pair.run()
    assert kinds(pair.events) == [PeerViolation, ConnectionEnded]


def test_a_client_that_vanishes_is_given_up_after_the_idle_timeout(pair: Pair):
    pair.open(pair.section(POST))
    pair.run()
    pair.take_events()
    pair.network = lambda datagram: ()
    while (at := pair.engine.timer()) is not None and not pair.engine.is_closed:
        pair.now = max(pair.now, at)
        pair.handle_timer(pair.now)
        pair.from_server()
    assert kinds(pair.events) == [ConnectionEnded]
    assert 29 < pair.now - 1000 < 120


def test_a_client_that_speaks_something_else_is_refused():
    pair = Pair(connect=False, client={"alpn_protocols": ["hq-interop"]})
    pair.client.connect(("192.0.2.1", 443), now=pair.now)
    pair.run()
    assert not pair.engine.handshake_complete
    assert kinds(pair.events) == [PeerViolation, ConnectionEnded]
    assert pair.events[0].reason == Refusal.QUIC_HANDSHAKE_FAILED


def test_what_breaks_quic_is_counted_as_such(pair: Pair):
    pair.to_server(pair.forge(b"\x1e"))  # HANDSHAKE_DONE, which only servers send
    pair.run()
    assert_closed(pair, 0x0A, Refusal.QUIC_PROTOCOL_ERROR)


def test_scopes_are_told_of_tls(pair: Pair):
    extension = default_server().tls_extension(pair.engine)
    assert extension["server_cert"].startswith("-----BEGIN CERTIFICATE-----")
    assert extension["tls_version"] == 0x0304
    assert extension["cipher_suite"] in (0x1301, 0x1302, 0x1303)


def test_the_transport_learns_what_it_has_to_know():
    pair = Pair(connect=False)
    engine = pair.engine
    (first,) = engine.connection_ids
    assert not engine.has_begun
    pair.client.connect(("192.0.2.1", 443), now=pair.now)
    pair.run()
    assert engine.has_begun
    changes = dict(engine.take_connection_id_changes())
    assert set(changes) == set(engine.connection_ids) - {first}
    pair.client.change_connection_id()
    pair.run()
    assert dict(engine.take_connection_id_changes())[first] is False
    assert engine.take_connection_id_changes() == []
    engine.close()
    assert (engine.close_is_pending, engine.is_closed) == (True, False)
    pair.from_server()
    assert (engine.close_is_pending, engine.is_closed) == (False, True)
    assert engine.is_at(pair.client_address)


def test_a_retry_is_answered_for_in_the_handshake():
    """The client checks both connection IDs (RFC 9000 §7.3)."""
    source_cid = b"r" * 17

    def engine_of(client: QuicConnection) -> Any:
        return default_server().accept(
            client.original_destination_connection_id,
            retried_from=source_cid,
            trusted_address=("198.51.100.7", 50000),
        )

    pair = Pair(engine_of=engine_of, connect=False)
    client = pair.client
    client._retry_source_connection_id = source_cid
    client._peer_cid.cid = source_cid
    client.connect(("192.0.2.1", 443), now=pair.now)
    pair.run()
    assert pair.handshake_complete


# Whatever comes


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data())
def test_no_bytes_on_any_stream_raise_or_hang(data: st.DataObject):
    pair = Pair()
    pieces = st.one_of(
        st.binary(max_size=60),
        st.builds(frame, st.sampled_from([0, 1, 2, 4, 5, 7, 13, GREASE]), st.binary(max_size=30)),
        st.just(pair.section(POST)),
        st.just(pair.section([(b"a", b"b")])),
    )
    for _ in range(data.draw(st.integers(1, 6))):
        written = b"".join(data.draw(st.lists(pieces, max_size=4)))
        ended = data.draw(st.booleans())
        match data.draw(st.sampled_from(["request", "uni", "control"])):
            case "request":
                stream = pair.open(written, ended=ended)
                if data.draw(st.booleans()):
                    pair.client.reset_stream(stream, 1)
                if data.draw(st.booleans()):
                    pair.client.stop_stream(stream, 1)
            case "uni":
                kind = data.draw(st.sampled_from([b"\x02", b"\x03", b"\x21", b"\x40"]))
                pair.open_uni(kind + written)
            case "control":
                pair.send(2, written)
        pair.run()
        if pair.closed:
            break
    assert pair.engine._quic.fault is None
    ended_with = [event for event in pair.events if isinstance(event, ConnectionEnded)]
    assert len(ended_with) == (1 if pair.closed else 0)
