"""What does a call of `asgiri.ipc` cost? Nanoseconds per call or per record, best of seven rounds.

python bench/ipc_costs.py

The loop's own cost (a lambda, 20 ns) is subtracted from single calls. Ring and stream carry records
of 1,200 bytes, both ends in this process, so that the two columns are the CPU of master and worker
without the switch between them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from asgiri.ipc.connection_id import ConnectionIdCodec, ConnectionIdKind, ConnectionIdMint
from asgiri.ipc.records import (
    PeerTable,
    RecordReader,
    RecordWriter,
    encode_peer,
    parse_batch,
    record_header,
)
from asgiri.ipc.ring import RingReader, RingWriter
from asgiri.ipc.scoreboard import Cell, Scoreboard
from asgiri.ipc.segment import create_ring
from asgiri.ipc.stream import StreamReader, StreamWriter, record_stream_pair
from asgiri.ipc.tokens import ResetTokens, RetryTokens

ROUNDS = 7
SIZE = 4 << 20
ADDRESS = ("192.0.2.7", 4433)


def per_call(call: Callable[[], object], count: int = 30_000) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter_ns()
        for _ in range(count):
            call()
        best = min(best, (time.perf_counter_ns() - start) / count)
    return best


def calls() -> dict[str, Callable[[], object]]:
    codec = ConnectionIdCodec(os.urandom(16), server_id=1)
    mint = ConnectionIdMint(codec, 7, random=os.urandom)
    ours, foreign = mint.mint(), os.urandom(17)
    resets, retries = ResetTokens(os.urandom(16)), RetryTokens(os.urandom(16), random=os.urandom)
    token = retries.seal(ADDRESS, bytes(8), ours, 1.0)
    peers = PeerTable()
    raw = peers.encode(ADDRESS, 0, None)
    board = Scoreboard(memoryview(bytearray(4096)))
    return {
        "connection ID: open ours": lambda: codec.open_untrusted(ours),
        "connection ID: open a stranger's": lambda: codec.open_untrusted(foreign),
        "connection ID: mint": mint.mint,
        "connection ID: mint for another": lambda: mint.mint_for(9, ConnectionIdKind.RETRY),
        "reset token": lambda: resets.token(ours),
        "Retry token: seal": lambda: retries.seal(ADDRESS, bytes(8), ours, 1.0),
        "Retry token: open": lambda: retries.open_untrusted(token, ADDRESS, 2.0),
        "record: header": lambda: record_header(1200, 0, 0, 8),
        "peer: encode, remembered": lambda: peers.encode(ADDRESS, 0, None),
        "peer: encode, new": lambda: encode_peer(ADDRESS, 0, None),
        "peer: decode, remembered": lambda: peers.decode(raw),
        "scoreboard: add": lambda: board.add(Cell.BEAT_COUNT),
        "scoreboard: get": lambda: board.get(Cell.BEAT_COUNT),
    }


def carry(writer: RecordWriter, reader: RecordReader, batch: int) -> tuple[float, float]:
    """Return nanoseconds per record of put + publish, and of take."""
    peer, payload = encode_peer(ADDRESS, 0, None), os.urandom(1200)
    header = record_header(len(payload), 0, 0, len(peer))
    best = (float("inf"), float("inf"))
    for _ in range(ROUNDS):
        writing = reading = 0
        for _ in range(20_000 // batch):
            start = time.perf_counter_ns()
            for _ in range(batch):
                writer.put(header, peer, payload)
            writer.publish()
            middle = time.perf_counter_ns()
            taken = len(reader.take(64))
            while taken < batch:
                taken += len(reader.take(64))
            writing += middle - start
            reading += time.perf_counter_ns() - middle
        count = 20_000 // batch * batch
        best = (min(best[0], writing / count), min(best[1], reading / count))
    return best


def main() -> None:
    empty = per_call(lambda: None)
    for name, call in calls().items():
        print(f"{name:34}{per_call(call) - empty:8.0f} ns")
    peer = encode_peer(ADDRESS, 0, None)
    batch = (record_header(1200, 0, 0, len(peer)) + peer + bytes(1200)) * 64
    print(f"{'record: parse, of 64':34}{per_call(lambda: parse_batch(batch), 1000) / 64:8.0f} ns")
    segment, published, consumed = create_ring(SIZE)
    ring = RingWriter(segment.ring, published, consumed)
    ours, theirs = record_stream_pair()
    channels: dict[str, tuple[RecordWriter, RecordReader]] = {
        "ring": (ring, RingReader(segment.ring, published, consumed)),
        "stream": (StreamWriter(ours, SIZE), StreamReader(theirs, SIZE)),
    }
    for name, (writer, reader) in channels.items():
        for size in (1, 4, 16, 64):
            writing, reading = carry(writer, reader, size)
            label = f"{name}: batch of {size}"
            print(f"{label:34}{writing:8.0f} ns write {reading:8.0f} ns read")
        writer.close()
    theirs.close()
    segment.close()


if __name__ == "__main__":
    main()
