"""Connection IDs: what is sealed comes back, a stranger's does not, and nobody can link them."""

from __future__ import annotations

import os
import random

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from asgiri.errors import LocalProtocolError
from asgiri.ipc.connection_id import (
    CONNECTION_ID_LENGTH,
    KEY_LENGTH,
    ConnectionIdCodec,
    ConnectionIdKind,
    ConnectionIdMint,
)

KEY = bytes(range(KEY_LENGTH))
CODEC = ConnectionIdCodec(KEY, server_id=0xC0FFEE01)
U32 = st.integers(0, (1 << 32) - 1)
U56 = st.integers(0, (1 << 56) - 1)


def zeros(size: int) -> bytes:
    return bytes(size)


@given(st.sampled_from(ConnectionIdKind), U32, U56, U32, st.integers(0, 6))
def test_what_is_sealed_opens(kind, worker_id, nonce, server_id, codepoint):
    codec = ConnectionIdCodec(KEY, server_id=server_id, codepoint=codepoint)
    connection_id = codec.seal(kind, worker_id, nonce)
    assert len(connection_id) == CONNECTION_ID_LENGTH
    assert connection_id[0] >> 5 == codepoint
    assert codec.open_untrusted(connection_id) == (kind, worker_id)


def test_the_block_is_laid_out_as_documented():
    connection_id = CODEC.seal(ConnectionIdKind.RETRY, 0x01020304, 0x0A0B0C0D0E0F10)
    decryptor = Cipher(algorithms.AES(KEY), modes.ECB()).decryptor()
    assert decryptor.update(connection_id[1:]).hex() == "c0ffee0102010203040a0b0c0d0e0f10"


@given(st.binary(max_size=40))
def test_opening_never_raises_and_leaves_the_codec_intact(connection_id):
    CODEC.open_untrusted(connection_id)
    assert CODEC.open_untrusted(CODEC.seal(1, 7, 7)) == (1, 7)


@pytest.mark.parametrize("size", [size for size in range(41) if size != CONNECTION_ID_LENGTH])
def test_another_length_is_not_ours(size):
    assert CODEC.open_untrusted((CODEC.seal(1, 7, 7) * 3)[:size]) is None


@pytest.mark.slow
def test_a_million_random_connection_ids_are_not_ours():
    source = random.Random(17)
    assert not any(CODEC.open_untrusted(source.randbytes(17)) for _ in range(1_000_000))


@pytest.mark.parametrize("kind", [0, 3, 255])
def test_an_unknown_kind_is_not_ours(kind):
    assert CODEC.open_untrusted(CODEC.seal(kind, 7, 7)) is None


@given(st.integers(8, CONNECTION_ID_LENGTH * 8 - 1))
def test_one_flipped_bit_of_the_block_makes_it_a_strangers(bit):
    connection_id = bytearray(CODEC.seal(1, 7, 7))
    connection_id[bit // 8] ^= 1 << bit % 8
    assert CODEC.open_untrusted(bytes(connection_id)) is None


def test_another_deployment_is_not_ours():
    same_key = ConnectionIdCodec(KEY, server_id=1)
    same_server_id = ConnectionIdCodec(bytes(16), server_id=0xC0FFEE01)
    assert CODEC.open_untrusted(same_key.seal(1, 7, 7)) is None
    assert CODEC.open_untrusted(same_server_id.seal(1, 7, 7)) is None


@pytest.mark.parametrize("codepoint", [-1, 7])
def test_a_codepoint_that_says_unroutable_is_refused(codepoint):
    with pytest.raises(LocalProtocolError, match="codepoint"):
        ConnectionIdCodec(KEY, server_id=1, codepoint=codepoint)


@pytest.mark.parametrize("server_id", [-1, 1 << 32])
def test_a_server_id_of_more_than_32_bits_is_refused(server_id):
    with pytest.raises(LocalProtocolError, match="server_id"):
        ConnectionIdCodec(KEY, server_id=server_id)


@given(U32, st.binary(min_size=8, max_size=8))
def test_what_is_minted_names_its_worker(worker_id, start):
    mint = ConnectionIdMint(CODEC, worker_id, random=lambda _: start)
    assert CODEC.open_untrusted(mint.mint()) == (ConnectionIdKind.CONNECTION, worker_id)
    retry = mint.mint(ConnectionIdKind.RETRY)
    assert CODEC.open_untrusted(retry) == (ConnectionIdKind.RETRY, worker_id)
    other = mint.mint_for(worker_id ^ 1, ConnectionIdKind.RETRY)
    assert CODEC.open_untrusted(other) == (ConnectionIdKind.RETRY, worker_id ^ 1)


def test_mint_and_seal_agree():
    mint = ConnectionIdMint(CODEC, 0x12345678, random=zeros)
    assert mint.mint() == CODEC.seal(1, 0x12345678, 0)
    assert mint.mint_for(9, ConnectionIdKind.RETRY) == CODEC.seal(2, 9, 1)
    assert mint.mint(ConnectionIdKind.RETRY) == CODEC.seal(2, 0x12345678, 2)


def test_the_highest_start_leaves_room_for_the_counter():
    mint = ConnectionIdMint(CODEC, 0xFFFFFFFF, random=lambda size: b"\xff" * size)
    for _ in range(1000):
        assert CODEC.open_untrusted(mint.mint()) == (1, 0xFFFFFFFF)


@pytest.mark.slow
def test_connection_ids_of_two_workers_and_a_retrying_master_never_repeat():
    worker, other = (ConnectionIdMint(CODEC, number, random=zeros) for number in (1, 2))
    master = ConnectionIdMint(CODEC, 1, random=zeros)
    minted = {mint.mint() for mint in (worker, other) for _ in range(100_000)}
    minted |= {master.mint_for(1, ConnectionIdKind.RETRY) for _ in range(100_000)}
    assert len(minted) == 300_000


@pytest.mark.slow
def test_no_bit_tells_connection_ids_of_one_worker_from_random_ones():
    mint = ConnectionIdMint(CODEC, 5, random=os.urandom)
    count = 20_000
    ones = [0] * (CONNECTION_ID_LENGTH * 8)
    changes = 0
    previous = int.from_bytes(mint.mint(), "big")
    for _ in range(count):
        value = int.from_bytes(mint.mint(), "big")
        changes += (value ^ previous).bit_count()
        previous = value
        for bit in range(len(ones)):
            ones[bit] += value >> bit & 1
    free_bits = ones[:-3]  # the top three are the codepoint
    assert ones[-3:] == [0, 0, 0]
    # Eight standard deviations of a fair coin; a plain field is far outside.
    assert all(abs(n - count / 2) < 8 * (count / 4) ** 0.5 for n in free_bits)
    assert abs(changes / count - len(free_bits) / 2) < 1
