"""Every target runs its seeds, parts of them and bytes at random, without atheris: one that has
rotted is found by the next test run, not by the next who fuzzes.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.script import Script, pack
from tests.fuzz.targets import TARGETS


@pytest.mark.slow
@pytest.mark.linux
@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_is_made_of_them_are_withstood(name: str):
    target = TARGETS[name]
    seeds = list(target.seeds())
    for seed in seeds:
        assert len(seed) <= target.longest
        target.run(seed)

    parts = st.builds(
        lambda seed, start, size: seed[start : start + size],
        st.sampled_from(seeds),
        st.integers(0, 60),
        st.integers(0, 200),
    )
    mixtures = st.lists(st.one_of(parts, st.binary(max_size=20)), max_size=4).map(b"".join)

    @settings(
        max_examples=40, suppress_health_check=list(HealthCheck), database=None, derandomize=True
    )
    @given(st.one_of(mixtures, st.binary(max_size=100)))
    def run(data: bytes) -> None:
        target.run(data[: target.longest])

    run()


@given(st.lists(st.one_of(st.integers(0, 255), st.binary(max_size=600)), max_size=8))
def test_a_script_reads_what_was_packed(steps: list[int | bytes]):
    script = Script(pack(*steps))
    for step in steps:
        assert (script.byte() if isinstance(step, int) else script.take()) == step
    assert not script
    assert (script.byte(), script.take(), script.rest()) == (0, b"", b"")
