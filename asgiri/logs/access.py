"""The access log: a line for each request, of a format's atoms or as JSON."""

from __future__ import annotations

import http
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from asgiri.errors import ConfigError
from asgiri.logs.formats import escape_match, iso_time, json_line
from asgiri.logs.handlers import LineHandler

Headers = Sequence[tuple[bytes, bytes]]

access_logger = logging.getLogger("asgiri.access")

ALWAYS_WRITTEN: Final = 500
"""Statuses from this one on are not sampled: they are few, and what the log is read for."""


class AccessLog:
    """Writes a line for each request. Built once; called on the hot path.

    Takes what an exchange has at hand when it ends: its scope, the status and the fields of the
    response, the bytes of body sent, the seconds since the request's head was complete, the number
    of the connection in its worker, and that of the stream in its connection.
    """

    def __init__(
        self,
        line: Callable[[Access], str],
        handler: LineHandler | None,
        *,
        slot: int,
        worker_id: int,
    ) -> None:
        self._line = line
        self._worker = str(slot)
        self._prefix = f"{worker_id:08x}-"
        self._handler = handler
        self._own_handlers = [handler]

    def __call__(
        self,
        scope: Mapping[str, Any],
        status: int,
        headers: Headers,
        body_size: int,
        duration: float,
        connection: int,
        stream_id: int,
    ) -> None:
        line = self._line(
            Access(
                scope,
                status,
                headers,
                body_size,
                duration,
                self._worker,
                self._prefix,
                connection,
                stream_id,
            )
        )
        if self._handler is not None and access_logger.handlers == self._own_handlers:
            # 3.6 us instead of 8.4 with a LogRecord in between (bench/access_log.py).
            self._handler.write_line(line)
        else:
            access_logger.info("%s", line)


class SampledAccessLog(AccessLog):
    """The same for a part of all requests, and for all that the server failed at (5xx)."""

    def __init__(
        self,
        line: Callable[[Access], str],
        handler: LineHandler | None,
        *,
        slot: int,
        worker_id: int,
        fraction: float,
        random: Callable[[], float],
    ) -> None:
        super().__init__(line, handler, slot=slot, worker_id=worker_id)
        self._fraction = fraction
        self._random = random
        self.left_out = 0

    def __call__(
        self,
        scope: Mapping[str, Any],
        status: int,
        headers: Headers,
        body_size: int,
        duration: float,
        connection: int,
        stream_id: int,
    ) -> None:
        if status < ALWAYS_WRITTEN and self._random() >= self._fraction:
            self.left_out += 1
            return
        super().__call__(scope, status, headers, body_size, duration, connection, stream_id)


class Access:
    """One finished exchange."""

    __slots__ = (
        "body_size",
        "connection",
        "duration",
        "headers",
        "prefix",
        "scope",
        "status",
        "stream_id",
        "worker",
    )

    def __init__(
        self,
        scope: Mapping[str, Any],
        status: int,
        headers: Headers,
        body_size: int,
        duration: float,
        worker: str,
        prefix: str,
        connection: int,
        stream_id: int,
    ) -> None:
        self.scope = scope
        self.status = status
        self.headers = headers
        self.body_size = body_size
        self.duration = duration
        self.worker = worker
        self.prefix = prefix
        """Of the IDs of connections: the worker's own, so that no two of a server are the same."""
        self.connection = connection
        self.stream_id = stream_id

    @property
    def connection_id(self) -> str:
        return f"{self.prefix}{self.connection:x}"

    @property
    def request_id(self) -> str:
        return f"{self.prefix}{self.connection:x}.{self.stream_id}"

    @property
    def path(self) -> str:
        return _escape(_raw_path(self.scope).decode("latin-1"))

    @property
    def query(self) -> str:
        return _escape(self.scope["query_string"].decode("latin-1"))

    @property
    def target(self) -> str:
        query = self.scope["query_string"]
        raw = _raw_path(self.scope)
        return _escape((raw + b"?" + query if query else raw).decode("latin-1"))

    @property
    def method(self) -> str:
        # A WebSocket's scope has none; over HTTP/1.1 it was GET, and nothing else tells more.
        return _escape(self.scope.get("method", "GET"))

    @property
    def protocol(self) -> str:
        return f"HTTP/{self.scope['http_version']}"

    def request_field(self, name: bytes) -> str:
        return _field(self.scope["headers"], name)

    def response_field(self, name: bytes) -> str:
        return _field(self.headers, name)


def _raw_path(scope: Mapping[str, Any]) -> bytes:
    raw = scope.get("raw_path")
    return raw if isinstance(raw, bytes) else scope["path"].encode(errors="surrogateescape")


UNSAFE: Final = re.compile(r'[^\x20-\x7e]|["\\]')


def _escape(text: str) -> str:
    """Make text of a peer safe inside the quotes of a log line."""
    return UNSAFE.sub(escape_match, text) if UNSAFE.search(text) else text


def _field(headers: Headers, name: bytes) -> str:
    for key, value in headers:
        if key == name:
            return _escape(value.decode("latin-1"))
    return "-"


def json_access(access: Access) -> str:
    scope = access.scope
    client = scope.get("client")
    query = scope["query_string"]
    return json_line(
        {
            "time": iso_time(time.time()),
            "level": "info",
            "logger": "asgiri.access",
            "worker": int(access.worker),
            "connection_id": access.connection_id,
            "request_id": access.request_id,
            "client": client[0] if client else None,
            "method": scope.get("method"),
            "path": _raw_path(scope).decode("latin-1"),
            "query": query.decode("latin-1"),
            "http_version": scope["http_version"],
            "scheme": scope.get("scheme"),
            "status": access.status,
            "bytes": access.body_size,
            "duration": round(access.duration, 6),
            "referer": access.request_field(b"referer"),
            "user_agent": access.request_field(b"user-agent"),
        }
    )


MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_apache_time_cache: tuple[int, str] = (-1, "")


def _apache_time(_: Access) -> str:
    global _apache_time_cache
    second = int(time.time())
    if second != _apache_time_cache[0]:
        now = time.localtime(second)
        # strftime("%b") would speak the machine's language.
        text = time.strftime(f"[%d/{MONTHS[now.tm_mon - 1]}/%Y:%H:%M:%S %z]", now)
        _apache_time_cache = (second, text)
    return _apache_time_cache[1]


def _client_host(access: Access) -> str:
    client = access.scope.get("client")
    return str(client[0]) if client else "-"


def _request_line(access: Access) -> str:
    # One check of the whole instead of one for each part: 0.4 us.
    scope = access.scope
    query = scope["query_string"]
    raw = _raw_path(scope)
    target = (raw + b"?" + query if query else raw).decode("latin-1")
    return _escape(f"{scope.get('method', 'GET')} {target} HTTP/{scope['http_version']}")


def _phrase(access: Access) -> str:
    try:
        return http.HTTPStatus(access.status).phrase
    except ValueError:
        return ""


ATOMS: Final[Mapping[str, Callable[[Access], str]]] = {
    "h": _client_host,
    "l": lambda _: "-",
    "u": lambda _: "-",
    "t": _apache_time,
    "r": _request_line,
    "R": _request_line,  # hypercorn, whose "r" leaves the query out
    "m": lambda access: access.method,
    "U": lambda access: access.path,
    "q": lambda access: access.query,
    "Uq": lambda access: access.target,
    "H": lambda access: access.protocol,
    "S": lambda access: str(access.scope.get("scheme", "-")),
    "s": lambda access: str(access.status),
    "st": _phrase,
    "B": lambda access: str(access.body_size),
    "b": lambda access: str(access.body_size) if access.body_size else "-",
    "f": lambda access: access.request_field(b"referer"),
    "a": lambda access: access.request_field(b"user-agent"),
    "T": lambda access: str(int(access.duration)),
    "D": lambda access: str(int(access.duration * 1_000_000)),
    "M": lambda access: f"{access.duration * 1000:.1f}",
    "L": lambda access: f"{access.duration:.6f}",
    "p": lambda _: f"<{os.getpid()}>",
    "w": lambda access: access.worker,
    "c": lambda access: access.connection_id,
    "i": lambda access: access.request_id,
}
ATOM: Final = re.compile(r"%(?:\((?P<atom>[^)]*)\)s|%)")


def compile_format(template: str) -> Callable[[Access], str]:
    """Turn an access-log format into the function that writes its lines; raises ConfigError."""
    parts: list[Callable[[Access], str]] = []
    literals: list[str] = []
    end = 0
    for match in ATOM.finditer(template):
        literals.append(template[end : match.start()])
        end = match.end()
        parts.append(_percent if match["atom"] is None else _part(match["atom"], template))
    literals.append(template[end:])
    pattern = "%s".join(literal.replace("%", "%%") for literal in literals)

    def line(access: Access) -> str:
        return pattern % tuple([part(access) for part in parts])

    return line


def _percent(_: Access) -> str:
    return "%"


def _part(atom: str, template: str) -> Callable[[Access], str]:
    if atom in ATOMS:
        return ATOMS[atom]
    if match := re.fullmatch(r"\{(.+)\}([ioe])", atom):
        name, where = match[1], match[2]
        field = name.lower().encode("latin-1", errors="replace")
        if where == "i":
            return lambda access: access.request_field(field)
        if where == "o":
            return lambda access: access.response_field(field)
        value = _escape(os.environ.get(name, "-"))
        return lambda _: value
    remedy = f"%({atom})s is no atom; there are {', '.join(ATOMS)}, {{name}}i, {{name}}o, {{name}}e"
    raise ConfigError("log.access_log_format", template, remedy)
