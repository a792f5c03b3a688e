"""RFC 8999 headers: what aioquic writes, what nobody should write, and every byte in between."""

import itertools

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import encode_quic_version_negotiation, pull_quic_header
from hypothesis import given
from hypothesis import strategies as st

from asgiri.ipc.connection_id import CONNECTION_ID_LENGTH
from asgiri.master.quic_header import (
    LongHeader,
    ShortHeader,
    encode_version_negotiation,
    parse_long_untrusted,
    parse_untrusted,
)

any_connection_id = st.binary(max_size=255)
quic_connection_id = st.binary(max_size=20)
version = st.integers(0, 2**32 - 1)


def long_header(first_octet, version, destination, source):
    return b"".join(
        (
            bytes((first_octet,)),
            version.to_bytes(4, "big"),
            bytes((len(destination),)),
            destination,
            bytes((len(source),)),
            source,
        )
    )


@given(st.binary(max_size=600))
def test_header_parser_never_raises(datagram):
    parse_untrusted(datagram)
    parse_long_untrusted(datagram)


@given(st.integers(128, 255), version, any_connection_id, any_connection_id, st.binary(max_size=40))
def test_long_header_gives_back_what_was_written(first, version, destination, source, rest):
    head = long_header(first, version, destination, source)
    expected = LongHeader(first, version, destination, source, len(head))
    assert parse_untrusted(head + rest) == expected


@given(any_connection_id, any_connection_id, st.data())
def test_long_header_cut_anywhere_is_nothing(destination, source, data):
    head = long_header(0xC0, 1, destination, source)
    cut = data.draw(st.integers(0, len(head) - 1))
    assert parse_untrusted(head[:cut]) is None


def test_long_header_cut_at_each_field_is_nothing():
    head = long_header(0xC0, 1, b"", b"s")
    assert [parse_untrusted(head[:cut]) for cut in range(len(head))] == [None] * len(head)
    assert parse_untrusted(head) == LongHeader(0xC0, 1, b"", b"s", 8)


@given(st.integers(0, 127), st.binary(min_size=CONNECTION_ID_LENGTH, max_size=100))
def test_short_header_carries_a_connection_id_of_our_length(first, rest):
    expected = ShortHeader(first, rest[:CONNECTION_ID_LENGTH])
    assert parse_untrusted(bytes((first,)) + rest) == expected


@pytest.mark.parametrize("size", range(1 + CONNECTION_ID_LENGTH))
def test_short_header_below_our_length_is_nothing(size):
    assert parse_untrusted(bytes(size)) is None


@given(quic_connection_id, quic_connection_id)
def test_long_header_is_read_as_aioquic_reads_it(destination, source):
    datagram = long_header(0xC0, 1, destination, source) + b"\x00\x44\xb0" + bytes(1200)
    theirs = pull_quic_header(Buffer(data=datagram), host_cid_length=CONNECTION_ID_LENGTH)
    ours = parse_untrusted(datagram)
    assert (ours.version, ours.destination_cid, ours.source_cid) == (
        theirs.version,
        theirs.destination_cid,
        theirs.source_cid,
    )


@given(any_connection_id, any_connection_id, st.integers(0, 255))
def test_version_negotiation_swaps_the_connection_ids(destination, source, random):
    header = LongHeader(0xC0, 0x1A2A3A4A, destination, source, 0)
    answer = encode_version_negotiation(header, [1, 0x6B3343CF], random)
    back = parse_untrusted(answer)
    assert (back.version, back.destination_cid, back.source_cid) == (0, source, destination)
    assert back.first_octet & 0xC0 == 0xC0
    assert answer[back.end :] == bytes.fromhex("000000016b3343cf")


def test_version_negotiation_is_what_aioquic_would_write():
    header = LongHeader(0xC0, 0x1A2A3A4A, b"destination", b"source", 0)
    theirs = encode_quic_version_negotiation(
        source_cid=b"destination", destination_cid=b"source", supported_versions=[1, 2]
    )
    assert encode_version_negotiation(header, [1, 2], 0)[1:] == theirs[1:]


def test_longest_connection_ids_still_make_an_answer_shorter_than_the_smallest_trigger():
    header = LongHeader(0xC0, 7, bytes(255), bytes(255), 0)
    versions = list(itertools.islice(itertools.count(1), 3))
    assert len(encode_version_negotiation(header, versions, 0)) < 1200
