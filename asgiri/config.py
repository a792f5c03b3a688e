"""Every option: default, reason and validation. Parsed once, frozen, handed down in small pieces.

The first sentence below a field is what --help shows; what follows says what the default trades.
`options` turns these declarations into flags, environment variables and the README's table.
"""

import dataclasses
import ipaddress
import math
import os
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from asgiri.errors import ConfigError
from asgiri.options import DeclaredOption, Option, Section, Unit, options_of

__all__ = [
    "AdminConfig",
    "AppConfig",
    "BindAddress",
    "Config",
    "FlowConfig",
    "Http1Config",
    "Http2Config",
    "Http3Config",
    "HttpConfig",
    "ListenConfig",
    "ListenShorthand",
    "LogConfig",
    "ProcessConfig",
    "ReloadConfig",
    "RingConfig",
    "SourceOptions",
    "TlsConfig",
    "WebSocketConfig",
    "WorkerConfig",
    "parse_bind",
    "resolve_workers",
]

DEFAULT_HOST: Final = "127.0.0.1"
DEFAULT_PORT: Final = 8000


# Values


@dataclass(frozen=True, slots=True, kw_only=True)
class BindAddress:
    """Where to listen. A TCP address with an empty host means every address of the machine."""

    kind: Literal["tcp", "unix", "fd"]
    host: str = ""
    port: int = 0
    path: str = ""
    fd: int = -1

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        if self.kind == "fd":
            return f"fd://{self.fd}"
        # "unix:8000" would be a path.
        bare = ":" not in self.host and self.host != "unix"
        return f"{self.host}:{self.port}" if bare else f"[{self.host}]:{self.port}"


def parse_bind(text: str) -> BindAddress:
    """Read HOST:PORT, [V6]:PORT, :PORT, HOST, unix:PATH or fd://N; ValueError says the remedy."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:").removeprefix("//")
        if not path:
            raise ValueError("must name a path, such as unix:/run/asgiri.sock")
        return BindAddress(kind="unix", path=path)
    if text.startswith("fd://"):
        return BindAddress(kind="fd", fd=_parse_fd(text.removeprefix("fd://")))
    if "/" in text:
        raise ValueError("must be HOST:PORT, or unix: and the path of a Unix socket")
    if match := re.fullmatch(r"\[([^\]]*)\](?::(.*))?", text):
        host, port = match[1], match[2]
    elif text.count(":") > 1:
        address = text.strip("[]") or "::1"
        raise ValueError(
            f"must have an IPv6 address in brackets, such as [{address}]:{DEFAULT_PORT}"
        )
    else:
        host, colon, port = text.partition(":")
        if text.isdigit():
            raise ValueError(f"must name an address, such as {DEFAULT_HOST}:{text} or :{text}")
        port = port if colon else None
    return BindAddress(
        kind="tcp", host=host, port=DEFAULT_PORT if port is None else _parse_port(port)
    )


def _parse_fd(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError("must be fd:// and the number of an open socket, such as fd://3")
    return int(text)


def _parse_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError("must end in a port between 0 and 65535")
    return int(text)


def resolve_workers(value: str | int) -> int:
    """Turn `auto` into the number of processors that this process may really use, at least 1."""
    if isinstance(value, int):
        return value
    if value == "auto":
        quota = cgroup_cpu_quota()
        processors = _usable_processors()
        return processors if quota is None else max(1, min(processors, math.ceil(quota)))
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise ValueError("must be a number of workers, or auto")
    return int(value)


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cgroup_cpu_quota(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> float | None:
    """Read how many processors the control group (v1 or v2) may use; None when unlimited."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            quotas += [_quota_v2(folder) for folder in _ancestors(mount, path)]
        elif "cpu" in controllers.split(","):
            for folder in (mount / controllers, mount / "cpu"):
                quotas += [_quota_v1(ancestor) for ancestor in _ancestors(folder, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _ancestors(mount: Path, path: str) -> Iterator[Path]:
    # A limit binds wherever in the tree it stands. Inside a container the path is the host's and
    # may not exist below the mount; the mount itself is then the container's own group.
    folder = mount / path.lstrip("/")
    yield folder
    while folder != mount:
        folder = folder.parent
        yield folder


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _parse_octal(text: str) -> int:
    if not re.fullmatch(r"(0o)?[0-7]{1,4}", text):
        raise ValueError("must be an octal number such as 022")
    return int(text, 8)


def _parse_server_id(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError("must be a number such as 7 or 0x00c0ffee") from None


def _parse_loop(text: str) -> str:
    # gunicorn and hypercorn choose by -k what kind of worker runs. These run what runs here anyhow.
    if text in ("asgi", "sync", "gthread") or text.endswith(("UvicornWorker", "UvicornH11Worker")):
        return "auto"
    if "orker" in text or text in ("trio", "gevent", "eventlet", "tornado"):
        raise ValueError("is no event loop; leave it out, every worker runs on asyncio")
    return text


def _parse_cert_reqs(text: str) -> str:
    # ssl.CERT_NONE, CERT_OPTIONAL and CERT_REQUIRED: uvicorn and gunicorn want their numbers,
    # hypercorn their names.
    word = {"0": "none", "1": "optional", "2": "required"}.get(text, text)
    return word.removeprefix("CERT_").lower()


def _parse_tls_version(text: str) -> str:
    return text.removeprefix("tls")  # granian


def _parse_interface(text: str) -> str:
    if text == "asginl":  # granian: without the lifespan
        raise ValueError("is written --interface asgi3 --lifespan off")
    return "asgi3" if text == "asgi" else text


def _parse_http1_parser(text: str) -> str:
    if text in ("1", "2"):  # granian's --http
        raise ValueError(f"is written --no-http{3 - int(text)}")
    return {"fast": "httptools", "python": "h11"}.get(text, text)  # gunicorn


def _parse_level(text: str) -> str:
    word = text.lower()
    return "warning" if word == "warn" else word


NETWORK_REMEDY: Final = "must be an address, a network such as 10.0.0.0/8, or *"


# Sections


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig(Section):
    """The application and how it is called."""

    SECTION: ClassVar[str] = "app"
    TITLE: ClassVar[str] = "Application"

    target: Annotated[
        str, Option(keys="app wsgi_app application_path", env="ASGIRI_APP", metavar="APP")
    ]
    """The application, as module:attribute."""

    factory: Annotated[bool, Option("--factory")] = False
    """Call the attribute without arguments to get the application."""

    app_dir: Annotated[str, Option("--app-dir --pythonpath", metavar="PATH")] = ""
    """Folder to import the application from. The default is the current one, as everywhere."""

    interface: Annotated[
        Literal["auto", "asgi3", "asgi2", "wsgi"], Option("--interface", parse=_parse_interface)
    ] = "auto"
    """Which interface the application speaks. Auto looks at its signature."""

    wsgi_threads: Annotated[int, Option("--wsgi-threads", minimum=1)] = 15
    """Calls of a WSGI application that a worker makes at once, each in a thread. As many as
    SQLAlchemy's pool has connections, which is what they mostly wait for; requests beyond wait for
    a thread."""

    lifespan: Annotated[
        Literal["auto", "on", "off"], Option("--lifespan", aliases="--asgi-lifespan")
    ] = "auto"
    """Whether to tell the application when it starts and stops. Auto goes on without it when the
    application does not know it; with on, an error there keeps the server from starting."""

    root_path: Annotated[
        str, Option("--root-path", aliases="--url-path-prefix", metavar="PATH")
    ] = ""
    """Path below which a proxy serves the application."""

    loop: Annotated[
        Literal["auto", "uvloop", "asyncio"],
        Option("--loop -k", aliases="--worker-class --asgi-loop", parse=_parse_loop),
    ] = "auto"
    """Event loop of the workers. Auto takes uvloop where it is installed: it adopts a connection
    in half of asyncio's time."""

    def contradictions(self) -> Iterator[ConfigError]:
        module, colon, attribute = self.target.partition(":")
        if not colon and module.endswith(".py"):
            remedy = f"must be a module and an attribute, such as {Path(module).stem}:app"
            yield ConfigError("app.target", self.target, remedy)
        elif not module or not attribute:
            usual = "application" if module.endswith(("asgi", "wsgi")) else "app"
            remedy = f"must be module:attribute, such as {module or 'main'}:{usual}"
            yield ConfigError("app.target", self.target, remedy)
        elif attribute.endswith("()"):
            remedy = f"is written --factory {self.target.removesuffix('()')}"
            yield ConfigError("app.target", self.target, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions(Section):
    """Where more options are written. Read before all others, no part of `Config`."""

    SECTION: ClassVar[str] = "sources"
    TITLE: ClassVar[str] = "Configuration"

    config: Annotated[str, Option("--config -c", metavar="PATH")] = ""
    """File with options: TOML, or Python when its name ends in .py. The default is asgiri.toml in
    the current folder, else the table [tool.asgiri] of pyproject.toml there."""

    env_file: Annotated[
        tuple[str, ...], Option("--env-file", aliases="--env-files", metavar="PATH")
    ] = ()
    """File with variables, as NAME=VALUE, for the application and for our options; may be repeated.
    What the environment has already stays as it is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenShorthand(Section):
    """uvicorn's way to name one address. Folded into `listen.bind`, no part of `Config`."""

    SECTION: ClassVar[str] = "listen"
    TITLE: ClassVar[str] = "Listening"

    host: Annotated[str | None, Option("--host", metavar="ADDRESS")] = None
    """Address to listen on, with --port instead of --bind."""

    port: Annotated[int | None, Option("--port", env="PORT", minimum=0, maximum=65535)] = None
    """Port to listen on; 0 takes a free one. Alone in the variable PORT, it means every address,
    as hosting platforms expect."""

    uds: Annotated[str | None, Option("--uds", metavar="PATH")] = None
    """Unix socket to listen on, instead of --bind."""

    fd: Annotated[int | None, Option("--fd", minimum=0)] = None
    """Number of an open listening socket, instead of --bind."""

    def bind(self) -> tuple[str, ...]:
        """Spell the same in the form of --bind; empty when nothing was given."""
        if self.uds is not None:
            return (f"unix:{self.uds}",)
        if self.fd is not None:
            return (f"fd://{self.fd}",)
        if self.host is None and self.port is None:
            return ()
        host = DEFAULT_HOST if self.host is None else self.host
        port = DEFAULT_PORT if self.port is None else self.port
        return (str(BindAddress(kind="tcp", host=host, port=port)),)

    def contradictions(self) -> Iterator[ConfigError]:
        if self.uds is not None and self.fd is not None:
            yield ConfigError("listen.uds", self.uds, "cannot go with --fd; give --bind for each")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenConfig(Section):
    """Sockets that the master opens and keeps."""

    SECTION: ClassVar[str] = "listen"
    TITLE: ClassVar[str] = "Listening"

    bind: Annotated[tuple[str, ...], Option("--bind -b", metavar="ADDRESS")] = (
        f"{DEFAULT_HOST}:{DEFAULT_PORT}",
    )
    """Where to listen: HOST:PORT, [V6]:PORT, :PORT, unix:PATH or fd://N; may be repeated. The
    default is not reachable from outside, so that nothing is published by accident."""

    insecure_bind: Annotated[tuple[str, ...], Option("--insecure-bind", metavar="ADDRESS")] = ()
    """Where to listen without TLS although the other addresses have it; may be repeated."""

    quic_bind: Annotated[tuple[str, ...], Option("--quic-bind", metavar="ADDRESS")] = ()
    """Where to listen for HTTP/3, when it is not the same as --bind; may be repeated."""

    backlog: Annotated[int, Option("--backlog", minimum=1, maximum=65535)] = 4096
    """Connections that the system keeps for us before it turns them away. As many as Linux allows
    by itself (net.core.somaxconn): they wait there while every worker is at its limit."""

    proxy_protocol: Annotated[bool, Option("--proxy-protocol")] = False
    """Expect the header of the PROXY protocol, version 1 or 2, at the front of every TCP
    connection, before TLS. For proxies that pass bytes on; a connection without it is closed. Such
    connections stay with their worker: their requests are not balanced one by one."""

    proxy_protocol_allow_ips: Annotated[
        tuple[str, ...],
        Option(
            "--proxy-protocol-allow-ips",
            aliases="--proxy-allow-from",
            keys="proxy_allow_ips",
            metavar="NETWORKS",
            split_argument=True,
        ),
    ] = ("127.0.0.1", "::1")
    """Addresses or networks of the proxies that send that header, or `*`. All others are closed:
    whoever may send it may claim any address."""

    @property
    def bind_addresses(self) -> tuple[BindAddress, ...]:
        return tuple(map(parse_bind, self.bind))

    def contradictions(self) -> Iterator[ConfigError]:
        for name in ("bind", "insecure_bind", "quic_bind"):
            for text in getattr(self, name):
                try:
                    address = parse_bind(text)
                except ValueError as error:
                    yield ConfigError(f"listen.{name}", text, str(error))
                else:
                    if name == "quic_bind" and address.kind == "unix":
                        remedy = "must be an address and a port: QUIC runs over UDP"
                        yield ConfigError("listen.quic_bind", text, remedy)
        if not self.bind:
            yield ConfigError("listen.bind", "", "must name at least one address")
        for network in self.proxy_protocol_allow_ips:
            if not _is_network(network):
                yield ConfigError("listen.proxy_protocol_allow_ips", network, NETWORK_REMEDY)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConfig(Section):
    """Certificates. With one, every address that is not insecure speaks TLS."""

    SECTION: ClassVar[str] = "tls"
    TITLE: ClassVar[str] = "TLS"

    certfile: Annotated[
        tuple[str, ...],
        Option("--certfile", aliases="--ssl-certfile --ssl-certificate", metavar="PATH"),
    ] = ()
    """Certificate chain in PEM form; may be repeated, each with its --keyfile. Clients are shown
    the one with the name that they ask for (SNI), over TCP and QUIC, or else the first."""

    keyfile: Annotated[
        tuple[str, ...], Option("--keyfile", aliases="--ssl-keyfile", metavar="PATH")
    ] = ()
    """Private key in PEM form, when the certificate's file does not hold it."""

    keyfile_password: Annotated[
        str, Option("--keyfile-password", aliases="--ssl-keyfile-password", secret=True)
    ] = field(default="", repr=False)
    """Password of the private key. Better given as ASGIRI_KEYFILE_PASSWORD: command lines can be
    read by every user of the machine."""

    self_signed: Annotated[bool, Option("--self-signed")] = False
    """Speak TLS with a certificate made on the spot, for development. HTTP/3 without a
    certificate does the same."""

    ca_certs: Annotated[
        str, Option("--ca-certs", aliases="--ssl-ca-certs --ssl-ca", metavar="PATH")
    ] = ""
    """Authorities that sign client certificates, in PEM form."""

    cert_reqs: Annotated[
        Literal["none", "optional", "required"],
        Option("--cert-reqs", aliases="--ssl-cert-reqs --verify-mode", parse=_parse_cert_reqs),
    ] = "none"
    """Whether clients show a certificate."""

    ciphers: Annotated[str, Option("--ciphers", aliases="--ssl-ciphers", metavar="LIST")] = ""
    """Ciphers of TLS 1.2, as OpenSSL writes them. The default is Python's: forward secrecy, no
    CBC."""

    tls_min_version: Annotated[
        Literal["1.2", "1.3"],
        Option("--tls-min-version", aliases="--ssl-protocol-min", parse=_parse_tls_version),
    ] = "1.2"
    """Oldest TLS version that is spoken. RFC 8996 forbids what is older."""

    handshake_timeout: Annotated[
        float,
        Option(
            "--tls-handshake-timeout", keys="ssl_handshake_timeout", unit=Unit.SECONDS, minimum=0.1
        ),
    ] = 10.0
    """How long a client may take for the TLS handshake. Long enough for a mobile network that has
    to wake up, short enough that silent connections do not pile up."""

    def contradictions(self) -> Iterator[ConfigError]:
        if self.keyfile and not self.certfile:
            yield ConfigError("tls.keyfile", self.keyfile[0], "needs --certfile")
        elif self.keyfile and len(self.keyfile) != len(self.certfile):
            remedy = f"must be given once for each of the {len(self.certfile)} certificates"
            yield ConfigError("tls.keyfile", " ".join(self.keyfile), remedy)
        if self.self_signed and self.certfile:
            yield ConfigError("tls.self_signed", True, "cannot go with --certfile; leave one out")
        if self.cert_reqs != "none" and not self.ca_certs:
            yield ConfigError("tls.cert_reqs", self.cert_reqs, "needs --ca-certs")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig(Section):
    """What holds for every version of HTTP."""

    SECTION: ClassVar[str] = "http"
    TITLE: ClassVar[str] = "HTTP"

    http1: Annotated[bool, Option("--http1")] = True
    """Speak HTTP/1.1."""

    http2: Annotated[bool, Option("--http2")] = True
    """Speak HTTP/2: by ALPN on TLS, by prior knowledge in cleartext."""

    http3: Annotated[bool, Option("--http3")] = False
    """Speak HTTP/3 on the same port number over UDP, and TLS on TCP. Off by default because it
    needs a certificate and an open UDP port."""

    h2c_upgrade: Annotated[bool | None, Option("--h2c-upgrade")] = None
    """Let HTTP/1.1 clients upgrade to HTTP/2 in cleartext. The default allows it to the peers of
    --forwarded-allow-ips only: through a proxy that does not know the upgrade, anybody could send
    requests past it."""

    server_header: Annotated[bool, Option("--server-header", keys="include_server_header")] = True
    """Send the header `server: asgiri` unless the application sends its own."""

    date_header: Annotated[bool, Option("--date-header", keys="include_date_header")] = True
    """Send the date header (RFC 9110 §6.6.1) unless the application sends its own."""

    redirect_https: Annotated[bool, Option("--redirect-https")] = False
    """Send clients of --insecure-bind to HTTPS (308), instead of serving them there. A trusted
    proxy's X-Forwarded-Proto counts: who came to it by HTTPS is served."""

    hsts: Annotated[
        float, Option("--hsts", unit=Unit.SECONDS, minimum=0, maximum=10 * 365 * 86400)
    ] = 0.0
    """Tell browsers to come by HTTPS only, for so long (strict-transport-security, RFC 6797); 0 not
    to. Off by default: what browsers were told nobody can take back."""

    headers: Annotated[
        tuple[str, ...], Option("--header", metavar="NAME:VALUE", separator="\n")
    ] = ()
    """Header to add to every response; may be repeated."""

    alt_svc: Annotated[bool, Option("--alt-svc")] = True
    """Announce HTTP/3 to the clients of the other versions."""

    alt_svc_max_age: Annotated[float, Option("--alt-svc-max-age", unit=Unit.SECONDS, minimum=0)] = (
        86400.0
    )
    """How long clients may remember that announcement. A day: browsers find HTTP/3 again in the
    morning, and forget it soon after it is switched off."""

    forwarded_allow_ips: Annotated[
        tuple[str, ...],
        Option(
            "--forwarded-allow-ips",
            env="FORWARDED_ALLOW_IPS",
            metavar="NETWORKS",
            split_argument=True,
        ),
    ] = ("127.0.0.1", "::1")
    """Addresses or networks of the proxies to trust, or `*`. The default trusts what runs on the
    same machine."""

    proxy_headers: Annotated[bool, Option("--proxy-headers")] = True
    """Take client, scheme, host and prefix from what the peers of --forwarded-allow-ips say. They
    are believed up to the first hop, from the end of the list, that is none of them."""

    proxy_headers_from: Annotated[
        Literal["x-forwarded", "forwarded"], Option("--proxy-headers-from")
    ] = "x-forwarded"
    """Whether proxies say it in X-Forwarded-For, -Proto, -Host, -Port and -Prefix, or in Forwarded
    (RFC 7239). Never both: a proxy passes on the one that it does not know just as a client wrote
    it."""

    limit_concurrency: Annotated[
        int, Option("--limit-concurrency", aliases="--backpressure", minimum=0)
    ] = 0
    """Requests that a worker handles at once; 0 for no limit. Idle connections and WebSockets do
    not count. With a limit, requests are balanced unless --balance says otherwise."""

    request_timeout: Annotated[float, Option("--request-timeout", unit=Unit.SECONDS, minimum=0)] = (
        0.0
    )
    """How long the application may take for one response, answered with 504 beyond; 0 for no
    limit. Its call is cancelled, which a handler that keeps the event loop notices late."""

    queue_timeout: Annotated[float, Option("--queue-timeout", unit=Unit.SECONDS, minimum=0)] = 10.0
    """How long a request waits for a worker below its limit, answered with 503 beyond; 0 for ever.
    Few people wait longer."""

    def contradictions(self) -> Iterator[ConfigError]:
        if not (self.http1 or self.http2 or self.http3):
            yield ConfigError("http.http1", False, "leaves no version of HTTP; allow at least one")
        for network in self.forwarded_allow_ips:
            if not _is_network(network):
                yield ConfigError("http.forwarded_allow_ips", network, NETWORK_REMEDY)
        for header in self.headers:
            name, colon, value = header.partition(":")
            if not colon or not HEADER_NAME.fullmatch(name):
                remedy = "must be NAME:VALUE, such as x-frame-options:DENY"
                yield ConfigError("http.headers", header, remedy)
            elif not HEADER_VALUE.fullmatch(value):
                remedy = "must have a value of printable ASCII characters"
                yield ConfigError("http.headers", header, remedy)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return text == "*"
    return True


HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
HEADER_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Http1Config(Section):
    """HTTP/1.1 and 1.0. A limit that is passed gets the status that its RFC names."""

    SECTION: ClassVar[str] = "http1"
    TITLE: ClassVar[str] = "HTTP/1.1"

    parser: Annotated[
        Literal["auto", "httptools", "h11"],
        Option("--http1-parser", aliases="--http --http-parser", parse=_parse_http1_parser),
    ] = "auto"
    """Which parser reads requests. Auto is httptools (llhttp, in C); h11 is pure Python and reads
    the same language."""

    max_request_line: Annotated[
        int,
        Option(
            "--h1-max-request-line",
            aliases="--limit-request-line",
            unit=Unit.BYTES,
            minimum=128,
        ),
    ] = 8192
    """Longest request line, answered with 414 beyond. RFC 9112 §3 asks for at least 8,000."""

    max_head_size: Annotated[
        int,
        Option(
            "--h1-max-head-size",
            aliases="--h11-max-incomplete-event-size",
            keys="h11_max_incomplete_size",
            unit=Unit.BYTES,
            minimum=256,
        ),
    ] = 32768
    """Largest request head, answered with 431 beyond. Holds the largest cookies that browsers
    send, several times."""

    max_header_fields: Annotated[
        int, Option("--h1-max-header-fields", aliases="--limit-request-fields", minimum=1)
    ] = 100
    """Most fields in a request head, answered with 431 beyond. Browsers send about 20."""

    header_timeout: Annotated[float, Option("--header-timeout", unit=Unit.SECONDS, minimum=0.1)] = (
        10.0
    )
    """How long a request head may take to arrive, answered with 408 beyond. A head is one packet
    or two; who sends it byte by byte wants to hold a connection."""

    keep_alive: Annotated[
        float,
        Option(
            "--keep-alive",
            aliases="--timeout-keep-alive",
            keys="keepalive keep_alive_timeout",
            unit=Unit.SECONDS,
            minimum=0,
        ),
    ] = 5.0
    """How long a connection stays open without a request. Enough for a page and what it loads; a
    proxy in front should have a shorter one than this."""

    body_timeout: Annotated[float, Option("--body-timeout", unit=Unit.SECONDS, minimum=0)] = 60.0
    """How long a request body may pause, answered with 408 beyond; 0 for ever. Counts only while
    the application waits for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Http2Config(Section):
    """HTTP/2. What is beyond a limit is refused by stream where the RFC leaves the choice."""

    SECTION: ClassVar[str] = "http2"
    TITLE: ClassVar[str] = "HTTP/2"

    max_concurrent_streams: Annotated[
        int,
        Option(
            "--h2-max-concurrent-streams",
            aliases="--http2-max-concurrent-streams",
            minimum=1,
            maximum=2**31 - 1,
        ),
    ] = 100
    """Requests that a client may have open on a connection. RFC 9113 §6.5.2 recommends no fewer,
    and more of them would wait in the application anyhow."""

    max_header_list_size: Annotated[
        int,
        Option(
            "--h2-max-header-list-size",
            aliases="--http2-max-header-list-size --http2-max-headers-size",
            unit=Unit.BYTES,
            minimum=256,
        ),
    ] = 65536
    """Largest header list, counted as RFC 9113 §6.5.2 counts: 32 bytes more for each field."""

    stream_window: Annotated[
        int,
        Option(
            "--h2-stream-window",
            aliases="--http2-initial-window-size --http2-initial-stream-window-size",
            unit=Unit.BYTES,
            minimum=16384,
            maximum=2**31 - 1,
        ),
    ] = 1 << 20
    """Bytes of a request body that may wait for the application. 1 MiB lets one upload run at 80
    Mbit/s over a round trip of 100 ms."""

    connection_window: Annotated[
        int,
        Option(
            "--h2-connection-window",
            aliases="--http2-initial-connection-window-size",
            unit=Unit.BYTES,
            minimum=65535,
            maximum=2**31 - 1,
        ),
    ] = 4 << 20
    """The same for all streams of a connection. Bounds what a client can make us hold."""

    idle_timeout: Annotated[float, Option("--h2-idle-timeout", unit=Unit.SECONDS, minimum=0)] = 60.0
    """How long a connection stays open without a stream. Longer than --keep-alive: a browser
    opens one such connection only, and a new one costs it two round trips."""

    ping_interval: Annotated[float, Option("--h2-ping-interval", unit=Unit.SECONDS, minimum=0)] = (
        0.0
    )
    """How often to ask a silent client whether it is still there; 0 for never."""

    max_resets: Annotated[int, Option("--h2-max-resets", minimum=1)] = 200
    """Streams that a client may cancel per minute before its connection is closed. A browser that
    leaves a page full of images cancels about 100; CVE-2023-44487 cancels 10,000 a second."""

    def contradictions(self) -> Iterator[ConfigError]:
        if self.connection_window < self.stream_window:
            remedy = f"must not be smaller than --h2-stream-window, which is {self.stream_window}"
            yield ConfigError("http2.connection_window", self.connection_window, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Http3Config(Section):
    """HTTP/3 and the QUIC below it."""

    SECTION: ClassVar[str] = "http3"
    TITLE: ClassVar[str] = "HTTP/3 and QUIC"

    quic_retry: Annotated[Literal["auto", "always", "never"], Option("--quic-retry")] = "auto"
    """Whether a client proves its address before a worker hears of it. It costs the client a
    round trip; auto asks for it only while more connections begin than the workers can take."""

    quic_secret_file: Annotated[str, Option("--quic-secret-file", metavar="PATH")] = ""
    """File with the secret that connection IDs, reset and Retry tokens are made of. By default it
    follows from the private key, so that it survives a restart; several hosts behind one balancer
    share a file."""

    quic_server_id: Annotated[
        int | None,
        Option(
            "--quic-server-id",
            metavar="N",
            minimum=0,
            maximum=2**32 - 1,
            parse=_parse_server_id,
        ),
    ] = None
    """Number of this host for a QUIC-LB balancer. By default it follows from the secret."""

    max_datagram_size: Annotated[
        int, Option("--quic-max-datagram-size", unit=Unit.BYTES, minimum=1200, maximum=1452)
    ] = 1200
    """Largest UDP payload that is sent. 1,200 pass everywhere (RFC 9000 §14); 1,452 fit Ethernet
    and carry a fifth more with the same work."""

    idle_timeout: Annotated[float, Option("--quic-idle-timeout", unit=Unit.SECONDS, minimum=1)] = (
        30.0
    )
    """How long a connection lives without a packet. Coming back costs a browser one round
    trip."""

    handshake_timeout: Annotated[
        float, Option("--quic-handshake-timeout", unit=Unit.SECONDS, minimum=0.1)
    ] = 10.0
    """How long a client may take for the handshake. Each half-open connection holds 91 KB."""

    max_half_open: Annotated[int, Option("--quic-max-half-open", minimum=1)] = 256
    """Handshakes that a worker carries on at once. 256 hold 23 MB; a worker finishes about 900 a
    second."""

    max_streams: Annotated[int, Option("--h3-max-streams", minimum=1, maximum=2**60)] = 128
    """Requests that a client may have open on a connection. RFC 9114 §6.1 asks for at least
    100."""

    max_header_list_size: Annotated[
        int, Option("--h3-max-header-list-size", unit=Unit.BYTES, minimum=256)
    ] = 65536
    """Largest header list, counted as RFC 9114 §4.2.2 counts: 32 bytes more for each field."""

    stream_window: Annotated[int, Option("--h3-stream-window", unit=Unit.BYTES, minimum=16384)] = (
        1 << 20
    )
    """Bytes of a request body that may wait for the application. 1 MiB lets one upload run at 80
    Mbit/s over a round trip of 100 ms."""

    connection_window: Annotated[
        int, Option("--h3-connection-window", unit=Unit.BYTES, minimum=65536)
    ] = 4 << 20
    """The same for all streams of a connection. Bounds what a client can make us hold."""

    def contradictions(self) -> Iterator[ConfigError]:
        if self.connection_window < self.stream_window:
            remedy = f"must not be smaller than --h3-stream-window, which is {self.stream_window}"
            yield ConfigError("http3.connection_window", self.connection_window, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketConfig(Section):
    """WebSockets, over whichever version of HTTP."""

    SECTION: ClassVar[str] = "websocket"
    TITLE: ClassVar[str] = "WebSockets"

    max_message_size: Annotated[
        int,
        Option("--ws-max-size", aliases="--websocket-max-message-size", unit=Unit.BYTES, minimum=1),
    ] = 16 << 20
    """Largest message, closed with 1009 beyond. Counted after inflation."""

    ping_interval: Annotated[
        float,
        Option(
            "--ws-ping-interval",
            aliases="--websocket-ping-interval",
            unit=Unit.SECONDS,
            minimum=0,
        ),
    ] = 20.0
    """How often to ask whether the client is still there; 0 for never. Shorter than the 30 s
    after which many address translators forget a silent connection."""

    ping_timeout: Annotated[float, Option("--ws-ping-timeout", unit=Unit.SECONDS, minimum=0)] = 20.0
    """How long to wait for the answer before closing; 0 for ever."""

    per_message_deflate: Annotated[bool, Option("--ws-per-message-deflate")] = True
    """Compress messages for clients that offer it."""

    max_queue: Annotated[int, Option("--ws-max-queue", minimum=1)] = 32
    """Messages that wait for the application before the client is held back."""

    close_timeout: Annotated[
        float, Option("--ws-close-timeout", unit=Unit.SECONDS, minimum=0.1)
    ] = 10.0
    """How long to wait for the client's half of the closing handshake."""

    drain: Annotated[Literal["close", "keep"], Option("--ws-drain")] = "close"
    """What a reload does with open WebSockets: close them with 1012, or keep them until the
    graceful timeout. Close: well-made clients come back at once, and to new code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowConfig(Section):
    """Back-pressure between the network and the application, both ways."""

    SECTION: ClassVar[str] = "flow"
    TITLE: ClassVar[str] = "Flow control"

    high_water: Annotated[int, Option("--flow-high-water", unit=Unit.BYTES, minimum=1024)] = 65536
    """Bytes waiting in one direction of one stream before its sender is held back. A few packets
    more than a reader needs to stay busy; every stream may hold as much."""

    low_water: Annotated[int, Option("--flow-low-water", unit=Unit.BYTES, minimum=0)] = 16384
    """Bytes left when the sender may go on. A quarter: each pause is worth its system calls."""

    def contradictions(self) -> Iterator[ConfigError]:
        if self.low_water >= self.high_water:
            remedy = f"must be smaller than --flow-high-water, which is {self.high_water}"
            yield ConfigError("flow.low_water", self.low_water, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig(Section):
    """The processes that run the application, and what they are given to do."""

    SECTION: ClassVar[str] = "workers"
    TITLE: ClassVar[str] = "Workers"

    count: Annotated[
        int,
        Option(
            "--workers -w",
            env="WEB_CONCURRENCY",
            metavar="N|auto",
            minimum=1,
            maximum=1024,
            parse=resolve_workers,
        ),
    ] = 1
    """Number of worker processes; auto makes it one for each processor that may be used. Auto
    honours CPU affinity and control-group quotas, so it is right in a container."""

    boot_timeout: Annotated[
        float, Option("--boot-timeout", keys="startup_timeout", unit=Unit.SECONDS, minimum=0.1)
    ] = 60.0
    """How long a worker may take to import the application and finish its startup. Models take
    long to load; a worker that hangs should not hang a deployment."""

    graceful_timeout: Annotated[
        float,
        Option(
            "--graceful-timeout",
            aliases="--timeout-graceful-shutdown --workers-kill-timeout",
            unit=Unit.SECONDS,
            minimum=0,
        ),
    ] = 30.0
    """How long requests in flight may take to finish when a worker stops. As long as Kubernetes
    waits by default before it kills."""

    timeout: Annotated[
        float,
        Option(
            "--timeout -t",
            aliases="--timeout-worker-healthcheck",
            unit=Unit.SECONDS,
            minimum=0,
        ),
    ] = 30.0
    """How long a worker's event loop may stand still before the worker is replaced; 0 for ever.
    Whoever waits behind it has given up by then. Well before, it gets no new work."""

    max_requests: Annotated[
        int, Option("--max-requests", aliases="--limit-max-requests", minimum=0)
    ] = 0
    """Requests after which a worker is replaced; 0 for never."""

    max_requests_jitter: Annotated[
        int,
        Option(
            "--max-requests-jitter",
            aliases="--limit-max-requests-jitter",
            minimum=0,
        ),
    ] = 0
    """Up to so many requests more, by chance, so that workers are not all replaced at once."""

    max_worker_rss: Annotated[int, Option("--max-worker-rss", unit=Unit.BYTES, minimum=0)] = 0
    """Memory beyond which a worker is replaced; 0 for never."""

    max_worker_lifetime: Annotated[
        float,
        Option(
            "--max-worker-lifetime",
            aliases="--workers-lifetime",
            unit=Unit.SECONDS,
            minimum=0,
        ),
    ] = 0.0
    """Age at which a worker is replaced; 0 for never."""

    reload_surge: Annotated[int, Option("--reload-surge", minimum=0)] = 0
    """Workers that a reload may start beyond their usual number at once; 0 for all. Fewer need
    less memory and more time."""

    balance: Annotated[Literal["connection", "request", "auto"], Option("--balance")] = "auto"
    """Whether connections or single requests are spread over the workers. Auto moves requests
    while handlers keep an event loop busy for more than 5 ms at a time. With connection, none is
    moved to another worker, and none is closed because its worker has too many."""

    balance_policy: Annotated[
        Literal["least-loaded", "round-robin", "client-ip"],
        Option("--balance-policy"),
    ] = "least-loaded"
    """Which worker gets the next connection."""

    tcp_dispatch: Annotated[Literal["master"], Option("--tcp-dispatch", pending=True)] = "master"
    """Who accepts TCP connections. The master knows which worker is blocked, the kernel does
    not."""

    app_thread: Annotated[bool, Option("--app-thread")] = False
    """Run the application in a thread of its own, with its own event loop: while it computes,
    clients still hear of the server (QUIC acknowledgements, pings, 504 in time). Costs about 25 us
    of processor time per request, and Python code gives way to the protocols each millisecond."""

    preload: Annotated[bool, Option("--preload", keys="preload_app")] = False
    """Import the application once per generation and fork the workers from it; on Linux only.
    Saves memory and processor time; the application must bear being forked, so it starts threads
    and opens connections in its lifespan, not while it is imported."""

    cpu_affinity: Annotated[bool, Option("--cpu-affinity")] = False
    """Pin each worker to one of the processors that it may use; on Linux only. Memory near a
    processor is the operator's affair (numactl)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReloadConfig(Section):
    """For development: new code is served when its files change."""

    SECTION: ClassVar[str] = "reload"
    TITLE: ClassVar[str] = "Development"

    enabled: Annotated[bool, Option("--reload", keys="use_reloader")] = False
    """Reload when files change; needs `asgiri[reload]`. Broken code is waited for, at the start,
    too. A worker that ends waits 2 s at most for what is open, and one that stands still is left
    alone: somebody may be looking at it with a debugger."""

    dirs: Annotated[tuple[str, ...], Option("--reload-dir", metavar="PATH")] = ()
    """Folder to watch, with all below it; may be repeated. The default is the current one, and
    that of --app-dir."""

    include: Annotated[tuple[str, ...], Option("--reload-include", metavar="PATTERN")] = ()
    """Files to watch beside `*.py`, such as `*.html`, or further folders; may be repeated."""

    exclude: Annotated[tuple[str, ...], Option("--reload-exclude", metavar="PATTERN")] = ()
    """Files or folders not to watch; may be repeated. The default leaves out `.*`, `.py[cod]`,
    `.sw.*` and `~*`, unless they are included."""

    delay: Annotated[
        float, Option("--reload-delay", unit=Unit.SECONDS, minimum=0.01, maximum=1.0)
    ] = 0.05
    """How long files must rest before a reload. Editors write a file in several steps, and most
    of them within a few milliseconds; what comes later begins the reload anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RingConfig(Section):
    """Shape of each worker's datagram ring."""

    SECTION: ClassVar[str] = "ring"
    TITLE: ClassVar[str] = "Datagram rings"

    size: Annotated[
        int, Option("--ring-size", unit=Unit.BYTES, minimum=1 << 17, maximum=1 << 30)
    ] = 4 << 20
    """Bytes waiting for a worker before the master drops datagrams. 4 MiB hold 3,300 full
    datagrams, 120 ms of a worker's time: longer than a handler may hold the event loop, short
    enough not to be bufferbloat."""

    channel: Annotated[Literal["auto", "ring", "stream"], Option("--ring-channel")] = "auto"
    """How datagrams reach a worker: through shared memory or a socket. Auto takes shared memory
    where the system has it."""

    def contradictions(self) -> Iterator[ConfigError]:
        if self.size.bit_count() != 1:
            yield ConfigError("ring.size", self.size, "must be a power of two")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig(Section):
    """What is said, where and how."""

    SECTION: ClassVar[str] = "log"
    TITLE: ClassVar[str] = "Logging"

    level: Annotated[
        Literal["critical", "error", "warning", "info", "debug"],
        Option("--log-level", keys="loglevel", parse=_parse_level),
    ] = "info"
    """Least severe message that is written. What peers do wrong is written at debug: it would be
    theirs to fill the disk."""

    format: Annotated[Literal["text", "json"], Option("--log-format")] = "text"
    """Lines for people or JSON objects for machines."""

    color: Annotated[Literal["auto", "on", "off"], Option("--log-color")] = "auto"
    """Whether levels are coloured. Auto does so on a terminal, unless NO_COLOR is set."""

    error_log_file: Annotated[
        str,
        Option(
            "--error-logfile", aliases="--error-log --log-file", keys="errorlog", metavar="PATH"
        ),
    ] = ""
    """File for what the server says; empty or `-` for standard error. Reopened on SIGUSR1."""

    access_log: Annotated[bool, Option("--access-log")] = True
    """Write a line for each request."""

    access_log_file: Annotated[
        str, Option("--access-logfile", keys="accesslog", metavar="PATH")
    ] = ""
    """File for the access log; empty or `-` for standard output. Reopened on SIGUSR1."""

    access_log_format: Annotated[
        str, Option("--access-logformat", aliases="--access-log-format", metavar="FORMAT")
    ] = '%(h)s "%(r)s" %(s)s %(b)s %(M)sms worker=%(w)s'
    """The line of the access log, made of gunicorn's atoms. The default leaves out what a log
    shipper adds anyhow, and names the worker."""

    access_log_sampling: Annotated[
        float, Option("--access-log-sampling", unit=Unit.SHARE, minimum=0, maximum=1)
    ] = 1.0
    """Part of all requests that get a line, such as 0.01. What the server failed at (5xx) always
    gets one. How many got none is counted."""

    config: Annotated[
        str,
        Option(
            "--log-config",
            aliases="--log-config-json",
            keys="logconfig logconfig_json",
            metavar="PATH",
        ),
    ] = ""
    """File with a configuration for Python's logging, as JSON, TOML, YAML, Python or ini. It alone
    then says what is written, where and how; of the options above, only --log-level and
    --access-log count beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessConfig(Section):
    """How the processes present themselves to the system."""

    SECTION: ClassVar[str] = "process"
    TITLE: ClassVar[str] = "Processes"

    pid_file: Annotated[
        str, Option("--pid -p", aliases="--pidfile --pid-file", keys="pid_path", metavar="PATH")
    ] = ""
    """File to write the master's process ID to."""

    name: Annotated[str, Option("--name -n", aliases="--process-name", keys="proc_name")] = ""
    """Name in the process list instead of the application's."""

    user: Annotated[str, Option("--user -u")] = ""
    """User to become after the sockets are open."""

    group: Annotated[str, Option("--group -g")] = ""
    """Group to become after the sockets are open."""

    umask: Annotated[
        int | None,
        Option("--umask -m", metavar="OCTAL", parse=_parse_octal, maximum=0o777),
    ] = None
    """Permissions to withhold from new files and Unix sockets."""

    chdir: Annotated[str, Option("--chdir", aliases="--working-dir", metavar="PATH")] = ""
    """Folder to change to before anything but --config and --env-file is looked for. If it is a
    link, each reload follows it anew."""

    hooks: Annotated[tuple[str, ...], Option()] = ()
    """Hooks that --config defines. Follows from the file, so it is nothing to be given."""

    hooks_file: Annotated[str, Option()] = ""
    """File that defines them, or python: and the name of a module."""

    daemon: Annotated[bool, Option("--daemon -D")] = False
    """Go to the background once the server is ready. Service managers and containers want it off:
    they watch over the process that they start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminConfig(Section):
    """How operators and their machines see what the server does, and steer it."""

    SECTION: ClassVar[str] = "admin"
    TITLE: ClassVar[str] = "Administration"

    bind: Annotated[str, Option("--admin", metavar="ADDRESS")] = ""
    """Where to show health, metrics and a dashboard: HOST:PORT, :PORT or unix:PATH. Off unless
    asked for. A worker of its own answers there, also while all others are blocked; it only tells,
    but it tells everybody who reaches it."""

    control_socket: Annotated[str, Option("--control-socket", metavar="PATH")] = ""
    """Unix socket for `asgiri ctl` and `asgiri top`, or `off`. By default one that they find by
    themselves, in the runtime directory of the service or of the user. Only its user and root may
    use it."""

    statsd_host: Annotated[str, Option("--statsd-host", metavar="ADDRESS")] = ""
    """StatsD server to send metrics to, by UDP: HOST:PORT, or unix:PATH."""

    statsd_prefix: Annotated[str, Option("--statsd-prefix")] = ""
    """What the names of metrics begin with; a dot is added."""

    def contradictions(self) -> Iterator[ConfigError]:
        for name in ("bind", "statsd_host"):
            text = getattr(self, name)
            try:
                if text and parse_bind(text).kind == "fd":
                    raise ValueError("must be HOST:PORT, or unix: and a path")
                if re.fullmatch(r"[^:/]+|\[[^\]]*\]", text):
                    raise ValueError(f"must name a port, such as {text}:9100")
            except ValueError as error:
                yield ConfigError(f"admin.{name}", text, str(error))


# The whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All sections. Travels to the workers as JSON."""

    app: AppConfig
    listen: ListenConfig = field(default_factory=ListenConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    http1: Http1Config = field(default_factory=Http1Config)
    http2: Http2Config = field(default_factory=Http2Config)
    http3: Http3Config = field(default_factory=Http3Config)
    websocket: WebSocketConfig = field(default_factory=WebSocketConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    workers: WorkerConfig = field(default_factory=WorkerConfig)
    reload: ReloadConfig = field(default_factory=ReloadConfig)
    ring: RingConfig = field(default_factory=RingConfig)
    log: LogConfig = field(default_factory=LogConfig)
    process: ProcessConfig = field(default_factory=ProcessConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)

    def __post_init__(self) -> None:
        ConfigError.raise_all(self._contradictions())

    def _contradictions(self) -> Iterator[ConfigError]:
        if self.listen.quic_bind and not self.http.http3:
            yield ConfigError("listen.quic_bind", " ".join(self.listen.quic_bind), "needs --http3")
        if self.http.redirect_https and not (self.speaks_tls and self.listen.insecure_bind):
            yield ConfigError(
                "http.redirect_https", True, "needs --insecure-bind, and TLS on --bind"
            )
        if self.http.http3 and not self.quic_addresses:
            binds = " ".join(self.listen.bind)
            yield ConfigError("listen.bind", binds, "has no address for HTTP/3; add --quic-bind")

    @property
    def speaks_tls(self) -> bool:
        """Whether the addresses of `bind` speak TLS."""
        return bool(self.tls.certfile or self.tls.self_signed or self.http.http3)

    @property
    def needs_self_signed(self) -> bool:
        """Whether a certificate has to be made before anything can start."""
        return self.speaks_tls and not self.tls.certfile

    @property
    def quic_addresses(self) -> tuple[BindAddress, ...]:
        """Where UDP sockets are opened when HTTP/3 is on."""
        if self.listen.quic_bind:
            return tuple(map(parse_bind, self.listen.quic_bind))
        # A socket that was passed in is a TCP listener here: it has no UDP half that we could know.
        return tuple(bind for bind in self.listen.bind_addresses if bind.kind == "tcp")

    @classmethod
    def from_values(cls, values: Mapping[str, Mapping[str, Any]]) -> Self:
        """Build from {section: {field: value}}; raises one ConfigError with every problem."""
        problems: list[ConfigError] = []
        sections = {}
        for name, section in SECTIONS.items():
            try:
                sections[name] = section(**values.get(name, {}))
            except ConfigError as error:
                problems.append(error)
        ConfigError.raise_all(problems)
        return cls(**sections)

    def to_json(self) -> dict[str, Any]:
        """Turn into what JSON can carry."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Undo `to_json`. An unknown section or field is refused, not passed over."""
        problems = []
        values: dict[str, dict[str, Any]] = {}
        for section, fields in document.items():
            known = {declared.field: declared for declared in options_in(section)}
            for name, value in fields.items():
                if name in known:
                    values.setdefault(section, {})[name] = known[name].from_json(value)
                else:
                    problems.append(ConfigError(f"{section}.{name}", value, "is no option"))
        ConfigError.raise_all(problems)
        return cls.from_values(values)


SECTIONS: Final[Mapping[str, type[Any]]] = typing.get_type_hints(Config)


def options_in(section: str) -> Iterable[DeclaredOption]:
    """List the options of a section; none when there is no such section."""
    return options_of(SECTIONS[section]) if section in SECTIONS else ()


def all_options() -> Iterator[DeclaredOption]:
    """List every option in the order of declaration, with those that are no part of `Config`."""
    yield from options_in("app")
    yield from options_of(SourceOptions)
    for section in list(SECTIONS)[1:]:
        if section == "listen":
            yield from options_of(ListenShorthand)
        yield from options_in(section)
