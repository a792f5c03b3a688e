"""What OpenSSL's own ClientHello offers, however its bytes come."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol.client_hello import (
    MAX_HELLO,
    MAX_RECORDS,
    NO_APPLICATION_PROTOCOL,
    offered_protocols_untrusted,
)


def hello(*protocols, maximum=ssl.TLSVersion.TLSv1_3, name="localhost"):
    """The first flight of a client."""
    context = ssl.create_default_context()
    context.maximum_version = maximum
    if protocols:
        context.set_alpn_protocols(protocols)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def in_records(flight, size):
    """The same hello in records of at most `size` bytes (RFC 8446 §5.1 allows it)."""
    message = flight[5:]
    parts = [message[start : start + size] for start in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in parts)


HELLO = hello("h2", "http/1.1")


@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("protocols", [(), ("h2",), ("x" * 255, "http/1.1", "h2")])
def test_offered_protocols_are_read(maximum, protocols):
    found = offered_protocols_untrusted(hello(*protocols, maximum=maximum))
    assert found == tuple(name.encode() for name in protocols)


def test_hello_may_be_followed_by_anything():
    assert offered_protocols_untrusted(HELLO + b"\x17\x03\x03") == (b"h2", b"http/1.1")


@given(st.integers(0, len(HELLO) - 1))
def test_part_of_a_hello_is_not_enough(size):
    assert offered_protocols_untrusted(HELLO[:size]) is None


@given(st.integers(len(HELLO) // MAX_RECORDS + 1, 300))
def test_hello_may_come_in_many_records(size):
    records = in_records(HELLO, size)
    assert offered_protocols_untrusted(records) == (b"h2", b"http/1.1")
    assert offered_protocols_untrusted(records[:-1]) is None


@pytest.mark.parametrize(
    "received",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x80\x2e\x01\x00\x02",  # SSL 2
        b"\x16\x03\x01\x00\x05\x02",  # a ServerHello
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",  # an empty hello
        in_records(bytes(5) + b"\x01\xff\xff\xff" + bytes(MAX_HELLO), 16384),
        b"\x16\x03\x01\x00\x00" * (MAX_RECORDS + 1),
        in_records(HELLO, 1),
        b"\x16\x03\x01\x00\x01\x01\x15\x03\x01\x00\x02\x02\x28",  # an alert inside
    ],
)
def test_what_is_no_hello_is_left_to_openssl(received):
    assert offered_protocols_untrusted(received) == ()


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_raise(noise):
    offered_protocols_untrusted(noise)
    offered_protocols_untrusted(b"\x16\x03\x01" + len(noise).to_bytes(2) + b"\x01" + noise)


@given(st.integers(5, len(HELLO) - 1), st.integers(0, 255))
def test_a_wrong_byte_never_raises(place, value):
    offered_protocols_untrusted(HELLO[:place] + bytes([value]) + HELLO[place + 1 :])


def test_alert_is_the_one_that_the_rfc_names():
    client = ssl.create_default_context().wrap_bio(incoming := ssl.MemoryBIO(), ssl.MemoryBIO())
    incoming.write(NO_APPLICATION_PROTOCOL)
    with pytest.raises(ssl.SSLError, match=r"(?i)no application protocol"):
        client.do_handshake()
