"""Ring and stream between real processes: whole records, exact drops, and death at any moment."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from asgiri.ipc.records import (
    HEADER_SIZE,
    Record,
    RecordFlag,
    RecordWriter,
    encode_peer,
    record_header,
)
from asgiri.ipc.ring import RingWriter
from asgiri.ipc.segment import create_ring
from asgiri.ipc.stream import StreamWriter, record_stream_pair
from tests.ipc.reader_process import digest
from tests.support.memory import no_fd_leaks

pytestmark = [pytest.mark.slow, pytest.mark.linux]

ROOT = Path(__file__).parents[2]
SIZE = 1 << 17
PATIENCE = 20.0
PEERS = [
    encode_peer(("192.0.2.7", 4433), 0, None),
    encode_peer(("2001:db8::7", 4433, 0, 0), 1, None),
]
both = pytest.mark.parametrize("kind", ["ring", "stream"])


@dataclass
class ReaderProcess:
    """The writer of a channel whose reader is another process, and what that should have read."""

    writer: RecordWriter
    process: subprocess.Popen[bytes]
    sent: int = 0
    value: int = 0
    refused: int = 0
    _out: bytes = field(default=b"", repr=False)

    def put(self, record: Record) -> bool:
        header = record_header(len(record.payload), record.gso_size, record.flags, len(record.peer))
        accepted = self.writer.put(header, record.peer, record.payload)
        if not accepted:
            self.refused += 1
        elif not record.flags & RecordFlag.CONTROL:
            self.sent += 1
            self.value = digest(self.value, record)
        return accepted

    def put_surely(self, record: Record) -> None:
        """As a master would not: wait until there is room."""
        while not self.put(record):
            self.refused -= 1
            self.writer.publish()
            os.sched_yield()

    def report(self, command: bytes = b"") -> list[int]:
        """Have the reader say what it has read; forget what was sent."""
        self.put_surely(Record(command, 0, int(RecordFlag.CONTROL), b""))
        self.publish()
        expected, self.sent, self.value = [self.sent, self.value, 0], 0, 0
        assert json.loads(self.line()) == expected
        return expected

    def publish(self) -> None:
        """Publish, and hand the kernel all that a stream leaves behind."""
        self.writer.publish()
        while self.writer.backlog:
            assert select.select([], [self.writer], [], PATIENCE)[1]
            self.writer.publish()

    def line(self) -> bytes:
        assert self.process.stdout is not None
        while b"\n" not in self._out:
            assert select.select([self.process.stdout], [], [], PATIENCE)[0], "no answer"
            self._out += os.read(self.process.stdout.fileno(), 4096)
        line, _, self._out = self._out.partition(b"\n")
        return line

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)


@contextmanager
def reader_process(kind: str) -> Iterator[ReaderProcess]:
    """Start a reader for a new channel, as the master does for each incarnation of a worker."""
    with no_fd_leaks():
        if kind == "ring":
            segment, published, consumed = create_ring(SIZE)
            theirs = [segment.fd, published.reading, consumed.writing]
            writer: RecordWriter = RingWriter(segment.ring, published, consumed)
            owners = [segment]
        else:
            ours, end = record_stream_pair()
            theirs, writer, owners = [end.fileno()], StreamWriter(ours, SIZE), [end]
        command = [sys.executable, "-m", "tests.ipc.reader_process", kind, str(SIZE)]
        process = subprocess.Popen(
            [*command, *map(str, theirs)], pass_fds=theirs, cwd=ROOT, stdout=subprocess.PIPE
        )
        with process:
            try:
                reader = ReaderProcess(writer, process)
                assert reader.line() == b"ready"
                yield reader
            finally:
                process.kill()
        writer.close()
        for owner in owners:
            owner.close()


def random_record(source: random.Random, most: int = 1400) -> Record:
    payload = source.randbytes(source.randrange(most))
    return Record(payload, source.randrange(3), source.randrange(8), source.choice(PEERS))


@both
def test_another_process_reads_exactly_what_was_put(kind):
    source = random.Random(1)
    with reader_process(kind) as reader:
        for _ in range(5):
            for _ in range(2000):
                reader.put_surely(random_record(source))
                if source.random() < 0.1:
                    reader.writer.publish()
            assert reader.report()[0] == 2000
        for size in (0, 65_507, 0, 65_507, 65_507):
            reader.put_surely(Record(bytes(size), 0, 0, PEERS[0]))
        reader.report(b"end")
        assert reader.process.wait(PATIENCE) == 0


@both
def test_a_stopped_reader_costs_an_exact_number_of_drops_and_then_goes_on(kind):
    record = Record(bytes(1200), 0, 0, PEERS[0])
    room = SIZE // (HEADER_SIZE + len(PEERS[0]) + 1200)
    with reader_process(kind) as reader:
        reader.report()
        while reader.writer.fill > 0:  # the reader has returned all of it
            reader.put_surely(Record(b"", 0, int(RecordFlag.CONTROL), b""))
            reader.publish()
            reader.line()
        reader.stop()
        for _ in range(room + 1000):
            reader.put(record)
            reader.writer.publish()
        assert (reader.sent, reader.refused) == (room, 1000)
        reader.process.send_signal(signal.SIGCONT)
        assert reader.report()[0] == room
        reader.refused = 0
        for _ in range(3):
            for _ in range(room // 2):
                reader.put_surely(record)
            assert reader.report()[0] == room // 2


@both
def test_a_new_incarnation_never_sees_what_its_predecessor_left(kind):
    old = Record(b"old" * 400, 0, 0, PEERS[0])
    with reader_process(kind) as killed:
        killed.stop()
        while killed.put(old):
            pass
        killed.writer.publish()
        killed.process.kill()
        assert killed.process.wait(PATIENCE) == -signal.SIGKILL
        # Its writer goes on without noticing, until its supervisor takes it away.
        assert not killed.put(old)
        killed.writer.publish()
        with reader_process(kind) as successor:
            assert successor.put(Record(b"new", 0, 0, PEERS[1]))
            assert successor.report()[0] == 1


def test_a_producer_killed_at_any_moment_leaves_no_torn_record():
    command = [sys.executable, "-m", "tests.ipc.kill_producer", "306"]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=60)
    result = json.loads(output.stdout)
    assert (result["kills"], result["torn"], result["corrupt"]) == (306, 0, 0)
    assert result["records"] > 306 * 8
    print(result)
