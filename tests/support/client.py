"""The one interface through which behaviour tests talk HTTP, whichever version carries it.

Implementations: `http1_client`, `http2_client`, `http3_client`. They are strict: what the RFC of
their version forbids a server to send raises `ServerViolation`, so that each test is a conformance
test too.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

Fields = list[tuple[bytes, bytes]]
FieldsIn = Iterable[tuple[str | bytes, str | bytes]]


class ServerViolation(AssertionError):
    """The server sent what its protocol does not allow."""


class FailureKind(enum.Enum):
    RESET = "the server gave up this exchange"
    CLOSED = "the connection ended before the response was complete"


class ExchangeFailed(Exception):
    """The response did not arrive whole."""

    def __init__(self, kind: FailureKind, code: int | None = None, detail: str = "") -> None:
        super().__init__(f"{kind.value}, code {code}: {detail}")
        self.kind = kind
        self.code = code


@dataclass(slots=True)
class Head:
    status: int
    headers: Fields

    def header(self, name: str) -> str | None:
        """The one value of a field; None when it is absent; a repeated field is a failure."""
        values = self.header_values(name)
        if len(values) > 1:
            raise ServerViolation(f"{name} {len(values)} times: {values}")
        return values[0] if values else None

    def header_values(self, name: str) -> list[str]:
        wanted = name.lower().encode()
        return [value.decode("latin-1") for key, value in self.headers if key == wanted]


@dataclass(slots=True)
class Response(Head):
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    informational: list[Head] = field(default_factory=list)


class ClientExchange(Protocol):
    """One request and its response."""

    informational: list[Head]
    trailers: Fields

    async def send_body(self, data: bytes) -> None:
        """Return when flow control let everything go."""

    async def end_body(self, trailers: FieldsIn = ()) -> None: ...

    async def head(self) -> Head:
        """The final response head, as soon as it is there; may be asked again."""

    async def wait_informational(self) -> Head:
        """The next 1xx head that was not asked for yet."""

    async def read(self) -> bytes:
        """The next part of the body, b"" at its end. Nothing is read from the peer, and no flow
        control is given back, for what was not asked for."""

    async def cancel(self) -> None:
        """Give the exchange up: RST_STREAM CANCEL, H3_REQUEST_CANCELLED; HTTP/1.1 resets TCP."""


class ClientConnection(Protocol):
    """One connection to the server."""

    version: str
    """As ASGI spells it."""
    multiplexed: bool
    """Several exchanges can be open at once."""

    async def start(
        self,
        method: str,
        path: str,
        headers: FieldsIn = (),
        *,
        body: bytes | None = b"",
        authority: str | None = None,
    ) -> ClientExchange:
        """Send a request's head, and its whole body; with None the body follows by `send_body`."""

    async def close(self) -> None: ...

    async def abort(self) -> None:
        """Vanish as rudely as the transport allows."""

    async def wait_closed(self) -> None:
        """Return when the server has ended the connection."""

    @property
    def local_address(self) -> tuple[str, int]: ...


async def read_response(exchange: ClientExchange) -> Response:
    """Everything until the end of the response."""
    head = await exchange.head()
    body = bytearray()
    while part := await exchange.read():
        body += part
    return Response(
        head.status, head.headers, bytes(body), exchange.trailers, exchange.informational
    )


async def request(
    connection: ClientConnection,
    method: str,
    path: str,
    headers: FieldsIn = (),
    body: bytes = b"",
) -> Response:
    return await read_response(await connection.start(method, path, headers, body=body))


def encode_fields(fields: FieldsIn) -> Fields:
    return [
        (
            (name.encode() if isinstance(name, str) else name).lower(),
            value.encode("latin-1") if isinstance(value, str) else value,
        )
        for name, value in fields
    ]
