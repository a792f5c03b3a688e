"""Packet types, tokens and Retry of QUIC versions 1 and 2, against the RFCs and against aioquic."""

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import (
    QuicPacketType,
    QuicProtocolVersion,
    encode_long_header_first_byte,
    get_retry_integrity_tag,
    pull_quic_header,
)
from hypothesis import given
from hypothesis import strategies as st

from asgiri.master.quic_versions import (
    SUPPORTED_VERSIONS,
    PacketType,
    encode_retry,
    initial_token_untrusted,
)

connection_id = st.binary(max_size=20)
version = st.sampled_from(SUPPORTED_VERSIONS)


def varint(value, octets):
    return (value | (octets.bit_length() - 1) << 8 * octets - 2).to_bytes(octets, "big")


@pytest.mark.parametrize(
    ("version", "packet"),
    [
        # RFC 9001 appendix A.4
        (1, "ff000000010008f067a5502a4262b5746f6b656e04a265ba2eff4d829058fb3f0f2496ba"),
        # RFC 9369 appendix A.4
        (0x6B3343CF, "cf6b3343cf0008f067a5502a4262b5746f6b656ec8646ce8bfe33952d955543665dcc7b6"),
    ],
)
def test_retry_is_the_one_in_the_rfc(version, packet):
    written = encode_retry(
        version,
        destination_cid=b"",
        source_cid=bytes.fromhex("f067a5502a4262b5"),
        original_destination_cid=bytes.fromhex("8394c8f03e515708"),
        token=b"token",
        random=0x0F,
    )
    assert written.hex() == packet


@given(
    version,
    connection_id,
    connection_id,
    connection_id,
    st.binary(min_size=1, max_size=90),
    st.integers(0, 255),
)
def test_retry_is_read_by_aioquic(version, destination, source, original, token, random):
    packet = encode_retry(
        version,
        destination_cid=destination,
        source_cid=source,
        original_destination_cid=original,
        token=token,
        random=random,
    )
    header = pull_quic_header(Buffer(data=packet))
    assert header.packet_type is QuicPacketType.RETRY
    assert (header.version, header.destination_cid, header.source_cid, header.token) == (
        version,
        destination,
        source,
        token,
    )
    assert packet[-16:] == get_retry_integrity_tag(packet[:-16], original, version)


@pytest.mark.parametrize("version", SUPPORTED_VERSIONS)
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (QuicPacketType.INITIAL, PacketType.INITIAL),
        (QuicPacketType.ZERO_RTT, PacketType.ZERO_RTT),
        (QuicPacketType.HANDSHAKE, PacketType.HANDSHAKE),
        (QuicPacketType.RETRY, PacketType.RETRY),
    ],
)
def test_packet_types_are_those_of_aioquic(version, theirs, ours):
    first_octet = encode_long_header_first_byte(version, theirs, bits=0)
    for unprotected_bits in range(16):
        assert PacketType.of(version, first_octet | unprotected_bits) is ours


def test_versions_are_those_of_aioquic():
    assert list(SUPPORTED_VERSIONS) == [
        QuicProtocolVersion.VERSION_1,
        QuicProtocolVersion.VERSION_2,
    ]


@given(st.binary(max_size=50), st.binary(max_size=60), st.sampled_from([1, 2, 4, 8]), st.binary())
def test_token_gives_back_what_was_written(head, token, octets, rest):
    datagram = head + varint(len(token), octets) + token + rest
    assert initial_token_untrusted(datagram, len(head)) == token


@given(st.binary(max_size=70), st.integers(0, 80))
def test_token_never_raises_and_lies_in_the_datagram(datagram, offset):
    token = initial_token_untrusted(datagram, offset)
    assert token is None or token in datagram


@given(st.binary(min_size=1, max_size=60), st.sampled_from([1, 2, 4, 8]), st.data())
def test_token_cut_short_is_nothing(token, octets, data):
    whole = varint(len(token), octets) + token
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert initial_token_untrusted(whole[:cut], 0) is None


def test_token_length_of_62_bits_is_nothing():
    assert initial_token_untrusted(b"\xff" * 1200, 40) is None
