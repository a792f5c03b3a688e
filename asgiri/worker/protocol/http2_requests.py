"""Whether a request of HTTP/2 is one that the application should see. Sans-IO."""

from __future__ import annotations

from dataclasses import dataclass

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.events import Headers
from asgiri.worker.protocol.headers import Malformed, RequestParts, parse_request_untrusted
from asgiri.worker.protocol.priority import DEFAULT, Priority, parse_priority_untrusted


@dataclass(slots=True)
class Refused:
    """Answer it with `status` in the application's place; None: it is malformed, a stream error."""

    status: int | None
    reason: Refusal
    detail: str


def read_request_untrusted(
    fields: list[tuple[bytes, bytes]], *, max_list_size: int
) -> RequestParts | Refused:
    """Check a decoded field section. Never raises."""
    if _list_size(fields) > max_list_size:
        return Refused(431, Refusal.HTTP2_HEADERS_TOO_LARGE, "field section too large")
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
