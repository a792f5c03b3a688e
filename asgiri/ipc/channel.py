"""The two socketpairs between the master and one worker, and the descriptors that travel over them.

    control      messages (see `messages`), both ways; the hello carries descriptors, in this order:
                 connection channel, segment, then with HTTP/3 published and consumed, or the record
                 stream, then one descriptor per UDP listener; for an admin worker connection
                 channel, segment, board, one descriptor per listener
    connection   accepted TCP connections: a frame is one byte per descriptor, its listener's index,
                 plus OVERDUE if it waited too long and is to be refused with 503.
                 Worker to master: connections handed back, with a second byte for each behind all
                 the first ones: how much of its keep-alive time is over, in 255ths

Commands and connections have a pair each, so that the master can read connections back (`recover`)
without meeting commands. A message is read by exactly one reader: whoever reads it owns the
descriptors, and there is no moment when two do.

SOCK_SEQPACKET keeps messages apart and signals the end. Where AF_UNIX lacks it (macOS) SOCK_DGRAM
does all but the latter: nothing becomes readable when the peer is gone, by close or by death, and
only a `send` fails. `signals_eof` says so; the runtimes then rely on what they watch anyway: the
master on its child's exit, a worker on its parent's pid. An end-of-file message was rejected: a
process that is killed sends none, and each copy of an end that is closed after a hand-off would
send one too many.

recvmsg with MSG_CMSG_CLOEXEC, never socket.recv_fds, which drops its flags (python/cpython#107898).
There is always room for 64 descriptors: asking for fewer than were sent loses the others.
MSG_DONTWAIT on each call, never O_NONBLOCK: the copies of an end share that flag, whoever sets it.
"""

import array
import contextlib
import errno
import os
import resource
import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Final, Self

from asgiri.errors import ChannelClosedError, FdsLostError, LocalProtocolError
from asgiri.ipc.messages import MAX_FRAME_SIZE, Message, decode_untrusted, encode

__all__ = [
    "MAX_FDS",
    "OVERDUE",
    "ConnectionChannel",
    "ControlChannel",
    "close_untrusted",
    "disarm_untrusted",
]

MAX_FDS: Final = 64
"""Descriptors in one message. The kernel allows 253; those under way count against the sender's
limit of open files, and 64 keep far away from both."""

OVERDUE: Final = 0x80
"""Added to a listener's index, of which there are at most so many."""

FDS_SHARE: Final = 8
"""Part of a process's limit of open files that one message of connections may hold. What the
reader has no room for is lost, so it reads only while there is room for a whole message; where the
limit is 64 files, one of 64 would never fit."""

SOCKET_BUFFER_SIZE: Final = 4 * MAX_FRAME_SIZE
"""Room for some frames of the largest size; macOS refuses a datagram larger than the buffer."""

_FD_SIZE: Final = array.array("i").itemsize
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(MAX_FDS * _FD_SIZE)
# Plain numbers: each operation on the members of socket's enum costs 1 us.
_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0))
_CLOSE_ON_EXEC: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))
_RECEIVE_FLAGS: Final = int(socket.MSG_DONTWAIT) | _CLOSE_ON_EXEC
_PEEK_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_PEEK)
_FRAME_CUT: Final = int(socket.MSG_TRUNC)
_NO_LINGER: Final = struct.pack("ii", 0, 0)
_FDS_CUT: Final = int(socket.MSG_CTRUNC)

# ETOOMANYREFS: too many descriptors under way. ENOBUFS: macOS, the peer's buffer is full.
_WOULD_BLOCK: Final = frozenset(
    {errno.EAGAIN, errno.EWOULDBLOCK, errno.ETOOMANYREFS, errno.ENOBUFS}
)
_PEER_IS_GONE: Final = frozenset(
    {errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOTCONN, errno.EDESTADDRREQ}
)


class _Channel:
    """One end of a socketpair that keeps messages apart. Owns its socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.signals_eof: Final = sock.type != socket.SOCK_DGRAM
        """False: watch the peer's process, this channel does not tell when it is gone."""
        self.refused = 0
        """Messages that were received but made no sense."""

    @classmethod
    def pair(cls) -> tuple[Self, Self]:
        """Return both ends: ours, and theirs to hand to the other process."""
        ours, theirs = _message_pair()
        return cls(ours), cls(theirs)

    @classmethod
    def adopt(cls, fd: int) -> Self:
        """Return the end behind a descriptor that came from the other process, and own it."""
        return cls(socket.socket(fileno=fd))

    def fileno(self) -> int:
        """Return the descriptor to watch or to hand over; -1 after `close`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this copy of the end; a second call does nothing."""
        self._socket.close()

    def _send(self, frame: bytes, fds: Sequence[int]) -> bool:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([frame], rights, _SEND_FLAGS)
        except OSError as error:
            if error.errno in _WOULD_BLOCK:
                return False
            if error.errno in _PEER_IS_GONE:
                raise ChannelClosedError(f"channel: {error.strerror}") from error
            raise
        return True

    def _receive(self, size: int) -> tuple[bytes, list[int], int] | None:
        """Return frame, descriptors and flags; None when there is nothing now."""
        try:
            frame, ancillary, flags, _ = self._socket.recvmsg(size, _ANCILLARY_SIZE, _RECEIVE_FLAGS)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _PEER_IS_GONE:
                raise ChannelClosedError(f"channel: {error.strerror}") from error
            raise
        fds = _descriptors(ancillary)
        if not frame:
            # Also a worker that sends nothing at all: what it says cannot be told from its end.
            close_untrusted(fds)
            raise ChannelClosedError("channel: closed by the other process")
        if flags & _FDS_CUT:
            close_untrusted(fds)
            raise FdsLostError(
                f"channel: descriptors dropped by the kernel, {len(fds)} closed", frame
            )
        return frame, fds, flags


def largest_batch(file_limit: int) -> int:
    """Return how many connections the master sends in one message, given RLIMIT_NOFILE."""
    return max(1, min(MAX_FDS, file_limit // FDS_SHARE))


class ControlChannel(_Channel):
    """Messages, and with them the descriptors that a worker starts with."""

    def send(self, message: Message, fds: Sequence[int] = ()) -> bool:
        """Send a message; False when the channel is full. The caller still owns `fds`.

        The master keeps at most 64 refused messages per worker and then treats it as broken.
        """
        _check_count(fds)
        return self._send(encode(message), fds)

    def receive(self) -> tuple[Message | None, list[int]] | None:
        """Return a message and its descriptors, which the caller owns; None when there is none now.

        (None, []) is a frame that is no message. Raises ChannelClosedError at the end, FdsLostError
        when the descriptors of a message were lost, with it.
        """
        received = self._receive(MAX_FRAME_SIZE)
        if received is None:
            return None
        frame, fds, flags = received
        message = None if flags & _FRAME_CUT else decode_untrusted(frame)
        if message is None:
            self.refused += 1
            close_untrusted(fds)
            return None, []
        return message, fds


class ConnectionChannel(_Channel):
    """Accepted connections on their way to the worker, or handed back by it."""

    def send(self, listeners: bytes, fds: Sequence[int], ages: bytes = b"") -> int:
        """Send up to MAX_FDS descriptors, each with its listener's index, in one message.

        Return how many were sent: all, or 0 when the channel is full. The caller still owns them,
        and closes its copies of those that were sent.
        """
        _check_count(fds)
        if len(listeners) != len(fds):
            raise LocalProtocolError(f"{len(listeners)} listeners for {len(fds)} descriptors")
        if ages and len(ages) != len(fds):
            raise LocalProtocolError(f"{len(ages)} ages for {len(fds)} descriptors")
        return len(fds) if fds and self._send(listeners + ages, fds) else 0

    def receive(self) -> list[tuple[int, int]]:
        """Return (listener, descriptor) pairs, which the caller owns; [] when there are none now.

        Raises ChannelClosedError at the end, FdsLostError when this process may open no more files.
        """
        return [(listener, fd) for listener, fd, _ in self.receive_aged()]

    def receive_aged(self) -> list[tuple[int, int, int]]:
        """The same with ages: (listener, descriptor, age). 0 where none was sent."""
        received = self._receive(2 * MAX_FDS)
        if received is None:
            return []
        frame, fds, flags = received
        count = len(fds)
        if len(frame) not in (count, 2 * count) or flags & _FRAME_CUT:
            self.refused += 1
            close_untrusted(fds)
            return []
        return list(zip(frame[:count], fds, frame[count:] or bytes(count), strict=True))

    def recover(self) -> list[tuple[int, int]]:
        """Read back what the other process has not read, in the order it was sent.

        Called by the master on its copy of the worker's end, when the worker is dead or stopped.
        What this process has no room for stays in the channel (`has_message`): give away what
        came, and call it again.
        """
        recovered: list[tuple[int, int]] = []
        while self._has_room_for_message():
            refused = self.refused
            try:
                pairs = self.receive()
            except FdsLostError:
                self.refused += 1
                continue
            except ChannelClosedError:
                return recovered
            if not pairs and self.refused == refused:
                return recovered
            recovered += pairs
        return recovered

    @property
    def has_message(self) -> bool:
        """Something waits to be read."""
        return self._peek() > 0

    def _peek(self) -> int:
        """Return the size of the next message; 0 when there is none."""
        try:
            return len(self._socket.recv(2 * MAX_FDS, _PEEK_FLAGS))
        except OSError:
            return 0

    def _has_room_for_message(self) -> bool:
        """Tell whether there is a next message, and room for its descriptors.

        For a whole batch in any case: the other process, if it lives, may read this message now.
        Costs 30 us with 64 descriptors, which is little beside dispatching what comes.
        """
        size = self._peek()
        if not size:
            return False
        count = max(size, largest_batch(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
        room: list[int] = []
        try:
            while len(room) < count:
                room.append(os.dup(self._socket.fileno()))
        except OSError:
            return False
        finally:
            for fd in room:
                os.close(fd)
        return True


def _message_pair() -> tuple[socket.socket, socket.socket]:
    try:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        # macOS has the constant and not the protocol, so that only trying tells.
        if error.errno not in (errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPROTOTYPE):
            raise
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for sock in pair:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_SIZE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_SIZE)
    return pair


def _check_count(fds: Sequence[int]) -> None:
    if len(fds) > MAX_FDS:
        raise LocalProtocolError(f"{len(fds)} descriptors in one message: at most {MAX_FDS}")


def _descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            # Cut off by MSG_CTRUNC, the last one may be incomplete.
            fds.frombytes(content[: len(content) - len(content) % _FD_SIZE])
    if not _CLOSE_ON_EXEC:
        for fd in fds:
            os.set_inheritable(fd, False)
    return fds.tolist()


def disarm_untrusted(fd: int) -> bool:
    """See that nobody waits who closes a descriptor from another process; False: it is no socket.

    SO_LINGER, which the sender can set, makes close(2) wait for the peer, O_NONBLOCK or not.
    """
    try:
        # Family and kind are given, or Python would ask for them: 2 us instead of 1.
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
    except OSError:
        return False
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    except OSError:
        return False
    finally:
        connection.detach()
    return True


def close_untrusted(fds: Iterable[int]) -> None:
    """Close descriptors that another process sent, without waiting for anybody."""
    for fd in fds:
        disarm_untrusted(fd)
        with contextlib.suppress(OSError):
            os.close(fd)
