"""The PROXY protocol, versions 1 and 2 (haproxy.org, proxy-protocol.txt). Sans-IO.

A proxy that only passes bytes on says in a header, before the first of them, whose they are. The
receiver "must not try to guess whether the protocol header is present or not" (section 2): where it
is switched on, a connection without it is refused.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

MAX_V1: Final = 107
"""Longest header of version 1, CRLF included (section 2.1)."""
MAX_V2: Final = 2048
"""Longest header of version 2 that is taken: TLVs with a client certificate's names fit several
times; the format could say 64 KiB."""

_V1: Final = b"PROXY "
_V2: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED: Final = 16
_LINE: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: .*)?|TCP([46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+)"
    rb" (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))\r\n"
)
_ADDRESS_SIZES: Final = {0x1: 12, 0x2: 36, 0x3: 216}
"""By address family: IPv4, IPv6, Unix."""

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A complete header."""

    size: int
    """Bytes of it, of those that were given."""
    client: Address | None
    """None: the connection is the proxy's own (a health check), or of a kind without addresses."""
    server: Address | None


def parse_proxy_header_untrusted(received: bytes) -> ProxyHeader | None:
    """Read the header at the front of what has come; None when more is needed.

    Raises ValueError when it is none.
    """
    if received.startswith(_V2):
        return _parse_v2(received)
    if received.startswith(_V1):
        return _parse_v1(received)
    if _V2.startswith(received) or _V1.startswith(received):
        return None
    raise ValueError("no PROXY header")


def _parse_v1(received: bytes) -> ProxyHeader | None:
    end = received.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        if len(received) >= MAX_V1:
            raise ValueError(f"PROXY line of more than {MAX_V1} bytes")
        return None
    match = _LINE.fullmatch(received, 0, end + 2)
    if match is None:
        raise ValueError("malformed PROXY line")
    if match[1] is None:
        return ProxyHeader(end + 2, None, None)
    kind = ipaddress.IPv4Address if match[1] == b"4" else ipaddress.IPv6Address
    try:
        addresses = [str(kind(match[group].decode("ascii"))) for group in (2, 3)]
    except ValueError:
        raise ValueError("address in PROXY line") from None
    ports = [int(match[group]) for group in (4, 5)]
    if max(ports) > 65535:
        raise ValueError("port in PROXY line")
    return ProxyHeader(end + 2, (addresses[0], ports[0]), (addresses[1], ports[1]))


def _parse_v2(received: bytes) -> ProxyHeader | None:
    if len(received) < _V2_FIXED:
        return None
    version, command = received[12] >> 4, received[12] & 0xF
    family, transport = received[13] >> 4, received[13] & 0xF
    length = int.from_bytes(received[14:16])
    if version != 2 or command > 1 or family > 3 or transport > 2:
        raise ValueError("malformed PROXY header")
    size = _V2_FIXED + length
    if size > MAX_V2:
        raise ValueError(f"PROXY header of {size} bytes")
    if length < _ADDRESS_SIZES.get(family, 0):
        raise ValueError("PROXY header without its addresses")
    if len(received) < size:
        return None
    # Command 0 is LOCAL. Addresses of UDP or of Unix sockets are nobody's who speaks TCP to us.
    if command == 0 or transport != 1 or family not in (1, 2):
        return ProxyHeader(size, None, None)
    width = 4 if family == 1 else 16
    block = received[_V2_FIXED:size]
    hosts = [str(ipaddress.ip_address(block[at : at + width])) for at in (0, width)]
    ports = [int.from_bytes(block[at : at + 2]) for at in (2 * width, 2 * width + 2)]
    return ProxyHeader(size, (hosts[0], ports[0]), (hosts[1], ports[1]))
