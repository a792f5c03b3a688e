"""A flood in short: that the attack is one, and that it is measured."""

from __future__ import annotations

import dataclasses

import pytest

from tests.soak.attacks import ATTACKS
from tests.soak.floods import COUNTERS, Outcome, flood, percentile


def test_each_attack_has_a_counter():
    assert ATTACKS.keys() == COUNTERS.keys()


@pytest.mark.slow
async def test_a_flood_is_counted_and_hurts_nobody():
    outcome = await flood("HTTP/2 rapid reset", 1.5, calm=0.2)
    assert not outcome.failures
    assert outcome.grown < 64 << 20
    assert outcome.answers > 10
    assert all(outcome.counted.values()), outcome.counted


GOOD = Outcome("flood", 1, 1, {"counter": 1}, 1 << 20, 0.01, 0.01, 100, ())


@pytest.mark.parametrize(
    "change",
    [{"counted": {"counter": 0}}, {"grown": 65 << 20}, {"p99": 0.11}, {"failures": ["gone"]}],
    ids=["counter", "memory", "p99", "failures"],
)
def test_what_a_flood_must_not_do_is_noticed(change):
    assert GOOD.complaints == []
    assert len(dataclasses.replace(GOOD, **change).complaints) == 1


def test_the_99th_percentile_is_the_one_below_the_worst_of_a_hundred():
    assert percentile([float(number) for number in range(100)]) == 99.0
    assert percentile([]) == float("inf")
