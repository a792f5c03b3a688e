"""Chunked request bodies (RFC 9112 §7.1). Sans-IO.

Read here, the same for both parser libraries. h11 takes white space behind a chunk size and any
byte in an extension, llhttp refuses white space that RFC 9112 §7.1.1 allows, and neither bounds
extensions.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from asgiri.config import Http1Config
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.headers import TCHAR
from asgiri.worker.protocol.http1_head import HeadScanner, RequestRefusedError

MAX_CHUNK_LINE: Final = 1024
"""Longest line of chunk size and extensions. A signature would fit; nobody is known to send any."""

MAX_EXTENSIONS: Final = 16384
"""Bytes of extensions in one body (as Go since CVE-2023-39326): they are work without content."""

# 16 hex digits; a size that does not fit 63 bits is refused by its value. Possessive: never
# backtracks.
_QUOTED: Final = rb"\"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*+\""
_EXTENSION: Final = rb"[ \t]*+;[ \t]*+%b++(?:[ \t]*+=[ \t]*+(?:%b++|%b))?" % (TCHAR, TCHAR, _QUOTED)
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})((?:%b)*)\r\n" % _EXTENSION)
_LARGEST: Final = 2**63 - 1


class _Expects(enum.Enum):
    SIZE = enum.auto()
    CONTENT = enum.auto()
    CONTENT_END = enum.auto()
    TRAILERS = enum.auto()
    NOTHING = enum.auto()


_SIZE: Final = _Expects.SIZE
_CONTENT: Final = _Expects.CONTENT
_CONTENT_END: Final = _Expects.CONTENT_END
_TRAILERS: Final = _Expects.TRAILERS


class ChunkedReader:
    """Takes a chunked body apart. At most one line or trailer section waits in it."""

    __slots__ = (
        "_config",
        "_expects",
        "_extensions",
        "_held",
        "_left",
        "_scanner",
        "rest",
        "trailers",
        "violation",
    )

    def __init__(self, config: Http1Config) -> None:
        self._config = config
        self._expects = _SIZE
        self._held = b""
        self._left = 0
        self._extensions = 0
        self._scanner = HeadScanner(config, trailers=True)
        self.violation: RequestRefusedError | None = None
        """What is wrong behind the content that `read` last returned."""
        self.trailers = b""
        """The trailer section, once `ended`."""
        self.rest = b""
        """What came behind the body, once `ended`."""

    @property
    def ended(self) -> bool:
        return self._expects is _Expects.NOTHING

    def read(self, data: bytes) -> bytes:
        """Return the content in `data`, all of its chunks as one."""
        if self._held:
            data = self._held + data
            self._held = b""
        content: list[bytes] = []
        position = 0
        try:
            while position < len(data) and not self.ended:
                if self._expects is _CONTENT:
                    after = min(position + self._left, len(data))
                    content.append(data[position:after])
                    self._left -= after - position
                    if not self._left:
                        self._expects = _CONTENT_END
                elif (after := self._read_between(data, position)) == position:
                    break
                position = after
        except RequestRefusedError as violation:
            self.violation = violation
        if self.ended:
            self.rest = data[position:]
        else:
            self._held = data[position:]
        return content[0] if len(content) == 1 else b"".join(content)

    def _read_between(self, data: bytes, position: int) -> int:
        """Read what is not content; the same position when it has not arrived whole."""
        if self._expects is _SIZE:
            return self._read_size(data, position)
        if self._expects is _CONTENT_END:
            return self._read_content_end(data, position)
        return self._read_trailers(data, position)

    def _read_size(self, data: bytes, position: int) -> int:
        match = _CHUNK_LINE.match(data, position)
        if match is None:
            newline = data.find(b"\n", position)
            if newline >= 0:
                raise _bad_chunk(f"chunk line {data[position:newline][:80]!r}")
            if len(data) - position > MAX_CHUNK_LINE:
                raise _bad_chunk(f"chunk line over {MAX_CHUNK_LINE} bytes")
            return position
        after = match.end()
        if after - position > MAX_CHUNK_LINE:
            raise _bad_chunk(f"chunk line over {MAX_CHUNK_LINE} bytes")
        self._extensions += match.end(2) - match.start(2)
        if self._extensions > MAX_EXTENSIONS:
            raise _bad_chunk(f"chunk extensions over {MAX_EXTENSIONS} bytes")
        self._left = int(match[1], 16)
        if self._left > _LARGEST:
            raise _bad_chunk(f"chunk of {self._left} bytes")
        self._expects = _CONTENT if self._left else _TRAILERS
        return after

    def _read_content_end(self, data: bytes, position: int) -> int:
        # CVE-2025-43859: what ends a chunk must be looked at, or two readers see two bodies.
        end = data[position : position + 2]
        if end == b"\r\n":
            self._expects = _SIZE
            return position + 2
        if end != b"\r":
            raise _bad_chunk("a chunk does not end in CRLF")
        return position

    def _read_trailers(self, data: bytes, position: int) -> int:
        section = data[position:]
        try:
            end = self._scanner.scan(section)
        except RequestRefusedError as violation:
            raise RequestRefusedError(
                violation.status, Refusal.HTTP1_BAD_TRAILER, violation.detail
            ) from None
        if end:
            self.trailers = section[:end]
            self._expects = _Expects.NOTHING
        return position + end


def _bad_chunk(detail: str) -> RequestRefusedError:
    return RequestRefusedError(400, Refusal.HTTP1_BAD_CHUNK, detail)
