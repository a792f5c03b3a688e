"""What proxies say of the client in front of them: X-Forwarded-*, or Forwarded (RFC 7239).

A proxy appends what it saw to what it was told, and the client may have begun the list with lies.
So a list is read from its end: as long as a hop is a proxy of ours, the one before it is believed;
the first that is none is the client. What cannot be read ends the walk, and the last that could be
is taken.

One of the two families is read, never both: a proxy passes on the one that it does not know just as
the client wrote it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.asgi.trust import TrustedPeers
from asgiri.worker.protocol.events import Headers
from asgiri.worker.protocol.headers import TCHAR, authority_is_valid

Address = tuple[str, int | None]
Family = Literal["x-forwarded", "forwarded"]

MAX_HOPS: Final = 32
"""Proxies that a list may name; what is before them is not read. Real chains have three or four."""

SCHEMES: Final = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}
_DEFAULT_PORTS: Final = {"http": b"80", "https": b"443"}
_PORT: Final = re.compile(rb"[1-9][0-9]{0,4}")
_NODE: Final = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::([0-9]{1,5}))?")
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+;=:@%-]+)+/?")
_PAIR: Final = re.compile(
    rb"[ \t]*(%b+)=(?:(%b+)|\"((?:[\t !#-\[\]-~]|\\[\t -~])*)\")[ \t]*(;|,|$)" % (TCHAR, TCHAR)
)
_ESCAPED: Final = re.compile(rb"\\(.)")


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What to take in the place of what the connection says; empty where that stays."""

    client: Address | None = None
    scheme: str = ""
    host: bytes = b""
    prefix: str = ""


NOTHING: Final = Forwarded()


class ForwardedReader:
    """Reads the fields of requests from trusted peers. One per worker."""

    def __init__(
        self, trusted: TrustedPeers, family: Family, refuse: Callable[[Refusal], None]
    ) -> None:
        """`refuse` counts what is malformed, which is ignored."""
        self._trusted = trusted
        self._names = frozenset(
            (b"forwarded",)
            if family == "forwarded"
            else (
                b"x-forwarded-" + name for name in (b"for", b"proto", b"host", b"port", b"prefix")
            )
        )
        self._is_standard = family == "forwarded"
        self._refuse = refuse

    def believes(self, peer: Address | None) -> bool:
        """Whether what this peer says counts."""
        return (None if peer is None else peer[0]) in self._trusted

    def read_untrusted(self, headers: Headers) -> Forwarded:
        """Read the fields of a request of a peer that is believed. Never raises."""
        found: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in self._names:
                found[name] = found[name] + b"," + value if name in found else value
        if not found:
            return NOTHING
        return self._read_standard(found) if self._is_standard else self._read_usual(found)

    # X-Forwarded-*

    def _read_usual(self, found: dict[bytes, bytes]) -> Forwarded:
        hops = _members(found.get(b"x-forwarded-for"))
        client, position = self._walk([parse_node(hop) for hop in hops])

        def value_of(name: bytes) -> bytes:
            values = _members(found.get(b"x-forwarded-" + name))
            if position and len(values) == len(hops):
                # Of proxies that append, each value stands where the hop does that it is about.
                return values[position - 1]
            return values[-1] if values else b""

        scheme = self._scheme(value_of(b"proto"))
        host = self._host(value_of(b"host"))
        port = value_of(b"port")
        if port and host and not re.search(rb":[0-9]+$", host):
            if not _PORT.fullmatch(port):
                self._malformed()
            elif port != _DEFAULT_PORTS.get(scheme):
                host = host.removesuffix(b":") + b":" + port  # a port may be empty (RFC 3986)
        return Forwarded(client, scheme, host, self._prefix(value_of(b"prefix")))

    # Forwarded

    def _read_standard(self, found: dict[bytes, bytes]) -> Forwarded:
        elements = parse_forwarded(found[b"forwarded"])
        if elements is None:
            self._malformed()
            return NOTHING
        elements = elements[-MAX_HOPS:]
        # An element without "for", or with an obfuscated one, tells of a hop that nobody can name.
        client, position = self._walk([parse_node(each.get(b"for", b"")) for each in elements])
        told = elements[position - 1]  # of position 0: the last one, which our own proxy wrote
        return Forwarded(
            client,
            self._scheme(told.get(b"proto", b"")),
            self._host(told.get(b"host", b"")),
        )

    # Both

    def _walk(self, nodes: Sequence[Address | None]) -> tuple[Address | None, int]:
        """Find the client; return it and its place, counted from 1. 0: none could be read."""
        client, place = None, 0
        for position in range(len(nodes), 0, -1):
            node = nodes[position - 1]
            if node is None:
                self._malformed()
                break
            client, place = node, position
            if node[0] not in self._trusted:
                break
        return client, place

    def _scheme(self, value: bytes) -> str:
        scheme = SCHEMES.get(value.lower(), "")
        if value and not scheme:
            self._malformed()
        return scheme

    def _host(self, value: bytes) -> bytes:
        if value and not authority_is_valid(value):
            self._malformed()
            return b""
        return value

    def _prefix(self, value: bytes) -> str:
        prefix = value.decode("latin-1")
        if not prefix or prefix == "/":
            return ""
        if not _PREFIX.fullmatch(prefix):
            self._malformed()
            return ""
        return prefix.rstrip("/")

    def _malformed(self) -> None:
        self._refuse(Refusal.BAD_PROXY_HEADER)


def _members(value: bytes | None) -> list[bytes]:
    """The last members of a list; empty ones do not count."""
    if value is None:
        return []
    members = [member.strip(b" \t") for member in value.rsplit(b",", MAX_HOPS)[-MAX_HOPS:]]
    return [member for member in members if member]


def parse_node(text: bytes) -> Address | None:
    """Read an address, with or without a port: 192.0.2.1:80, [2001:db8::1]:80, 2001:db8::1."""
    match = _NODE.fullmatch(text)
    host = (match[1] or match[2]) if match else text
    try:
        address = ipaddress.ip_address(host.decode("ascii"))
    except ValueError:
        return None
    port = int(match[3]) if match and match[3] else 0
    return (str(address), port) if port < 65536 else None


def parse_forwarded(value: bytes) -> list[dict[bytes, bytes]] | None:
    """Take the field apart (RFC 7239 §4); None if it is malformed. Names in lower case."""
    elements: list[dict[bytes, bytes]] = [{}]
    start = 0
    while start < len(value):
        match = _PAIR.match(value, start)
        if match is None or match[1].lower() in elements[-1]:
            return None
        quoted = match[3]
        text = match[2] if quoted is None else _ESCAPED.sub(rb"\1", quoted)
        elements[-1][match[1].lower()] = text
        start = match.end()
        if match[4] == b",":
            elements.append({})
    # A list may have empty members (RFC 9110 §5.6.1), but this one ends in a separator.
    return elements if elements[-1] else None
