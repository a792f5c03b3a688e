"""The only place where an ASGI scope is built.

A connection keeps a template of everything that its exchanges have in common; an exchange copies
one dict and fills in what its request says. Every dict that an application may change is the
exchange's own.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote_to_bytes

from asgiri.worker.asgi.forwarded import NOTHING, ForwardedReader
from asgiri.worker.asgi.types import Scope
from asgiri.worker.protocol.events import Headers, RequestReceived

SPEC_VERSION: Final = "2.5"
"""Of the HTTP and WebSocket formats."""
LIFESPAN_SPEC_VERSION: Final = "2.0"

# As numbers: `b"?" in x` first tries b"?" as a number and throws its error away, 185 ns against 15.
QUESTION_MARK: Final = 0x3F
PERCENT: Final = 0x25

Address = tuple[str, int | None]

FILE_OFFERS: Final[dict[str, dict[str, Any]]] = {
    "http.response.pathsend": {},
    "http.response.zerocopysend": {},
}
"""Extensions that work everywhere."""


class ScopeBuilder:
    """What all connections of a worker have in common."""

    def __init__(
        self,
        *,
        root_path: str,
        state: dict[str, Any],
        asgi_version: str = "3.0",
        forwarded: ForwardedReader | None = None,
    ) -> None:
        """`forwarded`: None when nobody is believed what it says of the client before it."""
        self.forwarded = forwarded
        self.root_path = root_path.rstrip("/")
        self.raw_root_path = self.root_path.encode()
        self.state = state
        self.asgi_version = asgi_version
        self.asgi = {"version": asgi_version, "spec_version": SPEC_VERSION}
        # Keys in the order in which the specification lists them; what is None here each request
        # sets.
        self.template: dict[str, Any] = {
            "type": "http",
            "asgi": None,
            "http_version": None,
            "method": None,
            "scheme": "http",
            "path": None,
            "raw_path": None,
            "query_string": b"",
            "root_path": self.root_path,
            "headers": None,
            "client": None,
            "server": None,
            "state": None,
            "extensions": None,
        }

    def lifespan_scope(self) -> Scope:
        """The state itself, not a copy: the application fills it."""
        return {
            "type": "lifespan",
            "asgi": {"version": self.asgi_version, "spec_version": LIFESPAN_SPEC_VERSION},
            "state": self.state,
        }

    def connection(
        self,
        *,
        client: Address | None,
        server: Address | None,
        secure: bool,
        tls: dict[str, Any] | None = None,
    ) -> ConnectionScope:
        """Prepare the scopes of one connection.

        `client` is None for a peer without an address (a Unix socket); `server` is then (path,
        None). `tls` is the value of the `tls` extension.
        """
        return ConnectionScope(self, client=client, server=server, secure=secure, tls=tls)


class ConnectionScope:
    """Builds the scopes of one connection's exchanges."""

    __slots__ = (
        "_asgi",
        "_extensions",
        "_forwarded",
        "_headers",
        "_http",
        "_offers",
        "_plain_offers",
        "_raw_root_path",
        "_reader",
        "_root_path",
        "_state",
    )

    def __init__(
        self,
        builder: ScopeBuilder,
        *,
        client: Address | None,
        server: Address | None,
        secure: bool,
        tls: dict[str, Any] | None,
    ) -> None:
        self._asgi = builder.asgi
        self._root_path = builder.root_path
        self._raw_root_path = builder.raw_root_path
        reader = builder.forwarded
        self._reader = reader if reader is not None and reader.believes(client) else None
        self._forwarded = NOTHING
        """What a proxy says with `_headers`."""
        self._state = builder.state
        self._extensions: dict[str, dict[str, Any]] = {} if tls is None else {"tls": tls}
        self._plain_offers = FILE_OFFERS if tls is None else self._extensions | FILE_OFFERS
        """What every request is offered."""
        self._headers: Headers = []
        self._offers = self._plain_offers
        """What requests with `_headers` are offered: those of a connection mostly have the same."""
        http = self._http = builder.template.copy()
        if secure:
            http["scheme"] = "https"
        http["client"] = client
        http["server"] = server

    def http_scope(self, request: RequestReceived) -> Scope:
        """Scope of one HTTP exchange."""
        # The same tuples again (see FieldSection): compared by identity, 10 ns each.
        if request.headers != self._headers:
            self._judge(request.headers)
        scope = self._http.copy()
        scope["method"] = request.method
        self._fill(scope, request)
        # HTTP/1.0 knows neither interim responses nor chunks to put trailers behind.
        extensions = self._plain_offers if request.http_version == "1.0" else self._offers
        scope["extensions"] = extensions.copy()
        return scope

    def _judge(self, headers: Headers) -> None:
        self._headers = headers.copy()
        if self._reader is not None:
            self._forwarded = self._reader.read_untrusted(headers)
        self._offers = self._plain_offers | {"http.response.early_hint": {}}
        if accepts_trailers(headers):
            self._offers["http.response.trailers"] = {}

    def websocket_scope(self, request: RequestReceived, subprotocols: list[str]) -> Scope:
        """Scope of one WebSocket, whichever version carries it."""
        self._judge(request.headers)
        scope = self._http.copy()
        scope["type"] = "websocket"
        del scope["method"]
        scope["subprotocols"] = subprotocols
        self._fill(scope, request)
        scope["scheme"] = "wss" if scope["scheme"] == "https" else "ws"
        scope["extensions"] = {**self._extensions, "websocket.http.response": {}}
        return scope

    def _fill(self, scope: dict[str, Any], request: RequestReceived) -> None:
        raw_path = request.target
        if QUESTION_MARK in raw_path:
            raw_path, _, scope["query_string"] = raw_path.partition(b"?")
        if PERCENT in raw_path or not raw_path.isascii():
            path = decode_path(raw_path)
        else:
            path = raw_path.decode()
        if self._root_path and raw_path.startswith(b"/"):
            # The specification wants `path` to include `root_path`: a proxy that serves us below a
            # prefix takes it off, we put it back (as uvicorn does). Not for "*" (OPTIONS).
            path = self._root_path + path
            raw_path = self._raw_root_path + raw_path
        scope["path"] = path
        scope["raw_path"] = raw_path
        scope["http_version"] = request.http_version
        scope["headers"] = request.headers
        if self._forwarded is not NOTHING:
            self._take_forwarded(scope)
        # Copies: what one exchange changes, no other may see.
        scope["asgi"] = self._asgi.copy()
        scope["state"] = self._state.copy()

    def _take_forwarded(self, scope: dict[str, Any]) -> None:
        forwarded = self._forwarded
        if forwarded.client is not None:
            scope["client"] = forwarded.client
        if forwarded.scheme:
            scope["scheme"] = forwarded.scheme
        if forwarded.host:
            others = [field for field in scope["headers"] if field[0] != b"host"]
            scope["headers"] = [(b"host", forwarded.host), *others]
        if forwarded.prefix and scope["raw_path"].startswith(b"/"):
            # Like `root_path`, of which it is the outer part.
            raw_prefix = forwarded.prefix.encode("ascii")
            prefix = decode_path(raw_prefix)
            scope["root_path"] = prefix + scope["root_path"]
            scope["path"] = prefix + scope["path"]
            scope["raw_path"] = raw_prefix + scope["raw_path"]


def decode_path(raw_path: bytes) -> str:
    """Percent-decode, then read as UTF-8. What is no UTF-8 becomes U+FFFD, as in every other ASGI
    server: refusing it would take the choice from the application, which still has `raw_path`.
    """
    if PERCENT in raw_path:
        raw_path = unquote_to_bytes(raw_path)
    return raw_path.decode("utf-8", "replace")


def accepts_trailers(headers: Headers) -> bool:
    """RFC 9110 §6.5.1: a sender "MUST NOT generate a trailer field" unless the TE field says that
    trailers are kept ("trailers" is a member of its list).
    """
    for name, value in headers:
        if name == b"te":
            members = value.lower().split(b",")
            if any(member.partition(b";")[0].strip() == b"trailers" for member in members):
                return True
    return False
