"""RFC 9218 §4 and §5: what a Priority field says, and that nonsense says nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiri.worker.protocol.priority import DEFAULT, Priority, parse_priority_untrusted


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", DEFAULT),
        (b"u=0", Priority(0)),
        (b"u=5, i", Priority(5, incremental=True)),
        (b"i, u=7", Priority(7, incremental=True)),
        (b"i=?1", Priority(3, incremental=True)),
        (b"i=?0", DEFAULT),
        (b"i, i=?0", DEFAULT),
        (b"u=1, u=2", Priority(2)),
        (b"u=1;x=2, i;y", Priority(1, incremental=True)),
        (b"u=1, other=abc", Priority(1)),
        # Out of range or of another type: ignored, member by member.
        (b"u=8, i", Priority(3, incremental=True)),
        (b"u=-1", DEFAULT),
        (b"u=1.5", DEFAULT),
        (b"i=2, u=1", Priority(1)),
        (b"u, i", Priority(3, incremental=True)),
        # No dictionary at all: the field is ignored as a whole.
        (b"u=1,,i", DEFAULT),
        (b"U=1", DEFAULT),
        (b"=1", DEFAULT),
    ],
)
def test_reads_urgency_and_incremental(value, expected):
    assert parse_priority_untrusted(value) == expected


@given(st.binary(max_size=400))
def test_never_raises_and_stays_in_range(value):
    priority = parse_priority_untrusted(value)
    assert 0 <= priority.urgency <= 7
    assert isinstance(priority.incremental, bool)


def test_sorts_the_more_urgent_first():
    ranks = [Priority(7), Priority(3, incremental=True), Priority(0), Priority(3)]
    assert sorted(ranks) == [Priority(0), Priority(3), Priority(3, incremental=True), Priority(7)]
