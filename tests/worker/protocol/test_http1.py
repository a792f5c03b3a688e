"""The HTTP/1.1 engine with both parsers: what it accepts, what it writes, when it closes."""

from __future__ import annotations

import http.client
import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asgiri.config import Http1Config
from asgiri.errors import AppError, LocalProtocolError
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.events import (
    BodyEnded,
    BodyReceived,
    ConnectionEnded,
    Event,
    HalfClosed,
    Headers,
    PeerViolation,
    RequestReceived,
    ResponseHead,
)
from asgiri.worker.protocol.headers import ResponseDefaults, response_head
from asgiri.worker.protocol.http1 import MAX_SWALLOWED, PIPELINE_MARK, Http1Connection, Http1Phase
from tests.conformance.http1_cases import CASES, DEFAULT_LIMITS, Case
from tests.support.http1_engine import (
    DEFAULTS,
    PARSERS,
    Request,
    Transcript,
    connection,
    converse,
)
from tests.support.http1_requests import cut_up, streams

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
GET_10 = b"GET / HTTP/1.0\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nhost: a\r\n\r\n"
CONNECT = b"CONNECT b:443 HTTP/1.1\r\nhost: b:443\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
KEY = b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
WEBSOCKET = (
    b"GET /w HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n" + KEY + b"\r\n"
)
H2C = (
    b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade, http2-settings\r\n"
    b"http2-settings: AAMAAABkAAQAAP__\r\n"
)


@pytest.fixture(params=list(PARSERS))
def parser_name(request: pytest.FixtureRequest) -> str:
    return request.param


def post(length: int, fields: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d\r\n\r\n" % (fields, length)


def ok(*fields: tuple[bytes, bytes], status: int = 200) -> ResponseHead:
    return response_head(status, fields, defaults=DEFAULTS)


def opened(request: bytes) -> Http1Connection:
    """A connection that has received `request`."""
    engine = connection()
    (event, *_) = engine.receive_data(request)
    assert isinstance(event, RequestReceived)
    return engine


def read_response(raw: bytes, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
    """Let the standard library read what we wrote."""

    class Socket:
        def makefile(self, mode: str) -> io.BytesIO:
            return io.BytesIO(raw)

    response = http.client.HTTPResponse(Socket(), method=method)  # type: ignore[arg-type]
    response.begin()
    return response, response.read()


# What is accepted


def test_limits_of_the_cases_are_the_defaults():
    config = Http1Config()
    assert DEFAULT_LIMITS["request line"] == config.max_request_line
    assert DEFAULT_LIMITS["field section"] == config.max_head_size
    assert DEFAULT_LIMITS["fields"] == config.max_header_fields


def check_case(case: Case, transcript: Transcript) -> None:
    answered = transcript.answered()
    assert [(r.method, r.target, r.body, r.version) for r in answered] == [
        (seen.method, seen.target, seen.body, seen.version) for seen in case.seen
    ]
    for request, seen in zip(answered, case.seen, strict=True):
        names = {name for name, _ in seen.fields}
        assert tuple(field for field in request.headers if field[0] in names) == seen.fields
        assert tuple(request.trailers) == seen.trailers
        assert request.expects_continue is seen.expects_continue
        assert request.protocol == seen.protocol
    refusal = [] if case.refused is None else [case.refused]
    assert transcript.statuses() == [200] * len(case.seen) + refusal
    assert len(transcript.violations) == len(refusal)
    assert (transcript.ended is None) is case.stays
    if case.refused is not None:
        answer = transcript.sent[transcript.sent.rindex(b"HTTP/1.1 ") :]
        assert b"\r\nserver: asgiri\r\n" in answer
        assert b"close\r\n\r\n" in answer


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case(case: Case, parser_name: str):
    check_case(case, converse(connection(PARSERS[parser_name]()), [case.request]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_case_in_small_parts(case: Case, parser_name: str):
    step = 1 if len(case.request) < 2000 else 331
    parts = [case.request[at : at + step] for at in range(0, len(case.request), step)]
    check_case(case, converse(connection(PARSERS[parser_name]()), parts))


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), st.one_of(streams(), st.sampled_from([case.request for case in CASES])))
def test_events_do_not_depend_on_how_bytes_arrive(data: st.DataObject, stream: bytes):
    whole = converse(connection(), [stream], eof=True)
    assert converse(connection(), data.draw(cut_up(stream)), eof=True) == whole


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.data(), streams())
def test_both_parsers_agree(data: st.DataObject, stream: bytes):
    one, other = (
        converse(connection(parser()), data.draw(cut_up(stream)), eof=True)
        for parser in PARSERS.values()
    )
    for transcript in (one, other):
        transcript.violations = [(reason, "") for reason, _ in transcript.violations]
        transcript.ended = transcript.ended and "ended"
    assert one == other


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_arbitrary_bytes_never_raise(one: bytes, other: bytes):
    converse(connection(), [GET + one, other], eof=True)
    converse(connection(), [CHUNKED + one, other], eof=True)
    converse(connection(), [one, other], eof=True)


def test_what_only_the_parser_dislikes_is_refused():
    class Disliking:
        def parse_fields(self, section: bytes) -> Headers:
            raise ValueError("a matter of taste")

    transcript = converse(connection(Disliking()), [GET])
    assert transcript.statuses() == [400]
    assert transcript.violations == [(Refusal.HTTP1_BAD_REQUEST, "a matter of taste")]


def test_fields_that_are_the_same_again_are_read_the_same():
    get = b"GET /%d HTTP/1.1\r\nhost: a\r\nx: y\r\n\r\n"
    transcript = converse(connection(), [get % 1, get % 2, get.replace(b"y", b"z") % 3, get % 4])
    assert [dict(request.headers)[b"x"] for request in transcript.requests] == [
        b"y",
        b"y",
        b"z",
        b"y",
    ]
    first, second, *_ = transcript.requests
    assert first.headers is not second.headers, "an application may change its own"


def test_the_same_fields_in_a_head_that_comes_in_parts():
    transcript = converse(connection(), [GET, GET[:20], GET[20:]])
    assert transcript.requests[0] == transcript.requests[1]


def test_the_same_fields_behind_a_longer_request_line_count_against_the_limit():
    config = Http1Config(max_request_line=128)
    transcript = converse(
        connection(config=config), [GET, GET.replace(b"/ ", b"/" + b"x" * 128 + b" ")]
    )
    assert transcript.statuses() == [200, 414]


def test_long_field_sections_are_not_remembered():
    long = GET[:-2] + b"x: " + b"y" * 3000 + b"\r\n\r\n"
    transcript = converse(connection(), [long, long])
    assert len(transcript.answered()) == 2


def test_no_bytes_are_no_news():
    engine = connection()
    assert engine.receive_data(b"") == []
    assert engine.phase is Http1Phase.WAITING
    engine = opened(post(2))
    assert engine.receive_data(b"") == []


# Bodies


def test_body_is_passed_on_as_it_arrives_without_a_copy():
    engine = opened(post(10))
    part = b"01234"
    (event,) = engine.receive_data(part)
    assert event == BodyReceived(1, b"01234", 5)
    assert event.data is part
    assert engine.phase is Http1Phase.BODY
    assert engine.receive_data(b"56789") == [BodyReceived(1, b"56789", 5, ended=True)]
    assert engine.phase is Http1Phase.RESPONDING
    assert engine.acknowledge(1, 10) == []


def test_chunks_that_arrive_together_are_one_event():
    engine = opened(CHUNKED)
    assert engine.receive_data(b"1\r\na\r\n1\r\nb\r\n1") == [BodyReceived(1, b"ab", 2)]
    assert engine.receive_data(b"\r\nc\r\n0\r\n\r\n") == [BodyReceived(1, b"c", 1), BodyEnded(1)]


def test_violation_in_a_body_is_answered_when_no_response_has_begun():
    engine = opened(CHUNKED)
    events = engine.receive_data(b"1\r\na\r\nx\r\n")
    assert events == [
        BodyReceived(1, b"a", 1),
        PeerViolation(Refusal.HTTP1_BAD_CHUNK, "chunk line b'x\\r'"),
        ConnectionEnded("chunk line b'x\\r'"),
    ]
    response, body = read_response(engine.data_to_send())
    assert (response.status, body) == (400, b"400 Bad Request")
    assert response.headers["connection"] == "close"


def test_violation_in_a_body_says_nothing_into_a_response():
    engine = opened(CHUNKED)
    engine.send_response(1, ok((b"content-length", b"10")), b"01234", ended=False)
    engine.data_to_send()
    assert [type(event) for event in engine.receive_data(b"x\r\n")] == [
        PeerViolation,
        ConnectionEnded,
    ]
    assert engine.data_to_send() == b""


def test_refusal_of_head_has_no_body():
    for request in (b"HEAD / HTTP/1.1\r\n\r\n", HEAD[:-2] + b"transfer-encoding: gzip\r\n\r\n"):
        transcript = converse(connection(), [request])
        response, _ = read_response(transcript.sent, "HEAD")
        assert response.status == 400
        # Only a method that was read says that there is no body: not in what is no request at all.
        assert transcript.sent.endswith(b"\r\n\r\n") is (b"gzip" not in request)


# Responses


@pytest.mark.parametrize("request_head", [GET, GET_10, HEAD, CLOSE])
@pytest.mark.parametrize("status", [200, 204, 205, 304, 404, 500, 799])
@pytest.mark.parametrize("length", [None, 5])
@pytest.mark.parametrize("parts", [[b"hello"], [b"hel", b"lo"], [b"", b"", b"hello", b""]])
def test_response_is_framed(
    request_head: bytes, status: int, length: int | None, parts: list[bytes]
):
    engine = opened(request_head)
    fields = () if length is None else ((b"content-length", b"5"),)
    engine.send_response(1, ok(*fields, status=status), parts[0], ended=len(parts) == 1)
    raw = engine.data_to_send()
    for at, part in enumerate(parts[1:], 2):
        assert engine.phase is Http1Phase.RESPONDING
        engine.send_body(1, part, ended=at == len(parts))
        raw += engine.data_to_send()
    response, body = read_response(raw, "HEAD" if request_head is HEAD else "GET")
    has_body = request_head is not HEAD and status not in (204, 205, 304)
    assert response.status == status
    assert body == (b"hello" if has_body else b"")
    if request_head in (GET_10, CLOSE):
        assert response.headers["connection"] == "close"
        assert engine.phase is Http1Phase.ENDED
    else:
        assert response.headers["connection"] is None
        assert engine.phase is Http1Phase.WAITING


@pytest.mark.parametrize(
    ("request_head", "parts", "fields", "framing"),
    [
        (GET, 1, (), {"content-length": "5"}),
        (GET, 2, (), {"transfer-encoding": "chunked"}),
        (GET, 2, ((b"content-length", b"5"),), {"content-length": "5"}),
        (GET_10, 1, (), {"content-length": "5", "connection": "close"}),
        (GET_10, 2, (), {"connection": "close"}),
        (HEAD, 2, (), {}),
        (HEAD, 1, ((b"content-length", b"7"),), {"content-length": "7"}),
        (CONNECT, 1, ((b"content-length", b"5"),), {"connection": "close"}),
    ],
)
def test_framing_that_the_response_gets(request_head, parts, fields, framing):
    engine = opened(request_head)
    engine.send_response(1, ok(*fields), b"hello"[: 5 if parts == 1 else 2], ended=parts == 1)
    raw = engine.data_to_send()
    head, _, _ = raw.partition(b"\r\n\r\n")
    lines = dict(line.split(": ") for line in head.decode().split("\r\n")[1:])
    del lines["server"]
    assert lines == framing


@pytest.mark.parametrize("fields", [(), ((b"content-length", b"2"),)])
def test_refused_connect_is_framed_like_any_response(fields):
    engine = opened(CONNECT)
    assert engine.send_response(1, ok(*fields, status=405), b"no", ended=True) == [
        ConnectionEnded("the response is complete")
    ]
    response, body = read_response(engine.data_to_send())
    assert (response.headers["content-length"], response.headers["connection"]) == ("2", "close")
    assert body == b"no"


def test_http_1_0_that_asks_for_it_keeps_the_connection():
    engine = opened(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    engine.send_response(1, ok((b"content-length", b"2")), b"ok", ended=True)
    assert b"\r\nconnection: keep-alive\r\n" in engine.data_to_send()
    assert engine.phase is Http1Phase.WAITING


def test_http_1_0_loses_the_connection_when_only_its_end_ends_the_body():
    engine = opened(b"GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
    engine.send_response(1, ok(), b"ok", ended=False)
    assert engine.data_to_send().endswith(b"\r\nconnection: close\r\n\r\nok")
    assert engine.send_body(1, b"", ended=True) == [ConnectionEnded("the response is complete")]


def test_application_may_close_the_connection():
    engine = opened(GET)
    events = engine.send_response(1, ok((b"connection", b"close")), b"", ended=True)
    assert events == [ConnectionEnded("the response is complete")]
    assert b"\r\nconnection: close\r\n" in engine.data_to_send()


@pytest.mark.parametrize("size", [1000, 100_000])
def test_long_bodies_are_not_copied(size: int):
    body = b"x" * size
    engine = opened(GET)
    engine.send_response(1, ok((b"content-length", b"%d" % size)), body, ended=True)
    buffers = engine.buffers_to_send()
    assert (buffers[-1] is body) is (size > 16384)
    assert engine.buffers_to_send() == []
    engine.receive_data(GET)
    engine.send_response(2, ok(), body, ended=False)
    engine.send_body(2, body, ended=True)
    buffers = engine.buffers_to_send()
    assert any(buffer is body for buffer in buffers) is (size > 16384)
    assert read_response(b"".join(buffers))[1] == body * 2


def test_bytes_come_out_once():
    engine = opened(GET)
    assert engine.data_to_send() == b""
    engine.send_response(1, ok(), b"a", ended=False)
    engine.send_body(1, b"b", ended=True)
    assert read_response(engine.data_to_send())[1] == b"ab"
    assert engine.data_to_send() == b""
    assert engine.sent_events() == []


def test_body_longer_than_its_length_is_the_applications_error():
    engine = opened(GET)
    with pytest.raises(AppError, match="longer"):
        engine.send_response(1, ok((b"content-length", b"2")), b"abc", ended=True)
    assert engine.data_to_send() == b""
    engine.send_response(1, ok((b"content-length", b"2")), b"a", ended=False)
    engine.data_to_send()
    with pytest.raises(AppError, match="longer"):
        engine.send_body(1, b"bc", ended=False)
    assert engine.data_to_send() == b""
    assert engine.reset_stream(1) == [ConnectionEnded("the response was given up")]


def test_body_shorter_than_its_length_is_the_applications_error():
    engine = opened(GET)
    with pytest.raises(AppError, match="shorter"):
        engine.send_response(1, ok((b"content-length", b"2")), b"a", ended=True)
    engine.send_response(1, ok((b"content-length", b"2")), b"a", ended=False)
    with pytest.raises(AppError, match="shorter"):
        engine.send_body(1, b"", ended=True)
    with pytest.raises(AppError, match="shorter"):
        engine.send_trailers(1, [])
    assert engine.phase is Http1Phase.RESPONDING


def test_trailers_follow_a_chunked_body():
    engine = opened(GET)
    engine.send_response(1, ok(), b"ab", ended=False)
    assert engine.send_trailers(1, [(b"x-sum", b"1")]) == []
    assert engine.data_to_send().endswith(b"\r\n\r\n2\r\nab\r\n0\r\nx-sum: 1\r\n\r\n")
    assert engine.phase is Http1Phase.WAITING


@pytest.mark.parametrize(
    ("request_head", "fields"), [(GET, ((b"content-length", b"2"),)), (GET_10, ())]
)
def test_trailers_without_a_place_are_left_out(request_head, fields):
    engine = opened(request_head)
    engine.send_response(1, ok(*fields), b"ab", ended=False)
    engine.send_trailers(1, [(b"x-sum", b"1")])
    assert engine.data_to_send().endswith(b"\r\n\r\nab")


def test_file_between_parts_of_a_body():
    for fields in ((), ((b"content-length", b"9"),)):
        engine = opened(GET)
        engine.send_response(1, ok(*fields), b"ab", ended=False)
        assert engine.begin_file(1, 5)
        raw = engine.data_to_send() + b"-FILE"
        assert engine.end_file(1, ended=False) == []
        engine.send_body(1, b"cd", ended=True)
        assert read_response(raw + engine.data_to_send())[1] == b"ab-FILEcd"


def test_file_that_ends_the_body():
    for fields in ((), ((b"content-length", b"5"),)):
        engine = opened(GET)
        engine.send_response(1, ok(*fields), b"", ended=False)
        assert engine.begin_file(1, 5)
        raw = engine.data_to_send() + b"-FILE"
        engine.end_file(1, ended=True)
        assert read_response(raw + engine.data_to_send())[1] == b"-FILE"
        assert engine.phase is Http1Phase.WAITING


def test_no_file_for_head_nor_an_empty_one_nor_when_gone():
    engine = opened(HEAD)
    engine.send_response(1, ok(), b"", ended=False)
    assert not engine.begin_file(1, 5)
    assert engine.end_file(1, ended=True) == []
    assert not engine.begin_file(1, 5)
    assert engine.end_file(1, ended=True) == []
    engine.receive_data(GET)
    engine.send_response(2, ok(), b"", ended=False)
    assert not engine.begin_file(2, 0)
    engine.end_file(2, ended=True)
    assert engine.data_to_send().endswith(b"\r\n\r\n0\r\n\r\n")


def test_file_longer_than_the_length_is_the_applications_error():
    engine = opened(GET)
    engine.send_response(1, ok((b"content-length", b"2")), b"", ended=False)
    with pytest.raises(AppError):
        engine.begin_file(1, 3)


def test_interim_responses():
    engine = opened(GET)
    assert engine.send_informational(1, 103, [(b"link", b"</a>")]) == []
    assert engine.data_to_send() == b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"


def test_http_1_0_gets_no_interim_response():
    engine = opened(GET_10)
    engine.send_informational(1, 103, [])
    assert engine.data_to_send() == b""


# Expect: 100-continue

EXPECT = b"expect: 100-continue\r\n"


def test_continue_is_sent_once():
    engine = opened(post(2, EXPECT))
    engine.send_informational(1, 100, [])
    engine.send_informational(1, 100, [])
    assert engine.data_to_send() == b"HTTP/1.1 100 Continue\r\n\r\n"
    engine.receive_data(b"ab")
    engine.send_response(1, ok(), b"", ended=True)
    assert engine.phase is Http1Phase.WAITING


@pytest.mark.parametrize("request_head", [post(2, EXPECT) + b"a", post(2), GET])
def test_no_continue_for_a_body_that_has_begun_or_does_not_wait(request_head: bytes):
    engine = opened(request_head)
    engine.send_informational(1, 100, [])
    assert engine.data_to_send() == b""


def test_final_answer_instead_of_continue_closes():
    # The peer may send the body or leave it out: what follows cannot be told apart.
    engine = opened(post(2, EXPECT))
    assert engine.send_response(1, ok(status=417), b"", ended=True) == [
        ConnectionEnded("the response is complete")
    ]
    assert b"\r\nconnection: close\r\n" in engine.data_to_send()


# Responses before the end of the request


def test_rest_of_a_small_body_is_swallowed():
    engine = opened(post(10))
    engine.receive_data(b"01")
    assert engine.send_response(1, ok(), b"early", ended=True) == []
    assert b"close" not in engine.data_to_send()
    assert engine.phase is Http1Phase.BODY
    assert not engine.is_idle
    assert engine.receive_data(b"234") == []
    (request,) = engine.receive_data(b"56789" + GET)
    assert isinstance(request, RequestReceived)
    assert request.stream_id == 2


def test_rest_of_a_small_chunked_body_is_swallowed():
    engine = opened(CHUNKED)
    engine.send_response(1, ok(), b"early", ended=True)
    assert engine.receive_data(b"2\r\nab\r\n") == []
    assert engine.receive_data(b"0\r\n\r\n") == []
    assert engine.phase is Http1Phase.WAITING


def test_rest_of_a_large_body_closes_and_says_so():
    engine = opened(post(MAX_SWALLOWED + 1))
    assert engine.send_response(1, ok(), b"early", ended=True) == [
        ConnectionEnded("the response is complete")
    ]
    assert b"\r\nconnection: close\r\n" in engine.data_to_send()
    assert engine.receive_data(b"x") == []


def test_rest_of_a_large_body_closes_behind_a_streamed_response():
    engine = opened(post(MAX_SWALLOWED + 1))
    engine.send_response(1, ok(), b"early", ended=False)
    assert engine.send_body(1, b"", ended=True) == [
        ConnectionEnded("the response came before the end of the request")
    ]


def test_chunked_body_is_swallowed_up_to_a_limit():
    engine = opened(CHUNKED)
    engine.send_response(1, ok(), b"early", ended=True)
    chunk = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    for _ in range(MAX_SWALLOWED // len(chunk)):
        assert engine.receive_data(chunk) == []
    assert engine.receive_data(chunk) == [
        ConnectionEnded("the response came before the end of the request")
    ]


def test_violation_in_a_swallowed_body_is_counted_and_not_answered():
    engine = opened(CHUNKED)
    engine.send_response(1, ok(), b"early", ended=True)
    engine.data_to_send()
    events = engine.receive_data(b"x\r\n")
    assert [type(event) for event in events] == [PeerViolation, ConnectionEnded]
    assert engine.data_to_send() == b""


# Pipelining


def test_pipelined_requests_wait_for_the_response_before_them():
    engine = opened(GET + GET)
    assert engine.receive_data(GET) == []
    for stream_id in (1, 2):
        (request,) = engine.send_response(stream_id, ok(), b"", ended=True)
        assert isinstance(request, RequestReceived)
        assert request.stream_id == stream_id + 1
    assert engine.send_response(3, ok(), b"", ended=True) == []
    assert engine.is_idle


def test_reading_pauses_when_much_waits_behind_an_exchange():
    engine = opened(GET)
    assert not engine.is_reading_paused
    engine.receive_data(b"x" * (PIPELINE_MARK - 1))
    assert not engine.is_reading_paused
    engine.receive_data(b"x")
    assert engine.is_reading_paused
    engine.send_response(1, ok(), b"", ended=True)
    assert not engine.is_reading_paused


def test_nothing_is_read_behind_a_request_that_closes():
    engine = opened(CLOSE + GET)
    assert engine.send_response(1, ok(), b"", ended=True) == [
        ConnectionEnded("the response is complete")
    ]
    assert engine.receive_data(GET) == []
    assert engine.phase is Http1Phase.ENDED


# The peer closes


@pytest.mark.parametrize(
    ("received", "status"),
    [(b"", None), (b"G", 400), (GET[:-2], 400), (post(5) + b"abc", 400), (CHUNKED + b"5\r\n", 400)],
)
def test_end_within_a_request(received: bytes, status: int | None):
    transcript = converse(connection(), [received] if received else [], eof=True)
    assert transcript.ended
    assert transcript.statuses() == ([] if status is None else [status])
    assert [reason for reason, _ in transcript.violations] == (
        [] if status is None else [Refusal.HTTP1_TRUNCATED]
    )


def test_end_behind_a_request_leaves_room_for_the_answer():
    engine = opened(GET)
    assert engine.receive_eof() == [HalfClosed(1)]
    assert engine.send_response(1, ok(), b"", ended=True) == [
        ConnectionEnded("the peer closed its side")
    ]
    assert engine.data_to_send().startswith(b"HTTP/1.1 200 OK\r\n")
    assert engine.receive_eof() == []


def test_end_behind_pipelined_requests_leaves_room_for_all_answers():
    engine = opened(GET + GET)
    assert engine.receive_eof() == [HalfClosed(1)]
    (request, half_closed) = engine.send_response(1, ok(), b"", ended=True)
    assert isinstance(request, RequestReceived)
    assert half_closed == HalfClosed(2)
    assert engine.send_response(2, ok(), b"", ended=True) == [
        ConnectionEnded("the peer closed its side")
    ]


def test_end_while_a_body_is_swallowed():
    engine = opened(post(5))
    engine.send_response(1, ok(), b"", ended=True)
    assert engine.receive_eof() == [ConnectionEnded("the peer closed its side")]


# Timeouts


@pytest.mark.parametrize(
    ("received", "reason"),
    [
        (b"", Refusal.HTTP1_HEAD_TIMEOUT),
        (b"GET", Refusal.HTTP1_HEAD_TIMEOUT),
        (post(5), Refusal.BODY_TIMEOUT),
        (GET, Refusal.REQUEST_TIMEOUT),
    ],
)
def test_timeout_is_answered(received: bytes, reason: Refusal):
    engine = connection()
    engine.receive_data(received) if received else None
    violation, ended = engine.send_timeout()
    assert isinstance(violation, PeerViolation)
    assert violation.reason is reason
    assert isinstance(ended, ConnectionEnded)
    assert engine.data_to_send().startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert engine.send_timeout() == []


def test_timeout_between_requests_closes_without_a_word():
    engine = opened(GET)
    engine.send_response(1, ok(), b"", ended=True)
    engine.data_to_send()
    assert engine.send_timeout() == [
        ConnectionEnded("timeout waiting for the first byte of a request")
    ]
    assert engine.data_to_send() == b""


def test_timeout_within_a_response_says_nothing_into_it():
    for request in (GET, post(5)):
        engine = opened(request)
        engine.send_response(1, ok(), b"x", ended=False)
        engine.data_to_send()
        assert [type(event) for event in engine.send_timeout(503)] == [
            PeerViolation,
            ConnectionEnded,
        ]
        assert engine.data_to_send() == b""


def test_timeout_while_a_body_is_swallowed():
    engine = opened(post(5))
    engine.send_response(1, ok(), b"", ended=True)
    engine.data_to_send()
    assert engine.send_timeout() == [
        ConnectionEnded("timeout waiting for the rest of a request body")
    ]
    assert engine.data_to_send() == b""


def test_timeout_may_have_another_status():
    engine = opened(GET)
    engine.send_timeout(503)
    assert engine.data_to_send().startswith(b"HTTP/1.1 503 ")


# Ending


@pytest.mark.parametrize(("request_head", "abort"), [(GET, False), (GET_10, True), (CONNECT, True)])
def test_response_given_up_is_seen_as_incomplete(request_head: bytes, abort: bool):
    engine = opened(request_head)
    engine.send_response(1, ok(), b"x", ended=False)
    assert engine.reset_stream(1) == [ConnectionEnded("the response was given up", abort=abort)]
    assert engine.reset_stream(1) == []


def test_response_given_up_before_it_began():
    assert opened(GET_10).reset_stream(1) == [ConnectionEnded("the response was given up")]


def test_drain_closes_an_idle_connection_at_once():
    engine = connection()
    assert engine.begin_drain() == [ConnectionEnded("the worker drains")]
    assert engine.finish_drain() == []


def test_drain_closes_with_the_next_response():
    for received in (GET, GET[:9]):
        engine = connection()
        engine.receive_data(received)
        assert engine.begin_drain() == []
        engine.receive_data(GET[len(received) :])
        assert engine.send_response(1, ok(), b"", ended=True) == [
            ConnectionEnded("the response is complete")
        ]
        assert b"\r\nconnection: close\r\n" in engine.data_to_send()


def test_drain_closes_behind_a_response_that_has_begun():
    engine = opened(GET)
    engine.send_response(1, ok(), b"x", ended=False)
    engine.begin_drain()
    assert engine.send_body(1, b"", ended=True) == [ConnectionEnded("the response is complete")]


def test_drain_does_not_wait_for_a_body_that_nobody_reads():
    engine = opened(post(5))
    engine.send_response(1, ok(), b"", ended=True)
    assert engine.begin_drain() == [ConnectionEnded("the worker drains")]


def test_close():
    assert connection().close() == [ConnectionEnded("closed")]
    engine = opened(GET_10)
    engine.send_response(1, ok(), b"x", ended=False)
    assert engine.close() == [ConnectionEnded("closed", abort=True)]
    assert engine.close() == []
    assert engine.is_idle


def test_nothing_happens_on_streams_that_are_gone():
    engine = opened(GET)
    engine.send_response(1, ok(), b"", ended=True)
    engine.data_to_send()
    for stream_id in (1, 2, 0):
        calls: list[list[Event]] = [
            engine.send_informational(stream_id, 103, []),
            engine.send_response(stream_id, ok(), b"x", ended=True),
            engine.send_body(stream_id, b"x", ended=True),
            engine.send_trailers(stream_id, []),
            engine.accept_tunnel(stream_id, []),
            engine.reset_stream(stream_id),
            engine.release(stream_id),
        ]
        assert calls == [[]] * len(calls)
        assert engine.switch_to_h2c(stream_id) == b""
    assert engine.data_to_send() == b""
    assert engine.is_idle


def test_calls_out_of_order_are_our_bug():
    engine = opened(GET)
    with pytest.raises(LocalProtocolError):
        engine.send_body(1, b"", ended=True)
    with pytest.raises(LocalProtocolError):
        engine.accept_tunnel(1, [])
    with pytest.raises(LocalProtocolError):
        engine.switch_to_h2c(1)
    engine.send_response(1, ok(), b"", ended=False)
    with pytest.raises(LocalProtocolError):
        engine.send_response(1, ok(), b"", ended=False)
    with pytest.raises(LocalProtocolError):
        engine.send_informational(1, 103, [])


# Tunnels


def test_websocket_handshake_is_accepted():
    engine = opened(WEBSOCKET + b"\x81\x00")
    assert engine.receive_data(b"more") == []
    assert engine.accept_tunnel(1, [(b"sec-websocket-protocol", b"chat")]) == [
        BodyReceived(1, b"\x81\x00more", 6)
    ]
    assert engine.data_to_send() == (
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"sec-websocket-protocol: chat\r\n\r\n"
    )
    assert engine.phase is Http1Phase.TUNNEL
    assert not engine.is_idle


def test_tunnel_carries_bytes_as_they_are():
    engine = opened(WEBSOCKET)
    assert engine.accept_tunnel(1, []) == []
    engine.data_to_send()
    assert engine.receive_data(GET) == [BodyReceived(1, GET, len(GET))]
    assert engine.send_body(1, b"\x88\x00", ended=False) == []
    assert engine.send_body(1, b"", ended=True) == [ConnectionEnded("the tunnel was closed")]
    assert engine.data_to_send() == b"\x88\x00"


def test_peer_closes_a_tunnel():
    engine = opened(WEBSOCKET)
    engine.accept_tunnel(1, [])
    assert engine.receive_eof() == [BodyEnded(1), ConnectionEnded("the peer closed its side")]


def test_tunnel_is_given_up():
    engine = opened(WEBSOCKET)
    engine.accept_tunnel(1, [])
    assert engine.reset_stream(1) == [ConnectionEnded("the response was given up")]
    engine = opened(WEBSOCKET)
    engine.accept_tunnel(1, [])
    assert engine.send_timeout() == [
        ConnectionEnded("timeout waiting for bytes of an accepted tunnel")
    ]


def test_declined_handshake_closes_and_reads_nothing_behind_it():
    engine = opened(WEBSOCKET + GET)
    assert engine.send_response(1, ok(status=403), b"", ended=True) == [
        ConnectionEnded("the response is complete")
    ]


def test_wrong_version_of_websocket_is_told_the_right_one():
    transcript = converse(connection(), [WEBSOCKET.replace(b"13", b"8")])
    response, _ = read_response(transcript.sent)
    assert response.status == 426
    assert response.headers["sec-websocket-version"] == "13"
    assert response.headers["upgrade"] == "websocket"
    assert response.headers["connection"] == "upgrade, close"


def test_request_may_go_on_as_http2():
    engine = opened(H2C + b"\r\n" + b"PRI")
    assert engine.h2c_settings == b"AAMAAABkAAQAAP__"
    assert engine.switch_to_h2c(1) == b"PRI"
    assert engine.data_to_send() == (
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    )
    assert engine.phase is Http1Phase.ENDED


def test_request_with_a_body_may_go_on_as_http2_behind_it():
    """RFC 7540 §3.2: "requests that contain a payload body MUST be sent in their entirety"."""
    engine = opened(H2C.replace(b"GET", b"PUT") + b"content-length: 2\r\n\r\n")
    with pytest.raises(LocalProtocolError):
        engine.switch_to_h2c(1)
    assert engine.receive_data(b"hiPRI") == [BodyReceived(1, b"hi", 2, ended=True)]
    assert engine.h2c_settings == b"AAMAAABkAAQAAP__"
    assert engine.switch_to_h2c(1) == b"PRI"


def test_request_that_may_go_on_as_http2_may_be_answered():
    engine = opened(H2C + b"\r\n")
    engine.send_response(1, ok(), b"", ended=True)
    assert engine.h2c_settings is None
    assert engine.phase is Http1Phase.WAITING


@pytest.mark.parametrize(
    "request_head",
    [
        GET,
        H2C.replace(b"1.1", b"1.0") + b"\r\n",
        H2C.replace(b", http2-settings", b"") + b"\r\n",
        H2C + b"http2-settings: x\r\n\r\n",
    ],
)
def test_requests_that_do_not_go_on_as_http2(request_head: bytes):
    assert opened(request_head).h2c_settings is None


def test_where_http1_is_off_the_peer_is_told():
    engine = connection()
    assert engine.refuse_version() == [
        PeerViolation(Refusal.VERSION_DISABLED, "HTTP/1.1 is switched off"),
        ConnectionEnded("HTTP/1.1 is switched off"),
    ]
    response, _ = read_response(engine.data_to_send())
    assert response.status == 505
    assert response.headers["connection"] == "close"


def test_date_is_the_callers():
    defaults = ResponseDefaults([(b"server", b"x")])
    defaults.set_date(0)
    engine = Http1Connection(PARSERS["h11"](), Http1Config(), defaults)
    engine.receive_data(b"\0")
    assert b"\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n" in engine.data_to_send()


def test_request_answered_before_its_body_is_not_bothered_by_the_rest():
    def at_once(engine: Http1Connection, stream_id: int, request: Request) -> list[Event]:
        return engine.send_response(stream_id, ok(), b"", ended=True)

    engine = opened(post(3))
    assert at_once(engine, 1, Request("POST", b"/", "1.1", [])) == []
    transcript = converse(engine, [b"abc" + GET], at_once)
    assert [request.method for request in transcript.requests] == ["GET"]
