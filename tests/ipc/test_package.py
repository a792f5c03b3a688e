"""The package as a whole: it can be used where Linux is not, and says what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What macOS has not, taken away before anything of ours is imported. SOCK_SEQPACKET stays: macOS
# has the constant and refuses the socket.
ELSEWHERE = """
import errno, fcntl, os, socket

for module, prefixes in (
    (os, ("memfd_create", "MFD_", "eventfd", "EFD_", "pidfd")),
    (fcntl, ("F_SEAL_", "F_ADD_SEALS", "F_GET_SEALS")),
    (socket, ("MSG_CMSG_CLOEXEC", "MSG_NOSIGNAL", "SO_PASSCRED")),
):
    for name in [name for name in dir(module) if name.startswith(prefixes)]:
        delattr(module, name)

real = socket.socketpair

def socketpair(family=socket.AF_UNIX, kind=socket.SOCK_STREAM):
    if kind == socket.SOCK_SEQPACKET:
        raise OSError(errno.EPROTONOSUPPORT, "no")
    return real(family, kind)

socket.socketpair = socketpair

from asgiri.errors import RingUnavailableError
from asgiri.ipc.channel import ConnectionChannel, ControlChannel
from asgiri.ipc.messages import Quit
from asgiri.ipc.records import encode_peer, record_header
from asgiri.ipc.scoreboard import Cell, Scoreboard
from asgiri.ipc.segment import Segment, create_ring
from asgiri.ipc.stream import StreamReader, StreamWriter, record_stream_pair
import asgiri.ipc.connection_id, asgiri.ipc.ring, asgiri.ipc.tokens

try:
    create_ring(1 << 17)
except RingUnavailableError as error:
    print(error)

board = Scoreboard(Segment.create(0).scoreboard)
board.add(Cell.TCP_OPEN)
print(board.get(Cell.TCP_OPEN))

ours, theirs = record_stream_pair()
writer, reader = StreamWriter(ours, 1 << 17), StreamReader(theirs, 1 << 17)
peer = encode_peer(("::1", 1, 0, 0), 0, None)
writer.put(record_header(1, 0, 0, len(peer)), peer, b"x")
writer.publish()
print(reader.take(9)[0].payload)

ours, theirs = ControlChannel.pair()
ours.send(Quit(), [0])
message, (fd,) = theirs.receive()
print(message, os.get_inheritable(fd))

ours, theirs = ConnectionChannel.pair()
ours.send(b"\\7", [0])
print(theirs.recover()[0][0])
"""


@pytest.mark.slow
def test_it_works_without_what_only_linux_has():
    result = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", ELSEWHERE],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    assert result.stdout.splitlines() == [
        "memfd_create: Function not implemented",
        "1",
        "b'x'",
        "Quit() False",
        "7",
    ]
