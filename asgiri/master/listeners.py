"""Every listening socket of the master: opened at the start, kept across reloads, closed at the
end.

TCP and, for QUIC, UDP on the same port; Unix sockets; sockets that somebody else opened (`fd://N`,
systemd's LISTEN_FDS). It all opens, or nothing does. How a single one is bound: see `binding`.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from asgiri.config import BindAddress, ListenConfig, parse_bind
from asgiri.errors import StartError
from asgiri.master.binding import (
    UDP_BUFFER_SIZE,
    Kind,
    Listener,
    UnixAccess,
    adopt,
    bind_port,
    bind_unix,
    tune_udp,
)
from asgiri.master.kept import NAME as KEPT_NAME
from asgiri.master.kept import KeptSockets

logger = logging.getLogger("asgiri.master")

MAX_LISTENERS: Final = 256
"""A listener's index travels in one octet."""
FIRST_INHERITED_FD: Final = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""


@dataclass(frozen=True, slots=True)
class InheritedSocket:
    """A socket that a service manager opened before we started."""

    fd: int
    name: str


def inherited_sockets(environ: MutableMapping[str, str], pid: int) -> list[InheritedSocket]:
    """Take what sd_listen_fds(3) would: LISTEN_FDS sockets from 3 on, if LISTEN_PID is `pid`.

    The variables are removed, ours or not: neither a worker nor what an application starts may
    take them for its own.
    """
    wanted_pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    environ.pop("LISTEN_PIDFDID", None)
    if not count or wanted_pid != str(pid):
        return []
    if not count.isdecimal() or int(count) > MAX_LISTENERS:
        raise StartError(f"LISTEN_FDS={count}: must be the number of sockets passed")
    names += [""] * int(count)
    return [
        InheritedSocket(FIRST_INHERITED_FD + offset, names[offset]) for offset in range(int(count))
    ]


class Listeners:
    """The listeners by index. Owns them."""

    def __init__(self, *, backlog: int, unix_access: UnixAccess, quic: bool) -> None:
        self._all: list[Listener] = []
        self._kept = KeptSockets()
        self._backlog = backlog
        self._unix_access = unix_access
        self._quic = quic

    def __iter__(self) -> Iterator[Listener]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def streams(self) -> list[Listener]:
        """Those that accept connections."""
        return [listener for listener in self._all if listener.kind != "udp"]

    @property
    def datagrams(self) -> list[Listener]:
        """Those that receive QUIC."""
        return [listener for listener in self._all if listener.kind == "udp"]

    def adopt_inherited(self, inherited: Sequence[InheritedSocket]) -> None:
        """Take what the service manager passed; what it only kept for us, when it is bound."""
        self._kept = KeptSockets(passed.fd for passed in inherited if passed.name == KEPT_NAME)
        for passed in inherited:
            if passed.name == KEPT_NAME:
                continue
            listener = adopt(passed.fd, self._backlog, passed.name)
            if listener.kind == "udp" and not self._quic:
                logger.warning("fd://%d is a UDP socket, but HTTP/3 is off: not used", passed.fd)
                listener.close()
            else:
                self._add(listener)

    def open_bind(self, bind: BindAddress, *, quic: bool, insecure: bool = False) -> None:
        """Open a listener for connections and, with `quic`, its UDP twin."""
        if bind.kind == "unix":
            access = self._unix_access
            opened = [bind_unix(bind.path, self._backlog, access, kept=self._kept)]
        elif bind.kind == "fd":
            opened = [adopt(bind.fd, self._backlog, "")]
            if opened[0].kind == "udp":
                opened[0].close()
                raise StartError(f"fd://{bind.fd} is a UDP socket: give it to --quic-bind")
        else:
            kinds: tuple[Kind, ...] = ("tcp", "udp") if quic else ("tcp",)
            opened = self._bind_port(bind.host, bind.port, kinds)
        for listener in opened:
            listener.insecure = insecure
            self._add(listener)

    def open_quic_bind(self, bind: BindAddress) -> None:
        """Open a listener for QUIC."""
        if bind.kind == "fd":
            opened = [adopt(bind.fd, self._backlog, "")]
            if opened[0].kind != "udp":
                opened[0].close()
                raise StartError(f"fd://{bind.fd} is no UDP socket: give it to --bind")
        else:
            opened = self._bind_port(bind.host, bind.port, ("udp",))
        for listener in opened:
            self._add(listener)

    def open_quic_twins(self) -> None:
        """Open the UDP twin of each TCP port that was inherited without one."""
        for listener in self.streams:
            if listener.kind == "tcp" and not listener.insecure:
                for twin in self._bind_port(listener.host, listener.port, ("udp",)):
                    self._add(twin)

    def _bind_port(self, host: str, port: int, kinds: Sequence[Kind]) -> list[Listener]:
        return bind_port(host, port, kinds, self._backlog, kept=self._kept)

    def tune_quic(self) -> None:
        """Set the options of all UDP sockets; warn once when their buffers stay small."""
        clamped: set[str] = set()
        for listener in self.datagrams:
            clamped |= tune_udp(listener)
        if clamped:
            remedy = " ".join(f"{name}={UDP_BUFFER_SIZE}" for name in sorted(clamped))
            logger.warning(
                "UDP buffers are too small for bursts of QUIC datagrams: sysctl -w %s", remedy
            )

    def to_state(self) -> list[dict[str, Any]]:
        """Describe them to the next program of this process."""
        return [
            {
                "fd": listener.fileno(),
                "kind": listener.kind,
                "host": listener.host,
                "port": listener.port,
                "path": listener.path,
                "name": listener.name,
                "insecure": listener.insecure,
                "inherited": listener.inherited,
                "inode": listener.inode,
            }
            for listener in self._all
        ]

    def resume(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Own the sockets that `to_state` described, under the indices that the workers know."""
        for known in state:
            bound = socket.socket(fileno=known["fd"])
            os.set_inheritable(bound.fileno(), False)
            self._add(
                Listener(
                    bound,
                    known["kind"],
                    known["host"],
                    known["port"],
                    known["path"],
                    known["name"],
                    known["insecure"],
                    known["inherited"],
                    inode=(known["inode"][0], known["inode"][1]),
                )
            )

    def close_streams(self) -> None:
        """Close those that accept connections; QUIC goes on for the connections that are open."""
        for listener in self.streams:
            listener.close()

    def describe(self, *, tls: bool, versions: Sequence[str]) -> str:
        """Say where to reach the server, grouped by what is spoken there."""
        udp = {(listener.host, listener.port) for listener in self.datagrams}
        groups: dict[tuple[str, ...], list[str]] = {}
        for listener in self.streams:
            address = (listener.host, listener.port)
            spoken = (*versions, "h3") if address in udp else tuple(versions)
            udp.discard(address)
            scheme = "https" if tls and not listener.insecure else "http"
            shown = str(listener) if listener.kind == "unix" else f"{scheme}://{listener}"
            groups.setdefault(spoken, []).append(shown)
        for listener in self.datagrams:
            if (listener.host, listener.port) in udp:
                groups.setdefault(("h3",), []).append(f"https://{listener}")
        return ", ".join(
            f"{', '.join(addresses)} ({', '.join(spoken)})" for spoken, addresses in groups.items()
        )

    def _add(self, listener: Listener) -> None:
        if len(self._all) >= MAX_LISTENERS:
            listener.close()
            raise StartError(f"more than {MAX_LISTENERS} listening sockets: bind fewer addresses")
        listener.index = len(self._all)
        self._all.append(listener)

    def close_unwanted(self) -> None:
        """Close what was kept for us and that nothing is bound to any more."""
        if len(self._kept):
            logger.info("sockets of an earlier configuration, closed: %d", len(self._kept))
        self._kept.close()

    def close(self) -> None:
        """Close every one of them; may be repeated."""
        self._kept.close()
        for listener in self._all:
            listener.close()


def open_listeners(
    listen: ListenConfig,
    *,
    quic: bool,
    inherited: Sequence[InheritedSocket] = (),
    unix_access: UnixAccess,
) -> Listeners:
    """Open everything that is configured, or raise StartError and leave nothing open.

    Sockets for connections that a service manager passed replace `bind`: who wrote the unit file
    meant them, and `bind` has a default.
    """
    listeners = Listeners(backlog=listen.backlog, unix_access=unix_access, quic=quic)
    twins = quic and not listen.quic_bind
    try:
        listeners.adopt_inherited(inherited)
        if not listeners.streams:
            twins = twins and not listeners.datagrams
            for text in listen.bind:
                listeners.open_bind(parse_bind(text), quic=twins)
        elif twins and not listeners.datagrams:
            listeners.open_quic_twins()
        for text in listen.insecure_bind:
            listeners.open_bind(parse_bind(text), quic=False, insecure=True)
        for text in listen.quic_bind:
            listeners.open_quic_bind(parse_bind(text))
        if quic and not listeners.datagrams:
            raise StartError("HTTP/3 has no UDP port: add --quic-bind HOST:PORT")
        listeners.tune_quic()
        listeners.close_unwanted()
    except BaseException:
        listeners.close()
        raise
    return listeners
