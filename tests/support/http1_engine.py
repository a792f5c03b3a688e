"""Drive the HTTP/1.1 engine without a network: bytes in, what an application sees, bytes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from asgiri.config import Http1Config
from asgiri.ipc.scoreboard import Refusal
from asgiri.worker.protocol.events import (
    BodyEnded,
    BodyReceived,
    ConnectionEnded,
    Event,
    HalfClosed,
    Headers,
    PeerViolation,
    RequestReceived,
)
from asgiri.worker.protocol.headers import ResponseDefaults, response_head
from asgiri.worker.protocol.http1 import Http1Connection
from asgiri.worker.protocol.http1_h11 import H11Parser
from asgiri.worker.protocol.http1_head import FieldParser, SectionReader
from asgiri.worker.protocol.http1_llhttp import LlhttpParser

PARSERS: dict[str, type[LlhttpParser | H11Parser]] = {"httptools": LlhttpParser, "h11": H11Parser}
DEFAULTS = ResponseDefaults([(b"server", b"asgiri")], date=False)


def connection(
    parser: FieldParser | None = None, config: Http1Config | None = None
) -> Http1Connection:
    config = config or Http1Config()
    return Http1Connection(SectionReader(parser or LlhttpParser(), config), config, DEFAULTS)


@dataclass
class Request:
    """A request as the application gets it, its body joined."""

    method: str
    target: bytes
    version: str
    headers: Headers
    expects_continue: bool = False
    protocol: str | None = None
    body: bytes = b""
    trailers: Headers = field(default_factory=list)
    complete: bool = False


@dataclass
class Transcript:
    """What came of a dialogue. Two are equal when nobody could tell the difference."""

    requests: list[Request] = field(default_factory=list)
    violations: list[tuple[Refusal, str]] = field(default_factory=list)
    ended: str | None = None
    half_closed: bool = False
    sent: bytes = b""

    def answered(self) -> list[Request]:
        return [request for request in self.requests if request.complete]

    def statuses(self) -> list[int]:
        """Of all responses; only for dialogues whose bodies have no status line in them."""
        return [int(part[:3]) for part in self.sent.split(b"HTTP/1.1 ")[1:]]


Answer = Callable[[Http1Connection, int, Request], list[Event]]


def answer_200(engine: Http1Connection, stream_id: int, request: Request) -> list[Event]:
    """The application of the conformance cases: read the body, then answer."""
    head = response_head(200, [(b"content-length", b"2")], defaults=DEFAULTS)
    return engine.send_response(stream_id, head, b"ok", ended=True)


def converse(
    engine: Http1Connection,
    parts: Iterable[bytes],
    answer: Answer = answer_200,
    *,
    eof: bool = False,
) -> Transcript:
    """Feed `parts`, answer each request when it is complete, and take everything down."""
    transcript = Transcript()
    streams: dict[int, Request] = {}

    def handle(events: list[Event]) -> None:
        waiting = list(events)
        while waiting:
            event = waiting.pop(0)
            completed = _note(transcript, streams, event)
            if completed is not None:
                waiting += answer(engine, completed, streams[completed])
            transcript.sent += engine.data_to_send()

    for part in parts:
        handle(engine.receive_data(part))
    if eof:
        handle(engine.receive_eof())
    return transcript


def _note(transcript: Transcript, streams: dict[int, Request], event: Event) -> int | None:
    """Write one event down; return the stream whose request it completes."""
    match event:
        case RequestReceived():
            request = streams[event.stream_id] = Request(
                event.method,
                event.target,
                event.http_version,
                event.headers,
                event.expects_continue,
                event.protocol,
                complete=event.ended,
            )
            transcript.requests.append(request)
            return event.stream_id if event.ended else None
        case BodyReceived(stream_id, data, credit, ended):
            assert credit == len(data) > 0
            streams[stream_id].body += data
            streams[stream_id].complete = ended
            return stream_id if ended else None
        case BodyEnded(stream_id, trailers):
            streams[stream_id].trailers = trailers
            streams[stream_id].complete = True
            return stream_id
        case PeerViolation(reason, detail):
            transcript.violations.append((reason, detail))
        case ConnectionEnded(reason):
            assert transcript.ended is None, "a connection ends once"
            transcript.ended = reason
        case HalfClosed():
            transcript.half_closed = True
        case _:
            raise AssertionError(f"no event of HTTP/1.1: {event}")
    return None
