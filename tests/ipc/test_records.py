"""Records: what is encoded comes back, and whatever the memory holds, parsing is total."""

from __future__ import annotations

import random
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgiri.errors import RingCorruptError
from asgiri.ipc.records import (
    HEADER_SIZE,
    MAGIC,
    LocalAddress,
    Peer,
    PeerTable,
    Record,
    RecordFlag,
    decode_peer,
    encode_peer,
    pack_ip,
    parse_batch,
    parse_records,
    record_header,
)

V4 = ("192.0.2.7", 4433)
V6 = ("2001:db8::7", 4433, 3, 9)
PEER = encode_peer(V4, 0, None)

ports = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
v4_addresses = st.tuples(st.ip_addresses(v=4).map(str), ports)
v6_addresses = st.tuples(st.ip_addresses(v=6).map(str), ports, u32, u32)
endpoints = st.one_of(
    st.tuples(
        v4_addresses,
        st.integers(0, 255),
        st.none() | st.builds(LocalAddress, st.binary(min_size=4, max_size=4), u32),
    ),
    st.tuples(
        v6_addresses,
        st.integers(0, 255),
        st.none() | st.builds(LocalAddress, st.binary(min_size=16, max_size=16), u32),
    ),
)
flags_of_datagrams = st.integers(0, 255).filter(lambda flags: not flags & RecordFlag.CONTROL)
datagrams = st.builds(
    Record,
    st.binary(max_size=80),
    st.integers(0, 0xFFFF),
    flags_of_datagrams,
    endpoints.map(lambda endpoint: encode_peer(*endpoint)),
)
controls = st.builds(
    Record, st.binary(max_size=80), st.just(0), st.just(int(RecordFlag.CONTROL)), st.just(b"")
)
records = datagrams | controls


def encode(record: Record) -> bytes:
    header = record_header(len(record.payload), record.gso_size, record.flags, len(record.peer))
    return header + record.peer + record.payload


# Records


@settings(max_examples=40)
@given(st.lists(records, max_size=12))
def test_a_batch_comes_back_as_it_was(batch):
    assert parse_batch(b"".join(map(encode, batch))) == (batch, True)


@settings(max_examples=40)
@given(st.lists(records, max_size=12), st.integers(1, 5))
def test_a_batch_can_be_parsed_in_portions(batch, limit):
    encoded, offset, parsed = b"".join(map(encode, batch)), 0, []
    while offset < len(encoded):
        portion, offset = parse_records(encoded, offset, limit)
        assert 0 < len(portion) <= limit
        parsed += portion
    assert parsed == batch


def test_the_header_is_laid_out_as_documented():
    header = record_header(0x1234, 0x0506, RecordFlag.TOKEN_PRESENT, 8)
    assert header.hex() == "34120605040" + "8" + "1da6"
    assert (HEADER_SIZE, MAGIC) == (8, 0xA61D)


@pytest.mark.parametrize("size", [0, 1, 1200, 65_507, 65_535])
def test_payloads_from_empty_to_the_largest(size):
    record = Record(random.Random(size).randbytes(size), 0, 0, PEER)
    assert parse_batch(encode(record) * 2) == ([record, record], True)


def test_an_empty_batch_has_no_records():
    assert parse_batch(b"") == ([], True)


@settings(max_examples=40)
@given(st.lists(records, min_size=1, max_size=6), st.integers(1, 40))
def test_a_batch_that_is_cut_off_keeps_its_whole_records(batch, cut):
    encoded = b"".join(map(encode, batch))
    cut = min(cut, len(encode(batch[-1])) - 1)
    assert parse_batch(encoded[: len(encoded) - cut]) == (batch[:-1], False)


@pytest.mark.parametrize("offset", [5, 6, 7])
def test_what_comes_after_a_corrupt_header_is_condemned(offset):
    good = Record(b"payload", 0, 0, PEER)
    bad = bytearray(encode(good))
    bad[offset] ^= 0x40  # peer_size, magic
    assert parse_batch(encode(good) + bytes(bad) + encode(good)) == ([good], False)


def test_a_datagram_without_a_peer_is_corrupt_and_a_control_record_is_not():
    control = Record(b"x", 0, int(RecordFlag.CONTROL), b"")
    assert parse_batch(encode(control)) == ([control], True)
    assert parse_batch(encode(control._replace(flags=0))) == ([], False)


@given(st.binary(max_size=200))
def test_parsing_never_raises(batch):
    parsed, whole = parse_batch(batch)
    assert sum(HEADER_SIZE + len(r.peer) + len(r.payload) for r in parsed) <= len(batch)
    assert whole is (batch == b"" or (bool(parsed) and b"".join(map(encode, parsed)) == batch))


@settings(max_examples=40)
@given(st.lists(records, min_size=1, max_size=5), st.data())
def test_whatever_was_scribbled_over_each_datagram_has_a_peer(batch, data):
    encoded = bytearray(b"".join(map(encode, batch)))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(encoded) - 1))
        encoded[position] ^= data.draw(st.integers(1, 255))
    parsed, _ = parse_batch(bytes(encoded))
    for record in parsed:
        if not record.flags & RecordFlag.CONTROL:
            assert isinstance(decode_peer(record.peer), Peer)


# Peers


@given(endpoints)
def test_a_peer_comes_back(endpoint):
    address, listener, local = endpoint
    peer = decode_peer(encode_peer(*endpoint))
    assert (peer.address[1:], peer.listener) == (address[1:], listener)
    assert pack_ip(peer.address[0]) == pack_ip(address[0])
    if local is None:
        assert (peer.local_ip, peer.interface) == (None, 0)
    else:
        assert (peer.local_ip, peer.interface) == local


@pytest.mark.parametrize(
    ("address", "local", "encoded"),
    [
        (V4, None, "04021151c0000207"),
        (V4, LocalAddress(bytes([127, 0, 0, 2]), 7), "04021151c0000207" + "7f000002" + "00000007"),
        (V6, None, "06021151" + "20010db8" + "00" * 11 + "07" + "00000003" + "00000009"),
    ],
)
def test_a_peer_is_laid_out_as_documented(address, local, encoded):
    assert encode_peer(address, 2, local).hex() == encoded


def test_a_link_local_address_may_name_its_scope():
    assert encode_peer(("fe80::1%eth0", 1, 0, 2), 0, None) == encode_peer(
        ("fe80::1", 1, 0, 2), 0, None
    )


@given(st.ip_addresses())
def test_addresses_are_packed_as_the_system_does(ip):
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    assert pack_ip(str(ip)) == socket.inet_pton(family, str(ip))
    assert pack_ip(socket.inet_ntop(family, ip.packed)) == ip.packed


@pytest.mark.parametrize("size", [0, 7, 9, 27, 29, 255])
def test_bytes_of_no_peers_size_are_reported_as_corruption(size):
    with pytest.raises(RingCorruptError, match=f"peer of {size} bytes"):
        decode_peer(bytes(size))


# The table


def test_the_table_gives_the_same_object_for_the_same_peer():
    table = PeerTable()
    raw = table.encode(V4, 1, None)
    assert table.encode(("192.0.2.7", 4433), 1, None) is raw
    assert table.decode(raw) is table.decode(bytes(bytearray(raw)))
    assert table.decode(raw) == Peer(V4, 1, None, 0)


def test_listener_and_local_address_make_another_peer():
    table = PeerTable()
    local = LocalAddress(bytes([127, 0, 0, 1]), 1)
    assert (
        len({table.encode(V4, 1, None), table.encode(V4, 2, None), table.encode(V4, 1, local)}) == 3
    )


def test_a_flood_of_addresses_does_not_grow_the_table():
    table = PeerTable(size=10)
    for port in range(1000):
        table.decode(table.encode(("192.0.2.7", port), 0, None))
        assert len(table) <= 40
    assert table.swaps == 2 * 99


def test_an_active_peer_survives_a_flood_with_its_object():
    table = PeerTable(size=10)
    raw = table.encode(V4, 0, None)
    peer = table.decode(raw)
    for port in range(1000):
        table.decode(table.encode(("192.0.2.8", port), 0, None))
        assert table.encode(V4, 0, None) is raw
        assert table.decode(raw) is peer
