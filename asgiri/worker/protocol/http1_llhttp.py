"""Request fields read by httptools, which is llhttp, in C. Sans-IO.

A parser lives for one section: 0.2 us to make, and nothing of one message can reach the next. The
request line is a constant: llhttp has a fixed list of methods and ties some of them to RTSP and
ICE, takes any number of spaces where one is due, and knows no HTTP/1.2.
"""

from __future__ import annotations

import re
from typing import Final

import httptools

from asgiri.worker.protocol.events import Headers

_REQUEST_LINE: Final = b"GET / HTTP/1.1\r\n"
_TRAILING_SPACE: Final = re.compile(rb"[ \t]+(?=\r\n)")


class _Section:
    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


class LlhttpParser:
    """A `FieldParser`."""

    def parse_fields(self, section: bytes) -> Headers:
        """Split a field section; ValueError for what llhttp does not accept."""
        if b" \r\n" in section or b"\t\r\n" in section:
            # llhttp takes white space off the front of a value only, and a tab behind "chunked" for
            # another coding.
            section = _TRAILING_SPACE.sub(b"", section)
        into = _Section()
        try:
            httptools.HttpRequestParser(into).feed_data(_REQUEST_LINE + section)
        except httptools.HttpParserUpgrade:
            pass  # how llhttp stops behind a head that asks for an upgrade
        except httptools.HttpParserError as error:
            raise ValueError(str(error)) from None
        return into.headers
