"""Verdicts for those who decide about the server by them: restart it, send clients elsewhere."""

from __future__ import annotations

import time

import pytest

from asgiri.admin.health import MASTER_PATIENCE, alive, ready
from tests.support.board import status_of


def test_a_master_that_speaks_is_alive():
    assert alive(status_of()) == (True, "ok")


def test_a_master_that_has_not_spoken_is_not():
    assert not alive({}).good
    long_ago = time.monotonic_ns() - int((MASTER_PATIENCE + 1) * 1e9)
    verdict = alive(status_of(beat_ns=long_ago))
    assert verdict == (False, "the master has not spoken for 6 s")
    assert ready(status_of(beat_ns=long_ago, target=1, ready=1)) == verdict


@pytest.mark.parametrize(("wanted", "enough"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (16, 8)])
def test_half_of_the_workers_have_to_be_ready(wanted, enough):
    assert ready(status_of(target=wanted, ready=enough)).good
    verdict = ready(status_of(target=wanted, ready=enough - 1))
    assert verdict == (
        False,
        f"{enough - 1} of {wanted} workers are ready, {enough} are needed",
    )


def test_who_asks_may_say_how_many():
    status = status_of(target=4, ready=3)
    assert ready(status, 3).good
    assert not ready(status, 4).good
    assert ready(status_of(target=4, ready=0), 0).good


def test_workers_at_rest_serve_nobody():
    assert not ready(status_of(target=0, ready=0)).good


def test_a_server_that_stops_takes_no_more_clients():
    status = status_of(target=2, ready=2, stopping=1)
    assert alive(status).good
    assert ready(status) == (False, "the server stops")
