"""A worker reduced to its record reader: `python -m tests.ipc.reader_process KIND SIZE FD...`

Prints "ready", then for each control record what it has read since the last one, as JSON: the
number of records, a digest over payloads, flags and peers, and the corrupt batches. A control
record "end" ends it.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import zlib

from asgiri.ipc.counter import PipeCounter
from asgiri.ipc.records import Record, RecordFlag
from asgiri.ipc.ring import RingReader
from asgiri.ipc.segment import Segment
from asgiri.ipc.stream import StreamReader


def open_reader(kind: str, size: int, fds: list[int]) -> RingReader | StreamReader:
    if kind == "stream":
        return StreamReader(socket.socket(fileno=fds[0]), size)
    segment = Segment.attach(fds[0])
    return RingReader(segment.ring, PipeCounter(reading=fds[1]), PipeCounter(writing=fds[2]))


def digest(value: int, record: Record) -> int:
    value = zlib.crc32(record.payload, value)
    return zlib.crc32(record.peer + bytes([record.flags]) + b"%d" % record.gso_size, value)


def main(kind: str, size: str, *fds: str) -> None:
    reader = open_reader(kind, int(size), [int(fd) for fd in fds])
    print("ready", flush=True)
    count = value = 0
    while True:
        if not reader.pending:
            select.select([reader], [], [])
        for record in reader.take(64):
            if record.flags & RecordFlag.CONTROL:
                print(json.dumps([count, value, reader.corrupt]), flush=True)
                count = value = 0
                if record.payload == b"end":
                    return
            else:
                count += 1
                value = digest(value, record)


if __name__ == "__main__":
    main(*sys.argv[1:])
