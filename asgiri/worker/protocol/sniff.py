"""Which HTTP a cleartext connection speaks, by its first bytes. Sans-IO."""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["HTTP2_PREFACE", "Sniffed", "sniff"]

HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""RFC 9113 §3.4: what a client with prior knowledge sends first, made to fail on HTTP/1.1 servers.
"""


class Sniffed(enum.Enum):
    """What the first bytes say."""

    HTTP1 = "http1"
    HTTP2 = "http2"
    NEED_MORE = "need more"


def sniff(received: bytes) -> Sniffed:
    """Tell from all that a connection has received so far.

    HTTP/1.1 takes whatever is not the whole preface: it has an answer for bytes that are neither.
    """
    if received.startswith(HTTP2_PREFACE):
        return Sniffed.HTTP2
    return Sniffed.NEED_MORE if HTTP2_PREFACE.startswith(received) else Sniffed.HTTP1
