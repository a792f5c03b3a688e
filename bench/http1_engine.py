"""What does the HTTP/1.1 engine cost, without a network and an application?

A request in, its event, a response out, by both parsers and step by step: processor time of this
process per operation. "Same fields" is a client that repeats its field section, as most do on one
connection; "new fields" one that never does.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

from lib.report import Row, print_table

from asgiri.config import Http1Config
from asgiri.worker.protocol.events import BodyReceived, RequestReceived
from asgiri.worker.protocol.headers import ResponseDefaults, response_head
from asgiri.worker.protocol.http1 import Http1Connection
from asgiri.worker.protocol.http1_chunked import ChunkedReader
from asgiri.worker.protocol.http1_h11 import H11Parser
from asgiri.worker.protocol.http1_head import (
    FIELD_SECTION,
    KEPT_SECTIONS,
    REQUEST_LINE,
    FieldParser,
    FieldSection,
    SectionReader,
    split_fields,
)
from asgiri.worker.protocol.http1_llhttp import LlhttpParser
from asgiri.worker.protocol.http1_response import ResponseWriter

SECTION = (
    b"Host: 127.0.0.1:8000\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n"
    b"Accept-Encoding: gzip, deflate\r\n\r\n"
)
HELLO = b"GET /hello HTTP/1.1\r\n" + SECTION
BROWSER = b"GET /hello HTTP/1.1\r\n" + b"\r\n".join((
    b"Host: www.example.com",
    b"Connection: keep-alive",
    b'sec-ch-ua: "Chromium";v="130", "Google Chrome";v="130"',
    b"sec-ch-ua-mobile: ?0",
    b'sec-ch-ua-platform: "Linux"',
    b"Upgrade-Insecure-Requests: 1",
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/130.0.0.0 Safari/537",
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
    b"Sec-Fetch-Site: none",
    b"Sec-Fetch-Mode: navigate",
    b"Sec-Fetch-User: ?1",
    b"Sec-Fetch-Dest: document",
    b"Accept-Encoding: gzip, deflate, br, zstd",
    b"Accept-Language: en-US,en;q=0.9",
    b"Cookie: session=abcdef0123456789abcdef0123456789; theme=dark",
    b"",
    b"",
))  # fmt: skip
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n" + b"x" * 20
FIELDS = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"13")]
BODY = b"Hello, world!"
CONFIG = Http1Config()
DEFAULTS = ResponseDefaults([(b"server", b"asgiri")])
DEFAULTS.set_date(1e9)
HEAD = response_head(200, FIELDS, defaults=DEFAULTS)

Operation = Callable[[], object]


def exchange(parser: FieldParser, *requests: bytes) -> Operation:
    """One connection that receives `requests` in turn and answers them."""
    engine = Http1Connection(SectionReader(parser, CONFIG), CONFIG, DEFAULTS)
    turn = itertools.cycle(requests)

    def operation() -> None:
        request = engine.receive_data(next(turn))[0]
        assert isinstance(request, RequestReceived)
        engine.send_response(request.stream_id, HEAD, BODY, ended=True)
        engine.data_to_send()

    return operation


def varied(request: bytes) -> tuple[bytes, ...]:
    """The same request with another field each time, more often than anybody remembers."""
    count = 4 * KEPT_SECTIONS
    return tuple(request.replace(b"\r\n", b"\r\nX-%d: y\r\n" % turn, 1) for turn in range(count))


def upload(size: int) -> Operation:
    engine = Http1Connection(SectionReader(LlhttpParser(), CONFIG), CONFIG, DEFAULTS)
    # More than any number of rounds brings.
    engine.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (10**17))
    part = b"x" * size
    return lambda: engine.receive_data(part)


def download(size: int, *, joined: bool) -> Operation:
    engine = Http1Connection(SectionReader(LlhttpParser(), CONFIG), CONFIG, DEFAULTS)
    engine.receive_data(HELLO)
    engine.send_response(1, response_head(200, [], defaults=DEFAULTS), b"", ended=False)
    part = b"x" * size

    def operation() -> None:
        engine.send_body(1, part, ended=False)
        _ = engine.data_to_send() if joined else engine.buffers_to_send()

    return operation


def chunks(size: int) -> Operation:
    stream = (b"%x\r\n" % size + b"x" * size + b"\r\n") * (65536 // size)
    reader = ChunkedReader(CONFIG)
    return lambda: reader.read(stream)


def write_response() -> Operation:
    writer = ResponseWriter()

    def operation() -> None:
        writer.begin(HEAD, BODY, ended=True, method="GET", http11=True, keep_alive=True)
        writer.out = []

    return operation


def operations() -> dict[str, dict[str, Operation]]:
    httptools, h11 = LlhttpParser(), H11Parser()
    after_line = HELLO.index(SECTION)
    fields = split_fields(SECTION)
    return {
        "Whole exchange: request in, event, response out": {
            "hello, same fields": exchange(httptools, HELLO),
            "hello, new fields": exchange(httptools, *varied(HELLO)),
            "browser, same fields": exchange(httptools, BROWSER),
            "browser, new fields": exchange(httptools, *varied(BROWSER)),
            "POST 20 B, same fields": exchange(httptools, POST),
            "hello, new fields, h11": exchange(h11, *varied(HELLO)),
            "browser, new fields, h11": exchange(h11, *varied(BROWSER)),
        },
        "Steps of the hello": {
            "request line": lambda: REQUEST_LINE.match(HELLO),
            "compare fields": lambda: HELLO.startswith(SECTION, after_line),
            "field grammar": lambda: FIELD_SECTION.match(HELLO, after_line),
            "split by httptools": lambda: httptools.parse_fields(SECTION),
            "split by h11": lambda: h11.parse_fields(SECTION),
            "split by our regex": lambda: split_fields(SECTION),
            "meaning of fields": lambda: FieldSection(SECTION, fields),
            "RequestReceived": lambda: RequestReceived(1, "GET", b"/", fields, "1.1", True),
            "check application's head": lambda: response_head(200, FIELDS, defaults=DEFAULTS),
            "write response": write_response(),
        },
        "Bodies, per part": {
            "receive 64 KiB": upload(65536),
            "BodyReceived": lambda: BodyReceived(1, BODY, 13),
            "receive chunks of 64 KiB": chunks(65536),
            "receive 64 chunks of 1 KiB": chunks(1024),
            "send 64 KiB chunk, joined": download(65536, joined=True),
            "send 64 KiB chunk, buffers": download(65536, joined=False),
            "send 1 MiB chunk, joined": download(1 << 20, joined=True),
            "send 1 MiB chunk, buffers": download(1 << 20, joined=False),
        },
    }


def measure(operation: Operation, seconds: float) -> float:
    """Microseconds of processor time per call."""
    operation()
    count = 0
    began = now = time.process_time()
    while now - began < seconds:
        for _ in range(500):
            operation()
        count += 500
        now = time.process_time()
    return (now - began) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.1, help="for one value")
    arguments = parser.parse_args()
    for title, group in operations().items():
        rows = {name: Row(name) for name in group}
        for _ in range(arguments.rounds):
            for name, operation in group.items():
                rows[name].values.append(measure(operation, arguments.seconds))
        print_table(title, "us", list(rows.values()))


if __name__ == "__main__":
    main()
