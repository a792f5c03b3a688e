"""Bytes of responses. How they follow from requests: test_http1."""

from __future__ import annotations

import http.client
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.errors import AppError
from asgiri.worker.protocol.events import ResponseHead
from asgiri.worker.protocol.http1_response import JOINED_BODY, Framing, ResponseWriter

HEADERS = [(b"x", b"y")]
CHUNKED = ResponseHead(200, HEADERS)


def of_length(length: int, status: int = 200) -> ResponseHead:
    return ResponseHead(status, [*HEADERS, (b"content-length", b"%d" % length)], length)


def begin(
    writer: ResponseWriter,
    head: ResponseHead,
    body: bytes = b"",
    *,
    ended: bool = False,
    method: str = "GET",
    http11: bool = True,
    keep_alive: bool = True,
) -> bool:
    return writer.begin(
        head, body, ended=ended, method=method, http11=http11, keep_alive=keep_alive
    )


def written(writer: ResponseWriter) -> bytes:
    out, writer.out = writer.out, []
    return b"".join(out)


def body_of(raw: bytes) -> bytes:
    class Socket:
        def makefile(self, mode: str) -> io.BytesIO:
            return io.BytesIO(raw)

    response = http.client.HTTPResponse(Socket())  # type: ignore[arg-type]
    response.begin()
    return response.read()


sizes = st.one_of(st.integers(0, 50), st.integers(JOINED_BODY - 1, JOINED_BODY + 1))


@given(st.lists(sizes.map(lambda size: b"x" * size), min_size=1, max_size=5), st.booleans())
def test_body_does_not_depend_on_how_the_application_cuts_it(parts: list[bytes], announced: bool):
    body = b"".join(parts)
    writer = ResponseWriter()
    begin(writer, of_length(len(body)) if announced else CHUNKED, parts[0], ended=len(parts) == 1)
    for at, part in enumerate(parts[1:], 2):
        writer.write(part, ended=at == len(parts))
    assert body_of(written(writer)) == body


def test_whole_response():
    writer = ResponseWriter()
    assert begin(writer, of_length(2), b"ok", ended=True)
    assert writer.out == [b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 2\r\n\r\nok"]


def test_status_without_a_phrase():
    writer = ResponseWriter()
    begin(writer, of_length(0, 799), ended=True)
    assert written(writer).startswith(b"HTTP/1.1 799 \r\n")


def test_length_is_told_when_the_body_comes_at_once():
    writer = ResponseWriter()
    begin(writer, CHUNKED, b"abc", ended=True)
    assert written(writer).endswith(b"\r\ncontent-length: 3\r\n\r\nabc")


@pytest.mark.parametrize(
    ("http11", "keep_alive", "option"),
    [
        (True, True, None),
        (True, False, b"close"),
        (False, True, b"keep-alive"),
        (False, False, b"close"),
    ],
)
def test_connection_option(http11: bool, keep_alive: bool, option: bytes | None):
    writer = ResponseWriter()
    assert begin(writer, of_length(0), http11=http11, keep_alive=keep_alive) is keep_alive
    raw = written(writer)
    assert raw.count(b"connection: ") == (option is not None)
    assert option is None or b"\r\nconnection: " + option + b"\r\n" in raw


def test_http_1_0_body_without_length_ends_with_the_connection():
    writer = ResponseWriter()
    assert not begin(writer, CHUNKED, b"a", http11=False)
    writer.write(b"b", ended=False)
    writer.write(b"", ended=True)
    writer.end([(b"t", b"1")])
    assert writer.framing is Framing.CLOSE
    assert written(writer).endswith(b"\r\nconnection: close\r\n\r\nab")


def test_answer_to_connect_has_no_framing_unless_it_refuses():
    writer = ResponseWriter()
    assert not begin(writer, of_length(2), b"ab", ended=True, method="CONNECT")
    assert written(writer) == b"HTTP/1.1 200 OK\r\nx: y\r\nconnection: close\r\n\r\nab"
    begin(writer, of_length(2, 404), b"ab", ended=True, method="CONNECT")
    assert b"\r\ncontent-length: 2\r\n" in written(writer)


@pytest.mark.parametrize(
    ("status", "method"), [(204, "GET"), (304, "GET"), (200, "HEAD"), (304, "HEAD")]
)
def test_no_body_where_none_belongs(status: int, method: str):
    writer = ResponseWriter()
    assert begin(writer, ResponseHead(status, HEADERS), b"abc", method=method)
    writer.write(b"def", ended=False)
    assert not writer.begin_file(3)
    writer.end_file(3, ended=True)
    writer.end([(b"t", b"1")])
    assert written(writer).endswith(b"\r\nx: y\r\n\r\n")


def test_reset_content_says_that_it_is_empty():
    writer = ResponseWriter()
    begin(writer, ResponseHead(205, HEADERS), b"abc", ended=True)
    assert written(writer) == b"HTTP/1.1 205 Reset Content\r\nx: y\r\ncontent-length: 0\r\n\r\n"


def test_empty_part_is_no_chunk():
    writer = ResponseWriter()
    begin(writer, CHUNKED)
    writer.write(b"", ended=False)
    assert written(writer).endswith(b"\r\n\r\n")
    writer.write(b"a", ended=True)
    assert written(writer) == b"1\r\na\r\n0\r\n\r\n"


def test_long_parts_are_queued_as_they_are():
    part = b"x" * (JOINED_BODY + 1)
    writer = ResponseWriter()
    begin(writer, CHUNKED, part)
    writer.write(part, ended=True)
    assert [buffer for buffer in writer.out if buffer is part] == [part, part]
    begin(writer, of_length(len(part)), part, ended=True)
    assert writer.out[-1] is part


def test_body_that_does_not_fit_is_not_queued():
    writer = ResponseWriter()
    for body, ended in ((b"abc", False), (b"a", True)):
        with pytest.raises(AppError):
            begin(writer, of_length(2), body, ended=ended)
    assert writer.out == []
    begin(writer, of_length(2), b"a")
    writer.out.clear()
    with pytest.raises(AppError):
        writer.write(b"bc", ended=False)
    with pytest.raises(AppError):
        writer.write(b"", ended=True)
    with pytest.raises(AppError):
        writer.end([])
    with pytest.raises(AppError):
        writer.begin_file(2)
    assert writer.out == []


def test_trailers():
    writer = ResponseWriter()
    begin(writer, CHUNKED, b"a")
    writer.out.clear()
    writer.end([(b"t", b"1"), (b"u", b"2")])
    assert written(writer) == b"0\r\nt: 1\r\nu: 2\r\n\r\n"
    begin(writer, of_length(1), b"a")
    writer.out.clear()
    writer.end([(b"t", b"1")])
    assert writer.out == []


@pytest.mark.parametrize("head", [CHUNKED, of_length(4)])
def test_file(head: ResponseHead):
    writer = ResponseWriter()
    begin(writer, head)
    assert writer.begin_file(4)
    raw = written(writer) + b"file"
    writer.end_file(4, ended=True)
    assert body_of(raw + written(writer)) == b"file"


def test_empty_file():
    writer = ResponseWriter()
    begin(writer, CHUNKED)
    writer.out.clear()
    assert not writer.begin_file(0)
    writer.end_file(0, ended=True)
    assert written(writer) == b"0\r\n\r\n"


def test_interim():
    writer = ResponseWriter()
    writer.interim(103, HEADERS)
    assert written(writer) == b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n"


@pytest.mark.parametrize("bodiless", [False, True])
def test_refusal(bodiless: bool):
    writer = ResponseWriter()
    writer.refuse(426, HEADERS, [(b"upgrade", b"websocket")], bodiless=bodiless)
    head, body = written(writer).split(b"\r\n\r\n")
    assert body == (b"" if bodiless else b"426 Upgrade Required")
    assert head == (
        b"HTTP/1.1 426 Upgrade Required\r\nx: y\r\nupgrade: websocket\r\n"
        b"content-type: text/plain; charset=utf-8\r\ncontent-length: 20\r\n"
        b"connection: upgrade, close"
    )
