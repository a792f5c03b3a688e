"""What an HTTP/1.1 request head says, and whether it may say so (RFC 9112 §2 to §6). Sans-IO.

Three steps, the first two independent of the parser library, so that no leniency of a library, of
today or of its next version, decides where a message ends:

    bytes     `REQUEST_LINE` and `FIELD_SECTION`, the strict grammar, for a head in one piece;
              `HeadScanner` for one that comes in parts, and to say what is wrong with either
    fields    a `FieldParser` (httptools or h11) splits the field section, and has a veto
    meaning   `FieldSection`: Host, framing, persistence, upgrades; `effective_target`
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final, Protocol

from asgiri.config import Http1Config
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.events import Headers
from asgiri.worker.protocol.headers import (
    TCHAR,
    authority_is_valid,
    list_members,
    parse_content_length,
)

# Possessive quantifiers: no backtracking, so a head costs the same whether it matches or not.
# A fragment ("#") is in no form of request-target (RFC 9112 §3.2), nor is anything but VCHAR.
REQUEST_LINE: Final = re.compile(rb"(%b++) ([!\"$-~]++) HTTP/1\.([0-9])\r\n" % TCHAR)
_FIELD_LINE: Final = rb"%b++:[\t -~\x80-\xff]*+\r\n" % TCHAR
FIELD_LINE: Final = re.compile(_FIELD_LINE)
FIELD_SECTION: Final = re.compile(rb"(?:%b)*+\r\n" % _FIELD_LINE)
_FIELD: Final = re.compile(rb"(%b++):[\t ]*+([\t -~\x80-\xff]*+)\r\n" % TCHAR)
_OTHER_VERSION: Final = re.compile(rb"%b+ [!-~]+ HTTP/[02-9]\.[0-9]\r\n" % TCHAR)
_FIRST_BYTES: Final = frozenset(
    b"\r!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

MAX_KEPT_SECTION: Final = 2048
"""Longest field section that is remembered. An idle connection holds twice as much."""

KEPT_SECTIONS: Final = 128
"""Field sections that a worker remembers at least, and half of what it remembers at most: 2 MiB."""

MAX_EMPTY_LINES: Final = 4
"""CRLFs ignored before a request line: "at least one" (RFC 9112 §2.2), which ended a body once."""


class RequestRefusedError(Exception):
    """The bytes break a rule; `http1` turns this into the answer and a `PeerViolation`."""

    def __init__(
        self,
        status: int,
        reason: Refusal,
        detail: str,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.reason = reason
        self.detail = detail[:200]  # a peer's bytes may be in it
        self.headers = headers


class FieldParser(Protocol):
    """A parser library. It keeps nothing between calls, so one serves all connections."""

    def parse_fields(self, section: bytes) -> Headers:
        """Split a field section, which ends in its empty line. ValueError for what it refuses."""


def split_fields(section: bytes) -> Headers:
    """Split a field section as every `FieldParser` must: their oracle, and for what they veto."""
    return [(name.lower(), value.rstrip(b" \t")) for name, value in _FIELD.findall(section)]


class HeadScanner:
    """Checks a head, or a trailer section, line by line as it arrives, each byte once."""

    __slots__ = ("_config", "_empty_lines", "_fields", "_line", "_searched", "_section", "start")

    def __init__(self, config: Http1Config, *, trailers: bool = False) -> None:
        self._config = config
        self.start = 0
        """Where the request line begins, behind empty lines."""
        self._line = 0
        self._section = 0 if trailers else -1
        self._searched = 0
        self._fields = 0
        self._empty_lines = 0

    def scan(self, received: bytes) -> int:
        """Return where the head ends, 0 while it is not complete, of all that has arrived."""
        while True:
            newline = received.find(b"\n", self._searched)
            end = newline + 1 or len(received) + 1  # at least
            if self._section < 0:
                self._check_request_line(received, end, complete=newline >= 0)
            else:
                if end - self._section > self._config.max_head_size:
                    raise head_too_large(self._config)
                if newline >= 0:
                    line = received[self._line : end]
                    if line == b"\r\n":
                        return end
                    self._check_field_line(line)
            if newline < 0:
                self._searched = len(received)
                return 0
            self._line = self._searched = end

    def _check_request_line(self, received: bytes, end: int, *, complete: bool) -> None:
        if self._line < len(received) and received[self._line] not in _FIRST_BYTES:
            # At once: a TLS handshake, or anything else, has no line end to wait for.
            raise bad_request("request line begins with no token")
        if end - self._line > self._config.max_request_line + 2:
            limit = self._config.max_request_line
            raise RequestRefusedError(
                414, Refusal.HTTP1_TARGET_TOO_LONG, f"request line over {limit} bytes"
            )
        if not complete:
            return
        line = received[self._line : end]
        if line == b"\r\n":
            self._empty_lines += 1
            if self._empty_lines > MAX_EMPTY_LINES:
                raise bad_request(f"more than {MAX_EMPTY_LINES} empty lines before a request")
            self.start = end
        elif REQUEST_LINE.fullmatch(line):
            self._section = end
        elif _OTHER_VERSION.fullmatch(line):
            raise RequestRefusedError(505, Refusal.HTTP1_UNSUPPORTED_VERSION, f"{line[-10:]!r}")
        else:
            raise bad_request(f"request line {line!r}")

    def _check_field_line(self, line: bytes) -> None:
        self._fields += 1
        if self._fields > self._config.max_header_fields:
            raise too_many_fields(self._config)
        if not FIELD_LINE.fullmatch(line):
            raise bad_request(f"field line {line!r}")


def bad_request(detail: str) -> RequestRefusedError:
    return RequestRefusedError(400, Refusal.HTTP1_BAD_REQUEST, detail)


def head_too_large(config: Http1Config) -> RequestRefusedError:
    detail = f"field section over {config.max_head_size} bytes"
    return RequestRefusedError(431, Refusal.HTTP1_HEAD_TOO_LARGE, detail)


def too_many_fields(config: Http1Config) -> RequestRefusedError:
    detail = f"more than {config.max_header_fields} fields"
    return RequestRefusedError(431, Refusal.HTTP1_TOO_MANY_FIELDS, detail)


def _bad_framing(detail: str) -> RequestRefusedError:
    return RequestRefusedError(400, Refusal.HTTP1_BAD_FRAMING, detail)


# --------------------------------------------------------------------------------------------------
# Meaning


_TELLING: Final = frozenset(
    b"connection content-length expect host http2-settings sec-websocket-key "
    b"sec-websocket-version transfer-encoding upgrade".split()
)


class FieldSection:
    """A field section and what it means, apart from the request line. Immutable once built.

    A connection keeps its last one, because most clients send the same fields again: a comparison
    instead of a parse, 2.3 us for a whole exchange instead of 6 (bench/http1_engine.py).
    """

    __slots__ = (
        "chunked",
        "closes",
        "content_length",
        "expects_continue",
        "h2c_settings",
        "has_body",
        "has_host",
        "headers",
        "keeps_alive",
        "raw",
        "upgrades",
        "websocket_key",
        "websocket_version",
    )

    def __init__(self, raw: bytes, headers: Headers) -> None:
        """Read fields that a parser has split. RequestRefusedError if they leave room for doubt."""
        self.raw = raw
        self.headers = headers
        telling: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            if name in _TELLING:
                telling.setdefault(name, []).append(value)
        self.has_host = _check_host(telling.pop(b"host", None))
        self.chunked = False
        self.content_length = 0
        self.has_body = False
        self.closes = False
        self.keeps_alive = False
        self.expects_continue = False
        self.upgrades: list[bytes] = []
        self.websocket_key: list[bytes] = []
        self.websocket_version: list[bytes] = []
        self.h2c_settings: bytes | None = None
        if telling:
            self._read(telling)

    def _read(self, telling: dict[bytes, list[bytes]]) -> None:
        """Read what more than Host is told, in most requests nothing."""
        if b"transfer-encoding" in telling:
            self.chunked = _read_transfer_encoding(telling[b"transfer-encoding"])
        if b"content-length" in telling:
            self.content_length = _read_content_length(telling[b"content-length"])
            if self.chunked:
                raise _bad_framing("Transfer-Encoding and Content-Length")
        self.has_body = self.chunked or self.content_length > 0
        options = _members(telling, b"connection")
        self.closes = b"close" in options
        self.keeps_alive = b"keep-alive" in options and not self.closes
        self.expects_continue = b"100-continue" in _members(telling, b"expect")
        if b"upgrade" in options:
            # RFC 9110 §7.8: one that Connection does not name was meant for somebody before us.
            self.upgrades = _members(telling, b"upgrade")
        self.websocket_key = telling.get(b"sec-websocket-key", [])
        self.websocket_version = telling.get(b"sec-websocket-version", [])
        settings = telling.get(b"http2-settings", [])
        if b"h2c" in self.upgrades and b"http2-settings" in options and len(settings) == 1:
            self.h2c_settings = settings[0]


def _members(telling: dict[bytes, list[bytes]], name: bytes) -> list[bytes]:
    return list_members(b",".join(telling[name])) if name in telling else []


def _check_host(values: list[bytes] | None) -> bool:
    """RFC 9112 §3.2: 400 for more than one Host field, or one "with an invalid field value"."""
    if values is None:
        return False
    if len(values) > 1 or not authority_is_valid(values[0], needs_host=False):
        raise RequestRefusedError(400, Refusal.HTTP1_BAD_HOST, f"host {values!r}")
    return True


def _read_content_length(values: list[bytes]) -> int:
    length = parse_content_length(values[0])
    if length is None or len(values) > 1:
        # Also when all say the same: RFC 9110 §8.6 leaves the choice, and others choose otherwise.
        raise _bad_framing(f"content-length {values!r}")
    return length


def _read_transfer_encoding(values: list[bytes]) -> bool:
    """RFC 9112 §6.1, §6.3: chunked, once and last, or the end of the message is a guess."""
    if len(values) == 1 and values[0].lower() == b"chunked":
        return True
    codings = list_members(b",".join(values))
    if len(codings) > 1 and codings[-1] == b"chunked" not in codings[:-1]:
        raise RequestRefusedError(501, Refusal.HTTP1_UNSUPPORTED_CODING, f"{codings!r}")
    # "The server MUST respond with the 400": chunked is not the last, or comes twice. And 400 for a
    # lone "chunked" among empty list members, which proxies may read in another way.
    raise _bad_framing(f"transfer-encoding {values!r}")


class SectionReader:
    """Reads field sections, and remembers the last ones: a client's next connection mostly brings
    the same, and of several pages each is asked for in its own way. Serves all connections of a
    worker.
    """

    def __init__(self, parser: FieldParser, config: Http1Config) -> None:
        self._parser = parser
        self._config = config
        self._recent: dict[bytes, FieldSection] = {}
        self._older: dict[bytes, FieldSection] = {}
        """What was recent before `_recent` was full: no order to keep, no entry to move."""

    def read(self, section: bytes) -> FieldSection:
        """Say what a section means that has matched FIELD_SECTION; RequestRefusedError."""
        fields = self._recent.get(section)
        if fields is not None:
            return fields
        fields = self._older.get(section) or self._parse(section)
        if len(section) <= MAX_KEPT_SECTION:
            if len(self._recent) >= KEPT_SECTIONS:
                self._older, self._recent = self._recent, {}
            self._recent[section] = fields
        return fields

    def _parse(self, section: bytes) -> FieldSection:
        if section.count(b"\n") - 1 > self._config.max_header_fields:
            raise too_many_fields(self._config)
        try:
            headers = self._parser.parse_fields(section)
        except ValueError as error:
            # Has the better answer when the library stumbled over what breaks a rule of ours.
            FieldSection(section, split_fields(section))
            raise bad_request(str(error)) from None
        return FieldSection(section, headers)


_ABSOLUTE_FORM: Final = re.compile(rb"https?://([^/?]*)([/?].*)?", re.IGNORECASE)


def effective_target(method: str, target: bytes) -> tuple[bytes, bytes | None]:
    """Check a target that is not in origin-form (RFC 9112 §3.2.2 to §3.2.4).

    Returns it in the form that `RequestReceived` has, and the authority that replaces the Host
    field.
    """
    if method == "CONNECT":
        if authority_is_valid(target, needs_port=True):
            return target, None
    elif target == b"*":
        if method == "OPTIONS":
            return target, None
    elif (match := _ABSOLUTE_FORM.fullmatch(target)) and authority_is_valid(match[1]):
        path = match[2]
        if path is None:
            return (b"*" if method == "OPTIONS" else b"/"), match[1]
        return (path if path[:1] == b"/" else b"/" + path), match[1]
    raise bad_request(f"target {target!r} with {method}")


def check_websocket(fields: FieldSection) -> None:
    """RFC 6455 §4.2.1: what the opening handshake of a WebSocket needs."""
    if fields.websocket_version != [b"13"]:
        # RFC 6455 §4.4 asks for the version we speak, RFC 9110 §15.5.22 for an Upgrade field.
        raise RequestRefusedError(
            426,
            Refusal.WEBSOCKET_BAD_HANDSHAKE,
            f"sec-websocket-version {fields.websocket_version!r}",
            ((b"sec-websocket-version", b"13"), (b"upgrade", b"websocket")),
        )
    try:
        (key,) = fields.websocket_key
        nonce = base64.b64decode(key, validate=True)
    except (ValueError, binascii.Error):
        nonce = b""
    if len(nonce) != 16 or fields.has_body:
        detail = f"sec-websocket-key {fields.websocket_key!r}, or a body"
        raise RequestRefusedError(400, Refusal.WEBSOCKET_BAD_HANDSHAKE, detail)
