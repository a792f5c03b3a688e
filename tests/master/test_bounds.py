"""Token buckets and swapped tables against the simplest thing that could be right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asgiri.master.bounds import SwappedTable, TokenBucket

LIFETIME = 30.0
CAPACITY = 8


@given(st.integers(1, 50), st.lists(st.floats(0, 0.5, allow_nan=False), min_size=1, max_size=300))
def test_bucket_never_gives_more_than_a_burst_and_its_rate(rate, pauses):
    bucket, now, given_at = TokenBucket(rate), 1000.0, []
    for pause in pauses:
        now += pause
        if bucket.take(now):
            given_at.append(now)
    for index, begin in enumerate(given_at):
        for count, end in enumerate(given_at[index:], 1):
            assert count <= rate + (end - begin) * rate + 1e-6


def test_bucket_gives_a_burst_then_its_rate():
    bucket = TokenBucket(10)
    assert [bucket.take(5.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert [bucket.take(5.05), bucket.take(5.11), bucket.take(5.11)] == [False, True, False]


def test_bucket_never_holds_more_than_a_second_of_its_rate():
    bucket = TokenBucket(3)
    bucket.take(0.0)
    assert [bucket.take(1e6) for _ in range(4)] == [True] * 3 + [False]


def test_bucket_follows_a_change_of_its_rate():
    bucket = TokenBucket(100)
    bucket.take(0.0)
    bucket.rate = 2
    assert [bucket.take(0.0) for _ in range(3)] == [True, True, False]


class TableModel(RuleBasedStateMachine):
    """A swapped table may forget between one and two lifetimes after the last use, never else."""

    @initialize(start=st.floats(0, 1e6))
    def begin(self, start):
        self.now = start
        self.table = SwappedTable(capacity=CAPACITY, lifetime=LIFETIME)
        self.used = {}  # key -> (value, last use)

    @rule(pause=st.sampled_from([0.0, 0.1, 9.0, 16.0, 29.9, 30.0, 31.0, 65.0]))
    def wait(self, pause):
        self.now += pause

    def may_hold(self, key):
        return key in self.used and self.now - self.used[key][1] < 2 * LIFETIME

    def must_hold(self, key):
        return key in self.used and self.now - self.used[key][1] < LIFETIME

    @rule(key=st.integers(0, 12))
    def use(self, key):
        value = self.table.use(key, self.now)
        if value is None:
            assert not self.must_hold(key)
            self.used.pop(key, None)
        else:
            assert self.may_hold(key)
            assert value == self.used[key][0]
            self.used[key] = value, self.now

    @rule(key=st.integers(0, 12))
    def ask(self, key):
        if self.table.holds(key, self.now):
            assert self.may_hold(key)
        else:
            assert not self.must_hold(key)
            self.used.pop(key, None)

    @rule(key=st.integers(0, 12), value=st.integers(1, 99))
    def put(self, key, value):
        others = [other for other in self.used if other != key and self.may_hold(other)]
        if self.table.put(key, value, self.now):
            self.used[key] = value, self.now
        else:
            assert len(others) >= CAPACITY
            self.used.pop(key, None)

    @invariant()
    def stays_bounded(self):
        assert len(self.table) <= CAPACITY


TestTableModel = pytest.mark.slow(TableModel.TestCase)


@pytest.mark.parametrize(
    ("pause", "kept"), [(LIFETIME - 0.1, True), (LIFETIME, True), (2 * LIFETIME, False)]
)
def test_table_keeps_an_entry_for_its_lifetime_and_not_for_two(pause, kept):
    table = SwappedTable(capacity=CAPACITY, lifetime=LIFETIME)
    table.put("key", 1, 0.0)
    assert table.holds("key", pause) is kept


def test_table_full_refuses_the_new_and_keeps_the_old():
    table = SwappedTable(capacity=2, lifetime=LIFETIME)
    assert not table.is_full
    assert [table.put(key, 1, 0.0) for key in "abc"] == [True, True, False]
    assert table.is_full
    assert [table.use(key, 0.0) for key in "abc"] == [1, 1, None]
    assert table.put("a", 2, 0.0)


def test_table_asked_only_whether_it_holds_an_entry_forgets_it():
    table = SwappedTable(capacity=2, lifetime=1.0)
    table.put("address", 1, 0.0)
    held = [table.holds("address", tenths / 10) for tenths in range(30)]
    assert held == [True] * 20 + [False] * 10


def test_table_keeps_an_entry_for_its_lifetime_whenever_it_was_added():
    for pause in range(120):
        table = SwappedTable(capacity=2, lifetime=LIFETIME)
        table.put("first", 1, 0.0)
        table.put("key", 1, float(pause))
        assert table.holds("key", pause + LIFETIME - 0.1)
        assert not table.holds("key", pause + 2 * LIFETIME)


def test_table_tells_the_entries_that_live():
    table = SwappedTable(capacity=10, lifetime=10.0)
    table.put("old", 1, 0.0)
    table.put("new", 2, 11.0)
    assert table.items(12.0) == [("old", 1), ("new", 2)]
    assert table.items(21.0) == [("new", 2)]
    assert table.items(100.0) == []
