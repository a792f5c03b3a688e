"""Kill producers of a ring in the middle of what they do: `python -m tests.ipc.kill_producer KILLS`

A process of its own because it forks: one producer per kill, each with a new ring, as for each
incarnation of a worker. Prints as JSON: kills, records read, records torn, corrupt batches.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sys
import time
import zlib

from asgiri.ipc.counter import PipeCounter
from asgiri.ipc.records import encode_peer, record_header
from asgiri.ipc.ring import RingReader, RingWriter
from asgiri.ipc.segment import Segment, create_ring

RING_SIZE = 1 << 17
LONGEST_LIFE = 0.012
PEER = encode_peer(("192.0.2.7", 4433), 0, None)


def produce(ring: tuple[Segment, PipeCounter, PipeCounter]) -> None:
    segment, published, consumed = ring
    writer = RingWriter(segment.ring, published, consumed)
    payloads = []
    for _ in range(50):
        content = os.urandom(random.randrange(20, 1400))
        payloads.append(zlib.crc32(content).to_bytes(4, "big") + content)
    while True:
        for payload in random.sample(payloads, 8):
            writer.put(record_header(len(payload), 0, 0, len(PEER)), PEER, payload)
        writer.publish()


def torn(payload: bytes) -> bool:
    return payload[:4] != zlib.crc32(payload[4:]).to_bytes(4, "big")


def kill_one() -> tuple[int, int, int]:
    segment, published, consumed = create_ring(RING_SIZE)
    pid = os.fork()
    if pid == 0:
        try:
            produce((segment, published, consumed))
        finally:
            os._exit(1)
    reader = RingReader(segment.ring, published, consumed)
    select.select([reader], [], [], 10)  # it lives and publishes
    deadline = time.monotonic() + random.random() * LONGEST_LIFE
    records, bad = 0, 0
    dead = False
    while True:
        taken = reader.take(1000)
        records += len(taken)
        bad += sum(torn(record.payload) for record in taken)
        if dead and not taken:
            break
        if not dead and time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            dead = True
    reader.close()
    segment.close()
    return records, bad, reader.corrupt


def main(kills: int) -> None:
    results = [kill_one() for _ in range(kills)]
    records, bad, corrupt = (sum(column) for column in zip(*results, strict=True))
    print(json.dumps({"kills": kills, "records": records, "torn": bad, "corrupt": corrupt}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
