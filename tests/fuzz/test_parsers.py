"""A small run of what `python -m tests.fuzz.parsers` does by the hundred thousand."""

from __future__ import annotations

import pytest

from tests.fuzz.parsers import compare


@pytest.mark.slow
def test_both_parsers_of_http1_read_the_same():
    tally = compare(3000, seed=8)
    assert tally.disagreements == []
    assert tally.requests > 1000, "much of it is to be accepted"
    assert len(tally.refusals) >= 8, "and refused for all kinds of reasons"
