"""An application at the other side of an engine, which does what a script says, as the ASGI layer
would let it: in order, once, and not behind the end."""

from __future__ import annotations

from dataclasses import dataclass

from asgiri.worker.protocol.events import (
    BodyReceived,
    ConnectionEnded,
    Event,
    RequestReceived,
    ResponseHead,
    StreamReset,
)
from asgiri.worker.protocol.http2 import Http2Connection
from asgiri.worker.protocol.http3 import Http3Connection
from tests.fuzz.script import Script

Engine = Http2Connection | Http3Connection

HEADS = (
    ResponseHead(200, [(b"content-type", b"text/plain")]),
    ResponseHead(204, []),
    ResponseHead(304, [(b"etag", b'"x"')]),
    ResponseHead(500, [(b"x", b"y")]),
)
SIZES = (0, 1, 100, 16384, 70000, 200000)


@dataclass(slots=True)
class _Exchange:
    stream_id: int
    is_tunnel: bool
    begun: bool = False
    ended: bool = False
    credit: int = 0


class Application:
    """Keeps what is open; `act` takes one step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._open: dict[int, _Exchange] = {}
        self.is_over = False
        self.seen: list[Event] = []

    def handle(self, events: list[Event]) -> None:
        self.seen += events
        for event in events:
            match event:
                case RequestReceived(stream_id=stream_id, protocol=protocol):
                    assert stream_id not in self._open, "a stream begins once"
                    self._open[stream_id] = _Exchange(stream_id, protocol is not None)
                case BodyReceived(stream_id, data, credit):
                    assert 0 < len(data) <= credit
                    if stream_id in self._open:
                        self._open[stream_id].credit += credit
                case StreamReset(stream_id):
                    if stream_id in self._open:
                        self._open[stream_id].ended = True
                case ConnectionEnded():
                    assert not self.is_over, "a connection ends once"
                    self.is_over = True

    def act(self, script: Script) -> None:
        kind = script.byte()
        if kind == 255:
            self.handle(self._engine.begin_drain())
        elif kind == 254:
            self.handle(self._engine.finish_drain())
        elif kind == 253:
            self.handle(self._engine.close())
        elif self._open:
            exchange = script.choice(list(self._open.values()))
            self.handle(self._step(exchange, kind, script))

    def _step(self, exchange: _Exchange, kind: int, script: Script) -> list[Event]:
        engine, stream_id = self._engine, exchange.stream_id
        if kind % 8 == 0:
            credit, exchange.credit = exchange.credit, 0
            return engine.acknowledge(stream_id, credit)
        if kind % 8 == 1:
            del self._open[stream_id]
            return engine.release(stream_id)
        if kind % 8 == 2 and exchange.begun:
            exchange.ended = True
            return engine.reset_stream(stream_id)
        if exchange.ended:
            return []
        if not exchange.begun:
            if kind % 8 == 3:
                return engine.send_informational(stream_id, 103, [(b"link", b"</a>")])
            exchange.begun = True
            if exchange.is_tunnel:
                return engine.accept_tunnel(stream_id, [])
            exchange.ended = bool(kind & 16)
            body = bytes(script.choice(SIZES))
            return engine.send_response(stream_id, script.choice(HEADS), body, ended=exchange.ended)
        if kind % 8 == 4 and not exchange.is_tunnel:
            exchange.ended = True
            return engine.send_trailers(stream_id, [(b"x-sum", b"1")])
        exchange.ended = bool(kind & 16)
        body = bytes(script.choice(SIZES))
        return engine.send_body(stream_id, body, ended=exchange.ended)
