"""Whether a request of HTTP/2 is one that the application should see. Sans-IO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.events import Headers
from asgiri.worker.protocol.headers import Malformed, RequestParts, parse_request_untrusted
from asgiri.worker.protocol.priority import DEFAULT, Priority, parse_priority_untrusted

MAX_KEPT_LIST: Final = 4096
"""Largest field section that is remembered, as RFC 9113 §6.5.2 counts. Browsers send 2 KiB."""


@dataclass(slots=True)
class Refused:
    """Answer it with `status` in the application's place; None: it is malformed, a stream error."""

    status: int | None
    reason: Refusal
    detail: str


class RequestReader:
    """Checks field sections. It keeps the last of a connection, because most clients send the same
    fields again: a comparison instead of 7 us.
    """

    def __init__(self, *, max_list_size: int) -> None:
        self._max_list_size = max_list_size
        self._kept: list[tuple[bytes, bytes]] = []
        self._parts: RequestParts | Refused = _read_parts(self._kept)

    def read_untrusted(
        self, fields: list[tuple[bytes, bytes]], *, ended: bool
    ) -> RequestParts | Refused:
        """Check a decoded section; `ended` when no body follows. Never raises. The result is
        shared: copy its `headers`.
        """
        parts = self._parts if fields == self._kept else self._read(fields)
        if ended and type(parts) is RequestParts and parts.content_length:
            # RFC 9113 §8.1.1: "malformed if the value of a Content-Length header field does not
            # equal the sum of the DATA frame payload lengths".
            detail = f"content-length {parts.content_length} without a body"
            return Refused(None, Refusal.BODY_LENGTH_MISMATCH, detail)
        return parts

    def _read(self, fields: list[tuple[bytes, bytes]]) -> RequestParts | Refused:
        size = _list_size(fields)
        if size > self._max_list_size:
            return Refused(431, Refusal.HTTP2_HEADERS_TOO_LARGE, "field section too large")
        parts = _read_parts(fields)
        if size <= MAX_KEPT_LIST:
            self._kept, self._parts = fields, parts
        return parts


def _read_parts(fields: list[tuple[bytes, bytes]]) -> RequestParts | Refused:
    parts = parse_request_untrusted(fields)
    if isinstance(parts, Malformed):
        return Refused(None, Refusal.HTTP2_BAD_HEADERS, parts.detail)
    if parts.method == "CONNECT" and parts.protocol != "websocket":
        # RFC 9110 §9.3.6, RFC 8441 §4: no tunnels but WebSockets.
        detail = f"CONNECT for {parts.protocol or 'a host'}"
        return Refused(501, Refusal.HTTP2_BAD_HEADERS, detail)
    return parts


def priority_of(headers: Headers) -> Priority:
    """What the request itself asks for (RFC 9218 §5)."""
    for name, value in headers:
        if name == b"priority":
            return parse_priority_untrusted(value)
    return DEFAULT


def _list_size(fields: list[tuple[bytes, bytes]]) -> int:
    """RFC 9113 §6.5.2: "plus an overhead of 32 octets for each field"."""
    return sum(len(name) + len(value) for name, value in fields) + 32 * len(fields)
