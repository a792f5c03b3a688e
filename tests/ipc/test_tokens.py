"""Tokens: one root gives the same keys everywhere; a token vouches for one client, for a while."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.errors import ConfigError, LocalProtocolError
from asgiri.ipc.connection_id import ConnectionIdCodec
from asgiri.ipc.tokens import (
    RETRY_TOKEN_LIFETIME,
    QuicSecrets,
    ResetTokens,
    RetryToken,
    RetryTokens,
)

ROOT = bytes(range(32))
IPV4 = ("192.0.2.7", 4433)
IPV6 = ("2001:db8::7", 4433, 0, 0)
ORIGINAL = b"original"
SOURCE = b"a retry source id"
connection_ids = st.binary(max_size=20)
addresses = st.one_of(
    st.tuples(st.ip_addresses(v=4).map(str), st.integers(0, 65535)),
    st.tuples(
        st.ip_addresses(v=6).map(str), st.integers(0, 65535), st.integers(0, 9), st.integers(0, 9)
    ),
)


def zeros(size: int) -> bytes:
    return bytes(size)


def retry_tokens(key: bytes = b"k" * 16) -> RetryTokens:
    return RetryTokens(key, random=os.urandom)


# Secrets


def test_one_root_gives_every_process_and_every_start_the_same_keys():
    secrets = QuicSecrets.derive(ROOT)
    assert secrets == QuicSecrets.derive(ROOT)
    keys = {secrets.connection_id_key, secrets.reset_key, secrets.token_key}
    assert len(keys) == 3
    assert {len(key) for key in keys} == {16}
    assert 0 <= secrets.server_id < 1 << 32


def test_another_root_gives_other_keys_and_another_server_id():
    one, other = QuicSecrets.derive(ROOT), QuicSecrets.derive(ROOT + b"x")
    assert one.connection_id_key != other.connection_id_key
    assert one.server_id != other.server_id


def test_a_server_id_can_be_chosen_and_changes_no_key():
    chosen = QuicSecrets.derive(ROOT, server_id=7)
    assert chosen.server_id == 7
    assert chosen.connection_id_key == QuicSecrets.derive(ROOT).connection_id_key


def test_the_derivation_stays_what_it_was():
    # Another result would make every reset of a restarted server worthless.
    secrets = QuicSecrets.derive(ROOT)
    assert secrets.connection_id_key.hex() == "9c95e3a5bcf7dcd9ad5aaa66f8781959"
    assert f"{secrets.server_id:08x}" == "ae8e3ad5"


def test_secrets_travel_through_the_hello_message():
    secrets = QuicSecrets.derive(ROOT)
    assert QuicSecrets.from_json(secrets.to_json()) == secrets


def test_a_printed_secret_shows_no_key():
    secrets = QuicSecrets.derive(ROOT)
    assert secrets.reset_key.hex() not in repr(secrets)
    assert repr(secrets.reset_key) not in repr(secrets)


def test_a_root_that_can_be_guessed_is_refused_without_being_shown():
    with pytest.raises(ConfigError, match="at least 16 bytes") as caught:
        QuicSecrets.derive(b"hunter2")
    assert "hunter2" not in str(caught.value)


# Stateless reset


def test_who_has_the_key_knows_the_reset_token_of_a_connection_id():
    connection_id = ConnectionIdCodec(b"c" * 16, server_id=1).seal(1, 2, 3)
    token = ResetTokens(b"r" * 16).token(connection_id)
    assert len(token) == 16
    assert ResetTokens(b"r" * 16).token(connection_id) == token
    assert ResetTokens(b"s" * 16).token(connection_id) != token
    assert token not in connection_id


@pytest.mark.parametrize("size", [0, 8, 16, 18])
def test_a_connection_id_that_is_not_ours_has_no_token_and_harms_none(size):
    tokens = ResetTokens(b"r" * 16)
    with pytest.raises(LocalProtocolError, match=f"{size}-byte"):
        tokens.token(bytes(size))
    assert tokens.token(bytes(17)) == ResetTokens(b"r" * 16).token(bytes(17))


# Retry


@given(addresses, connection_ids, connection_ids, st.floats(0, 1e9))
def test_a_retry_token_comes_back(address, original, source, now):
    token = retry_tokens().seal(address, original, source, now)
    assert token[0] == 1
    assert retry_tokens().open_untrusted(token, address, now) == RetryToken(original, source)


def test_a_token_for_ipv4_takes_63_bytes():
    assert len(retry_tokens().seal(IPV4, ORIGINAL, SOURCE, 5.0)) == 63


@pytest.mark.parametrize(
    ("age", "valid"),
    [(0.0, True), (RETRY_TOKEN_LIFETIME, True), (RETRY_TOKEN_LIFETIME + 0.001, False)],
)
def test_a_token_expires(age, valid):
    token = retry_tokens().seal(IPV4, ORIGINAL, SOURCE, 1000.0)
    assert (retry_tokens().open_untrusted(token, IPV4, 1000.0 + age) is not None) is valid


def test_a_token_from_before_the_host_restarted_is_worthless():
    token = retry_tokens().seal(IPV4, ORIGINAL, SOURCE, 1000.0)
    assert retry_tokens().open_untrusted(token, IPV4, 999.0) is None


@pytest.mark.parametrize(
    "other", [("192.0.2.8", 4433), ("192.0.2.7", 4434), ("::ffff:192.0.2.7", 4433, 0, 0)]
)
def test_a_token_is_worthless_to_another_client(other):
    token = retry_tokens().seal(IPV4, ORIGINAL, SOURCE, 5.0)
    assert retry_tokens().open_untrusted(token, other, 5.0) is None


def test_how_an_address_is_written_does_not_matter():
    token = retry_tokens().seal(IPV6, ORIGINAL, SOURCE, 5.0)
    same = ("2001:0db8:0:0::0007", 4433, 0, 3)
    assert retry_tokens().open_untrusted(token, same, 5.0) == RetryToken(ORIGINAL, SOURCE)


def test_a_token_under_another_key_is_forged():
    token = retry_tokens(b"x" * 16).seal(IPV4, ORIGINAL, SOURCE, 5.0)
    assert retry_tokens().open_untrusted(token, IPV4, 5.0) is None


@given(st.integers(0, 63 * 8 - 1))
def test_one_flipped_bit_makes_a_token_worthless(bit):
    token = bytearray(retry_tokens().seal(IPV4, ORIGINAL, SOURCE, 5.0))
    token[bit // 8] ^= 1 << bit % 8
    assert retry_tokens().open_untrusted(bytes(token), IPV4, 5.0) is None


@given(st.binary(max_size=100), addresses)
def test_rubbish_is_no_token_and_never_raises(token, address):
    assert retry_tokens().open_untrusted(token, address, 5.0) is None
    assert retry_tokens().open_untrusted(b"\x01" + token, address, 5.0) is None


def test_a_token_cut_or_extended_is_worthless():
    token = retry_tokens().seal(IPV4, ORIGINAL, SOURCE, 5.0)
    for changed in (
        *(token[:size] for size in range(len(token))),
        token + b"\0",
        token + bytes(99),
    ):
        assert retry_tokens().open_untrusted(changed, IPV4, 5.0) is None


def test_no_nonce_is_used_twice():
    tokens = RetryTokens(b"k" * 16, random=zeros)
    nonces = {tokens.seal(IPV4, ORIGINAL, SOURCE, 5.0)[1:13] for _ in range(1000)}
    assert len(nonces) == 1000


def test_the_nonce_wraps_at_its_highest_start():
    tokens = RetryTokens(b"k" * 16, random=lambda size: b"\xff" * size)
    for _ in range(2):
        token = tokens.seal(IPV4, ORIGINAL, SOURCE, 5.0)
        assert tokens.open_untrusted(token, IPV4, 5.0) is not None
