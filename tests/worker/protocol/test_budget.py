"""What a peer may do now and then, but not all the time."""

from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol.budget import Budget


def test_gives_its_burst_then_its_rate():
    budget = Budget(burst=3, per_second=2)
    assert [budget.spend(10.0) for _ in range(4)] == [True, True, True, False]
    assert [budget.spend(10.5), budget.spend(10.5)] == [True, False]


def test_never_holds_more_than_its_burst():
    budget = Budget(burst=2, per_second=1000)
    budget.spend(0.0)
    assert [budget.spend(1e6) for _ in range(3)] == [True, True, False]


def test_what_is_earned_can_be_spent_up_to_the_burst():
    budget = Budget(burst=2, per_second=1)
    assert [budget.spend(0.0) for _ in range(3)] == [True, True, False]
    budget.earn(1)
    assert [budget.spend(0.0) for _ in range(2)] == [True, False]
    budget.earn(100)
    assert [budget.spend(0.0) for _ in range(3)] == [True, True, False]


@given(
    st.integers(1, 20),
    st.floats(0.1, 50),
    st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=100),
)
def test_never_gives_more_than_burst_and_rate_allow(burst, per_second, pauses):
    budget, now, given_out = Budget(burst=burst, per_second=per_second), 5.0, 0
    for pause in pauses:
        now += pause
        given_out += budget.spend(now)
        assert given_out <= burst + (now - 5.0) * per_second + 1e-6
