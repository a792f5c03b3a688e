"""What does it cost to bring a datagram from the master to a worker?

Two processes on one processor each; the producer sends batches of records with 1,200 bytes and
waits when the channel is full, so nothing is dropped. Processor time per record of both sides and
records per second: our ring, our stream, and a multiprocessing.Pipe that sends each datagram.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import select
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lib.cpu import split_processors
from lib.report import Row, print_table

from asgiri.ipc.records import encode_peer, record_header
from asgiri.ipc.ring import RingReader, RingWriter
from asgiri.ipc.segment import Segment, create_ring
from asgiri.ipc.stream import StreamReader, StreamWriter, record_stream_pair

SIZE = 4 << 20
PAYLOAD = os.urandom(1200)
PEER = encode_peer(("127.0.0.1", 4433), 0, None)
HEADER = record_header(len(PAYLOAD), 0, 0, len(PEER))

Produce = Callable[[int, int], None]
Consume = Callable[[int], None]


class Ends(NamedTuple):
    produce: Produce
    """Called with the number of records and the batch."""
    consume: Consume


def produce_records(writer: RingWriter | StreamWriter, count: int, batch: int) -> None:
    left = count
    while left:
        for _ in range(min(batch, left)):
            while not writer.put(HEADER, PEER, PAYLOAD):
                writer.publish()
                time.sleep(0.0002)
            left -= 1
        writer.publish()
    while writer.backlog:
        select.select([], [writer.fileno()], [])
        writer.publish()


def consume_records(reader: RingReader | StreamReader, count: int) -> None:
    while count:
        if not reader.pending:
            select.select([reader.fileno()], [], [])
        count -= len(reader.take(64))


def ring() -> Ends:
    segment, published, consumed = create_ring(SIZE)

    def produce(count: int, batch: int) -> None:
        produce_records(RingWriter(segment.ring, published, consumed), count, batch)

    def consume(count: int) -> None:
        theirs = Segment.attach(os.dup(segment.fd))
        consume_records(RingReader(theirs.ring, published, consumed), count)

    return Ends(produce, consume)


def stream() -> Ends:
    ours, theirs = record_stream_pair()

    def produce(count: int, batch: int) -> None:
        produce_records(StreamWriter(ours, SIZE), count, batch)

    def consume(count: int) -> None:
        consume_records(StreamReader(theirs, SIZE), count)

    return Ends(produce, consume)


def pipe() -> Ends:
    theirs, ours = multiprocessing.Pipe(duplex=False)

    def produce(count: int, _: int) -> None:
        for _ in range(count):
            ours.send_bytes(HEADER + PEER + PAYLOAD)

    def consume(count: int) -> None:
        for _ in range(count):
            theirs.recv_bytes()

    return Ends(produce, consume)


def measure(ends: Ends, count: int, batch: int) -> Iterator[float]:
    """Nanoseconds per record: producer, consumer, elapsed."""
    first, second = split_processors()
    child = os.fork()
    if not child:
        os.sched_setaffinity(0, {second})
        ends.consume(count)
        os._exit(0)
    os.sched_setaffinity(0, {first})
    begin, spent = time.perf_counter_ns(), time.process_time_ns()
    ends.produce(count, batch)
    spent = time.process_time_ns() - spent
    _, status, usage = os.wait4(child, 0)
    elapsed = time.perf_counter_ns() - begin
    os.sched_setaffinity(0, {first, second})
    if status:
        raise SystemExit(f"consumer ended with {status}")
    yield spent / count
    yield (usage.ru_utime + usage.ru_stime) * 1e9 / count
    yield elapsed / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cases = [(f"ring, batches of {n}", ring, n) for n in (1, 16, 64)]
    cases += [(f"stream, batches of {n}", stream, n) for n in (1, 16, 64)]
    cases.append(("multiprocessing.Pipe", pipe, 1))
    tables = [[Row(name) for name, _, _ in cases] for _ in range(3)]
    for _ in range(options.rounds):
        for index, (_, make, batch) in enumerate(cases):
            figures = measure(make(), options.records, batch)
            for table, figure in zip(tables, figures, strict=True):
                table[index].values.append(figure)
    titles = ("Producer, processor time", "Consumer, processor time", "Elapsed")
    for title, table in zip(titles, tables, strict=True):
        print_table(f"{title} per record of {len(PAYLOAD)} bytes", "ns", table)


if __name__ == "__main__":
    main()
