"""What does one HTTP/1.1 request cost a worker, from bytes in to bytes out, without system calls?

Processor time of this process: a session whose transport throws everything away, and the parts that
one request is made of. `hello` is the smallest application; `FastAPI-like` waits once before it
answers, as one with dependencies does.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import time
from collections.abc import Callable

from lib.report import Row, print_table

from asgiri.config import Config
from asgiri.ipc.scoreboard import PAGE_SIZE, Scoreboard
from asgiri.worker.asgi.application import Application
from asgiri.worker.asgi.request import HttpRequest
from asgiri.worker.protocol.events import RequestReceived
from asgiri.worker.protocol.headers import response_head
from asgiri.worker.runtime import make_services
from asgiri.worker.transport.http1 import Http1Session
from asgiri.worker.transport.tcp import TcpEndpoint

REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUser-Agent: wrk/4\r\nAccept: */*\r\n\r\n"
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
START = {"type": "http.response.start", "status": 200, "headers": HEADERS}
BODY = {"type": "http.response.body", "body": b"Hello, world!"}
BATCH = 200
"""Calls between two looks at the clock; the best of many short batches is what the machine's other
work has not disturbed."""


async def hello(scope, receive, send):
    await send(START)
    await send(BODY)


async def waits_once(scope, receive, send):
    await asyncio.sleep(0)
    await hello(scope, receive, send)


class NowhereTransport:
    """Takes what it is given, in C."""

    def __init__(self) -> None:
        self.write = collections.deque(maxlen=1).append

    def get_extra_info(self, name):
        return None

    def set_write_buffer_limits(self, high, low):
        pass

    def get_write_buffer_size(self):
        return 0


def make_session(app) -> Http1Session:
    loop = asyncio.get_running_loop()
    services = make_services(
        Application(app, loop),
        config=Config.from_values({"app": {"target": "bench:app"}, "http": {"http2": False}}),
        scoreboard=Scoreboard(memoryview(bytearray(PAGE_SIZE))),
        loop=loop,
    )
    scopes = services.scopes.connection(
        client=("192.0.2.1", 5000), server=("192.0.2.2", 80), secure=False
    )
    engine = TcpEndpoint(services, [], tls=None).http1_engine()
    return Http1Session(
        services, engine, scopes, NowhereTransport(), lambda: None, head_deadline=1e18
    )


async def whole_requests(app, rounds: int) -> list[float]:
    session = make_session(app)
    best = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(BATCH):
            session.data_received(REQUEST)
            while session._exchanges:  # noqa: ASYNC110 (the turns of the loop are what it costs)
                await asyncio.sleep(0)
        best.append((time.perf_counter() - began) / BATCH * 1e6)
    return best


def parts() -> dict[str, Callable[[], object]]:
    session = make_session(hello)
    requests = session._services.requests
    engine, scopes, defaults = session._http1, session._scopes, requests.defaults
    fields = [(b"host", b"a"), (b"user-agent", b"b"), (b"accept", b"c")]
    event = RequestReceived(1, "GET", b"/", fields, "1.1", ended=True)
    scope = scopes.http_scope(event)
    head = response_head(200, HEADERS, defaults=defaults)

    async def nothing(*_):
        pass

    def call_app():
        try:
            hello(None, None, nothing).send(None)
        except StopIteration:
            pass

    def engine_both_ways():
        engine.receive_data(REQUEST)
        engine.send_response(engine._stream_id, head, b"Hello, world!", ended=True)
        engine.buffers_to_send()

    def count():
        requests.counters.request_began("1.1")
        requests.counters.response_ended(200, 0.0001, 13)
        requests.counters.request_ended()

    return {
        "engine, both ways": engine_both_ways,
        "check the response's head": lambda: response_head(200, HEADERS, defaults=defaults),
        "start a task": lambda: requests.application.start(nothing()),
        "HttpRequest": lambda: HttpRequest(session, event, scope, requests),
        "the application itself": call_app,
        "scope": lambda: scopes.http_scope(event),
        "counters": count,
        "deadline": session._arm,
    }


def measure(operation: Callable[[], object], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(BATCH):
            operation()
        taken.append((time.perf_counter() - began) / BATCH * 1e6)
    return taken


def lower_half(values: list[float]) -> list[float]:
    """Half of the rounds met another process or an interrupt; they say nothing about us."""
    return sorted(values)[: len(values) // 2]


async def run(rounds: int) -> None:
    whole = [
        Row("hello", lower_half(await whole_requests(hello, rounds))),
        Row("FastAPI-like", lower_half(await whole_requests(waits_once, rounds))),
    ]
    print_table("One request, bytes in to bytes out", "us", whole)
    rows = [Row(name, lower_half(measure(part, rounds))) for name, part in parts().items()]
    print_table("What it is made of", "us", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    arguments = parser.parse_args()
    if arguments.loop == "uvloop":
        import uvloop

        uvloop.run(run(arguments.rounds))
    else:
        asyncio.run(run(arguments.rounds))


if __name__ == "__main__":
    main()
