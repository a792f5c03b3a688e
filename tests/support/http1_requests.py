"""Hypothesis strategies for what may arrive on an HTTP/1.1 connection: nearly right, and worse."""

from __future__ import annotations

import itertools

from hypothesis import strategies as st

METHODS = [b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT", b"DESCRIBE", b"get", b"BREW"]
TARGETS = [
    b"/", b"/a?b=c", b"*", b"http://b.example/x", b"b.example:443", b"/%00", b"//", b"/a b", b"x",
    b"/\xc3\xa9", b"/#",
]  # fmt: skip
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/1.1 ", b"http/1.1"]
NAMES = [
    b"Host", b"Content-Length", b"content-length", b"Transfer-Encoding", b"Connection", b"Upgrade",
    b"Expect", b"X", b"x-y", b"Content_Length", b"Proxy-Connection", b"Sec-WebSocket-Key",
    b"Sec-WebSocket-Version", b"HTTP2-Settings", b"Content-Length ", b"Content-Lengthy", b"", b"TE",
    b"Keep-Alive",
]  # fmt: skip
VALUES = [
    b"a", b"", b"0", b"1", b"5", b"05", b"+5", b"5, 5", b"5,5", b"0x5", b"99999999999999999999",
    b"chunked", b"Chunked", b"chunked\t", b"gzip", b"gzip, chunked", b"chunked, chunked",
    b"identity", b"\tchunked", b"\x0bchunked", b"close", b"keep-alive", b"Upgrade", b"close, x",
    b"upgrade, http2-settings", b"websocket", b"h2c", b"13", b"dGhlIHNhbXBsZSBub25jZQ==",
    b"100-continue", b"a b", b"\xff", b"a\x00", b"a\x7f", b"a\r\n b", b"a:80", b"[::1]",
    b"AAMAAABkAAQAAP__",
]  # fmt: skip
CHUNKS = [
    b"1\r\nx\r\n", b"5\r\nhello\r\n", b"A\r\n0123456789\r\n", b"5;a=b\r\nhello\r\n",
    b'1;a="\r"\r\nx\r\n', b"1 \r\nx\r\n", b"1 ;a\r\nx\r\n", b"1\nx\n", b"1\r\nxy\r\n", b"1\r\nxXX",
    b"01\r\nx\r\n", b"g\r\nx\r\n", b"1;a\nb\r\nx\r\n", b"-1\r\nx\r\n", b"0x1\r\nx\r\n",
    b"00000000000000001\r\nx\r\n", b"fffffffffffffffff\r\n", b"1;\r\nx\r\n",
]  # fmt: skip
ENDINGS = [
    b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"00\r\n\r\n", b"0;a\r\n\r\n", b"0\r\nX : y\r\n\r\n",
    b"0\n\n", b"0\r\n", b"", b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\nX: y\n\r\n",
    b"0\r\n X: y\r\n\r\n",
]  # fmt: skip
BYTES = [
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b"\t",
    b"\0",
    b":",
    b";",
    b",",
    b"x",
    b"0",
    b"\x80",
    b"\x0b",
    b"\x7f",
    b'"',
]


def _mostly(usual: bytes | list[bytes], others: list[bytes]) -> st.SearchStrategy[bytes]:
    """`usual` in 15 of 16: a stream that breaks every rule at once would test only the first."""
    usual = [usual] if isinstance(usual, bytes) else usual
    return st.sampled_from(usual * (15 * len(others) // len(usual) + 1) + others)


USUAL_FIELDS = [
    b"X: y\r\n", b"Accept: */*\r\n", b"Connection: keep-alive\r\n", b"Connection: close\r\n",
    b"X:y \t\r\n", b"Y:\r\n", b"Expect: 100-continue\r\n",
]  # fmt: skip
_odd_field = st.builds(
    lambda name, space, value, end: name + b":" + space + value + end,
    st.sampled_from(NAMES),
    _mostly(b" ", [b"", b"\t", b"  "]),
    st.sampled_from(VALUES),
    _mostly(b"\r\n", [b" \r\n", b"\n", b"\r\r\n", b"\r"]),
)
_usual_field = st.sampled_from(USUAL_FIELDS)
_fields = st.lists(st.one_of(*[_usual_field] * 5, _odd_field), max_size=4)
_chunked = st.builds(
    lambda chunks, end: b"".join(chunks) + end,
    st.lists(_mostly(CHUNKS[:4], CHUNKS), max_size=4),
    _mostly(ENDINGS[:2], ENDINGS),
)
_framings = st.one_of(
    st.just((b"", b"")),
    st.integers(0, 12).map(lambda size: (b"Content-Length: %d\r\n" % size, b"0123456789ab"[:size])),
    _chunked.map(lambda body: (b"Transfer-Encoding: chunked\r\n", body)),
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request with its body."""
    line = b" ".join(
        (
            draw(_mostly(METHODS[:2], METHODS)),
            draw(_mostly(TARGETS[:2], TARGETS)),
            draw(_mostly(VERSIONS[0], VERSIONS)),
        )
    )
    framing, body = draw(_framings)
    fields = [
        draw(_mostly(b"Host: a\r\n", [b"", b"Host: a\r\nHost: b\r\n"])),
        framing,
        *draw(_fields),
    ]
    fields = draw(st.permutations(fields))
    return line + draw(_mostly(b"\r\n", [b"\n", b"\r\n "])) + b"".join(fields) + b"\r\n" + body


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Some requests in a row, perhaps with a byte too many, too few, or another."""
    stream = b"".join(draw(st.lists(requests(), min_size=1, max_size=3)))
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
        at = draw(st.integers(0, len(stream)))
        cut = draw(st.integers(0, 2))
        stream = stream[:at] + draw(st.sampled_from([b"", *BYTES])) + stream[at + cut :]
    return stream


@st.composite
def cut_up(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """The stream in parts, none of them empty."""
    inner = st.integers(1, max(1, len(stream) - 1))
    at = sorted(draw(st.sets(inner, max_size=8)) if len(stream) > 1 else set())
    edges = [0, *at, len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges) if a < b]
