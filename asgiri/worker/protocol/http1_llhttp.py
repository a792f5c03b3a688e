"""Request fields read by httptools, which is llhttp, in C. Sans-IO.

A parser lives for one section: 0.2 us to make, and nothing of one message can reach the next. The
request line is a constant: llhttp knows a fixed list of methods and ties some of them to RTSP and
ICE, takes any number of spaces where one is due, and knows no HTTP/1.2.
"""

from __future__ import annotations

import httptools

from asgiri.worker.protocol.events import Headers

_REQUEST_LINE = b"GET / HTTP/1.1\r\n"


class _Section:
    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp takes white space off the front of a value only.
        self.headers.append((name.lower(), value.rstrip(b" \t")))


class LlhttpParser:
    """A `FieldParser`."""

    def parse_fields(self, section: bytes) -> Headers:
        """Split a field section; ValueError for what llhttp does not accept."""
        into = _Section()
        try:
            httptools.HttpRequestParser(into).feed_data(_REQUEST_LINE + section)
        except httptools.HttpParserUpgrade:
            pass  # how llhttp stops behind a head that asks for an upgrade
        except httptools.HttpParserError as error:
            raise ValueError(str(error)) from None
        return into.headers
