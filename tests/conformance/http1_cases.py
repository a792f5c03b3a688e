"""What a server must make of requests over HTTP/1.1: bytes, the section that decides, the verdict.

A table for whoever can run it: the unit tests of the engine do with both parsers, a run over
sockets may. The application that the verdicts assume reads each body to its end and answers 200
with a content-length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DEFAULT_LIMITS: Final = {"request line": 8192, "field section": 32768, "fields": 100}
"""The limits that the cases at the edge assume."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the application sees it."""

    method: str
    target: bytes
    body: bytes = b""
    version: str = "1.1"
    fields: tuple[tuple[bytes, bytes], ...] = ()
    """Some of its fields, in their order."""
    trailers: tuple[tuple[bytes, bytes], ...] = ()
    expects_continue: bool = False
    protocol: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    section: str
    name: str
    request: bytes
    seen: tuple[Seen, ...] = ()
    """The requests that are answered by the application, in order."""
    refused: int | None = None
    """The status that the server answers the rest with, before it closes."""
    stays: bool = True
    """The connection stays open; never after a refusal."""

    @property
    def id(self) -> str:
        return f"{self.section}-{self.name}".replace(" ", "_")


CASES: list[Case] = []


def _accept(section: str, name: str, request: bytes, *seen: Seen, stays: bool = True) -> None:
    CASES.append(Case(section, name, request, seen, None, stays))


def _refuse(section: str, name: str, status: int, request: bytes, *seen: Seen) -> None:
    CASES.append(Case(section, name, request, seen, status, stays=False))


GET = Seen("GET", b"/")
HOST: Final = b"Host: a.example\r\n"


def _get(fields: bytes = b"", line: bytes = b"GET / HTTP/1.1") -> bytes:
    return line + b"\r\n" + HOST + fields + b"\r\n"


def _post(fields: bytes, body: bytes = b"") -> bytes:
    return _get(fields, b"POST / HTTP/1.1") + body


def _chunked(body: bytes) -> bytes:
    return _post(b"Transfer-Encoding: chunked\r\n", body)


def _posted(body: bytes = b"", trailers: tuple[tuple[bytes, bytes], ...] = ()) -> Seen:
    return Seen("POST", b"/", body, trailers=trailers)


# --------------------------------------------------------------------------------------------------
# RFC 9112 §2.2: message parsing

S = "RFC 9112 §2.2"
_accept(S, "plain request", _get(), GET)
_accept(S, "an empty line before the request line", b"\r\n" + _get(), GET)
_accept(S, "four empty lines before the request line", b"\r\n" * 4 + _get(), GET)
_accept(S, "empty line between requests", _get() + b"\r\n" + _get(), GET, GET)
_refuse(S, "five empty lines before the request line", 400, b"\r\n" * 5 + _get())
_refuse(S, "bare LF before the request line", 400, b"\n" + _get())
_refuse(S, "bare LF behind the request line", 400, b"GET / HTTP/1.1\n" + HOST + b"\r\n")
_refuse(S, "bare LF behind a field", 400, b"GET / HTTP/1.1\r\nHost: a\n\r\n")
_refuse(S, "bare LF as empty line", 400, b"GET / HTTP/1.1\r\nHost: a\r\n\n")
_refuse(S, "only bare LFs", 400, b"GET / HTTP/1.1\nHost: a\n\n")
_refuse(S, "bare CR in the target", 400, _get(line=b"GET /\rx HTTP/1.1"))
_refuse(S, "bare CR in a field value", 400, _get(b"X: a\rb\r\n"))
_refuse(S, "bare CR as line end", 400, b"GET / HTTP/1.1\rHost: a\r\r\n\r\n")
_refuse(S, "CR CR LF behind a field", 400, b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n")
_refuse(S, "CR CR LF as empty line", 400, b"GET / HTTP/1.1\r\nHost: a\r\n\r\r\n")
_refuse(S, "space before the first field", 400, b"GET / HTTP/1.1\r\n Host: a\r\n\r\n")
_refuse(S, "tab before the first field", 400, b"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n")
_refuse(S, "only white space between start line and field", 400, _get(b" \r\n"))
_refuse(S, "TLS handshake", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
_refuse(S, "NUL first", 400, b"\0")
_refuse(S, "byte order mark", 400, b"\xef\xbb\xbf" + _get())
_refuse(S, "garbage behind a request", 400, _get() + b"\0\0\0", GET)

# --------------------------------------------------------------------------------------------------
# RFC 9112 §2.3 and RFC 9110 §2.5: version

S = "RFC 9112 §2.3"
_accept(
    S,
    "HTTP/1.0",
    b"GET / HTTP/1.0\r\n\r\n",
    Seen("GET", b"/", version="1.0"),
    stays=False,
)
_accept("RFC 9110 §2.5", "HTTP/1.2 is read as 1.1", _get(line=b"GET / HTTP/1.2"), GET)
_accept("RFC 9110 §2.5", "HTTP/1.9 is read as 1.1", _get(line=b"GET / HTTP/1.9"), GET)
for version in (b"HTTP/2.0", b"HTTP/3.0", b"HTTP/9.9", b"HTTP/0.9", b"HTTP/0.0"):
    name = f"{version.decode()} is not supported"
    _refuse("RFC 9110 §15.6.6", name, 505, _get(line=b"GET / " + version))
_refuse("RFC 9110 §15.6.6", "HTTP/2 preface", 505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
for version in (
    b"HTTP/1", b"HTTP/1.", b"HTTP/.1", b"HTTP/11", b"HTTP/1.10", b"HTTP/11.1", b"HTTP/1,1",
    b"HTTP/1.x", b"HTTP/-1.1", b"HTTP/+1.1", b"http/1.1", b"Http/1.1", b"HTP/1.1", b"HTTPS/1.1",
    b"HTTP 1.1", b"HTTP /1.1", b"HTTP/ 1.1", b"HTTP/1.1 ", b"HTTP/1.1\t", b"HTTP/1.1 x",
    b"RTSP/1.0", b"ICE/1.0", b"/1.1", b"1.1",
):  # fmt: skip
    _refuse(S, f"version {version.decode()!r}", 400, _get(line=b"GET / " + version))
_refuse(S, "no version (HTTP/0.9)", 400, b"GET /\r\n")
_refuse(S, "RTSP with a method of it", 400, _get(line=b"DESCRIBE / RTSP/1.0"))
_refuse(S, "ICE with its method", 400, _get(line=b"SOURCE / ICE/1.0"))

# --------------------------------------------------------------------------------------------------
# RFC 9112 §3: request line

S = "RFC 9112 §3"
_refuse(S, "two spaces before the target", 400, _get(line=b"GET  / HTTP/1.1"))
_refuse(S, "two spaces before the version", 400, _get(line=b"GET /  HTTP/1.1"))
_refuse(S, "tab before the target", 400, _get(line=b"GET\t/ HTTP/1.1"))
_refuse(S, "tab before the version", 400, _get(line=b"GET /\tHTTP/1.1"))
_refuse(S, "form feed before the target", 400, _get(line=b"GET\f/ HTTP/1.1"))
_refuse(S, "leading space", 400, _get(line=b" GET / HTTP/1.1"))
_refuse(S, "no target", 400, _get(line=b"GET HTTP/1.1"))
_refuse(S, "empty target", 400, _get(line=b"GET  HTTP/1.1"))
_refuse(S, "space in the target", 400, _get(line=b"GET /a b HTTP/1.1"))
_refuse(S, "only a method", 400, _get(line=b"GET"))
_refuse(S, "NUL in the request line", 400, _get(line=b"GET /\0 HTTP/1.1"))
_accept(
    "RFC 9112 §3",
    "request line of 8192 bytes",
    _get(line=b"GET /" + b"x" * (8192 - 14) + b" HTTP/1.1"),
    Seen("GET", b"/" + b"x" * (8192 - 14)),
)
_refuse(
    S, "request line of 8193 bytes", 414, _get(line=b"GET /" + b"x" * (8193 - 14) + b" HTTP/1.1")
)
_refuse(S, "target without end", 414, b"GET /" + b"x" * 9000)
_refuse(S, "method without end", 414, b"G" * 9000)

S = "RFC 9112 §3.1"
for method in (
    "HEAD", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND", "M-SEARCH", "QUERY", "BREW", "get",
    "Get", "SOURCE", "DESCRIBE", "PLAY", "PRI", "X", "!#$%&'*+-.^_`|~09az",
):  # fmt: skip
    line = method.encode() + b" / HTTP/1.1"
    _accept(S, f"method {method}", _get(line=line), Seen(method, b"/"))
for method in (
    b"GE(T",
    b"GET:",
    b"G@T",
    b"G\xc9T",
    b"G\x01T",
    b"G\x7fT",
    b'"GET"',
    b"GET,",
    b"[GET]",
    b"G/T",
):
    _refuse(S, f"method {method!r}", 400, _get(line=method + b" / HTTP/1.1"))
_refuse(S, "no method", 400, _get(line=b" / HTTP/1.1"))

# --------------------------------------------------------------------------------------------------
# RFC 9112 §3.2: request target

S = "RFC 9112 §3.2.1"
for target in (
    b"/a/b/c", b"/?", b"/a?b=c&d=e", b"/a?b?c/d", b"//a//b", b"/%41%2f%00", b"/a;b=c,d",
    b"/:@!$&'()*+", b"/..", b"/a/../b", b"/http://x/", b"/*", b'/"<>\\^`{|}',
):  # fmt: skip
    line = b"GET " + target + b" HTTP/1.1"
    _accept(S, f"target {target.decode()}", _get(line=line), Seen("GET", target))
for target in (
    b"/a#b", b"#", b"/?a#b", b"/\x7f", b"/\xc3\xa9", b"/\x80", b"/\x01", b"a", b"a/b", b"?a",
    b"./a", b"\\a", b"index.html", b"mailto:a@b", b"*", b"**", b"*/", b"a.example:80", b"a.example",
):  # fmt: skip
    _refuse(S, f"target {target!r}", 400, _get(line=b"GET " + target + b" HTTP/1.1"))

S = "RFC 9112 §3.2.2"
for target, reduced, host in (
    (b"http://b.example/p?q", b"/p?q", b"b.example"),
    (b"https://b.example/", b"/", b"b.example"),
    (b"HTTP://B.Example/", b"/", b"B.Example"),
    (b"http://b.example", b"/", b"b.example"),
    (b"http://b.example?q", b"/?q", b"b.example"),
    (b"http://b.example:8080/p", b"/p", b"b.example:8080"),
    (b"http://b.example:/p", b"/p", b"b.example:"),
    (b"http://[::1]:80/p", b"/p", b"[::1]:80"),
    (b"http://b.example//p", b"//p", b"b.example"),
):
    _accept(
        S,
        f"absolute form {target.decode()}",
        _get(line=b"GET " + target + b" HTTP/1.1"),
        Seen("GET", reduced, fields=((b"host", host),)),
    )
_accept(
    S,
    "absolute form from HTTP/1.0 without Host",
    b"GET http://b.example/p HTTP/1.0\r\n\r\n",
    Seen("GET", b"/p", version="1.0", fields=((b"host", b"b.example"),)),
    stays=False,
)
for target in (
    b"http:///p", b"http://", b"http://:80/", b"http://u@b.example/", b"http://u:p@b.example/",
    b"ftp://b.example/", b"ws://b.example/", b"http:/b.example", b"http:b.example/",
    b"http://b.example:x/", b"http://b example/", b"http://b.example/#f", b"http://[::1/",
    b"http://b.example\\p",
):  # fmt: skip
    _refuse(S, f"absolute form {target.decode()}", 400, _get(line=b"GET " + target + b" HTTP/1.1"))
_refuse(S, "absolute form without Host", 400, b"GET http://b.example/ HTTP/1.1\r\n\r\n")
_refuse(
    S, "absolute form with a bad Host", 400, b"GET http://b.example/ HTTP/1.1\r\nHost: a b\r\n\r\n"
)

S = "RFC 9112 §3.2.3"
_accept(
    S,
    "CONNECT closes behind its answer",
    _get(line=b"CONNECT b.example:443 HTTP/1.1") + _get(),
    Seen("CONNECT", b"b.example:443"),
    stays=False,
)
for target in (
    b"b.example",
    b"b.example:",
    b":443",
    b"/",
    b"http://b.example:80/",
    b"*",
    b"u@b.example:443",
):
    name = f"CONNECT {target.decode()}"
    _refuse(S, name, 400, _get(line=b"CONNECT " + target + b" HTTP/1.1"))

S = "RFC 9112 §3.2.4"
_accept(S, "OPTIONS *", _get(line=b"OPTIONS * HTTP/1.1"), Seen("OPTIONS", b"*"))
_accept(
    S, "OPTIONS of an origin without path", _get(line=b"OPTIONS http://b.example HTTP/1.1"),
    Seen("OPTIONS", b"*"),
)  # fmt: skip
_accept(
    S, "OPTIONS of an origin with path", _get(line=b"OPTIONS http://b.example/ HTTP/1.1"),
    Seen("OPTIONS", b"/"),
)  # fmt: skip
_accept(
    S, "OPTIONS of an origin with query", _get(line=b"OPTIONS http://b.example?q HTTP/1.1"),
    Seen("OPTIONS", b"/?q"),
)  # fmt: skip
_refuse(S, "POST *", 400, _get(line=b"POST * HTTP/1.1"))

# --------------------------------------------------------------------------------------------------
# RFC 9112 §3.2 and RFC 9110 §7.2: Host

S = "RFC 9110 §7.2"
for host in (
    b"a", b"a.example", b"a.example:80", b"a.example:", b"", b"127.0.0.1", b"127.0.0.1:8000",
    b"[::1]", b"[::1]:443", b"[fe80::1]", b"[v1.a:b]", b"a_b", b"a%20b", b"xn--bcher-kva.example",
    b"A.EXAMPLE", b"a,b",
):  # fmt: skip
    _accept(
        S,
        f"host {host.decode()!r}",
        b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n",
        Seen("GET", b"/", fields=((b"host", host),)),
    )
for host in (
    b"a b", b"a, b", b"a/b", b"a?b", b"a#b", b"u@a", b"a:b", b"a:80:80", b"a:-1", b"[::1", b"::1]",
    b"[::1]a", b"[]", b"[g::1]", b"[v1]", b":80", b"a%2", b"a%zz", b"a\\b", b"\xc3\xa9",
    b"http://a", b'"a"', b"a\tb", b"<a>",
):  # fmt: skip
    _refuse(
        "RFC 9112 §3.2", f"host {host!r}", 400, b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    )
S = "RFC 9112 §3.2"
_refuse(S, "no Host", 400, b"GET / HTTP/1.1\r\n\r\n")
_refuse(S, "no Host but other fields", 400, b"GET / HTTP/1.1\r\nX-Host: a\r\n\r\n")
_refuse(S, "two Hosts", 400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
_refuse(S, "twice the same Host", 400, b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n")
_refuse(S, "two Hosts apart", 400, b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\nHost: b\r\n\r\n")
_refuse(S, "two Hosts from HTTP/1.0", 400, b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n")
_refuse(S, "bad Host from HTTP/1.0", 400, b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n")

# --------------------------------------------------------------------------------------------------
# RFC 9112 §5 and RFC 9110 §5: fields

S = "RFC 9112 §5"
_refuse(S, "field without colon", 400, _get(b"X\r\n"))
_refuse(S, "only a colon", 400, _get(b":\r\n"))
_refuse(S, "empty field name", 400, _get(b": x\r\n"))
for name in (
    b"X ", b"X\t", b" X", b"X Y", b"X(", b"X/Y", b"X\x00", b"X\x01", b"X\x7f", b"X\x80", b"X\xff",
    b'"X"', b"X;", b"X=", b"X@Y", b"[X]", b"{X}", b"X\x0b", b"X,Y", b"X?", b"<X>", b"X\\",
):  # fmt: skip
    _refuse("RFC 9112 §5.1", f"field name {name!r}", 400, _get(name + b": y\r\n"))
_accept(
    "RFC 9110 §5.1",
    "field name of all token characters",
    _get(b"!#$%&'*+-.^_`|~09aZ: y\r\n"),
    Seen("GET", b"/", fields=((b"!#$%&'*+-.^_`|~09az", b"y"),)),
)
for value, read in (
    (b"", b""), (b" ", b""), (b" \t ", b""), (b"a", b"a"), (b" a", b"a"), (b"\ta\t", b"a"),
    (b"  a b \t c ", b"a b \t c"), (b"a:b", b"a:b"), (b":", b":"), (b'"a\\"b"', b'"a\\"b"'),
    (b"\x80\xff", b"\x80\xff"), (b"caf\xc3\xa9", b"caf\xc3\xa9"), (b"~!", b"~!"),
    (b"x" * 5000, b"x" * 5000),
):  # fmt: skip
    _accept(
        "RFC 9112 §5.1",
        f"field value {value[:20]!r}",
        _get(b"X:" + value + b"\r\n"),
        Seen("GET", b"/", fields=((b"x", read),)),
    )
for value in (
    b"\0",
    b"a\0b",
    b"\x01",
    b"\x08",
    b"\x0b",
    b"\x0c",
    b"\x1f",
    b"\x7f",
    b"a\x1bb",
    b"\r",
    b"a\rb",
):
    _refuse("RFC 9110 §5.5", f"field value {value!r}", 400, _get(b"X: " + value + b"\r\n"))
S = "RFC 9112 §5.2"
_refuse(S, "folded field, space", 400, _get(b"X: a\r\n b\r\n"))
_refuse(S, "folded field, tab", 400, _get(b"X: a\r\n\tb\r\n"))
_refuse(S, "folded field, empty first line", 400, _get(b"X:\r\n a\r\n"))
_refuse(S, "folded field, empty fold", 400, _get(b"X: a\r\n \r\n"))
_refuse(S, "folded Host", 400, b"GET / HTTP/1.1\r\nHost:\r\n a\r\n\r\n")
_refuse(S, "folded Transfer-Encoding", 400, _post(b"Transfer-Encoding:\r\n chunked\r\n"))
S = "RFC 9110 §5.3"
_accept(
    S,
    "repeated fields keep their order",
    _get(b"X: 1\r\nY: 2\r\nx: 3\r\n"),
    Seen("GET", b"/", fields=((b"x", b"1"), (b"y", b"2"), (b"x", b"3"))),
)
S = "RFC 6585 §5"
_accept(S, "100 fields", _get(b"X: y\r\n" * 99), GET)
_refuse(S, "101 fields", 431, _get(b"X: y\r\n" * 100))
_accept(S, "field section of 32768 bytes", _get(b"X: " + b"y" * (32768 - 24) + b"\r\n"), GET)
_refuse(S, "field section of 32769 bytes", 431, _get(b"X: " + b"y" * (32769 - 24) + b"\r\n"))
_refuse(S, "field value without end", 431, _get()[:-2] + b"X: " + b"y" * 33000)
_refuse(S, "field name without end", 431, _get()[:-2] + b"x" * 33000)

# --------------------------------------------------------------------------------------------------
# RFC 9112 §6.1: Transfer-Encoding

S = "RFC 9112 §6.1"
for value in (b"chunked", b"Chunked", b"CHUNKED", b" \tchunked\t "):
    _accept(
        S,
        f"transfer-encoding {value.decode()!r}",
        _post(b"Transfer-Encoding:" + value + b"\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
        _posted(b"hello"),
    )
for value in (
    b"", b",", b"gzip", b"identity", b"xchunked", b"chunkedx", b"x chunked", b"chunked;q=1",
    b"chunked; q=1", b'"chunked"', b"chunked,", b",chunked", b", chunked", b"chunked, chunked",
    b"chunked,gzip", b"gzip, chunked, gzip", b"chunk", b"chunked, identity", b"\xa0chunked",
    b"chunked chunked", b"gzip chunked", b"ch\xfcnked", b'gzip;a="b, chunked"',
):  # fmt: skip
    _refuse(
        "RFC 9112 §6.3",
        f"transfer-encoding {value!r}",
        400,
        _post(b"Transfer-Encoding: " + value + b"\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    )
for value in (
    b"gzip, chunked",
    b"GZIP,Chunked",
    b"identity, chunked",
    b"foo;a=b, chunked",
    b"deflate,gzip , chunked",
):
    _refuse(
        S,
        f"transfer-encoding {value.decode()!r}",
        501,
        _post(b"Transfer-Encoding: " + value + b"\r\n", b"5\r\nhello\r\n0\r\n\r\n"),
    )
for value in (b"\x0bchunked", b"chunked\x0b", b"chunked\0", b"\x0cchunked", b"chunked\x01"):
    _refuse(
        "RFC 9110 §5.5",
        f"transfer-encoding {value!r}",
        400,
        _post(b"Transfer-Encoding: " + value + b"\r\n", b"0\r\n\r\n"),
    )
_TE: Final = b"Transfer-Encoding: chunked\r\n"
_refuse(S, "two lines chunked", 400, _post(_TE + _TE, b"0\r\n\r\n"))
_refuse(S, "two lines gzip and chunked", 501, _post(b"Transfer-Encoding: gzip\r\n" + _TE))
_refuse(S, "two lines chunked and gzip", 400, _post(_TE + b"Transfer-Encoding: gzip\r\n"))
_refuse(S, "two lines chunked and empty", 400, _post(_TE + b"Transfer-Encoding:\r\n"))
_refuse(
    S,
    "from HTTP/1.0",
    400,
    b"POST / HTTP/1.0\r\n" + _TE + b"Connection: keep-alive\r\n\r\n0\r\n\r\n",
)
_refuse(
    S,
    "from HTTP/1.0 with a length",
    400,
    b"POST / HTTP/1.0\r\n" + _TE + b"Content-Length: 5\r\n\r\n",
)
S = "RFC 9112 §6.3"
_refuse(S, "chunked, then a length", 400, _post(_TE + b"Content-Length: 5\r\n", b"0\r\n\r\n"))
_refuse(S, "a length, then chunked", 400, _post(b"Content-Length: 5\r\n" + _TE, b"0\r\n\r\n"))
_refuse(S, "chunked and length 0", 400, _post(_TE + b"Content-Length: 0\r\n", b"0\r\n\r\n"))
_refuse(
    S,
    "gzip, chunked and a length",
    501,
    _post(b"Transfer-Encoding: gzip, chunked\r\nContent-Length: 1\r\n"),
)
_refuse(
    S,
    "identity and a length",
    400,
    _post(b"Transfer-Encoding: identity\r\nContent-Length: 1\r\n", b"x"),
)
_refuse(S, "chunked with a space before the colon", 400, _post(b"Transfer-Encoding : chunked\r\n"))
_accept(
    S,
    "a name that is not quite transfer-encoding is another field",
    _post(b"Transfer_Encoding: chunked\r\nContent-Length: 2\r\n", b"ab"),
    _posted(b"ab"),
)

# --------------------------------------------------------------------------------------------------
# RFC 9112 §6.2, RFC 9110 §8.6: Content-Length

S = "RFC 9110 §8.6"
for value, body in (
    (b"0", b""), (b"1", b"x"), (b"5", b"hello"), (b"005", b"hello"), (b" 5 ", b"hello"),
    (b"\t5\t", b"hello"), (b"0000000000000005", b"hello"),
):  # fmt: skip
    _accept(
        S,
        f"content-length {value.decode()!r}",
        _post(b"Content-Length:" + value + b"\r\n", body),
        _posted(body),
    )
for value in (
    b"", b" ", b"+5", b"-5", b"-0", b"5,5", b"5, 5", b"5,6", b",5", b"5,", b"5 5", b"0x5", b"5.0",
    b"1e1", b"5;", b"5a", b"a5", b"1_0", b"\xb2", b"\xd9\xa1", b'"5"', b"five",
    b"1234567890123456789", b"99999999999999999999", b"5\x0b", b"5\0", b"\x0c5",
):  # fmt: skip
    _refuse(
        "RFC 9112 §6.3",
        f"content-length {value!r}",
        400,
        _post(b"Content-Length: " + value + b"\r\n", b"hello"),
    )
S = "RFC 9112 §6.3"
_refuse(S, "two lengths", 400, _post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello"))
_refuse(
    S, "twice the same length", 400, _post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello")
)
_refuse(
    S, "two lengths 0 and 5", 400, _post(b"Content-Length: 0\r\nContent-Length: 5\r\n", b"hello")
)
_refuse(S, "length with a space before the colon", 400, _post(b"Content-Length : 5\r\n", b"hello"))
_refuse(S, "odd length on GET", 400, _get(b"Content-Length: x\r\n"))
_accept(
    S, "GET with a body", _get(b"Content-Length: 5\r\n") + b"hello", Seen("GET", b"/", b"hello")
)
_accept(S, "POST without framing has no body", _post(b""), _posted())
_accept(S, "DELETE without framing", _get(line=b"DELETE /x HTTP/1.1"), Seen("DELETE", b"/x"))
_accept(
    S,
    "body with line ends in it",
    _post(b"Content-Length: 4\r\n", b"\r\n\r\n") + _get(),
    _posted(b"\r\n\r\n"),
    GET,
)
_accept(
    S,
    "body that looks like a request",
    _post(b"Content-Length: %d\r\n" % len(_get()), _get()) + _get(),
    _posted(_get()),
    GET,
)
_accept(
    S,
    "length from HTTP/1.0",
    b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
    Seen("POST", b"/", b"hello", "1.0"),
    stays=False,
)
_refuse(
    S,
    "body without framing is the next request",
    400,
    _post(b"", b"a=b&c=d\r\n"),
    _posted(),
)

# --------------------------------------------------------------------------------------------------
# RFC 9112 §7.1: chunked bodies

S = "RFC 9112 §7.1"
for body, read in (
    (b"0\r\n\r\n", b""), (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"), (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
    (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"), (b"0005\r\nhello\r\n000\r\n\r\n", b"hello"),
    (b"0000000000000005\r\nhello\r\n0000000000000000\r\n\r\n", b"hello"),
    (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"), (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
):  # fmt: skip
    _accept(S, f"body {body!r}", _chunked(body) + _get(), _posted(read), GET)
for body in (
    b"\r\n", b"g\r\n", b"-5\r\nhello\r\n", b"+5\r\nhello\r\n", b"0x5\r\nhello\r\n",
    b" 5\r\nhello\r\n", b"5 \r\nhello\r\n", b"5\t\r\nhello\r\n", b"5\nhello\r\n", b"5\rhello\r\n",
    b"5\r\rhello\r\n", b"5_0\r\n", b"5.\r\n", b"5,\r\n", b"h\r\n", b"\0\r\n",
    b"00000000000000005\r\nhello\r\n", b"10000000000000000\r\n", b"ffffffffffffffff\r\n",
    b"8000000000000000\r\n", b"5\0\r\n", b"\xb2\r\n", b"5\x0b\r\nhello\r\n",
):  # fmt: skip
    _refuse(S, f"chunk size {body!r}", 400, _chunked(body))
for end in (
    b"XX",
    b"\r",
    b"\n",
    b"\n\n",
    b"\rX",
    b"X\n",
    b"\n\r",
    b"",
    b"\r\r\n",
    b" \r\n",
    b"\0\0",
):
    # CVE-2025-43859
    _refuse(S, f"chunk ends in {end!r}", 400, _chunked(b"5\r\nhello" + end + b"0\r\n\r\n\r\n"))
_refuse(S, "chunk longer than its size", 400, _chunked(b"4\r\nhello\r\n0\r\n\r\n"))
_refuse(S, "chunk shorter than its size", 400, _chunked(b"6\r\nhello\r\n0\r\n\r\n"))

S = "RFC 9112 §7.1.1"
for extension in (
    b";a", b";a=b", b"; a=b", b" ;a=b", b"\t;\ta\t=\tb", b";a=b;c=d", b" ; a ; b = c", b';a="b"',
    b';a=""', b';a="b;c\\"d\\\\"', b';a="\t\x80\xff"', b";" + b"a" * 900,
):  # fmt: skip
    _accept(
        S,
        f"extension {extension[:20]!r}",
        _chunked(b"5" + extension + b"\r\nhello\r\n0" + extension + b"\r\n\r\n") + _get(),
        _posted(b"hello"),
        GET,
    )
for extension in (
    b"; ", b";", b";;a", b";=b", b";a=", b";a= ", b";a b", b";a=b c", b';a="b', b';a="b"c',
    b";a=b;", b";a=\x01", b";\0", b";a\nb", b";a=b\n", b";a\rb", b';a="\r\n"', b';a="\x7f"',
    b";a=(b)", b"=b", b" a", b";a=b\xff", b";\x80",
):  # fmt: skip
    _refuse(
        S,
        f"extension {extension[:20]!r}",
        400,
        _chunked(b"5" + extension + b"\r\nhello\r\n0\r\n\r\n"),
    )
_refuse(
    S,
    "20 KiB of extensions in small chunks",
    400,
    _chunked((b"1;" + b"a" * 999 + b"\r\nx\r\n") * 20 + b"0\r\n\r\n"),
)
_refuse(S, "extension of 1 KiB", 400, _chunked(b"5;" + b"a" * 1100 + b"\r\nhello\r\n0\r\n\r\n"))
_refuse(S, "extension without end", 400, _chunked(b"5;" + b"a" * 5000))

S = "RFC 9112 §7.1.2"
_accept(
    S,
    "trailers",
    _chunked(b"2\r\nab\r\n0\r\nX-Sum: 1\r\nx-more:  2 \r\n\r\n") + _get(),
    _posted(b"ab", ((b"x-sum", b"1"), (b"x-more", b"2"))),
    GET,
)
_accept(
    "RFC 9110 §6.5.1",
    "forbidden trailers are dropped",
    _chunked(
        b"0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\nHost: b\r\nX: 1\r\n"
        b"Authorization: x\r\nCookie: a\r\nConnection: close\r\nContent-Type: a/b\r\n\r\n"
    )
    + _get(),
    _posted(b"", ((b"x", b"1"),)),
    GET,
)
_refuse(S, "trailer without colon", 400, _chunked(b"0\r\nX\r\n\r\n"))
_refuse(S, "trailer with a space before the colon", 400, _chunked(b"0\r\nX : 1\r\n\r\n"))
_refuse(S, "folded trailer", 400, _chunked(b"0\r\nX: 1\r\n 2\r\n\r\n"))
_refuse(S, "trailer that ends in a bare LF", 400, _chunked(b"0\r\nX: 1\n\r\n"))
_refuse(S, "trailer section that ends in a bare LF", 400, _chunked(b"0\r\nX: 1\r\n\n"))
_refuse(S, "NUL in a trailer", 400, _chunked(b"0\r\nX: \0\r\n\r\n"))
_refuse(S, "no end behind the last chunk", 400, _chunked(b"0\r\n" + _get()))
_refuse("RFC 6585 §5", "101 trailers", 431, _chunked(b"0\r\n" + b"X: y\r\n" * 101 + b"\r\n"))
_refuse("RFC 6585 §5", "trailers without end", 431, _chunked(b"0\r\nX: " + b"y" * 33000))

# --------------------------------------------------------------------------------------------------
# RFC 9112 §9: connections

S = "RFC 9112 §9.3"
for value in (
    b"close",
    b"Close",
    b"CLOSE",
    b"keep-alive, close",
    b"close, keep-alive",
    b"x,close",
    b" ,close,",
    b"te\t,\tclose",
):
    _accept(
        S,
        f"connection {value.decode()!r}",
        _get(b"Connection: " + value + b"\r\n") + _get(),
        GET,
        stays=False,
    )
for value in (b"keep-alive", b"x-close", b"closed", b"clos e", b'"close"', b"", b"close-x"):
    _accept(
        S,
        f"connection {value.decode()!r} does not close",
        _get(b"Connection: " + value + b"\r\n") + _get(),
        GET,
        GET,
    )
_accept(
    S,
    "close in the second of two lines",
    _get(b"Connection: x\r\nConnection: close\r\n") + _get(),
    GET,
    stays=False,
)
_10: Final = Seen("GET", b"/", version="1.0")
for value in (b"keep-alive", b"Keep-Alive", b"x, keep-alive"):
    _accept(
        S,
        f"HTTP/1.0 with {value.decode()!r}",
        (b"GET / HTTP/1.0\r\nConnection: " + value + b"\r\n\r\n") * 2,
        _10,
        _10,
    )
for value in (b"close", b"keep-alive, close", b"x"):
    _accept(
        S,
        f"HTTP/1.0 with {value.decode()!r} closes",
        (b"GET / HTTP/1.0\r\nConnection: " + value + b"\r\n\r\n") * 2,
        _10,
        stays=False,
    )
S = "RFC 9112 §9.3.2"
_accept(S, "three pipelined requests", _get() * 3, GET, GET, GET)
_accept(
    S,
    "pipelined in order, with bodies",
    _post(b"Content-Length: 3\r\n", b"one")
    + _get(line=b"GET /two HTTP/1.1")
    + _chunked(b"5\r\nthree\r\n0\r\n\r\n")
    + _get(line=b"HEAD /four HTTP/1.1"),
    _posted(b"one"),
    Seen("GET", b"/two"),
    _posted(b"three"),
    Seen("HEAD", b"/four"),
)
_refuse(S, "a bad request behind good ones", 400, _get() + _get() + b"GET\r\n\r\n", GET, GET)

# --------------------------------------------------------------------------------------------------
# RFC 9110 §10.1.1: Expect; §7.8: Upgrade; RFC 6455 §4.2: WebSocket

S = "RFC 9110 §10.1.1"
for value in (b"100-continue", b"100-Continue", b"x, 100-continue"):
    _accept(
        S,
        f"expect {value.decode()!r}",
        _post(b"Expect: " + value + b"\r\nContent-Length: 2\r\n", b"ab"),
        Seen("POST", b"/", b"ab", expects_continue=True),
    )
_accept(S, "expectation without a body", _get(b"Expect: 100-continue\r\n"), GET)
_accept(
    S,
    "unknown expectation is ignored",
    _post(b"Expect: 200-ok\r\nContent-Length: 2\r\n", b"ab"),
    _posted(b"ab"),
)
_accept(
    S,
    "expectation from HTTP/1.0 is ignored",
    b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
    Seen("POST", b"/", b"ab", "1.0"),
    stays=False,
)

S = "RFC 9110 §7.8"
_KEY: Final = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
_VERSION: Final = b"Sec-WebSocket-Version: 13\r\n"
_UPGRADE: Final = b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
_accept(S, "unknown protocol", _get(b"Upgrade: foo/2\r\nConnection: upgrade\r\n"), GET)
_accept(
    S,
    "Upgrade that Connection does not name",
    _get(b"Upgrade: websocket\r\n" + _KEY + _VERSION),
    GET,
)
_accept(
    S,
    "Upgrade from HTTP/1.0",
    b"GET / HTTP/1.0\r\n" + _UPGRADE + _KEY + _VERSION + b"\r\n",
    _10,
    stays=False,
)
_accept(
    S,
    "Upgrade with POST",
    _post(_UPGRADE + _KEY + _VERSION + b"Content-Length: 2\r\n", b"ab"),
    _posted(b"ab"),
)
S = "RFC 6455 §4.2.1"
_WEBSOCKET: Final = Seen("GET", b"/", protocol="websocket")
_accept(
    S,
    "WebSocket handshake that is declined closes",
    _get(_UPGRADE + _KEY + _VERSION),
    _WEBSOCKET,
    stays=False,
)
_accept(
    S,
    "names and lists in any case",
    _get(b"UPGRADE: foo, WebSocket\r\nConnection: keep-alive, uPGRADE\r\n" + _KEY + _VERSION),
    _WEBSOCKET,
    stays=False,
)
_refuse(
    "RFC 6455 §4.4", "version 12", 426, _get(_UPGRADE + _KEY + b"Sec-WebSocket-Version: 12\r\n")
)
_refuse(
    "RFC 6455 §4.4", "version 013", 426, _get(_UPGRADE + _KEY + b"Sec-WebSocket-Version: 013\r\n")
)
_refuse("RFC 6455 §4.4", "no version", 426, _get(_UPGRADE + _KEY))
_refuse("RFC 6455 §4.4", "two versions", 426, _get(_UPGRADE + _KEY + _VERSION * 2))
_refuse(S, "no key", 400, _get(_UPGRADE + _VERSION))
_refuse(S, "two keys", 400, _get(_UPGRADE + _KEY + _KEY + _VERSION))
for key in (
    b"",
    b"dGhl",
    b"dGhlIHNhbXBsZSBub25jZQ",
    b"dGhlIHNhbXBsZSBub25jZQ=",
    b"not base64 at all!!!!!!",
    b"dGhlIHNhbXBsZSBub25jZWQ=",
):
    _refuse(
        S,
        f"key {key.decode()!r}",
        400,
        _get(_UPGRADE + b"Sec-WebSocket-Key: " + key + b"\r\n" + _VERSION),
    )
_refuse(
    S,
    "handshake with a body",
    400,
    _get(_UPGRADE + _KEY + _VERSION + b"Content-Length: 1\r\n") + b"x",
)
_refuse(
    S, "handshake with a chunked body", 400, _get(_UPGRADE + _KEY + _VERSION + _TE) + b"0\r\n\r\n"
)
