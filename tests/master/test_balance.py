"""When requests are balanced, and when clients are asked to come again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.master.balance import (
    CHEAP_MOVES,
    DEAR_FOR,
    DEAR_LAG,
    MOVES_INTERVAL,
    OFF_DELAY,
    OFF_LAG,
    ON_LAG,
    SHED_AFTER,
    SHED_INTERVAL,
    BalanceMode,
    BalanceSwitch,
    Shedding,
    WorkerLoad,
)


def auto():
    return BalanceSwitch(BalanceMode.AUTO)


@pytest.mark.parametrize(
    ("mode", "expected"), [(BalanceMode.REQUEST, True), (BalanceMode.CONNECTION, False)]
)
def test_the_operator_may_decide(mode, expected):
    switch = BalanceSwitch(mode)
    assert switch.on is expected
    assert switch.observe({1: 1.0, 2: 0.0}, 0, 5.0) is expected
    assert switch.observe({1: 0.0, 2: 0.0}, 0, 500.0) is expected


def test_auto_begins_with_connections():
    assert not auto().on
    assert not auto().observe({}, 0, 0.0)


@pytest.mark.parametrize(
    ("lags", "expected"),
    [
        ({1: 2 * ON_LAG, 2: 0.0}, True),
        ({1: ON_LAG / 2, 2: 0.0}, False),
        # All are late alike: nobody could take work from another.
        ({1: 0.2, 2: 0.2}, False),
        ({1: 0.2, 2: 0.1}, False),
        ({1: 0.2, 2: 0.01, 3: 0.2}, True),
        ({1: 0.2}, False),
    ],
)
def test_auto_goes_by_how_late_and_how_unevenly(lags, expected):
    assert auto().observe(lags, 0, 10.0) is expected


def test_auto_stays_on_until_every_loop_has_been_in_time_for_a_while():
    switch = auto()
    switch.observe({1: 0.1, 2: 0.0}, 0, 10.0)
    assert switch.observe({1: 2 * OFF_LAG, 2: 0.0}, 0, 14.0)  # would not switch it on
    assert switch.observe({1: 0.0, 2: 0.0}, 0, 14.0 + OFF_DELAY - 0.1)
    assert not switch.observe({1: 0.0, 2: 0.0}, 0, 14.0 + OFF_DELAY)
    assert not switch.observe({1: 2 * OFF_LAG, 2: 0.0}, 0, 30.0)


BOTH_LATE = {1: 0.1, 2: 0.1}


def test_auto_stays_on_though_balancing_has_made_all_late_alike():
    switch = auto()
    switch.observe({1: 0.1, 2: 0.0}, 0, 10.0)
    for step in range(40):
        moved = round(step * MOVES_INTERVAL * CHEAP_MOVES)
        assert switch.observe(BOTH_LATE, moved, 10.0 + step * MOVES_INTERVAL)


def test_auto_ends_when_moving_costs_much_and_nobody_computes_for_long():
    switch = auto()
    switch.observe({1: 0.1, 2: 0.0}, 0, 10.0)
    assert switch.observe({1: ON_LAG, 2: 0.0}, 0, 11.0)
    busy = round(3 * CHEAP_MOVES)  # of two workers, in a second
    assert not switch.observe({1: 2 * ON_LAG, 2: 0.0}, busy, 12.0)
    # It is not tried again at once, although it costs nothing now.
    assert not switch.observe({1: 2 * ON_LAG, 2: 0.0}, busy, 13.0)
    assert switch.observe({1: 2 * DEAR_LAG, 2: 0.0}, busy, 14.0)
    assert switch.observe({1: 2 * DEAR_LAG, 2: 0.0}, 9 * busy, 15.0)
    assert not switch.observe(BOTH_LATE, 12 * busy, 15.0 + OFF_DELAY)
    assert switch.observe({1: 2 * ON_LAG, 2: 0.0}, 12 * busy, 16.0 + OFF_DELAY + DEAR_FOR)


def shed_for(shedding, loads, seconds, start=100.0):
    """What was asked for, second by second."""
    return [shedding.observe(loads, start + second * SHED_INTERVAL) for second in range(seconds)]


EVEN = {1: WorkerLoad(50, 50), 2: WorkerLoad(50, 50)}
UNEVEN = {1: WorkerLoad(100, 95), 2: WorkerLoad(20, 20)}


def test_even_loads_shed_nobody():
    assert not any(shed_for(Shedding(), EVEN, 20))


def test_lasting_imbalance_sheds_a_tenth_per_second():
    asked = shed_for(Shedding(), UNEVEN, 8)
    assert asked[: int(SHED_AFTER)] == [{}] * 5
    assert asked[5:] == [{1: 10}] * 3


def test_looking_more_often_does_not_shed_more():
    shedding = Shedding()
    shed_for(shedding, UNEVEN, 8)
    assert shedding.observe(UNEVEN, 107.5) == {}


def test_imbalance_that_passes_is_forgotten():
    shedding = Shedding()
    shed_for(shedding, UNEVEN, 4)
    shedding.observe(EVEN, 104.0)
    assert not any(shed_for(shedding, UNEVEN, 4, start=105.0))


@pytest.mark.parametrize(
    "loads",
    [
        {1: WorkerLoad(1000, 900)},
        {1: WorkerLoad(10, 10), 2: WorkerLoad(0, 0)},
        # It has one connection, and that one must be served by somebody.
        {1: WorkerLoad(80, 1), 2: WorkerLoad(0, 0)},
    ],
)
def test_no_imbalance_that_shedding_could_mend(loads):
    assert not any(shed_for(Shedding(), loads, 10))


@given(
    st.dictionaries(
        st.integers(0, 5),
        st.builds(WorkerLoad, st.integers(0, 500), st.integers(0, 500)),
        max_size=6,
    )
)
def test_never_more_than_a_tenth_and_never_everybody(loads):
    for asked in shed_for(Shedding(), loads, 8):
        assert len(asked) < max(len(loads), 1)
        for worker_id, count in asked.items():
            assert 0 < count <= loads[worker_id].connections / 10 + 1
