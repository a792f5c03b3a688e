"""HTTP/1.1 responses as bytes: heads, and bodies in the framing that fits. Sans-IO."""

from __future__ import annotations

import enum
import http
from collections.abc import Sequence
from typing import Final

from asgiri.worker.protocol.events import Headers, ResponseHead
from asgiri.worker.protocol.headers import take_from_length

JOINED_BODY: Final = 16384
"""Longest part of a body that is copied into one buffer with its head or chunk line; what is longer
is queued as it is."""


class Framing(enum.Enum):
    """How the peer finds the end of the body."""

    LENGTH = enum.auto()
    CHUNKED = enum.auto()
    CLOSE = enum.auto()
    """Only the end of the connection ends it."""
    NONE = enum.auto()
    """There is none, whatever the application sends (RFC 9110 §6.4.1)."""


# Module globals: an attribute of an enum class costs 20 ns more.
_LENGTH: Final = Framing.LENGTH
_CHUNKED: Final = Framing.CHUNKED
_CLOSE: Final = Framing.CLOSE
_NONE: Final = Framing.NONE

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b" % (status.value, status.phrase.encode("ascii"))
    for status in http.HTTPStatus
}
_BODILESS: Final = frozenset((204, 205, 304))
_UNUSUAL_METHODS: Final = frozenset(("HEAD", "CONNECT"))

_field_line = b": ".join


def _write_lines(head: ResponseHead) -> bytes:
    status = head.status
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status
    head.http1_lines = b"\r\n".join((line, *map(_field_line, head.headers)))
    return head.http1_lines


class ResponseWriter:
    """Writes the responses of a connection, one after the other."""

    __slots__ = ("_left", "framing", "out")

    def __init__(self) -> None:
        self.out: list[bytes] = []
        """What is queued to be sent."""
        self.framing = _NONE
        self._left = 0

    def begin(
        self,
        head: ResponseHead,
        body: bytes,
        *,
        ended: bool,
        method: str,
        http11: bool,
        keep_alive: bool,
    ) -> bool:
        """Queue the head and the first part of the body; return whether the connection stays open.

        Raises AppError, and queues nothing, when the body does not fit its content-length.
        """
        status = head.status
        lines = [head.http1_lines or _write_lines(head)]
        if (
            head.content_length is not None
            and method not in _UNUSUAL_METHODS
            and status not in _BODILESS
        ):
            self._left = take_from_length(head.content_length, len(body), ended=ended)
            self.framing = _LENGTH
        else:
            body = self._choose_framing(lines, head, body, ended, method, http11)
            if self.framing is _CLOSE:
                keep_alive = False
        if not keep_alive:
            lines.append(b"connection: close")
        elif not http11:
            lines.append(b"connection: keep-alive")
        if self.framing is _CHUNKED or len(body) > JOINED_BODY:
            lines += (b"", b"")
            self.out.append(b"\r\n".join(lines))
            self._queue(body)
        else:
            lines += (b"", body)
            self.out.append(b"\r\n".join(lines))
        return keep_alive

    def _choose_framing(
        self,
        lines: list[bytes],
        head: ResponseHead,
        body: bytes,
        ended: bool,
        method: str,
        http11: bool,
    ) -> bytes:
        """Find the framing of a response that is not simply its content-length; return its body."""
        if method == "HEAD" or head.status in _BODILESS:
            self.framing = _NONE
            if head.status == 205:
                # RFC 9110 §15.3.6; without a length the peer would wait for the end of the
                # connection.
                lines.append(b"content-length: 0")
            return b""
        if method == "CONNECT" and head.status < 300:
            # RFC 9110 §9.3.6: no Content-Length, no Transfer-Encoding; all that follows is the
            # tunnel.
            fields = [field for field in head.headers if field[0] != b"content-length"]
            lines[:] = [_STATUS_LINES[head.status], *map(_field_line, fields)]
            self.framing = _CLOSE
        elif head.content_length is not None:
            self._left = take_from_length(head.content_length, len(body), ended=ended)
            self.framing = _LENGTH
        elif ended:
            lines.append(b"content-length: %d" % len(body))
            self.framing = _LENGTH
            self._left = 0
        elif http11:
            lines.append(b"transfer-encoding: chunked")
            self.framing = _CHUNKED
        else:
            self.framing = _CLOSE
        return body

    def write(self, data: bytes, *, ended: bool) -> None:
        """Queue a part of the body; AppError, and nothing is queued, when it does not fit."""
        framing = self.framing
        if framing is _LENGTH:
            self._left = take_from_length(self._left, len(data), ended=ended)
        if framing is not _NONE and data:
            self._queue(data)
        if ended and framing is _CHUNKED:
            self.out.append(b"0\r\n\r\n")

    def _queue(self, data: bytes) -> None:
        if self.framing is not _CHUNKED:
            self.out.append(data)
        elif len(data) > JOINED_BODY:
            self.out += (b"%x\r\n" % len(data), data, b"\r\n")
        elif data:  # an empty chunk would be the last one
            self.out.append(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self, trailers: Headers) -> None:
        """End the body with a trailer section; only the chunked framing has a place for one."""
        if self.framing is _LENGTH:
            self._left = take_from_length(self._left, 0, ended=True)
        elif self.framing is _CHUNKED:
            self.out.append(b"\r\n".join((b"0", *map(_field_line, trailers), b"", b"")))

    def begin_file(self, count: int) -> bool:
        """Queue what precedes `count` bytes that the transport sends; False to send none."""
        if self.framing is _LENGTH:
            self._left = take_from_length(self._left, count, ended=False)
        elif self.framing is _CHUNKED and count:
            self.out.append(b"%x\r\n" % count)
        return self.framing is not _NONE and count > 0

    def end_file(self, count: int, *, ended: bool) -> None:
        """Queue what follows them."""
        if self.framing is _CHUNKED and count:
            self.out.append(b"\r\n")
        self.write(b"", ended=ended)

    def interim(self, status: int, headers: Headers) -> None:
        """Queue a 1xx response."""
        lines = (_STATUS_LINES[status], *map(_field_line, headers), b"", b"")
        self.out.append(b"\r\n".join(lines))

    def refuse(
        self, status: int, headers: Headers, extra: Sequence[tuple[bytes, bytes]], *, bodiless: bool
    ) -> None:
        """Queue an answer of our own; the connection closes behind it."""
        body = _STATUS_LINES[status].partition(b" ")[2]
        options = [name for name, _ in extra if name == b"upgrade"]
        fields = [
            *headers,
            *extra,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b", ".join([*options, b"close"])),
        ]
        lines = (_STATUS_LINES[status], *map(_field_line, fields), b"", b"" if bodiless else body)
        self.out.append(b"\r\n".join(lines))
