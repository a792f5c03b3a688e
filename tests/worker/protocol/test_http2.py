"""The HTTP/2 engine, against h2 as a client and against frames that no client would send."""

import base64
import contextlib

import h2.config
import h2.connection
import h2.events
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiri.config import FlowConfig, Http2Config
from asgiri.errors import AppError
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.events import (
    BodyEnded,
    BodyReceived,
    ConnectionEnded,
    PeerViolation,
    RequestReceived,
    ResponseHead,
    StreamPaused,
    StreamReset,
    StreamResumed,
)
from asgiri.worker.protocol.http2 import MAX_EARLY_PRIORITIES, Http2Connection
from asgiri.worker.protocol.http2_frames import ErrorCode, Flag, FrameCutter, FrameType, frame
from asgiri.worker.protocol.http2_guard import CONTROL_BURST, LATE_BURST
from asgiri.worker.protocol.http2_sending import TUNNEL_LINGER
from asgiri.worker.protocol.sniff import HTTP2_PREFACE

GET = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"example.org"),
    (b":path", b"/a?b"),
]
POST = [(b":method", b"POST"), *GET[1:]]
CONNECT = [(b":method", b"CONNECT"), (b":authority", b"example.org:443")]
WEBSOCKET = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]]


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Pair:
    """The engine and a client, joined in memory."""

    def __init__(self, *, client_settings=None, high_water=65536, low_water=16384, **limits):
        self.clock = Clock()
        self.engine = Http2Connection(
            Http2Config(**limits),
            FlowConfig(high_water=high_water, low_water=low_water),
            now=self.clock,
        )
        configuration = h2.config.H2Configuration(
            client_side=True,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.client = h2.connection.H2Connection(configuration)
        self.client.initiate_connection()
        if client_settings:
            self.client.update_settings(client_settings)
        self.seen = []
        self.exchange()

    def exchange(self):
        """Carry bytes both ways until there are none; the engine's events since the last call."""
        events = []
        while True:
            sent = self.client.data_to_send()
            if sent:
                events += self.engine.receive_data(sent)
            answered = self.engine.data_to_send()
            events += self.engine.sent_events()
            if answered:
                self.seen += self.client.receive_data(answered)
            if not sent and not answered:
                return events

    def feed(self, raw):
        """Bytes of our own, past the client."""
        events = self.engine.receive_data(raw)
        answered = self.engine.data_to_send()
        self.seen += self.client.receive_data(answered)
        return events + self.engine.sent_events()

    def request(self, fields=GET, *, end=True, stream_id=None):
        stream_id = stream_id or self.client.get_next_available_stream_id()
        self.client.send_headers(stream_id, fields, end_stream=end)
        return stream_id

    def take(self, kind):
        found = [event for event in self.seen if isinstance(event, kind)]
        self.seen = [event for event in self.seen if not isinstance(event, kind)]
        return found

    def body(self, stream_id):
        return b"".join(
            event.data
            for event in self.take(h2.events.DataReceived)
            if event.stream_id == stream_id
        )

    def goaways(self):
        return [(e.error_code, e.last_stream_id) for e in self.take(h2.events.ConnectionTerminated)]


def head(status=200, *fields, length=None):
    headers = list(fields)
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    return ResponseHead(status, headers, length)


@pytest.fixture
def pair():
    return Pair()


# Requests and responses


def test_a_head_and_trailers_larger_than_a_frame_arrive_whole(pair):
    stream_id = pair.request()
    pair.exchange()
    large = (b"x", b"Z" * 17000)
    pair.engine.send_informational(stream_id, 103, [large])
    pair.engine.send_response(stream_id, head(200, large), b"body", ended=False)
    pair.engine.send_trailers(stream_id, [large])
    pair.engine.release(stream_id)
    assert pair.exchange() == []
    [early] = pair.take(h2.events.InformationalResponseReceived)
    [response] = pair.take(h2.events.ResponseReceived)
    [trailers] = pair.take(h2.events.TrailersReceived)
    assert early.headers == [(b":status", b"103"), large]
    assert response.headers == [(b":status", b"200"), large]
    assert trailers.headers == [large]
    assert pair.body(stream_id) == b"body"
    assert pair.engine.is_idle


def test_a_request_and_its_answer(pair):
    stream_id = pair.request([*GET, (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"te", b"trailers")])
    assert pair.exchange() == [
        RequestReceived(
            stream_id,
            "GET",
            b"/a?b",
            [(b"host", b"example.org"), (b"cookie", b"a=1; b=2"), (b"te", b"trailers")],
            "2",
            ended=True,
        )
    ]
    assert not pair.engine.is_idle
    pair.engine.send_response(stream_id, head(200, (b"x", b"y"), length=5), b"hello", ended=True)
    pair.engine.release(stream_id)
    assert pair.exchange() == []
    [response] = pair.take(h2.events.ResponseReceived)
    assert response.headers == [(b":status", b"200"), (b"x", b"y"), (b"content-length", b"5")]
    assert pair.body(stream_id) == b"hello"
    assert pair.take(h2.events.StreamEnded)
    assert pair.engine.is_idle


def test_a_body_in_parts_with_padding_and_trailers(pair):
    stream_id = pair.request(POST, end=False)
    pair.client.send_data(stream_id, b"abc", pad_length=10)
    pair.client.send_data(stream_id, b"def")
    pair.client.send_headers(stream_id, [(b"x-sum", b"6")], end_stream=True)
    assert pair.exchange()[1:] == [
        BodyReceived(stream_id, b"abc", 3),
        BodyReceived(stream_id, b"def", 3),
        BodyEnded(stream_id, [(b"x-sum", b"6")]),
    ]


def test_a_body_whose_end_comes_alone(pair):
    stream_id = pair.request(POST, end=False)
    pair.client.send_data(stream_id, b"abc")
    pair.client.end_stream(stream_id)
    assert pair.exchange()[1:] == [BodyReceived(stream_id, b"abc", 3), BodyEnded(stream_id)]


def test_a_body_whose_end_comes_with_its_last_part(pair):
    stream_id = pair.request(POST, end=False)
    pair.client.send_data(stream_id, b"abc", end_stream=True)
    assert pair.exchange()[1:] == [BodyReceived(stream_id, b"abc", 3, ended=True)]


def test_malformed_trailers_are_a_stream_error(pair):
    stream_id = pair.request(POST, end=False)
    pair.client.send_headers(stream_id, [(b"Bad Name", b"6")], end_stream=True)
    events = pair.exchange()
    assert [type(event) for event in events] == [RequestReceived, PeerViolation]
    assert events[1].reason is Refusal.HTTP2_BAD_HEADERS
    assert [event.error_code for event in pair.take(h2.events.StreamReset)] == [1]


@pytest.mark.parametrize(("method", "status"), [(b"HEAD", 200), (b"GET", 204), (b"GET", 304)])
def test_some_answers_have_no_body(pair, method, status):
    stream_id = pair.request([(b":method", method), *GET[1:]])
    pair.exchange()
    pair.engine.send_response(stream_id, head(status, length=5), b"hel", ended=False)
    pair.engine.send_body(stream_id, b"lo", ended=True)
    pair.exchange()
    assert pair.body(stream_id) == b""
    assert pair.take(h2.events.StreamEnded)


def test_an_answer_without_a_body_ends_with_its_head(pair):
    stream_id = pair.request()
    pair.exchange()
    pair.engine.send_response(stream_id, head(404, length=0), b"", ended=True)
    pair.exchange()
    [response] = pair.take(h2.events.ResponseReceived)
    assert response.stream_ended is not None


def test_interim_responses_come_first_and_trailers_last(pair):
    stream_id = pair.request()
    pair.exchange()
    pair.engine.send_informational(stream_id, 103, [(b"link", b"</a.css>")])
    pair.engine.send_response(stream_id, head(), b"x", ended=False)
    pair.engine.send_trailers(stream_id, [(b"x-sum", b"1")])
    pair.exchange()
    [hint] = pair.take(h2.events.InformationalResponseReceived)
    assert hint.headers == [(b":status", b"103"), (b"link", b"</a.css>")]
    [trailers] = pair.take(h2.events.TrailersReceived)
    assert trailers.headers == [(b"x-sum", b"1")]
    assert pair.take(h2.events.StreamEnded)


def test_head_body_and_trailers_may_come_one_by_one(pair):
    stream_id = pair.request()
    pair.exchange()
    pair.engine.send_response(stream_id, head(), b"", ended=False)
    pair.exchange()
    assert pair.take(h2.events.ResponseReceived)
    pair.engine.send_body(stream_id, b"body", ended=False)
    pair.exchange()
    assert pair.body(stream_id) == b"body"
    pair.engine.send_trailers(stream_id, [(b"x-sum", b"1")])
    pair.exchange()
    assert pair.take(h2.events.TrailersReceived)
    assert not pair.take(h2.events.DataReceived)


def test_cookies_stay_out_of_the_compression_context(pair):
    stream_id = pair.request()
    pair.exchange()
    pair.engine.send_response(stream_id, head(200, (b"set-cookie", b"secret")), b"", ended=True)
    pair.exchange()
    [response] = pair.take(h2.events.ResponseReceived)
    assert not response.headers[1].indexable


@pytest.mark.parametrize(
    ("length", "parts"), [(5, [b"toolong"]), (5, [b"abc", b"def"]), (5, [b"abc", b""])]
)
def test_a_body_that_does_not_fit_its_length_raises_in_the_applications_call(pair, length, parts):
    stream_id = pair.request()
    pair.exchange()
    *first, last = parts
    if first:
        pair.engine.send_response(stream_id, head(length=length), first[0], ended=False)
        with pytest.raises(AppError):
            pair.engine.send_body(stream_id, last, ended=True)
    else:
        with pytest.raises(AppError):
            pair.engine.send_response(stream_id, head(length=length), last, ended=True)
    pair.engine.reset_stream(stream_id)
    pair.exchange()
    [reset] = pair.take(h2.events.StreamReset)
    assert reset.error_code == ErrorCodes.INTERNAL_ERROR


def test_trailers_after_too_little_body_raise(pair):
    stream_id = pair.request()
    pair.exchange()
    pair.engine.send_response(stream_id, head(length=5), b"abc", ended=False)
    with pytest.raises(AppError):
        pair.engine.send_trailers(stream_id, [])


def test_calls_for_streams_that_are_over_do_nothing(pair):
    engine = pair.engine
    for stream_id in (1, 99):
        engine.send_informational(stream_id, 103, [])
        engine.send_response(stream_id, head(), b"x", ended=True)
        engine.send_body(stream_id, b"x", ended=True)
        engine.send_trailers(stream_id, [])
        engine.accept_tunnel(stream_id, [])
        engine.reset_stream(stream_id)
        assert engine.acknowledge(stream_id, 5) == []
        assert engine.release(stream_id) == []
    assert engine.data_to_send() == b""


def test_expect_is_reported(pair):
    pair.request([*POST, (b"expect", b"100-continue")], end=False)
    [event] = pair.exchange()
    assert event.expects_continue


@settings(max_examples=40)
@given(st.lists(st.integers(1, 60), max_size=40))
def test_events_do_not_depend_on_how_bytes_arrive(cuts):
    def wire():
        made = Pair()
        for fields in (GET, POST):
            stream_id = made.request(fields, end=fields is GET)
        made.client.send_data(stream_id, b"x" * 100)
        made.client.send_headers(stream_id, [(b"t", b"1")], end_stream=True)
        return made, made.client.data_to_send()

    whole, sent = wire()
    expected = whole.engine.receive_data(sent)
    pieces, offset = [], 0
    for cut in cuts:
        pieces.append(sent[offset : offset + cut])
        offset += cut
    pieces.append(sent[offset:])
    cut_up, _ = wire()
    assert [e for piece in pieces for e in cut_up.engine.receive_data(piece)] == expected


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_raise(noise):
    pair = Pair()
    pair.request()
    pair.exchange()
    events = pair.engine.receive_data(noise)
    assert all(not isinstance(event, RequestReceived) for event in events)


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 17), st.integers(0, 255), st.integers(0, 7), st.binary(max_size=40)
        ),
        max_size=12,
    )
)
def test_arbitrary_frames_never_raise(noise):
    pair = Pair()
    pair.request()
    pair.exchange()
    for kind, flags, stream_id, payload in noise:
        for event in pair.engine.receive_data(frame(kind, stream_id, payload, flags)):
            if isinstance(event, RequestReceived):
                pair.engine.send_response(event.stream_id, head(), b"hello", ended=True)
                pair.engine.release(event.stream_id)
        pair.engine.data_to_send()


def test_a_wrong_preface_ends_the_connection():
    engine = Http2Connection(Http2Config(), FlowConfig(), now=Clock())
    events = engine.receive_data(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert [type(event) for event in events] == [PeerViolation, ConnectionEnded]
    assert engine.receive_data(b"more") == []


def test_the_end_of_the_peers_bytes_ends_the_connection(pair):
    assert [type(event) for event in pair.engine.receive_eof()] == [ConnectionEnded]
    assert pair.engine.receive_eof() == []


# Settings and refusals


def test_settings_announce_the_limits(pair):
    [changed] = pair.take(h2.events.RemoteSettingsChanged)
    announced = {code: change.new_value for code, change in changed.changed_settings.items()}
    assert announced[SettingCodes.MAX_CONCURRENT_STREAMS] == 100
    assert announced[SettingCodes.MAX_HEADER_LIST_SIZE] == 65536
    assert announced[SettingCodes.ENABLE_CONNECT_PROTOCOL] == 1
    assert announced[SettingCodes.INITIAL_WINDOW_SIZE] == 1 << 20
    assert announced[0x9] == 1  # RFC 9218 §2.1: SETTINGS_NO_RFC7540_PRIORITIES
    assert pair.client.outbound_flow_control_window == 4 << 20


def test_streams_beyond_the_limit_are_refused_alone():
    pair = Pair(max_concurrent_streams=2)
    pair.client.remote_settings.update({SettingCodes.MAX_CONCURRENT_STREAMS: 100})
    pair.client.remote_settings.acknowledge()
    ids = [pair.request() for _ in range(3)]
    events = pair.exchange()
    assert [type(event) for event in events] == [RequestReceived, RequestReceived, PeerViolation]
    assert events[2].reason is Refusal.HTTP2_STREAM_LIMIT
    [reset] = pair.take(h2.events.StreamReset)
    assert (reset.stream_id, reset.error_code) == (ids[2], ErrorCodes.REFUSED_STREAM)
    pair.engine.send_response(ids[0], head(), b"one", ended=True)
    pair.engine.release(ids[0])
    pair.exchange()
    assert pair.body(ids[0]) == b"one"
    pair.request()
    assert [type(event) for event in pair.exchange()] == [RequestReceived]


def test_a_stream_counts_until_the_applications_call_has_returned():
    """CVE-2023-44487: resetting a stream does not make room for another handler."""
    pair = Pair(max_concurrent_streams=1)
    first = pair.request()
    pair.exchange()
    pair.client.reset_stream(first)
    pair.client.send_headers(3, GET, end_stream=True)
    assert [type(event) for event in pair.exchange()] == [StreamReset, PeerViolation]
    pair.engine.release(first)
    pair.client.send_headers(5, GET, end_stream=True)
    assert [type(event) for event in pair.exchange()] == [RequestReceived]


@pytest.mark.parametrize(
    "fields",
    [
        GET[1:],
        [*GET, (b"Upper", b"x")],
        [*GET, (b"connection", b"close")],
        [*GET, (b"te", b"gzip")],
        [*GET, (b":status", b"200")],
        [*GET, (b"x", b"a\nb")],
    ],
)
def test_malformed_requests_are_stream_errors(pair, fields):
    """RFC 9113 §8.1.1: PROTOCOL_ERROR on the stream; the connection goes on."""
    stream_id = pair.request(fields)
    [violation] = pair.exchange()
    assert (violation.reason, violation.stream_id) == (Refusal.HTTP2_BAD_HEADERS, stream_id)
    [reset] = pair.take(h2.events.StreamReset)
    assert reset.error_code == ErrorCodes.PROTOCOL_ERROR
    pair.request()
    assert [type(event) for event in pair.exchange()] == [RequestReceived]


def test_too_large_a_field_section_is_answered_with_431():
    pair = Pair(max_header_list_size=1000)
    stream_id = pair.request([*GET, (b"x", b"y" * 1000)])
    [violation] = pair.exchange()
    assert violation.reason is Refusal.HTTP2_HEADERS_TOO_LARGE
    [response] = pair.take(h2.events.ResponseReceived)
    assert response.headers[0] == (b":status", b"431")
    assert pair.engine.is_idle
    assert stream_id == 1


def test_a_compression_bomb_ends_the_connection():
    """CVE-2016-6581: small on the wire, large once indexed fields are expanded."""
    pair = Pair(max_header_list_size=4000)
    pair.request([*GET, (b"bomb", b"y" * 2000)])
    pair.request([*GET, *[(b"bomb", b"y" * 2000)] * 20])
    events = pair.exchange()
    assert [type(event) for event in events[-2:]] == [PeerViolation, ConnectionEnded]
    assert events[-2].reason is Refusal.HTTP2_HEADERS_TOO_LARGE
    assert pair.goaways()[0][0] == ErrorCodes.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("fields", [CONNECT, [*WEBSOCKET[:1], (b":protocol", b"ip"), *GET[1:]]])
def test_other_tunnels_are_not_implemented(pair, fields):
    pair.request(fields, end=False)
    [violation] = pair.exchange()
    assert violation.stream_id == 1
    [response] = pair.take(h2.events.ResponseReceived)
    assert response.headers[0] == (b":status", b"501")
    assert pair.engine.is_idle


@pytest.mark.parametrize(
    "sent",
    [
        [frame(FrameType.DATA, 1, b"123", Flag.END_STREAM)],
        [frame(FrameType.DATA, 1, b"123456")],
        [frame(FrameType.DATA, 1, b"12345"), frame(FrameType.DATA, 1, b"6")],
        [frame(FrameType.HEADERS, 1, b"\x00\x01t\x011", Flag.END_STREAM | Flag.END_HEADERS)],
    ],
)
def test_a_body_of_another_length_than_announced_is_a_stream_error(pair, sent):
    """RFC 9113 §8.1.1."""
    pair.request([*POST, (b"content-length", b"5")], end=False)
    pair.exchange()
    events = pair.feed(b"".join(sent))
    assert (events[-1].reason, events[-1].stream_id) == (Refusal.BODY_LENGTH_MISMATCH, 1)
    assert pair.take(h2.events.StreamReset)[0].error_code == ErrorCodes.PROTOCOL_ERROR
    assert pair.engine.release(1) == []
    assert pair.engine.is_idle


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (frame(FrameType.WINDOW_UPDATE, 1, bytes(4)), ErrorCodes.PROTOCOL_ERROR),
        (frame(FrameType.PRIORITY, 1, bytes(4)), ErrorCodes.FRAME_SIZE_ERROR),
    ],
)
def test_a_malformed_frame_of_a_stream_ends_that_stream(pair, raw, code):
    """RFC 9113 §6.3, §6.9."""
    pair.request(POST, end=False)
    pair.exchange()
    [violation] = pair.feed(raw)
    assert violation.stream_id == 1
    assert pair.take(h2.events.StreamReset)[0].error_code == code
    assert pair.request() == 3
    assert [type(event) for event in pair.exchange()] == [RequestReceived]


def test_trailers_without_an_end_are_a_stream_error(pair):
    """RFC 9113 §8.1."""
    pair.request(POST, end=False)
    pair.exchange()
    [violation] = pair.feed(frame(FrameType.HEADERS, 1, b"\x00\x01t\x011", Flag.END_HEADERS))
    assert violation.reason is Refusal.HTTP2_BAD_HEADERS
    assert pair.take(h2.events.StreamReset)[0].error_code == ErrorCodes.PROTOCOL_ERROR


@pytest.mark.slow
@pytest.mark.parametrize("kind", [FrameType.DATA, FrameType.HEADERS])
def test_frames_on_a_stream_that_is_over_are_counted(pair, kind):
    """h2 answers each with RST_STREAM (CVE-2025-8671)."""
    stream_id = pair.request()
    pair.exchange()
    pair.client.reset_stream(stream_id)
    pair.exchange()
    pair.engine.release(stream_id)
    payload, flags = (b"x", 0) if kind is FrameType.DATA else (b"\x82", Flag.END_HEADERS)
    events = []
    for _ in range(LATE_BURST + 1):
        events += pair.engine.receive_data(frame(kind, stream_id, payload, flags))
        pair.engine.data_to_send()
    assert events[0].reason is Refusal.HTTP2_STREAM_CLOSED
    assert type(events[-1]) is ConnectionEnded


def test_a_protocol_error_ends_the_connection(pair):
    events = pair.feed(frame(FrameType.DATA, 7, b"x"))
    assert [type(event) for event in events] == [PeerViolation, ConnectionEnded]
    assert pair.engine.data_to_send() == b""


def test_an_overlong_frame_ends_the_connection(pair):
    events = pair.feed(frame(FrameType.DATA, 1, bytes(16385)))
    assert events[0].reason is Refusal.HTTP2_FRAME_SIZE
    assert pair.goaways() == [(ErrorCodes.FRAME_SIZE_ERROR, 0)]
    assert pair.engine.close() == pair.engine.begin_drain() == pair.engine.finish_drain() == []
    pair.engine.send_ping(bytes(8))
    assert pair.engine.data_to_send() == b""


# Floods


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (frame(FrameType.PING, 0, bytes(8)), Refusal.HTTP2_PING_FLOOD),
        (frame(FrameType.SETTINGS, 0, b""), Refusal.HTTP2_SETTINGS_FLOOD),
        (frame(FrameType.PRIORITY, 1, bytes(4) + b"\x10"), Refusal.HTTP2_PRIORITY_FLOOD),
        (frame(FrameType.PRIORITY_UPDATE, 0, bytes(3) + b"\x07u=1"), Refusal.HTTP2_PRIORITY_FLOOD),
        (frame(FrameType.DATA, 1, b""), Refusal.HTTP2_EMPTY_FRAME_FLOOD),
        (frame(0x77, 0, b"x"), Refusal.HTTP2_EMPTY_FRAME_FLOOD),
    ],
)
def test_floods_of_frames_without_use_are_ended(pair, raw, reason):
    """CVE-2019-9512, 9515, 9518 and what is like them."""
    pair.request(POST, end=False)
    pair.exchange()
    events = []
    for _ in range(CONTROL_BURST + 10):
        events += pair.feed(raw)
    assert [type(event) for event in events] == [PeerViolation, ConnectionEnded]
    assert events[0].reason is reason
    assert pair.goaways()[0][0] == ErrorCodes.ENHANCE_YOUR_CALM


def test_a_ping_now_and_then_is_no_flood(pair):
    for _ in range(3 * CONTROL_BURST):
        pair.clock.now += 0.1
        assert pair.feed(frame(FrameType.PING, 0, bytes(8))) == []


def test_rapid_resets_are_ended():
    """CVE-2023-44487."""
    pair = Pair(max_resets=20)
    events = []
    for _ in range(30):
        stream_id = pair.request()
        pair.client.reset_stream(stream_id)
        events += pair.exchange()
        pair.engine.release(stream_id)
        if any(isinstance(event, ConnectionEnded) for event in events):
            break
    assert sum(isinstance(event, RequestReceived) for event in events) == 21
    assert events[-2].reason is Refusal.HTTP2_RESET_FLOOD
    assert pair.goaways()[0][0] == ErrorCodes.ENHANCE_YOUR_CALM


def test_making_us_reset_counts_as_well():
    """CVE-2025-8671 (MadeYouReset): a window that overflows makes the server reset."""
    pair = Pair(max_resets=5)
    reasons = []
    for _ in range(10):
        stream_id = pair.request(POST, end=False)
        pair.exchange()
        raw = frame(FrameType.WINDOW_UPDATE, stream_id, (2**31 - 1).to_bytes(4))
        events = pair.feed(raw)
        pair.engine.release(stream_id)
        reasons += [event.reason for event in events if isinstance(event, PeerViolation)]
        if any(isinstance(event, ConnectionEnded) for event in events):
            break
    assert reasons == [Refusal.HTTP2_FLOW_CONTROL] * 6 + [Refusal.HTTP2_RESET_FLOOD]


# Flow control


def test_windows_open_only_as_the_application_reads():
    pair = Pair(stream_window=65536, connection_window=131072)
    stream_id = pair.request(POST, end=False)
    for _ in range(4):
        pair.client.send_data(stream_id, bytes(16384))
    received = pair.exchange()[1:]
    assert pair.client.local_flow_control_window(stream_id) == 0
    for event in received:
        pair.engine.acknowledge(stream_id, event.credit)
    pair.exchange()
    assert pair.client.local_flow_control_window(stream_id) >= 32768


def test_more_credit_than_was_received_is_not_given():
    pair = Pair()
    stream_id = pair.request(POST, end=False)
    pair.client.send_data(stream_id, b"abc")
    pair.exchange()
    pair.engine.acknowledge(stream_id, 1 << 30)
    assert pair.exchange() == []


def test_what_nobody_read_is_credited_to_the_connection():
    pair = Pair(stream_window=65536, connection_window=65536)
    for _ in range(20):
        stream_id = pair.request(POST, end=False)
        pair.client.send_data(stream_id, bytes(16384))
        pair.client.reset_stream(stream_id)
        pair.exchange()
        pair.engine.release(stream_id)
    pair.exchange()
    assert pair.client.outbound_flow_control_window >= 32768


def test_a_sender_waits_for_the_window_and_goes_on():
    pair = Pair(
        client_settings={SettingCodes.INITIAL_WINDOW_SIZE: 1000}, high_water=2000, low_water=500
    )
    stream_id = pair.request()
    pair.exchange()
    body = bytes(range(256)) * 20
    events = pair.engine.send_response(stream_id, head(length=len(body)), body, ended=True)
    assert events == [StreamPaused(stream_id)]
    events, received = [], b""
    while len(received) < len(body):
        events += pair.exchange()
        part = pair.body(stream_id)
        assert len(part) <= 1000
        received += part
        pair.client.acknowledge_received_data(len(part), stream_id)
    assert received == body
    assert pair.take(h2.events.StreamEnded)
    assert events == [StreamResumed(stream_id)]


def test_a_paused_stream_is_resumed_below_the_low_mark():
    pair = Pair(
        client_settings={SettingCodes.INITIAL_WINDOW_SIZE: 1000}, high_water=2000, low_water=500
    )
    stream_id = pair.request()
    pair.exchange()
    pair.engine.send_response(stream_id, head(), bytes(2400), ended=False)
    assert pair.engine.send_body(stream_id, bytes(10), ended=False) == []  # told already
    pair.exchange()
    assert pair.exchange() == []
    pair.client.increment_flow_control_window(1000, stream_id)
    assert pair.exchange() == [StreamResumed(stream_id)]
    assert pair.engine.send_body(stream_id, bytes(1700), ended=False) == [StreamPaused(stream_id)]


def test_frames_keep_to_the_peers_frame_size(pair):
    stream_id = pair.request()
    pair.exchange()
    pair.engine.send_response(stream_id, head(), bytes(40000), ended=True)
    pair.exchange()
    sizes = [len(event.data) for event in pair.take(h2.events.DataReceived)]
    assert sizes == [16384, 16384, 7232]


def test_a_peer_that_never_opens_its_window_is_given_up():
    pair = Pair(client_settings={SettingCodes.INITIAL_WINDOW_SIZE: 0})
    stream_id = pair.request()
    pair.exchange()
    pair.engine.send_response(stream_id, head(), b"x", ended=True)
    pair.exchange()
    pair.clock.now += 29
    assert pair.engine.drop_stalled(30) == []
    pair.clock.now += 1
    [violation] = pair.engine.drop_stalled(30)
    assert (violation.reason, violation.stream_id) == (Refusal.HTTP2_STALLED, stream_id)
    pair.exchange()
    assert [event.error_code for event in pair.take(h2.events.StreamReset)] == [ErrorCodes.CANCEL]
    pair.engine.release(stream_id)
    assert pair.engine.is_idle


def test_a_stream_without_window_does_not_hold_up_another():
    pair = Pair(client_settings={SettingCodes.INITIAL_WINDOW_SIZE: 0})
    first, second = pair.request(), pair.request()
    pair.exchange()
    for stream_id in (first, second):
        pair.engine.send_response(stream_id, head(), b"x" * 100, ended=True)
    pair.client.increment_flow_control_window(1000, second)
    pair.exchange()
    assert pair.body(second) == b"x" * 100


def test_bodies_wait_while_control_frames_go(pair):
    stream_id = pair.request()
    pair.exchange()
    pair.engine.send_response(stream_id, head(200), b"body", ended=True)
    assert pair.engine.receive_data(frame(FrameType.PING, 0, b"question")) == []
    kinds = [kind for kind, _ in frame_types(pair.engine.control_to_send())]
    assert kinds == [FrameType.HEADERS, FrameType.PING]
    assert pair.engine.control_to_send() == b""
    assert frame_types(pair.engine.data_to_send()) == [(FrameType.DATA, b"body")]


def test_a_body_that_does_not_come_is_answered_with_408(pair):
    stream_id = pair.request(POST, end=False)
    pair.exchange()
    [violation] = pair.engine.time_out(stream_id)
    assert (violation.reason, violation.stream_id) == (Refusal.BODY_TIMEOUT, stream_id)
    assert pair.engine.time_out(stream_id) == []
    pair.exchange()
    [response] = pair.take(h2.events.ResponseReceived)
    assert response.headers[0] == (b":status", b"408")
    assert [event.error_code for event in pair.take(h2.events.StreamReset)] == [0]
    pair.engine.release(stream_id)
    assert pair.engine.is_idle


def test_a_body_that_stops_within_the_response_breaks_it_off(pair):
    stream_id = pair.request(POST, end=False)
    pair.exchange()
    pair.engine.send_response(stream_id, head(), b"x", ended=False)
    [violation] = pair.engine.time_out(stream_id)
    assert violation.reason is Refusal.BODY_TIMEOUT
    pair.exchange()
    assert [event.error_code for event in pair.take(h2.events.StreamReset)] == [ErrorCode.CANCEL]


# Order of sending


def send_together(pair, *priorities):
    """Bodies of 40,000 bytes, queued before anything may leave; the order in which streams come."""
    ids = [
        pair.request([*GET, (b"priority", value)] if value is not None else GET)
        for value in priorities
    ]
    pair.exchange()
    for stream_id in ids:
        pair.engine.send_response(stream_id, head(), bytes(40000), ended=True)
    pair.exchange()
    return ids, [event.stream_id for event in pair.take(h2.events.DataReceived)]


def wide():
    made = Pair(client_settings={SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    made.client.increment_flow_control_window(1 << 24)
    return made


def test_the_most_urgent_goes_first():
    (low, high, usual), order = send_together(wide(), b"u=5", b"u=1", None)
    assert order == [high] * 3 + [usual] * 3 + [low] * 3


def test_streams_of_equal_rank_go_one_after_the_other():
    (first, second), order = send_together(wide(), None, None)
    assert order == [first] * 3 + [second] * 3


def test_incremental_streams_take_turns():
    (first, second), order = send_together(wide(), b"i", b"i")
    assert order == [first, second] * 3


def test_a_priority_update_changes_the_order():
    pair = wide()
    update = (3).to_bytes(4) + b"u=0"
    pair.feed(frame(FrameType.PRIORITY_UPDATE, 0, update))  # ahead of its stream
    ids = [pair.request(), pair.request(), pair.request()]
    pair.exchange()
    pair.feed(frame(FrameType.PRIORITY_UPDATE, 0, (5).to_bytes(4) + b"u=1"))
    for stream_id in ids:
        pair.engine.send_response(stream_id, head(), b"x", ended=True)
    pair.exchange()
    assert [event.stream_id for event in pair.take(h2.events.DataReceived)] == [3, 5, 1]


def test_early_priorities_are_bounded(pair):
    for number in range(MAX_EARLY_PRIORITIES + 10):
        update = (2 * number + 1).to_bytes(4) + b"u=0"
        assert pair.feed(frame(FrameType.PRIORITY_UPDATE, 0, update)) == []
    last = 2 * MAX_EARLY_PRIORITIES + 1
    pair.client.send_headers(last, GET, end_stream=True)
    assert [type(event) for event in pair.exchange()] == [RequestReceived]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (frame(FrameType.PRIORITY_UPDATE, 1, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(FrameType.PRIORITY_UPDATE, 0, bytes(3)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(FrameType.PRIORITY_UPDATE, 0, bytes(4)), ErrorCode.PROTOCOL_ERROR),
        (frame(FrameType.GOAWAY, 1, bytes(8)), ErrorCode.PROTOCOL_ERROR),
        (frame(FrameType.GOAWAY, 0, bytes(7)), ErrorCode.FRAME_SIZE_ERROR),
    ],
)
def test_malformed_frames_that_h2_does_not_see(pair, raw, code):
    events = pair.feed(raw)
    assert [type(event) for event in events] == [PeerViolation, ConnectionEnded]
    assert pair.goaways() == [(ErrorCodes(code), 0)]


@pytest.mark.parametrize("kind", [FrameType.GOAWAY, FrameType.PRIORITY_UPDATE])
def test_nothing_comes_between_a_head_and_its_continuation(pair, kind):
    block = pair.client.encoder.encode(GET)
    pair.feed(frame(FrameType.HEADERS, 1, block[:5]))
    events = pair.feed(frame(kind, 0, bytes(8)))
    assert [type(event) for event in events] == [PeerViolation, ConnectionEnded]


def test_a_head_in_continuations(pair):
    block = pair.client.encoder.encode(GET)
    pair.client.get_next_available_stream_id()
    assert pair.engine.receive_data(frame(FrameType.HEADERS, 1, block[:5], Flag.END_STREAM)) == []
    [event] = pair.engine.receive_data(
        frame(FrameType.CONTINUATION, 1, block[5:], Flag.END_HEADERS)
    )
    assert (event.target, event.ended) == (b"/a?b", True)


# Versions


def test_where_http2_is_off_the_peer_is_sent_to_http1(pair):
    events = pair.engine.refuse()
    assert [type(event) for event in events] == [PeerViolation, ConnectionEnded]
    assert events[0].reason is Refusal.VERSION_DISABLED
    pair.seen += pair.client.receive_data(pair.engine.data_to_send())
    assert pair.goaways() == [(ErrorCodes.HTTP_1_1_REQUIRED, 0)]


def upgraded(settings, **request):
    engine = Http2Connection(Http2Config(), FlowConfig(), now=Clock(), h2c_settings=settings)
    event = RequestReceived(
        **{
            "stream_id": 7,
            "method": "GET",
            "target": b"/a",
            "headers": [
                (b"host", b"example.org"),
                (b"connection", b"upgrade, http2-settings"),
                (b"upgrade", b"h2c"),
                (b"http2-settings", settings),
                (b"priority", b"u=1"),
            ],
            "http_version": "1.1",
            "ended": True,
            **request,
        }
    )
    return engine, engine.begin_upgraded(event)


def test_a_request_is_upgraded_to_stream_1():
    """RFC 7540 §3.2: SETTINGS come with the request; the answer is on stream 1."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
    settings = client.initiate_upgrade_connection().rstrip(b"=")
    engine, request = upgraded(settings)
    fields = [(b"host", b"example.org"), (b"priority", b"u=1")]
    assert request == RequestReceived(1, "GET", b"/a", fields, "2", ended=True)
    engine.send_response(1, head(length=2), b"ok", ended=True)
    engine.release(1)
    events = client.receive_data(engine.data_to_send())
    assert isinstance(events[0], h2.events.RemoteSettingsChanged)
    assert [e.data for e in events if isinstance(e, h2.events.DataReceived)] == [b"ok"]
    assert engine.receive_data(client.data_to_send()) == []
    assert engine.is_idle
    client.send_headers(3, GET, end_stream=True)
    [event] = engine.receive_data(client.data_to_send())
    assert event.stream_id == 3


def test_the_settings_of_an_upgrade_are_obeyed():
    window = base64.urlsafe_b64encode(b"\0\4" + (5).to_bytes(4)).rstrip(b"=")
    engine, _ = upgraded(window, method="HEAD", ended=False)
    engine.send_response(1, head(length=9), b"", ended=True)
    engine, _ = upgraded(window)
    engine.send_response(1, head(length=9), b"123456789", ended=True)
    sent = frame_types(engine.data_to_send())
    assert [payload for kind, payload in sent if kind == FrameType.DATA] == [b"12345"]


@pytest.mark.parametrize(
    "settings",
    [
        b"!!!!",
        b"AAA=A",
        b"AAQ+++//",
        b"AAQ",
        base64.urlsafe_b64encode(b"\0\4\xff\xff\xff\xff"),
        base64.urlsafe_b64encode(b"\0\2" + (7).to_bytes(4)),
        b"A" * 5,
    ],
)
def test_wrong_settings_prevent_an_upgrade(settings):
    with pytest.raises(ValueError, match="HTTP2-Settings"):
        upgraded(settings)


@given(st.binary(max_size=40))
def test_settings_of_an_upgrade_never_raise_anything_else(settings):
    with contextlib.suppress(ValueError):
        upgraded(settings)


# Tunnels


def test_a_websocket_tunnel(pair):
    stream_id = pair.request(WEBSOCKET, end=False)
    [request] = pair.exchange()
    assert (request.protocol, request.method, request.ended) == ("websocket", "CONNECT", False)
    pair.engine.accept_tunnel(stream_id, [(b"sec-websocket-protocol", b"chat")])
    pair.engine.send_body(stream_id, b"frame", ended=False)
    pair.exchange()
    [response] = pair.take(h2.events.ResponseReceived)
    assert response.headers == [(b":status", b"200"), (b"sec-websocket-protocol", b"chat")]
    pair.client.send_data(stream_id, b"answer")
    assert pair.exchange() == [BodyReceived(stream_id, b"answer", 6)]
    # We end first: the peer's half is still waited for, not reset.
    pair.engine.send_body(stream_id, b"", ended=True)
    pair.exchange()
    assert pair.take(h2.events.StreamEnded)
    assert not pair.take(h2.events.StreamReset)
    pair.client.end_stream(stream_id)
    assert pair.exchange() == [BodyEnded(stream_id)]
    pair.engine.release(stream_id)
    assert pair.engine.is_idle


def ended_tunnel(pair):
    """We have ended our side, the application has returned."""
    stream_id = pair.request(WEBSOCKET, end=False)
    pair.exchange()
    pair.engine.accept_tunnel(stream_id, [])
    pair.engine.send_body(stream_id, b"bye", ended=True)
    pair.exchange()
    pair.engine.release(stream_id)
    pair.exchange()
    return stream_id


def test_a_tunnel_whose_peer_does_not_end_it_is_reset_after_a_while(pair):
    ended_tunnel(pair)
    pair.engine.begin_drain()
    assert pair.engine.finish_drain() == []
    assert not pair.take(h2.events.StreamReset)
    pair.clock.now += TUNNEL_LINGER
    assert [type(event) for event in pair.engine.drop_stalled(60)] == [ConnectionEnded]
    sent = frame_types(pair.engine.data_to_send())
    assert (FrameType.RST_STREAM, ErrorCode.NO_ERROR.to_bytes(4)) in sent
    assert pair.engine.is_idle


def test_a_tunnel_that_both_sides_end_is_not_reset(pair):
    stream_id = ended_tunnel(pair)
    pair.client.send_data(stream_id, b"late", end_stream=True)
    assert pair.exchange() == []
    assert pair.engine.is_idle
    pair.clock.now += TUNNEL_LINGER
    assert pair.engine.drop_stalled(60) == []
    pair.exchange()
    assert not pair.take(h2.events.StreamReset)


def test_a_tunnel_that_breaks_is_cancelled(pair):
    """RFC 8441 §5."""
    stream_id = pair.request(WEBSOCKET, end=False)
    pair.exchange()
    pair.engine.accept_tunnel(stream_id, [])
    pair.engine.reset_stream(stream_id)
    pair.exchange()
    assert [event.error_code for event in pair.take(h2.events.StreamReset)] == [ErrorCode.CANCEL]


# Ends


def test_an_early_answer_stops_the_upload_without_error(pair):
    """RFC 9113 §8.1: RST_STREAM NO_ERROR behind a complete response."""
    stream_id = pair.request(POST, end=False)
    pair.exchange()
    pair.engine.send_response(stream_id, head(413), b"no", ended=True)
    pair.engine.release(stream_id)
    pair.exchange()
    assert pair.body(stream_id) == b"no"
    [reset] = pair.take(h2.events.StreamReset)
    assert reset.error_code == ErrorCodes.NO_ERROR
    assert pair.engine.is_idle


def test_a_small_body_that_came_with_its_head_is_not_stopped(pair):
    stream_id = pair.request(POST, end=False)
    pair.client.send_data(stream_id, b"small", end_stream=True)
    for event in pair.engine.receive_data(pair.client.data_to_send()):
        if isinstance(event, RequestReceived):
            pair.engine.send_response(stream_id, head(), b"ok", ended=True)
            pair.engine.release(stream_id)
    pair.exchange()
    assert pair.body(stream_id) == b"ok"
    assert not pair.take(h2.events.StreamReset)
    assert pair.engine.is_idle


def test_body_and_trailers_behind_an_early_answer_are_dropped(pair):
    """One read may bring the head, which the application answers at once, and all that follows."""
    stream_id = pair.request(POST, end=False)
    pair.client.send_data(stream_id, b"x")
    [request, _] = pair.engine.receive_data(pair.client.data_to_send())
    pair.engine.send_response(request.stream_id, head(), b"", ended=True)
    pair.engine.release(request.stream_id)
    pair.client.send_data(stream_id, b"y")
    assert pair.engine.receive_data(pair.client.data_to_send()) == []
    pair.client.send_headers(stream_id, [(b"t", b"1")], end_stream=True)
    assert [type(e) for e in pair.engine.receive_data(pair.client.data_to_send())] == [BodyEnded]
    assert pair.engine.is_idle
    pair.exchange()
    assert not pair.take(h2.events.StreamReset)


def test_malformed_trailers_behind_an_early_answer_end_nothing_twice(pair):
    """Found by fuzzing: they close the stream, so that there is nothing to reset."""
    stream_id = pair.request(POST, end=False)
    [request] = pair.engine.receive_data(pair.client.data_to_send())
    pair.engine.send_response(request.stream_id, head(), b"", ended=True)
    pair.client.send_headers(stream_id, [(b"T", b"1")], end_stream=True)
    [violation] = pair.engine.receive_data(pair.client.data_to_send())
    assert violation.reason is Refusal.HTTP2_BAD_HEADERS
    pair.engine.release(stream_id)
    pair.exchange()
    assert pair.engine.is_idle
    assert not pair.take(h2.events.StreamReset)


def test_data_behind_our_reset_is_credited(pair):
    stream_id = pair.request(POST, end=False)
    pair.exchange()
    pair.engine.reset_stream(stream_id)
    pair.engine.release(stream_id)
    pair.client.send_data(stream_id, bytes(1000))
    assert pair.exchange() == []
    pair.engine.reset_stream(stream_id)


def test_a_reset_by_the_peer_ends_the_exchange(pair):
    stream_id = pair.request(POST, end=False)
    pair.exchange()
    pair.engine.send_response(stream_id, head(), bytes(100), ended=False)
    pair.client.reset_stream(stream_id, ErrorCodes.CANCEL)
    assert pair.exchange() == [StreamReset(stream_id)]
    assert pair.engine.send_body(stream_id, b"more", ended=True) == []
    pair.engine.release(stream_id)
    assert pair.engine.is_idle
    assert pair.feed(frame(FrameType.RST_STREAM, stream_id, bytes(4))) == []


def test_drain_in_two_phases(pair):
    """RFC 9113 §6.8."""
    first = pair.request()
    pair.exchange()
    assert pair.engine.begin_drain() == []
    assert pair.engine.begin_drain() == []
    going, ping = frame_types(pair.engine.data_to_send())
    assert going == (FrameType.GOAWAY, (2**31 - 1).to_bytes(4) + bytes(4))
    assert ping[0] == FrameType.PING
    # A stream that was under way when the first GOAWAY was sent is still served.
    block = pair.client.encoder.encode(GET)
    flags = Flag.END_HEADERS | Flag.END_STREAM
    [event] = pair.engine.receive_data(frame(FrameType.HEADERS, 3, block, flags))
    assert event.stream_id == 3
    assert pair.engine.finish_drain() == []
    assert pair.engine.finish_drain() == []
    # One above the last is refused, and may be tried elsewhere.
    block = pair.client.encoder.encode(GET)
    assert pair.engine.receive_data(frame(FrameType.HEADERS, 5, block, flags)) == []
    for stream_id in (first, 3):
        pair.engine.send_response(stream_id, head(), b"", ended=True)
    assert pair.engine.release(first) == []
    assert [type(event) for event in pair.engine.release(3)] == [ConnectionEnded]
    sent = frame_types(pair.engine.data_to_send())
    assert sent[0] == (FrameType.GOAWAY, (3).to_bytes(4) + bytes(4))
    assert (FrameType.RST_STREAM, ErrorCode.REFUSED_STREAM.to_bytes(4)) in sent


def test_the_answer_to_a_ping_ends_the_first_phase(pair):
    """A round trip is over: no stream can be under way that does not know of the GOAWAY."""
    pair.request()
    pair.exchange()
    pair.engine.begin_drain()
    _, (kind, payload) = frame_types(pair.engine.data_to_send())
    assert pair.engine.receive_data(frame(FrameType.PING, 0, bytes(8), Flag.ACK)) == []
    assert pair.engine.receive_data(frame(kind, 0, payload, Flag.ACK)) == []
    [(kind, payload)] = frame_types(pair.engine.data_to_send())
    assert (kind, payload) == (FrameType.GOAWAY, (1).to_bytes(4) + bytes(4))


@pytest.mark.parametrize("end", ["data", "trailers", "reset"])
def test_the_end_of_a_drain_does_not_depend_on_what_ends_the_last_stream(pair, end):
    stream_id = pair.request(POST, end=False)
    [request] = pair.engine.receive_data(pair.client.data_to_send())
    pair.engine.finish_drain()
    pair.engine.send_response(request.stream_id, head(), b"", ended=True)
    pair.engine.release(request.stream_id)
    match end:
        case "data":
            pair.client.send_data(stream_id, b"x", end_stream=True)
        case "trailers":
            pair.client.send_headers(stream_id, [(b"t", b"1")], end_stream=True)
        case "reset":
            pair.client.reset_stream(stream_id)
    events = pair.engine.receive_data(pair.client.data_to_send())
    assert type(events[-1]) is ConnectionEnded


def test_an_upload_that_is_stopped_ends_the_drain(pair):
    stream_id = pair.request(POST, end=False)
    pair.exchange()
    pair.engine.finish_drain()
    pair.engine.send_response(stream_id, head(), b"", ended=True)
    pair.engine.release(stream_id)
    assert pair.engine.sent_events() == []
    assert (FrameType.RST_STREAM, bytes(4)) in frame_types(pair.engine.data_to_send())
    assert [type(event) for event in pair.engine.sent_events()] == [ConnectionEnded]


def frame_types(raw):
    made = FrameCutter(max_header_block=1 << 20)
    cut_up = made.receive_untrusted(HTTP2_PREFACE + raw)
    return [(cut.kind, cut.payload) for cut in cut_up if cut.kind is not None]


def test_draining_an_idle_connection_ends_it(pair):
    pair.engine.begin_drain()
    assert [type(event) for event in pair.engine.finish_drain()] == [ConnectionEnded]


def test_the_end_of_a_drain_waits_for_what_is_queued():
    pair = Pair(client_settings={SettingCodes.INITIAL_WINDOW_SIZE: 3})
    stream_id = pair.request()
    pair.exchange()
    pair.engine.send_response(stream_id, head(), b"abcdef", ended=True)
    pair.engine.release(stream_id)
    pair.engine.finish_drain()
    out = pair.engine.data_to_send()
    assert pair.engine.sent_events() == []
    events = pair.engine.receive_data(frame(FrameType.WINDOW_UPDATE, stream_id, (100).to_bytes(4)))
    assert events == []
    out += pair.engine.data_to_send()
    assert [type(event) for event in pair.engine.sent_events()] == [ConnectionEnded]
    data = [payload for kind, payload in frame_types(out) if kind == FrameType.DATA]
    assert b"".join(data) == b"abcdef"


def test_a_peer_that_goes_away_still_gets_its_answers(pair):
    stream_id = pair.request()
    pair.exchange()
    assert pair.feed(frame(FrameType.GOAWAY, 0, bytes(8))) == []
    pair.engine.send_response(stream_id, head(), b"late", ended=True)
    assert [type(event) for event in pair.engine.release(stream_id)] == []
    out = pair.engine.data_to_send()
    assert (FrameType.DATA, b"late") in frame_types(out)
    assert [type(event) for event in pair.engine.sent_events()] == [ConnectionEnded]


def test_an_idle_peer_that_goes_away_ends_the_connection(pair):
    events = pair.feed(frame(FrameType.GOAWAY, 0, bytes(8)))
    assert [type(event) for event in events] == [ConnectionEnded]


def test_close_says_goodbye(pair):
    assert [type(event) for event in pair.engine.close()] == [ConnectionEnded]
    pair.seen += pair.client.receive_data(pair.engine.data_to_send())
    assert pair.goaways() == [(ErrorCodes.NO_ERROR, 0)]
    assert pair.engine.release(1) == []


def test_ping_asks_for_a_sign_of_life(pair):
    pair.engine.send_ping(b"12345678")
    pair.exchange()
    assert [event.ping_data for event in pair.take(h2.events.PingReceived)] == [b"12345678"]
