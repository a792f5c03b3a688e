"""What a StatsD server is sent: the same as it would hear of gunicorn, once a second."""

from __future__ import annotations

import asyncio
import socket

import pytest

from asgiri.admin import statsd
from asgiri.admin.statsd import MAX_DATAGRAM, StatsdSender, datagrams, report
from asgiri.admin.watch import Watch
from asgiri.ipc.scoreboard import Cell, Refusal
from tests.support.board import Board, Worker, status_of


def lines_between(before: Worker, after: Worker, **head) -> dict[str, str]:
    lines = report(status_of(before), status_of(after, **head), "")
    return dict(line.split(":", 1) for line in lines)


def test_requests_have_the_names_that_gunicorn_gives_them():
    before = Worker(cells={Cell.REQUESTS_HTTP1: 5, Cell.RESPONSES_2XX: 5})
    after = Worker(cells={Cell.REQUESTS_HTTP1: 7, Cell.REQUESTS_HTTP3: 1, Cell.RESPONSES_2XX: 8})
    lines = lines_between(before, after, ready=4)
    assert lines["gunicorn.requests"] == "3|c"
    assert lines["gunicorn.request.status.2xx"] == "3|c"
    assert lines["gunicorn.workers"] == "4|g"


def test_what_has_not_changed_is_not_sent():
    lines = lines_between(Worker(), Worker())
    assert all(value.endswith("|g") for value in lines.values())


def test_counters_that_begin_anew_are_not_sent_as_less():
    lines = lines_between(Worker(cells={Cell.REQUESTS_HTTP1: 5}), Worker())
    assert "gunicorn.requests" not in lines


def test_durations_are_timers_with_a_rate():
    before, after = Worker(), Worker()
    before.scoreboard.observe(70_000)
    for _ in range(4):
        after.scoreboard.observe(70_000)
    after.scoreboard.observe(300_000_000)
    timers = [
        line
        for line in report(status_of(before), status_of(after), "")
        if line.startswith("gunicorn.request.duration")
    ]
    assert timers == [
        "gunicorn.request.duration:75|ms|@0.333333333",
        "gunicorn.request.duration:120000|ms",
    ]


def test_refusals_and_endings_are_summed_up():
    after = Worker()
    after.scoreboard.refuse(Refusal.HTTP1_BAD_HOST, 2)
    after.scoreboard.refuse(Refusal.BODY_TIMEOUT)
    lines = lines_between(Worker(), after, workers_crashed=1, workers_hung=1)
    assert lines["asgiri.refusals"] == "3|c"
    assert lines["asgiri.worker_restarts"] == "2|c"


def test_datagrams_are_filled_and_never_too_large():
    lines = [f"metric.{number}:{number}|c" for number in range(500)]
    sent = list(datagrams(iter(lines)))
    assert all(len(datagram) <= MAX_DATAGRAM for datagram in sent)
    assert b"\n".join(sent).decode().split("\n") == lines
    assert len(sent) < 10


class Receiver:
    """A StatsD server that only listens."""

    def __init__(self, address: str) -> None:
        unix = address.startswith("unix:")
        self.socket = socket.socket(socket.AF_UNIX if unix else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(address.removeprefix("unix:") if unix else ("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.address = address if unix else f"localhost:{self.socket.getsockname()[1]}"

    async def wait(self, line: str) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            while line not in (await loop.sock_recv(self.socket, 65536)).decode().split("\n"):
                pass


@pytest.mark.parametrize("kind", ["udp", "unix"])
async def test_a_server_hears_of_requests(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(statsd, "INTERVAL", 0.01)
    monkeypatch.setattr("asgiri.admin.watch.FRESH_FOR", 0)
    receiver = Receiver(f"unix:{tmp_path}/statsd" if kind == "unix" else "")
    board, worker = Board(), Worker()
    board.publish(worker, ready=2)
    sender = StatsdSender(receiver.address, "shop.")
    running = asyncio.create_task(sender.run(Watch(board.reader)))
    try:
        await receiver.wait("shop.gunicorn.workers:2|g")
        worker.scoreboard.add(Cell.REQUESTS_HTTP2, 3)
        board.publish(worker)
        await receiver.wait("shop.gunicorn.requests:3|c")
    finally:
        running.cancel()
        await asyncio.wait([running])
        receiver.socket.close()


async def test_a_server_that_is_not_there_costs_one_line(caplog, monkeypatch):
    monkeypatch.setattr(statsd, "INTERVAL", 0.001)
    caplog.set_level("WARNING", logger="asgiri.admin")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    board = Board()
    board.publish(Worker())
    sender = StatsdSender(f"127.0.0.1:{port}", "")
    for _ in range(20):  # the refusal of one datagram is the error of the next
        await sender._send(iter(["a:1|c"]))
    sender._close()
    assert len(caplog.records) == 1
    assert f"StatsD server 127.0.0.1:{port}: " in caplog.text
