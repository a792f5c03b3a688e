"""What httptools and h11 alone, bodies included, make of a stream: oracles for what we accept."""

from __future__ import annotations

import h11
import httptools


def read_by_httptools(stream: bytes) -> list[tuple[str, bytes]]:
    """Method and body of each request that is complete before llhttp stops, for whatever reason."""
    requests: list[tuple[str, bytes]] = []

    class Protocol:
        body = b""

        def on_message_begin(self) -> None:
            self.body = b""

        def on_body(self, body: bytes) -> None:
            self.body += body

        def on_message_complete(self) -> None:
            requests.append((parser.get_method().decode(), self.body))

    parser = httptools.HttpRequestParser(Protocol())
    try:
        parser.feed_data(stream)
    except httptools.HttpParserUpgrade:
        requests.pop()  # it reads no body of a request that asks for an upgrade
    except httptools.HttpParserError:
        pass
    return requests


def read_by_h11(stream: bytes) -> list[tuple[str, bytes]]:
    """The same of h11, each request answered."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(stream)
    requests: list[tuple[str, bytes]] = []
    method, body = "", b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                method, body = event.method.decode(), b""
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                requests.append((method, body))
                connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            else:
                return requests
    except h11.ProtocolError:
        return requests
