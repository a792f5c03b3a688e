"""Connection IDs that are gone, and stateless resets."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from asgiri.ipc.tokens import ResetTokens
from asgiri.worker.transport import quic_ids
from asgiri.worker.transport.quic_ids import ConnectionTable, StatelessResets, Tombstone

KEY = bytes(16)
CID = b"c" * 17


def resets() -> StatelessResets:
    return StatelessResets(ResetTokens(KEY), random=os.urandom)


def test_a_buried_connection_id_is_remembered_for_a_while():
    table: ConnectionTable[str] = ConnectionTable()
    table.add(b"one", "connection")
    table.bury([b"one"], 100.0)
    assert table.living == {}
    assert table.tombstone(b"one") is not None
    table.bury([b"two"], 109.0)
    assert table.tombstone(b"one") is not None
    table.bury([b"three"], 110.0)  # the halves change places
    assert table.tombstone(b"one") is not None
    table.bury([b"four"], 120.0)
    assert table.tombstone(b"one") is None
    assert table.tombstone(b"three") is not None
    table.bury([b"five"], 200.0)  # long after
    assert (table.tombstone(b"four"), table.tombstones) == (None, 1)


def test_the_table_of_tombstones_is_bounded(monkeypatch):
    monkeypatch.setattr(quic_ids, "MAX_TOMBSTONES", 10)
    table: ConnectionTable[str] = ConnectionTable()
    for number in range(100):
        table.bury([b"%d" % number], 100.0)
    assert table.tombstones <= 20
    assert table.tombstone(b"99") is not None


def test_a_close_is_repeated_less_and_less_often():
    """RFC 9000 §10.2.1: "progressively increasing the number of packets that it receives"."""
    tombstone = Tombstone(b"close")
    replies = [number for number in range(1, 1000) if tombstone.reply()]
    assert replies == [1, 2, 4, 8, 16, 32]


def test_without_a_close_there_is_silence():
    tombstone = Tombstone()
    assert not any(tombstone.reply() for _ in range(100))


def test_connection_ids_of_one_connection_share_its_close():
    table: ConnectionTable[str] = ConnectionTable()
    table.bury([b"one", b"two"], 100.0, Tombstone(b"close"))
    one, two = table.tombstone(b"one"), table.tombstone(b"two")
    assert one is two


@given(st.integers(0, 2000))
def test_a_reset_is_shorter_than_what_it_answers(size: int):
    answer = resets().answer(CID, size, ("192.0.2.1", 1), 100.0)
    if size < quic_ids.SHORTEST_RESET_TRIGGER:
        assert answer == b""
    else:
        assert quic_ids.SHORTEST_RESET <= len(answer) <= min(size - 1, quic_ids.LONGEST_RESET)


@given(st.binary(min_size=64, max_size=64))
def test_a_reset_looks_like_a_short_packet_and_ends_with_its_token(random: bytes):
    """RFC 9000 §10.3."""
    maker = StatelessResets(ResetTokens(KEY), random=lambda size: random[:size])
    answer = maker.answer(CID, 1200, ("192.0.2.1", 1), 100.0)
    assert answer[0] & 0xC0 == 0x40
    assert answer[-16:] == ResetTokens(KEY).token(CID)


def test_one_address_gets_one_reset_a_second():
    maker = resets()
    assert maker.answer(CID, 1200, ("192.0.2.1", 1), 100.0)
    assert not maker.answer(CID, 1200, ("192.0.2.1", 1), 100.9)
    assert maker.answer(CID, 1200, ("192.0.2.2", 1), 100.9)
    assert maker.answer(CID, 1200, ("192.0.2.1", 1), 101.1)


def test_all_together_get_a_hundred_a_second():
    maker = resets()
    sent = [maker.answer(CID, 1200, ("192.0.2.1", port), 100.0) for port in range(500)]
    assert sum(map(bool, sent)) == 100
    later = [maker.answer(CID, 1200, ("192.0.2.1", port), 100.5) for port in range(500)]
    assert 49 <= sum(map(bool, later)) <= 51
