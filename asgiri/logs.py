"""What the server says, and how: loggers, formats, files, the access log.

Three standard loggers below "asgiri": "asgiri.master", "asgiri.worker" and "asgiri.access". What
a peer chose has its control characters escaped before it is written (CVE-2020-7694): a line
in the log is one that we wrote.

Writing never blocks and never raises. A line that a full disk or a pipe without a reader does not
take is dropped and counted, and the next line that gets through tells how many were.
"""

from __future__ import annotations

import contextlib
import http
import logging
import os
import re
import select
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import orjson

from asgiri.config import LogConfig
from asgiri.errors import ConfigError, StartError

__all__ = [
    "AccessLog",
    "LineHandler",
    "configure",
    "lines_dropped",
    "open_access_log",
    "reopen",
]

Headers = Sequence[tuple[bytes, bytes]]
Role = Literal["master", "worker", "admin"]

access_logger = logging.getLogger("asgiri.access")

STANDARD_OUTPUT: Final = 1
STANDARD_ERROR: Final = 2
MAX_LINE: Final = 64 << 10
"""Longest line in bytes, so that one message cannot fill a disk. A traceback of 500 frames fits."""
PIPE_CHUNK: Final = select.PIPE_BUF
"""What a pipe that reports to be writable takes at once without blocking (POSIX, write(2))."""


# Where lines go


class LineHandler(logging.Handler):
    """Writes each record by one write(2), so that processes may share a file; see the module."""

    def __init__(self, path: str, standard: int) -> None:
        super().__init__()
        self.dropped = 0
        self._path = "" if path == "-" else path
        self._unreported = 0
        self._fd = self._open() if self._path else standard
        self._poll = _poll_for(self._fd)

    @property
    def is_terminal(self) -> bool:
        return os.isatty(self._fd)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except (TypeError, ValueError) as error:  # arguments that do not fit their message
            line = f"unprintable log message {record.msg!r}: {type(error).__name__}"
        self.write_line(line)

    def write_line(self, line: str) -> None:
        """Write one line, or count it as dropped."""
        if self._unreported:
            line = f"{self._unreported} log lines were dropped before this one\n{line}"
        content = (line + "\n").encode(errors="backslashreplace")
        if len(content) > MAX_LINE:
            content = content[: MAX_LINE - 5] + b" ...\n"
        try:
            self._write(content)
        except OSError:
            self.dropped += 1
            self._unreported += 1
        else:
            self._unreported = 0

    def reopen(self) -> None:
        """Go on in a new file of the same name, after the old one was moved away."""
        if not self._path:
            return
        fresh = self._open()
        old, self._fd, self._poll = self._fd, fresh, _poll_for(fresh)
        os.close(old)

    def close(self) -> None:
        super().close()
        if self._path and self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            return os.open(self._path, flags, 0o640)
        except OSError as error:
            remedy = "name a file that can be written"
            raise StartError.from_os_error(error, f"log file {self._path}", remedy) from None

    def _write(self, content: bytes) -> None:
        if self._poll is None:
            os.write(self._fd, content)
            return
        # O_NONBLOCK would change the descriptor of whoever shares it: the shell, the other workers.
        for start in range(0, len(content), PIPE_CHUNK):
            ready = self._poll.poll(0)
            if not ready or not ready[0][1] & select.POLLOUT:
                raise BlockingIOError
            os.write(self._fd, content[start : start + PIPE_CHUNK])


def _poll_for(fd: int) -> select.poll | None:
    """Make what tells whether a write would block; files never do."""
    with contextlib.suppress(OSError):
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return None
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return poll


# What a line looks like

CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
"""Everything that moves a terminal's cursor or ends a line, except the newline."""
COLORS: Final = {
    logging.CRITICAL: "\x1b[1;31m",
    logging.ERROR: "\x1b[31m",
    logging.WARNING: "\x1b[33m",
    logging.INFO: "\x1b[32m",
    logging.DEBUG: "\x1b[2m",
}
RESET: Final = "\x1b[0m"


def _escape_match(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class TextFormatter(logging.Formatter):
    """For people: time, level, message. Further lines are indented, lest one poses as ours."""

    def __init__(self, *, color: bool) -> None:
        super().__init__()
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        if CONTROL.search(text):
            text = CONTROL.sub(_escape_match, text.replace("\t", "    "))
        text = text.replace("\n", "\n    ")
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname.lower():<8}"
        if self._color:
            level = f"{COLORS.get(record.levelno, '')}{level}{RESET}"
        return f"{moment}.{int(record.msecs):03d} {level} [{record.process}] {text}"


class JsonFormatter(logging.Formatter):
    """For machines: one object per line, with keys that stay."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": _iso_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return _json_line(fields)


def _iso_time(moment: float) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
    return f"{seconds}.{int(moment % 1 * 1000):03d}Z"


def _json_line(fields: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(fields).decode()
    except TypeError:  # a lone surrogate, as os.fsdecode() makes them from file names
        clean = {
            key: value.encode(errors="backslashreplace").decode()
            if isinstance(value, str)
            else value
            for key, value in fields.items()
        }
        return orjson.dumps(clean, default=str).decode()


# Set up

_handlers: Final[dict[str, LineHandler]] = {}
"""The handlers of this process, by the name of their logger."""


def configure(config: LogConfig, role: Role, *, standard_error: int = STANDARD_ERROR) -> None:
    """Send this process's log where the configuration says. May be called again after a change."""
    errors = LineHandler(config.error_log_file, standard_error)
    errors.setFormatter(_formatter(config, errors))
    _install(logging.getLogger("asgiri"), errors, config.level)
    if role == "admin" or not config.access_log:
        return
    # The master writes no access log, but finds out at the start what would keep workers from it.
    compile_format(config.access_log_format)
    access = LineHandler(config.access_log_file, STANDARD_OUTPUT)
    access.setFormatter(logging.Formatter("%(message)s"))
    _install(access_logger, access, "info")


def reopen() -> None:
    """Open every log file again (SIGUSR1), so that a moved file is let go."""
    for handler in _handlers.values():
        handler.reopen()


def lines_dropped() -> int:
    """Return how many lines this process could not write."""
    return sum(handler.dropped for handler in _handlers.values())


def _install(logger: logging.Logger, handler: LineHandler, level: str) -> None:
    previous = _handlers.pop(logger.name, None)
    if previous is not None:
        logger.removeHandler(previous)
        previous.close()
    _handlers[logger.name] = handler
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    # An application that configures the root logger would have each line twice.
    logger.propagate = False


def _formatter(config: LogConfig, handler: LineHandler) -> logging.Formatter:
    if config.format == "json":
        return JsonFormatter()
    wanted = handler.is_terminal and not os.environ.get("NO_COLOR")
    return TextFormatter(color=wanted if config.color == "auto" else config.color == "on")


# Access log


class AccessLog:
    """Writes a line for each request. Built once; called on the hot path.

    Takes what an exchange has at hand when it ends: its scope, the status and the fields of the
    response, the bytes of body sent, and the seconds since the request's head was complete.
    """

    def __init__(
        self, line: Callable[[Access], str], handler: LineHandler | None, worker: str
    ) -> None:
        self._line = line
        self._worker = worker
        self._handler = handler
        self._own_handlers = [handler]

    def __call__(
        self,
        scope: Mapping[str, Any],
        status: int,
        headers: Headers,
        body_size: int,
        duration: float,
    ) -> None:
        line = self._line(Access(scope, status, headers, body_size, duration, self._worker))
        if self._handler is not None and access_logger.handlers == self._own_handlers:
            # 3.6 us instead of 8.4 with a LogRecord in between (bench/access_log.py).
            self._handler.write_line(line)
        else:
            access_logger.info("%s", line)


class Access:
    """One finished exchange."""

    __slots__ = ("body_size", "duration", "headers", "scope", "status", "worker")

    def __init__(
        self,
        scope: Mapping[str, Any],
        status: int,
        headers: Headers,
        body_size: int,
        duration: float,
        worker: str,
    ) -> None:
        self.scope = scope
        self.status = status
        self.headers = headers
        self.body_size = body_size
        self.duration = duration
        self.worker = worker

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


def open_access_log(config: LogConfig, slot: int) -> AccessLog | None:
    """Build the access log of a worker, after `configure`; None when it is off."""
    if not config.access_log:
        return None
    line = _json_access if config.format == "json" else compile_format(config.access_log_format)
    return AccessLog(line, _handlers.get(access_logger.name), str(slot))


UNSAFE: Final = re.compile(r'[^\x20-\x7e]|["\\]')


def _escape(text: str) -> str:
    """Make text of a peer safe inside the quotes of a log line."""
    return UNSAFE.sub(_escape_match, text) if UNSAFE.search(text) else text


def _field(headers: Headers, name: bytes) -> str:
    for key, value in headers:
        if key == name:
            return _escape(value.decode("latin-1"))
    return "-"


def _json_access(access: Access) -> str:
    scope = access.scope
    client = scope.get("client")
    query = scope["query_string"]
    return _json_line(
        {
            "time": _iso_time(time.time()),
            "level": "info",
            "logger": "asgiri.access",
            "worker": int(access.worker),
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
