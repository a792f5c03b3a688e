"""A worker without protocols, for tests of the master: a real process that does as its hello says.

`WorkerOrder.module` names it. `hello.config["behaviour"]`:

    serve         report ready, answer each connection with its slot and worker_id, answer each
                  record by UDP, end on Drain or Quit
    fail          report Failed, exit with status 7
    exit          exit with status 5 at once, saying nothing
    silent        read the hello and then nothing more
    rubbish       send frames that are no messages, then serve
    close         close the control channel and live on
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time

from asgiri.errors import ChannelClosedError
from asgiri.ipc import messages
from asgiri.ipc.channel import ConnectionChannel, ControlChannel
from asgiri.ipc.counter import PipeCounter
from asgiri.ipc.messages import Drain, Drained, Failed, Hello, Importing, Quit, Ready
from asgiri.ipc.records import PeerTable, RecordReader
from asgiri.ipc.ring import RingReader
from asgiri.ipc.scoreboard import Cell, Scoreboard
from asgiri.ipc.segment import Segment
from asgiri.ipc.stream import StreamReader

BEAT = 0.02
IP_PKTINFO = 8 if sys.platform == "linux" else 26


class TinyWorker:
    def __init__(self, control: ControlChannel, hello: Hello, fds: list[int]) -> None:
        self.control = control
        self.hello = hello
        self.connections = ConnectionChannel.adopt(fds[0])
        self.segment = Segment.attach(fds[1])
        self.board = Scoreboard(self.segment.scoreboard)
        self.board.claim(hello.worker_id, os.getpid())
        rest = fds[2:]
        self.records: RecordReader | None = None
        if hello.record_channel == "ring":
            published = PipeCounter(reading=rest[0])
            consumed = PipeCounter(writing=rest[1])
            self.records = RingReader(self.segment.ring, published, consumed)
            rest = rest[2:]
        elif hello.record_channel == "stream":
            self.records = StreamReader(socket.socket(fileno=rest[0]), hello.config["ring_size"])
            rest = rest[1:]
        infos = [info for info in hello.listeners if info.kind == "udp"]
        self.udp = {
            info.index: socket.socket(fileno=fd) for info, fd in zip(infos, rest, strict=True)
        }
        self.peers = PeerTable()
        self.poll = select.poll()
        for source in (control, self.connections, self.records):
            if source is not None:
                self.poll.register(source.fileno(), select.POLLIN)

    def run(self) -> None:
        self.beat()
        self.control.send(Ready(os.getpid()))
        while True:
            self.poll.poll(BEAT * 1000)
            self.beat()
            self.answer_connections()
            self.answer_records()
            try:
                received = self.control.receive()
            except ChannelClosedError:
                return
            if received is not None and isinstance(received[0], Drain):
                self.answer_connections()
                self.control.send(Drained())
                return
            if received is not None and isinstance(received[0], Quit):
                return

    def beat(self) -> None:
        self.board.set(Cell.BEAT_NS, time.monotonic_ns())
        self.board.add(Cell.BEAT_COUNT)

    def answer_connections(self) -> None:
        while pairs := self.connections.receive():
            for listener, fd in pairs:
                self.board.add(Cell.TCP_ADOPTED)
                with socket.socket(fileno=fd) as connection:
                    connection.setblocking(True)
                    with contextlib.suppress(OSError):
                        text = f"{self.hello.slot} {self.hello.worker_id} {listener}\n"
                        connection.sendall(text.encode())
                self.board.add(Cell.TCP_CLOSED)

    def answer_records(self) -> None:
        if self.records is None:
            return
        while records := self.records.take(64):
            for record in records:
                self.board.add(Cell.RING_RECORDS)
                peer = self.peers.decode(record.peer)
                head = f"{self.hello.slot} {record.flags} {record.gso_size} "
                local = "-" if peer.local_ip is None else peer.local_ip.hex()
                text = f"{head}{local} {peer.listener} {len(record.payload)}"
                source = []
                if peer.local_ip is not None and len(peer.local_ip) == 4:
                    pktinfo = bytes(4) + peer.local_ip + bytes(4)
                    source = [(socket.IPPROTO_IP, IP_PKTINFO, pktinfo)]
                self.udp[peer.listener].sendmsg([text.encode()], source, 0, peer.address)


def main(control_fd: int) -> None:
    control = ControlChannel.adopt(control_fd)
    select.select([control.fileno()], [], [])
    received = control.receive()
    assert received is not None
    hello, fds = received
    assert isinstance(hello, Hello)
    control.send(Importing())
    behaviour = hello.config["behaviour"]
    if behaviour == "fail":
        control.send(Failed("import", "no module named nothing", "Traceback: nothing"))
        sys.exit(7)
    if behaviour == "exit":
        sys.exit(5)
    worker = TinyWorker(control, hello, fds)
    if behaviour == "silent":
        while True:
            signal.pause()
    if behaviour == "close":
        control.close()
        while True:
            signal.pause()
    if behaviour == "rubbish":
        raw = socket.socket(fileno=os.dup(control.fileno()))
        for frame in (b"Z{}", b"R", b"R[]", b"\xff" * 100, b'H{"worker_id": 1}'):
            raw.send(frame)
        raw.close()
        control.send(Quit())
        control.send(messages.Warning("that was rubbish"))
    worker.run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
