"""What do a request and a packet cost a worker's QUIC endpoint, in batches and one by one?

The endpoint runs in this process on its own event loop, its datagrams come through a ring and leave
by a real UDP socket; clients (aioquic) run in lockstep between its turns, and only the turns of the
server are timed. "One by one" gives it a turn of the loop for each datagram, as an endpoint without
batches would have it.

    hello      GET answered by 13 bytes, CONNECTIONS x STREAMS requests at once
    upload     one stream, packets of 1,200 bytes, read as they come
    download   one stream, written as fast as `send` allows
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aioquic.quic.events import QuicEvent
from lib.report import Row, print_table

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.http3_client import Http3Connection
from tests.support.quic_client import client_configuration
from tests.support.quic_worker import QuicWorker

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"13")],
}
END = {"type": "http.response.body", "body": b"Hello, world!"}
PART = bytes(65536)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/upload":
        while (await receive()).get("more_body"):
            pass
    await send(START if scope["path"] != "/download" else {**START, "headers": []})
    if scope["path"] == "/download":
        for _ in range(int(scope["query_string"]) // len(PART)):
            await send({"type": "http.response.body", "body": PART, "more_body": True})
    await send(END)


class LockstepClient(Http3Connection):
    """Sends by way of the bench, and hears what the bench reads from its socket."""

    outbox: list[bytes]

    def send_raw(self, datagram: bytes) -> None:
        self.outbox.append(datagram)

    def event_received(self, event: QuicEvent) -> None:
        """Nobody looks at the answers; the server counts them."""


class Bench:
    """Server and clients, one phase after the other."""

    def __init__(self, *, batched: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.batched = batched
        self.server_ns = 0
        self.received = 0
        self.sent = 0
        self.clients: list[LockstepClient] = []
        self.worker = self.loop.run_until_complete(self._begin())
        self.loop.remove_reader(self.worker.socket.fileno())

    async def _begin(self) -> QuicWorker:
        return QuicWorker(app)

    def connect(self, **options: Any) -> LockstepClient:
        client = self.loop.run_until_complete(self._connect(options))
        client.outbox = []
        self.clients.append(client)
        client.quic.connect(client._address, now=self.loop.time())
        client.flush()
        while not client.handshake_complete:
            self.round()
        for _ in range(5):
            self.round()
        return client

    async def _connect(self, options: dict[str, Any]) -> LockstepClient:
        opened = LockstepClient.open_socket("127.0.0.1", self.worker.port)
        client = LockstepClient(opened, client_configuration(**options))
        client.quic.grants_itself = True
        self.loop.remove_reader(opened.fileno())
        return client

    def turn(self) -> None:
        """Let the server do what it can: read, answer, and whatever its applications do next."""
        endpoint = self.worker.endpoint
        start = time.thread_time_ns()
        turns = 0
        while turns < 2 or endpoint._touched:
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
            turns += 1
        self.server_ns += time.thread_time_ns() - start

    def round(self) -> None:
        """Clients speak, the server answers, clients hear it."""
        before = self.received
        for client in self.clients:
            # Their own timers are no part of what is measured.
            if client._timer is not None:
                client._timer.cancel()
            due = client.quic.get_timer()
            if due is not None and due <= self.loop.time():
                client.quic.handle_timer(self.loop.time())
            client.flush()
            if client._timer is not None:
                client._timer.cancel()
            for datagram in client.outbox:
                self.worker.pass_on(datagram, client.local_address)
                self.received += 1
                if not self.batched:
                    self.turn()
            client.outbox.clear()
        if self.received > before or self._timer_is_due():
            self.turn()
        for client in self.clients:
            with contextlib.suppress(BlockingIOError):
                while True:
                    client._datagram(client.socket.recv(65536))
                    self.sent += 1

    def _timer_is_due(self) -> bool:
        return self.worker.endpoint._timers._armed_for <= time.monotonic()

    def reset(self) -> None:
        self.server_ns = self.received = self.sent = 0

    def close(self) -> None:
        for client in self.clients:
            client.socket.close()
        self.loop.run_until_complete(self.worker.close())
        self.loop.close()


@contextlib.contextmanager
def bench(*, batched: bool) -> Iterator[Bench]:
    running = Bench(batched=batched)
    try:
        yield running
    finally:
        running.close()


def request(
    client: LockstepClient, path: bytes, *, ended: bool = True, method: bytes = b"GET"
) -> int:
    stream_id = client.quic.get_next_available_stream_id()
    fields = [
        (b":method", method),
        (b":scheme", b"https"),
        (b":authority", b"localhost"),
        (b":path", path),
        (b"user-agent", b"asgiri-bench/1"),
    ]
    client.h3.send_headers(stream_id, fields, end_stream=ended)
    return stream_id


def hello(
    requests: int, connections: int, streams: int, *, batched: bool
) -> tuple[float, float, float]:
    """us per request, packets in and out per request."""
    with bench(batched=batched) as running:
        clients = [running.connect() for _ in range(connections)]
        running.reset()
        done = 0
        while done < requests:
            for client in clients:
                for _ in range(streams):
                    request(client, b"/")
            done += connections * streams
            for _ in range(3):
                running.round()
                time.sleep(0.0011)  # the acknowledgement that aioquic delays by a millisecond
        assert running.worker.services.requests.counters.responses[2] == done
        return running.server_ns / done / 1000, running.received / done, running.sent / done


def bulk(size: int, *, upload: bool, batched: bool) -> tuple[float, float]:
    """us per packet (of the direction with the data), MB per second of the server's time."""
    with bench(batched=batched) as running:
        client = running.connect(max_stream_data=1 << 26, max_data=1 << 26)
        running.reset()
        counters = running.worker.services.requests.counters
        if upload:
            stream_id = request(client, b"/upload", ended=False, method=b"POST")
            client.h3.send_data(stream_id, bytes(size), True)
        else:
            request(client, b"/download?%d" % size)
        while not counters.responses[2] or running.worker.endpoint.is_empty:
            running.round()
        packets = running.received if upload else running.sent
        return running.server_ns / packets / 1000, size / running.server_ns * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    size = options.megabytes << 20
    hellos: dict[str, Row] = {}
    bulks: dict[str, Row] = {}
    for _ in range(options.rounds):
        for batched in (True, False):
            how = "batched" if batched else "one by one"
            for connections, streams in ((1, 1), (8, 1), (8, 8)):
                name = f"{connections} x {streams}, {how}"
                cost, came, went = hello(options.requests, connections, streams, batched=batched)
                row = hellos.setdefault(name, Row(name))
                row.values.append(cost)
                row.note = f"{came:.2f} packets in, {went:.2f} out per request"
            for upload in (True, False):
                name = f"{'upload' if upload else 'download'}, {how}"
                cost, rate = bulk(size, upload=upload, batched=batched)
                row = bulks.setdefault(name, Row(name))
                row.values.append(cost)
                row.note = f"{rate:.0f} MB/s"
    print_table("Hello over HTTP/3: processor time per request", "us", list(hellos.values()))
    print_table("Bulk over HTTP/3: processor time per packet", "us", list(bulks.values()))


if __name__ == "__main__":
    main()
