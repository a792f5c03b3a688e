"""Metrics: another reader of Prometheus's format finds in them what was counted."""

from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from asgiri.admin.metrics import FAMILIES
from asgiri.admin.prometheus import metrics_markdown, render
from asgiri.ipc.scoreboard import Cell, DropReason, Refusal, WorkerState
from tests.support import readme
from tests.support.board import Worker, status_of
from tests.support.metrics import Metrics


def metrics_of(*workers, **head) -> Metrics:
    return Metrics(render(status_of(*workers, **head)).decode())


def test_prometheus_reads_every_metric_as_it_is_declared():
    text = render(status_of(Worker(0), Worker(1), drops={DropReason.RING_FULL: 1})).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert len(families) == len(FAMILIES)
    for declared in FAMILIES:
        family = families[declared.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (declared.kind, declared.help)
        for sample in family.samples:
            assert set(sample.labels) == set(declared.labels) | (
                {"le"} if sample.name.endswith("_bucket") else set()
            )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_follow_the_conventions_of_prometheus(family):
    assert re.fullmatch(r"asgiri_[a-z0-9_]+", family.name)
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert re.fullmatch(r"[A-Z1].*\.", family.help)
    assert not re.search(r"_(ms|milliseconds|kb|mb|percent)\b", family.name)


def test_requests_are_counted_by_version():
    worker = Worker(cells={Cell.REQUESTS_HTTP1: 3, Cell.REQUESTS_HTTP2: 2, Cell.REQUESTS_HTTP3: 1})
    metrics = metrics_of(worker)
    assert metrics.by("asgiri_requests_total", "version") == {"1": 3, "2": 2, "3": 1}
    assert metrics.value("asgiri_worker_requests_total", worker="0", version="2") == 2


def test_durations_are_a_cumulative_histogram():
    worker = Worker()
    for duration_us in (50, 90, 200, 700_000_000):
        worker.scoreboard.observe(duration_us)
    metrics = metrics_of(worker)
    buckets = metrics.by("asgiri_request_duration_seconds_bucket", "le")
    assert (buckets["0.0001"], buckets["0.00025"], buckets["120"], buckets["+Inf"]) == (
        *(2, 3, 3, 4),
    )
    assert list(buckets.values()) == sorted(buckets.values())
    assert metrics.value("asgiri_request_duration_seconds_count") == 4
    assert metrics.value("asgiri_request_duration_seconds_sum") == pytest.approx(700.00034)


def test_drops_and_refusals_have_their_reasons():
    worker = Worker()
    worker.scoreboard.refuse(Refusal.HTTP1_BAD_HOST, 4)
    metrics = metrics_of(worker, drops={DropReason.TOO_SHORT: 2})
    assert metrics.by("asgiri_refusals_total", "reason") == {"http1_bad_host": 4}
    assert metrics.by("asgiri_datagrams_dropped_total", "reason") == {"too_short": 2}


def test_one_worker_of_each_slot_is_shown_by_itself():
    """In the totals, all of them are."""
    draining = Worker(0, target=WorkerState.DRAINING, cells={Cell.REQUESTS_HTTP1: 5})
    fresh = Worker(0, generation=2, cells={Cell.REQUESTS_HTTP1: 1})
    other = Worker(1, generation=2, cells={Cell.REQUESTS_HTTP1: 2})
    candidate = Worker(1, generation=3, ready=False)
    metrics = metrics_of(draining, fresh, other, candidate)
    shown = metrics.by("asgiri_worker_requests_total", "worker", version="1")
    assert shown == {"0": 1, "1": 2}
    assert metrics.value("asgiri_requests_total", version="1") == 8
    states = metrics.by("asgiri_workers", "state")
    assert (states["ready"], states["draining"], states["waiting"]) == (2, 1, 1)


def test_text_of_an_operator_cannot_break_the_format():
    status = status_of()
    status["name"] = 'a "name"\nwith \\ everything'
    metrics = Metrics(render(status).decode())
    (sample,) = metrics.samples("asgiri_info")
    assert sample.labels["name"] == status["name"]


def test_the_metrics_in_the_readme_are_those_there_are():
    _, table, _ = readme.split(readme.README.read_text(), "metrics")
    assert table.strip() == metrics_markdown().strip(), "run: python -m tests.support.readme"
