"""HPACK that remembers says what hpack says, whatever came before."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol.http2_hpack import (
    MAX_BLOCK,
    MAX_KNOWN,
    KnowingDecoder,
    KnowingEncoder,
)

LIMIT = 2000
FIELDS = [
    (b":method", b"GET"),
    (b":path", b"/"),
    (b":path", b"/a?b"),
    (b"date", b"today"),
    (b"x", b"y" * 40),
]
FIELD = st.sampled_from(FIELDS)
SECRET = FIELD.map(lambda field: hpack.NeverIndexedHeaderTuple(*field))
SECTIONS = st.lists(st.lists(FIELD | SECRET, max_size=6), max_size=12)
TABLE_SIZES = st.lists(st.none() | st.sampled_from([0, 64, 100, 4096]), max_size=12)
BLOCKS = st.binary(max_size=6) | st.lists(
    st.sampled_from([0x82, 0x84, 0xBE, 0xBF, 0xC0, 0xFE]), max_size=5
).map(bytes)


@given(SECTIONS, TABLE_SIZES)
def test_the_encoder_writes_what_hpack_writes(sections, table_sizes):
    plain, knowing = hpack.Encoder(), KnowingEncoder()
    for number, section in enumerate(sections):
        if number < len(table_sizes) and table_sizes[number] is not None:
            plain.header_table_size = knowing.header_table_size = table_sizes[number]
        assert knowing.encode(section) == plain.encode(section)


@given(SECTIONS, TABLE_SIZES, st.lists(st.tuples(st.integers(0, 12), BLOCKS), max_size=6))
def test_the_decoder_reads_what_hpack_reads(sections, table_sizes, inserted):
    encoder = hpack.Encoder()
    plain = hpack.Decoder(max_header_list_size=LIMIT)
    knowing = KnowingDecoder(max_header_list_size=LIMIT)
    blocks = []
    for number, section in enumerate(sections):
        if number < len(table_sizes) and table_sizes[number] is not None:
            encoder.header_table_size = table_sizes[number]
        blocks.append(encoder.encode(section))
    for place, block in inserted:
        blocks.insert(place, block)
    for block in blocks:
        expected = outcome(plain, block)
        assert outcome(knowing, block) == expected
        if isinstance(expected, type):
            return  # a block that can't be read ends the connection


def outcome(decoder, block):
    try:
        return [(type(field), *field) for field in decoder.decode(block, raw=True)]
    except hpack.HPACKError as error:
        return type(error)


def test_a_section_that_came_before_is_looked_up():
    encoder, decoder = hpack.Encoder(), KnowingDecoder(LIMIT)
    decoder.decode(encoder.encode(FIELDS), raw=True)
    first, second = (decoder.decode(encoder.encode(FIELDS), raw=True) for _ in range(2))
    assert first is second


def test_a_section_that_was_written_before_is_looked_up():
    encoder = KnowingEncoder()
    encoder.encode(FIELDS)
    assert encoder.encode(FIELDS) is encoder.encode(FIELDS)


@pytest.mark.parametrize("size", [MAX_BLOCK, MAX_BLOCK + 1])
def test_only_short_blocks_are_kept(size):
    decoder = KnowingDecoder(1 << 20)
    block = b"\x82" * size
    is_kept = decoder.decode(block, raw=True) is decoder.decode(block, raw=True)
    assert is_kept is (size <= MAX_BLOCK)


def test_only_the_latest_blocks_are_kept():
    decoder = KnowingDecoder(LIMIT)
    for length in range(1, 3 * MAX_KNOWN):
        decoder.decode(b"\x82" * length, raw=True)
    assert len(decoder.known) == MAX_KNOWN
