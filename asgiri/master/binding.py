"""Bind one socket, or adopt one that somebody else opened. Errors are one line and name the remedy.

IPv4 and IPv6 are bound separately (IPV6_V6ONLY), because the source address of a reply is set in
the protocol family of its socket.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import socket
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from asgiri.errors import StartError
from asgiri.ipc.messages import ListenerInfo
from asgiri.master.kept import KeptSockets

logger = logging.getLogger("asgiri.master")

UDP_BUFFER_SIZE: Final = 4 << 20
"""Asked of the kernel for each direction of a UDP socket: 3,640 full datagrams while the master
or a client's network hesitates. The default of 208 KiB holds 90."""
PORT_CLASH_RETRIES: Final = 16
"""Port 0 takes a TCP port of the kernel's choice; when its UDP twin is taken, another one is
tried."""
INSECURE_NAME: Final = "insecure"
"""FileDescriptorName= of an inherited socket that speaks cleartext although there is a
certificate."""

# Names that `socket` lacks in some versions; the numbers are the kernel's.
_LINUX: Final = sys.platform == "linux"
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3
IP_PKTINFO: Final = 8 if _LINUX else 26
IPV6_RECVPKTINFO: Final = getattr(socket, "IPV6_RECVPKTINFO", 49 if _LINUX else 61)

_NOTHING_KEPT: Final = KeptSockets()
_WILDCARDS: Final = ("0.0.0.0", "::")  # noqa: S104 (the operator asked for it)
Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


Kind = Literal["tcp", "unix", "udp"]


@dataclass(frozen=True, slots=True)
class UnixAccess:
    """Who may connect to the Unix sockets that we create."""

    mode: int = 0o666
    """Connecting takes write permission; the directory can be stricter."""
    owner: tuple[int, int] | None = None
    """User and group that the workers will run as."""


@dataclass(slots=True)
class Listener:
    """One bound socket. `close` is its end; workers hold duplicates of UDP sockets only."""

    socket: socket.socket
    kind: Kind
    host: str
    port: int
    path: str = ""
    name: str = ""
    """What the service manager calls an inherited socket."""
    insecure: bool = False
    """Cleartext, although the others speak TLS."""
    inherited: bool = False
    index: int = -1
    inode: tuple[int, int] = (0, 0)
    """Device and inode of a Unix socket's file, so that only our own is removed."""

    @property
    def wildcard(self) -> bool:
        """True when it takes datagrams or connections for every address of the machine."""
        return self.host in _WILDCARDS

    def fileno(self) -> int:
        """Tell the descriptor."""
        return self.socket.fileno()

    def info(self, *, tls: bool) -> ListenerInfo:
        """Describe it to a worker."""
        return ListenerInfo(
            index=self.index,
            kind=self.kind,
            host=self.host,
            port=self.port,
            path=self.path,
            tls=self.kind == "udp" or (tls and not self.insecure),
            insecure=self.insecure,
            wildcard=self.wildcard,
        )

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def close(self) -> None:
        """Close the socket, and remove the file of a Unix socket that is still ours."""
        if self.socket.fileno() < 0:
            return
        self.socket.close()
        if self.kind == "unix" and not self.inherited:
            try:
                status = os.stat(self.path)
                if (status.st_dev, status.st_ino) == self.inode:
                    os.unlink(self.path)
            except FileNotFoundError:
                pass
            except OSError as error:
                logger.warning("cannot remove %s: %s", self.path, error.strerror)


# TCP and UDP


def bind_port(
    host: str,
    port: int,
    kinds: Sequence[Kind],
    backlog: int,
    *,
    kept: KeptSockets = _NOTHING_KEPT,
) -> list[Listener]:
    """Bind every address of `host` for every kind, all on one port number."""
    addresses = _resolve(host, port)
    for _ in range(PORT_CLASH_RETRIES):
        opened: list[Listener] = []
        try:
            for kind, (family, address) in itertools.product(kinds, addresses):
                chosen = (address[0], opened[-1].port if opened else port, *address[2:])
                try:
                    opened.append(_bind(kind, family, chosen, backlog, kept))
                except OSError as error:
                    # A machine without IPv6 still resolves localhost to ::1.
                    missing = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
                    if not (missing and family == socket.AF_INET6 and opened):
                        raise
            return opened
        except OSError as error:
            for listener in opened:
                listener.close()
            if port or not opened or error.errno != errno.EADDRINUSE:
                raise _explain(error, kind, host, port) from error
    raise StartError(f"{host}:0: found no port that is free for both TCP and UDP")


def _bind(
    kind: Kind,
    family: socket.AddressFamily,
    address: tuple[str, int, *tuple[int, ...]],
    backlog: int,
    kept: KeptSockets,
) -> Listener:
    stream = kind == "tcp"
    type_ = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    bound = kept.take(family, type_, *address[:2]) or _new_socket(family, type_, address)
    try:
        if stream:
            _prepare_stream(bound, family)
            bound.listen(backlog)
    except BaseException:
        bound.close()
        raise
    host, port = bound.getsockname()[:2]
    return Listener(bound, kind, host, port)


def _new_socket(
    family: socket.AddressFamily, type_: socket.SocketKind, address: tuple[object, ...]
) -> socket.socket:
    bound = socket.socket(family, type_)
    try:
        bound.setblocking(False)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if type_ == socket.SOCK_STREAM:
            # Not on UDP: there it would let another process of ours share, and steal from, the
            # port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def _prepare_stream(bound: socket.socket, family: int) -> None:
    if family in (socket.AF_INET, socket.AF_INET6):
        # Accepted sockets inherit it on Linux, which saves a system call per connection.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _resolve(host: str, port: int) -> list[Address]:
    """Return the addresses to bind; "" stands for every address of the machine, IPv4 and IPv6."""
    if not host:
        v4, v6 = _WILDCARDS
        return [(socket.AF_INET, (v4, port)), (socket.AF_INET6, (v6, port, 0, 0))]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a host name"
        raise StartError(
            f"cannot bind {host}:{port}: {reason}; use an address of this machine"
        ) from error
    addresses: list[Address] = []
    for family, _, _, _, address in found:
        entry = (family, address)
        if family in (socket.AF_INET, socket.AF_INET6) and entry not in addresses:
            addresses.append(entry)  # type: ignore[arg-type]
    return addresses


def _explain(error: OSError, kind: str, host: str, port: int) -> StartError:
    what = f"cannot bind {host or '*'}:{port} ({kind})"
    match error.errno:
        case errno.EADDRINUSE:
            asks = "ss -ltnp" if kind == "tcp" else "ss -lunp"
            remedy = f"see who has it with: {asks} 'sport = :{port}'"
        case errno.EACCES | errno.EPERM if port < 1024:
            remedy = (
                "ports below 1024 need root, CAP_NET_BIND_SERVICE, a socket of systemd's, or"
                f" sysctl -w net.ipv4.ip_unprivileged_port_start={port}"
            )
        case errno.EADDRNOTAVAIL:
            remedy = "this machine has no such address; list them with: ip addr"
        case errno.EAFNOSUPPORT:
            remedy = "this machine has no IPv6; bind an IPv4 address"
        case _:
            remedy = ""
    return StartError.from_os_error(error, what, remedy)


def tune_udp(listener: Listener) -> set[str]:
    """Set the options of a UDP socket; return the sysctls that keep its buffers small."""
    clamped = set()
    bound = listener.socket
    for forced, plain, sysctl in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF, "net.core.rmem_max"),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF, "net.core.wmem_max"),
    ):
        if not _grow_buffer(bound, forced, plain):
            clamped.add(sysctl if _LINUX else "kern.ipc.maxsockbuf")
    # Workers reply from the address that the client used, which only these messages tell.
    if listener.wildcard and bound.family == socket.AF_INET:
        bound.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    elif listener.wildcard:
        bound.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
    if _LINUX:
        # DF on every packet, as QUIC wants (RFC 9000 §14), without EMSGSIZE from a cached path MTU.
        if bound.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        # Also on an IPv6 socket, for the mapped IPv4 peers of an inherited dual-stack one.
        bound.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
    return clamped


def _grow_buffer(bound: socket.socket, forced: int, plain: int) -> bool:
    if _LINUX:
        # Root and CAP_NET_ADMIN may pass the sysctl's limit.
        with contextlib.suppress(PermissionError):
            bound.setsockopt(socket.SOL_SOCKET, forced, UDP_BUFFER_SIZE)
            return True
    # Linux cuts silently and reports the double; macOS refuses what is too much.
    with contextlib.suppress(OSError):
        bound.setsockopt(socket.SOL_SOCKET, plain, UDP_BUFFER_SIZE)
    reported = bound.getsockopt(socket.SOL_SOCKET, plain)
    return reported >= UDP_BUFFER_SIZE * (2 if _LINUX else 1)


# Unix sockets


def bind_unix(
    path: str, backlog: int, access: UnixAccess, *, kept: KeptSockets = _NOTHING_KEPT
) -> Listener:
    """Bind a Unix socket in place of one whose owner is gone."""
    what = f"cannot bind unix:{path}"
    try:
        bound = kept.take(socket.AF_UNIX, socket.SOCK_STREAM, path, 0)
        if bound is not None and not os.path.exists(path):
            bound.close()  # nobody reaches it without its file
            bound = None
        if bound is None:
            _remove_stale(path)
            bound = _new_unix_socket(path, access)
        try:
            bound.listen(backlog)
            status = os.stat(path)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise _explain_unix(error, what, path) from error
    return Listener(bound, "unix", "", 0, path, inode=(status.st_dev, status.st_ino))


def _new_unix_socket(path: str, access: UnixAccess) -> socket.socket:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        # The mode is there from the first moment; chmod would come after the first connection.
        umask = os.umask(0o777 & ~access.mode)
        try:
            bound.bind(path)
        finally:
            os.umask(umask)
        if access.owner is not None:
            os.chown(path, *access.owner)
    except BaseException:
        bound.close()
        raise
    return bound


def _explain_unix(error: OSError, what: str, path: str) -> StartError:
    directory = Path(path).parent
    match error.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            remedy = f"uid {os.geteuid()} must be allowed to write into {directory}"
        case errno.ENOENT | errno.ENOTDIR:
            remedy = f"create the directory {directory}"
        case errno.EADDRINUSE:
            remedy = f"see who has it with: ss -lxp src {path}"
        case None:  # "AF_UNIX path too long" is Python's own
            remedy = "take a path of at most 107 bytes"
        case _:
            remedy = ""
    return StartError.from_os_error(error, what, remedy)


def _remove_stale(path: str) -> None:
    """Remove a socket's file that a crash left behind; never one at which somebody answers."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise StartError(f"cannot bind unix:{path}: it exists and is no socket; remove it yourself")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            logger.info("removed %s, left behind by a process that is gone", path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody listens
        except OSError as error:
            if error.errno != errno.EPROTOTYPE:  # a datagram socket: somebody's
                raise
    raise OSError(errno.EADDRINUSE, "somebody listens there")


# Sockets opened by others


def adopt(fd: int, backlog: int, name: str) -> Listener:
    """Take over an open socket, whatever kind of listener it is."""
    try:
        bound = socket.socket(fileno=fd)
    except OSError as error:
        raise StartError.from_os_error(
            error, f"fd://{fd}", "pass an open socket of that number to this process"
        ) from error
    try:
        listener = _describe(bound, name)
        bound.setblocking(False)
        os.set_inheritable(fd, False)
        if listener.kind != "udp":
            _prepare_stream(bound, bound.family)
            bound.listen(backlog)
    except OSError as error:
        bound.close()
        raise StartError.from_os_error(error, f"fd://{fd}: not a listening socket") from error
    except StartError:
        bound.close()
        raise
    return listener


def _describe(bound: socket.socket, name: str) -> Listener:
    fd = bound.fileno()
    insecure = name == INSECURE_NAME
    with contextlib.suppress(OSError):
        bound.getpeername()
        raise StartError(f"fd://{fd} is a connection, no listener (systemd: set Accept=no)")
    if bound.family == socket.AF_UNIX and bound.type == socket.SOCK_STREAM:
        path = bound.getsockname()
        shown = os.fsdecode(path).replace("\0", "@", 1)
        return Listener(bound, "unix", "", 0, shown, name, insecure, inherited=True)
    if bound.family not in (socket.AF_INET, socket.AF_INET6):
        raise StartError(f"fd://{fd} is of family {bound.family!s}: pass an IP or a Unix socket")
    host, port = bound.getsockname()[:2]
    if bound.type == socket.SOCK_STREAM:
        return Listener(bound, "tcp", host, port, "", name, insecure, inherited=True)
    if bound.type == socket.SOCK_DGRAM and port:
        return Listener(bound, "udp", host, port, "", name, inherited=True)
    raise StartError(f"fd://{fd} is neither a stream socket nor a bound UDP socket")
