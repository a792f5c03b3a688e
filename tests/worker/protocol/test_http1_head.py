"""The grammar of heads. Whole requests and their verdicts: test_http1."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.config import Http1Config
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.http1_head import (
    FIELD_SECTION,
    KEPT_SECTIONS,
    MAX_EMPTY_LINES,
    MAX_KEPT_SECTION,
    REQUEST_LINE,
    FieldSection,
    HeadScanner,
    RequestRefusedError,
    SectionReader,
    check_websocket,
    effective_target,
    split_fields,
)
from asgiri.worker.protocol.http1_llhttp import LlhttpParser
from tests.conformance.http1_cases import CASES
from tests.support.http1_requests import cut_up, streams

CONFIG = Http1Config(max_request_line=128, max_head_size=256, max_header_fields=3)
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def scan(parts: list[bytes], config: Http1Config = CONFIG) -> tuple[str, int, int]:
    """What comes of scanning `parts` as they arrive: ("head", start, end), or the refusal."""
    scanner = HeadScanner(config)
    received = b""
    try:
        for part in parts:
            received += part
            if end := scanner.scan(received):
                return ("head", scanner.start, end)
    except RequestRefusedError as refused:
        return (refused.detail, refused.status, refused.reason)
    return ("incomplete", 0, 0)


@pytest.mark.slow
@given(st.one_of(streams(), st.sampled_from([case.request for case in CASES])), st.data())
def test_events_do_not_depend_on_how_bytes_arrive(stream: bytes, data: st.DataObject):
    assert scan(data.draw(cut_up(stream))) == scan([stream])


@pytest.mark.slow
@given(streams())
def test_scanner_and_regexes_know_the_same_language(stream: bytes):
    found = scan([stream], Http1Config())
    line = REQUEST_LINE.match(stream)
    section = FIELD_SECTION.match(stream, line.end()) if line else None
    if section is not None:
        assert found == ("head", 0, section.end())
    else:
        assert found[0] != "head" or found[1] > 0


def test_empty_lines_before_a_request_are_skipped_and_counted():
    assert scan([b"\r\n" * MAX_EMPTY_LINES + HEAD])[1:] == (8, 8 + len(HEAD))
    assert scan([b"\r\n" * (MAX_EMPTY_LINES + 1)])[1] == 400
    assert scan([b"\r"] * 2)[0] == "incomplete"


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_request_line_has_a_limit(over: int, step: int):
    line = b"GET /" + b"x" * (128 - 14 + over) + b" HTTP/1.1"
    request = line + HEAD[14:]
    parts = [request[at : at + step] for at in range(0, len(request), step)]
    assert scan(parts)[:2] == (("request line over 128 bytes", 414) if over else ("head", 0))


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_field_section_has_a_limit(over: int, step: int):
    request = HEAD[:-2] + b"x:" + b"y" * (256 - 15 + over) + b"\r\n\r\n"
    assert len(request) - HEAD.index(b"Host") == 256 + over
    parts = [request[at : at + step] for at in range(0, len(request), step)]
    expected = ("field section over 256 bytes", 431) if over else ("head", 0)
    assert scan(parts)[:2] == expected


@pytest.mark.parametrize("fields", [3, 4])
def test_fields_have_a_limit(fields: int):
    request = HEAD[:-2] + b"x:y\r\n" * (fields - 1) + b"\r\n"
    assert scan([request])[:2] == (("more than 3 fields", 431) if fields > 3 else ("head", 0))


def test_no_request_is_refused_at_its_first_byte():
    for byte in (
        set(range(256))
        - set(b"\r!#$%&'*+-.^_`|~")
        - set(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    ):
        assert scan([bytes([byte])])[1:] == (400, Refusal.HTTP1_BAD_REQUEST)


@pytest.mark.parametrize("version", [b"HTTP/0.9", b"HTTP/2.0", b"HTTP/3.0"])
def test_other_versions_are_told_apart_from_bad_requests(version: bytes):
    assert scan([b"GET / " + version + b"\r\n"])[1:] == (505, Refusal.HTTP1_UNSUPPORTED_VERSION)
    assert scan([b"GET / " + version + b" \r\n"])[1:] == (400, Refusal.HTTP1_BAD_REQUEST)


def test_detail_of_a_refusal_is_bounded():
    detail, status, _ = scan([b"GET / HTTP/1.1\r\n" + b"x" * 240 + b"\r\n"])
    assert status == 400
    assert len(detail) <= 200


def test_scanner_looks_at_each_byte_once():
    """The work for a head that comes byte by byte grows with its length, not with its square."""

    class Counting(bytes):
        searched = 0

        def find(self, sub, start=0):  # type: ignore[override, no-untyped-def]
            Counting.searched += len(self) - start
            return super().find(sub, start)

    scanner = HeadScanner(Http1Config())
    request = HEAD[:-2] + b"x: " + b"y" * 2000 + b"\r\n\r\n"
    for size in range(1, len(request) + 1):
        scanner.scan(Counting(request[:size]))
    assert Counting.searched < 3 * len(request)


def test_split_fields():
    assert split_fields(b"A: b \r\nc-D:\t\r\nE:f:g\t h\r\n\r\n") == [
        (b"a", b"b"),
        (b"c-d", b""),
        (b"e", b"f:g\t h"),
    ]
    assert split_fields(b"\r\n") == []


def section(raw: bytes) -> FieldSection:
    return FieldSection(raw, split_fields(raw))


def refusal(raw: bytes) -> tuple[int, Refusal]:
    with pytest.raises(RequestRefusedError) as caught:
        section(raw)
    return caught.value.status, caught.value.reason


def test_fields_that_say_nothing_about_the_message():
    plain = section(b"Host: a\r\nX: y\r\n\r\n")
    assert plain.has_host
    assert not plain.has_body
    assert not plain.closes
    assert not plain.keeps_alive
    assert not section(b"X: y\r\n\r\n").has_host


def test_framing():
    assert section(b"Content-Length: 5\r\n\r\n").content_length == 5
    assert section(b"Content-Length: 5\r\n\r\n").has_body
    assert not section(b"Content-Length: 0\r\n\r\n").has_body
    assert section(b"Transfer-Encoding: Chunked\r\n\r\n").chunked
    framing = (400, Refusal.HTTP1_BAD_FRAMING)
    assert refusal(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n") == framing
    assert refusal(b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n") == framing
    assert refusal(b"Content-Length: 5, 5\r\n\r\n") == framing
    assert refusal(b"Transfer-Encoding: gzip\r\n\r\n") == framing
    assert refusal(b"Transfer-Encoding: ,chunked\r\n\r\n") == framing
    unsupported = (501, Refusal.HTTP1_UNSUPPORTED_CODING)
    assert refusal(b"Transfer-Encoding: gzip, chunked\r\n\r\n") == unsupported


def test_host():
    assert refusal(b"Host: a b\r\n\r\n") == (400, Refusal.HTTP1_BAD_HOST)
    assert refusal(b"Host: a\r\nHost: a\r\n\r\n") == (400, Refusal.HTTP1_BAD_HOST)


def test_connection_options():
    assert section(b"Connection: x, Close\r\n\r\n").closes
    assert section(b"Connection: Keep-Alive\r\n\r\n").keeps_alive
    both = section(b"Connection: keep-alive\r\nConnection: close\r\n\r\n")
    assert both.closes
    assert not both.keeps_alive
    assert section(b"Expect: 100-Continue\r\n\r\n").expects_continue


def test_upgrades():
    upgrade = (
        b"Upgrade: h2c, WebSocket\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x\r\n"
    )
    assert section(upgrade + b"\r\n").upgrades == [b"h2c", b"websocket"]
    assert section(upgrade + b"\r\n").h2c_settings == b"x"
    assert section(upgrade + b"HTTP2-Settings: y\r\n\r\n").h2c_settings is None
    assert section(b"Upgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n").upgrades == []


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("GET", b"http://b/p", (b"/p", b"b")),
        ("GET", b"http://b", (b"/", b"b")),
        ("GET", b"http://b?q", (b"/?q", b"b")),
        ("OPTIONS", b"http://b", (b"*", b"b")),
        ("OPTIONS", b"*", (b"*", None)),
        ("CONNECT", b"b:1", (b"b:1", None)),
        ("GET", b"*", None),
        ("CONNECT", b"/", None),
        ("GET", b"x", None),
        ("GET", b"http://u@b/", None),
    ],
)
def test_target(method: str, target: bytes, expected: tuple[bytes, bytes | None] | None):
    if expected is None:
        with pytest.raises(RequestRefusedError):
            effective_target(method, target)
    else:
        assert effective_target(method, target) == expected


KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (KEY + b"Sec-WebSocket-Version: 13\r\n", None),
        (KEY, 426),
        (b"Sec-WebSocket-Version: 13\r\n", 400),
        (b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n", 400),
        (KEY + b"Sec-WebSocket-Version: 13\r\nContent-Length: 1\r\n", 400),
    ],
)
def test_websocket_handshake(fields: bytes, status: int | None):
    handshake = section(fields + b"\r\n")
    if status is None:
        check_websocket(handshake)
        return
    with pytest.raises(RequestRefusedError) as caught:
        check_websocket(handshake)
    assert caught.value.status == status
    assert caught.value.reason is Refusal.WEBSOCKET_BAD_HANDSHAKE


class CountingParser:
    """httptools, and how often it was asked."""

    def __init__(self):
        self.calls = 0

    def parse_fields(self, section):
        self.calls += 1
        return LlhttpParser().parse_fields(section)


def test_a_section_is_parsed_once():
    parser = CountingParser()
    sections = SectionReader(parser, Http1Config())
    first = sections.read(b"host: a\r\nx: 1\r\n\r\n")
    other = sections.read(b"host: a\r\nx: 2\r\n\r\n")
    assert sections.read(b"host: a\r\nx: 1\r\n\r\n") is first
    assert sections.read(b"host: a\r\nx: 2\r\n\r\n") is other
    assert parser.calls == 2


def test_the_number_of_sections_remembered_is_bounded():
    parser = CountingParser()
    sections = SectionReader(parser, Http1Config())
    raws = [b"host: a\r\nx: %d\r\n\r\n" % number for number in range(3 * KEPT_SECTIONS)]
    for raw in raws:
        sections.read(raw)
    assert len(sections._recent) + len(sections._older) <= 2 * KEPT_SECTIONS
    parser.calls = 0
    for raw in raws[-KEPT_SECTIONS:]:
        sections.read(raw)
    assert parser.calls == 0
    sections.read(raws[0])
    assert parser.calls == 1


def test_long_sections_are_not_remembered():
    parser = CountingParser()
    sections = SectionReader(parser, Http1Config())
    raw = b"host: a\r\nx: %b\r\n\r\n" % (b"y" * MAX_KEPT_SECTION)
    sections.read(raw)
    sections.read(raw)
    assert parser.calls == 2


class StumblingParser:
    """Refuses whatever it is given."""

    def parse_fields(self, section: bytes) -> list[tuple[bytes, bytes]]:
        raise ValueError("it stumbled")


def test_what_only_the_library_refuses_is_a_bad_request():
    sections = SectionReader(StumblingParser(), Http1Config())
    with pytest.raises(RequestRefusedError, match="it stumbled") as caught:
        sections.read(b"host: a\r\n\r\n")
    assert caught.value.status == 400
    # Where a rule of ours is broken as well, that is the answer.
    with pytest.raises(RequestRefusedError, match="transfer-encoding"):
        sections.read(b"host: a\r\ntransfer-encoding: gzip\r\n\r\n")


def test_refused_sections_are_refused_again():
    sections = SectionReader(LlhttpParser(), Http1Config())
    for _ in range(2):
        with pytest.raises(RequestRefusedError):
            sections.read(b"host: a\r\nhost: b\r\n\r\n")
