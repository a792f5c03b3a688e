"""Which peers are believed what others are not: the networks of --forwarded-allow-ips."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from typing import Final

EVERYBODY = "*"
REMEMBERED: Final = 1024
"""Peers whose answer is kept: to parse and compare an address costs 6 us, for each connection."""


class TrustedPeers:
    """Addresses and networks; a peer without an address (a Unix socket) is on this machine."""

    def __init__(self, networks: Iterable[str]) -> None:
        networks = list(networks)
        self._everybody = EVERYBODY in networks
        self._networks = [
            ipaddress.ip_network(network, strict=False)
            for network in networks
            if network != EVERYBODY
        ]
        self._includes = functools.lru_cache(REMEMBERED)(self._look_up)

    def __contains__(self, host: str | None) -> bool:
        if self._everybody:
            return True
        if host is None:
            return any(network.is_loopback for network in self._networks)
        return self._includes(host)

    def _look_up(self, host: str) -> bool:
        address = ipaddress.ip_address(host)
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            # What a socket that listens on both families says of an IPv4 peer.
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)
