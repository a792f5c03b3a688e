"""Field blocks that h2 does not see."""

import contextlib

import pytest
from hpack import Encoder
from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol.http2_fields import FieldDecoder
from asgiri.worker.protocol.http2_frames import ErrorCode, FrameViolation

FIELDS = [(b":method", b"GET"), (b"content-length", b"x")]


def test_fields_are_kept_from_h2():
    decoder, encoder = FieldDecoder(max_list_size=1000), Encoder()
    for _ in range(2):
        assert decoder.decode(encoder.encode(FIELDS), raw=True) == []
        assert decoder.fields == FIELDS


@given(st.binary())
def test_nothing_else_is_raised(noise):
    decoder = FieldDecoder(max_list_size=1000)
    with contextlib.suppress(FrameViolation):
        decoder.decode(noise)


def test_a_list_of_more_than_twice_the_limit_is_not_decoded():
    """A bomb (CVE-2016-6581): one entry of the table, named again and again."""
    bomb = b"\x40\x01x\x7f\xa1\x1e" + b"y" * 4000
    decoder = FieldDecoder(max_list_size=8192)
    decoder.decode(bomb)
    decoder.decode(b"\xbe\xbe")
    with pytest.raises(FrameViolation) as refused:
        decoder.decode(b"\xbe" * 10)
    assert refused.value.code is ErrorCode.ENHANCE_YOUR_CALM
