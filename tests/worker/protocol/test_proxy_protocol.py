"""Headers of the PROXY protocol, by hand."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol.proxy_protocol import (
    MAX_V1,
    MAX_V2,
    ProxyHeader,
    parse_proxy_header_untrusted,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(family: int, addresses: bytes, *, command=1, transport=1, version=2, tlvs=b"") -> bytes:
    length = len(addresses) + len(tlvs)
    head = bytes((version << 4 | command, family << 4 | transport)) + length.to_bytes(2)
    return SIGNATURE + head + addresses + tlvs


IPV4 = bytes((192, 0, 2, 1, 192, 0, 2, 2)) + (5000).to_bytes(2) + (443).to_bytes(2)
IPV6 = (
    ipaddress.ip_address("2001:db8::1").packed
    + ipaddress.ip_address("2001:db8::2").packed
    + (5000).to_bytes(2)
    + (443).to_bytes(2)
)
FOUR = (("192.0.2.1", 5000), ("192.0.2.2", 443))
SIX = (("2001:db8::1", 5000), ("2001:db8::2", 443))
NOBODY = (None, None)

HEADERS = [
    (b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 443\r\n", FOUR),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 5000 443\r\n", SIX),
    (b"PROXY UNKNOWN\r\n", NOBODY),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", NOBODY),
    (v2(1, IPV4), FOUR),
    (v2(2, IPV6), SIX),
    (v2(1, IPV4, tlvs=b"\x04\x00\x03abc"), FOUR),
    (v2(3, bytes(216)), NOBODY),
    (v2(0, b"", command=0, transport=0), NOBODY),
    (v2(1, IPV4, command=0), NOBODY),
    (v2(1, IPV4, transport=2), NOBODY),
    (v2(0, b"whatever", transport=0), NOBODY),
]


@pytest.mark.parametrize(("header", "addresses"), HEADERS)
def test_headers(header, addresses):
    expected = ProxyHeader(len(header), *addresses)
    assert parse_proxy_header_untrusted(header) == expected
    assert parse_proxy_header_untrusted(header + b"GET / HTTP/1.1\r\n\r\n") == expected


@given(st.sampled_from(HEADERS), st.data())
def test_an_incomplete_header_asks_for_more(example, data):
    header, _ = example
    cut = data.draw(st.integers(0, len(header) - 1))
    assert parse_proxy_header_untrusted(header[:cut]) is None


@pytest.mark.parametrize(
    "wrong",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5000\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 70000\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 05000 443\r\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 5000 443\r\n",
        b"PROXY TCP6 192.0.2.1 192.0.2.2 5000 443\r\n",
        b"PROXY TCP4 192.0.2.1  192.0.2.2 5000 443\r\n",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 5000 443 \r\n",
        b"PROXY UDP4 192.0.2.1 192.0.2.2 5000 443\r\n",
        b"PROXY " + b"x" * MAX_V1,
        v2(1, IPV4, version=1),
        v2(1, IPV4, command=2),
        v2(4, IPV4),
        v2(1, IPV4, transport=3),
        v2(1, IPV4[:-1]),
        v2(2, IPV4),
        v2(1, IPV4, tlvs=bytes(MAX_V2)),
    ],
)
def test_what_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="PROXY"):
        parse_proxy_header_untrusted(wrong)


@given(
    st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"]),
    st.binary(max_size=60),
)
def test_nothing_else_is_raised(front, rest):
    received = front + rest
    try:
        header = parse_proxy_header_untrusted(received)
    except ValueError:
        return
    assert header is None or 0 < header.size <= len(received)
