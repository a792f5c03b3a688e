"""The life of one worker incarnation: every pair of the table, written out a second time."""

import itertools
import json
import math
import signal

import pytest

from asgiri.config import WorkerConfig
from asgiri.errors import LocalProtocolError
from asgiri.master.actions import Drain, Kill, KillSignal, Quit, Spawn
from asgiri.master.slots import (
    ABORT_GRACE,
    ALIVE,
    DRAIN_GRACE,
    EXIT_GRACE,
    KILL_GRACE,
    QUIT_GRACE,
    TRANSITIONS,
    Incarnation,
    SlotInput,
    SlotState,
    advance,
    exit_text,
    longest_reload,
)

# Rows: the state before. Columns: what happens. "-": a bug of ours.
GRID = """
          spawned ready    failed   drained  drain    quit    abort    die    exited
empty     booting -        -        -        -        -       -        -      -
booting   -       ready    leaving  leaving  -        leaving aborting killed empty
ready     -       ready    leaving  leaving  draining leaving aborting killed empty
draining  -       draining leaving  leaving  -        leaving aborting killed empty
leaving   -       leaving  leaving  leaving  -        leaving -        killed empty
aborting  -       aborting aborting aborting -        -       -        killed empty
killed    -       killed   killed   killed   -        -       -        -      empty
"""
EXPECTED = {
    (SlotState(row[0]), event): None if cell == "-" else SlotState(cell)
    for row in map(str.split, GRID.strip().splitlines()[1:])
    for event, cell in zip(SlotInput, row[1:], strict=True)
}
PAIRS = list(itertools.product(SlotState, SlotInput))


@pytest.mark.parametrize(("state", "event"), PAIRS, ids=lambda value: value.name)
def test_each_pair_leads_where_the_grid_says(state, event):
    following = EXPECTED[state, event]
    if following is None:
        assert (state, event) not in TRANSITIONS
        with pytest.raises(LocalProtocolError, match=f"{event.value} while {state.value}"):
            advance(state, event)
    else:
        assert advance(state, event) is following


def test_the_grid_names_every_pair():
    assert set(EXPECTED) == set(PAIRS)


@pytest.mark.parametrize("state", sorted(ALIVE, key=lambda state: state.name))
def test_an_exit_and_any_report_of_a_living_worker_are_legal(state):
    reports = [SlotInput.REPORTED_READY, SlotInput.REPORTED_FAILED, SlotInput.REPORTED_DRAINED]
    for event in [SlotInput.EXITED, *reports]:
        advance(state, event)


GONE = [SlotState.DRAINING, SlotState.LEAVING, SlotState.ABORTING, SlotState.KILLED]


@pytest.mark.parametrize("state", GONE)
def test_no_way_leads_back_to_ready_once_a_worker_is_to_go(state):
    following = {after for (before, _), after in TRANSITIONS.items() if before is state}
    assert following <= {*GONE, SlotState.EMPTY}


# Incarnations

NOW = 1000.0


def incarnation(*, chance=0.0, **policy):
    policy = {"boot_timeout": 60.0, "graceful_timeout": 30.0, **policy}
    order = Spawn(worker_id=7, slot=2, generation=3, selftest=False)
    return Incarnation(order, WorkerConfig(**policy), NOW, lambda: chance)


def ready(**policy):
    worker = incarnation(**policy)
    worker.reported(SlotInput.REPORTED_READY, NOW)
    return worker


def draining(**policy):
    worker = ready(**policy)
    worker.release(NOW)
    return worker


def killed():
    worker = ready()
    worker.kill(NOW)
    return worker


def test_incarnation_boots_until_its_timeout():
    worker = incarnation(boot_timeout=5)
    assert (worker.worker_id, worker.slot, worker.generation) == (7, 2, 3)
    assert (worker.is_booting, worker.is_ready, worker.is_running) == (True, False, False)
    assert worker.deadline == NOW + 5
    assert not worker.has_served(0, NOW)


def test_ready_incarnation_has_no_deadline():
    worker = ready()
    assert (worker.is_booting, worker.is_ready, worker.is_running) == (False, True, True)
    assert worker.deadline == math.inf
    assert worker.has_served(10, NOW + 10)
    assert not worker.has_served(10, NOW + 9.9)


def test_ready_said_again_does_not_begin_its_service_anew():
    worker = ready()
    worker.reported(SlotInput.REPORTED_READY, NOW + 5)
    assert worker.ready_at == NOW


def test_released_incarnation_drains_until_its_deadline_and_a_grace():
    worker = ready(graceful_timeout=8)
    assert worker.release(NOW) == [Drain(7, 8)]
    assert (worker.state, worker.is_running) == (SlotState.DRAINING, True)
    assert worker.deadline == NOW + 8 + DRAIN_GRACE
    assert worker.release(NOW + 1) == []
    worker.reported(SlotInput.REPORTED_DRAINED, NOW + 2)
    # Its application may still be shutting down.
    assert worker.deadline == NOW + 8 + DRAIN_GRACE
    assert worker.overdue_text == "has not exited in time; killed"


def test_incarnation_that_drained_unasked_has_as_long_as_a_drain():
    worker = ready(graceful_timeout=8)
    worker.reported(SlotInput.REPORTED_DRAINED, NOW)
    assert worker.deadline == NOW + 8 + DRAIN_GRACE


def test_booting_incarnation_is_told_to_quit_where_another_would_drain():
    worker = incarnation()
    assert worker.release(NOW) == [Quit(7)]
    assert worker.state is SlotState.LEAVING
    assert worker.deadline == NOW + QUIT_GRACE


def test_quit_never_gives_more_time():
    worker = draining(graceful_timeout=0)
    worker.quit(NOW + DRAIN_GRACE - 0.5)
    assert worker.deadline == NOW + DRAIN_GRACE


def test_failed_incarnation_is_to_exit_soon():
    worker = incarnation()
    worker.reported(SlotInput.REPORTED_FAILED, NOW + 50)
    assert worker.deadline == NOW + 50 + EXIT_GRACE


def test_aborted_incarnation_gets_no_other_word():
    worker = ready()
    assert worker.abort(NOW) == [Kill(7, KillSignal.ABORT)]
    assert worker.was_killed
    assert not worker.is_unkillable
    assert worker.deadline == NOW + ABORT_GRACE
    assert worker.overdue_text == "does not die of SIGABRT; killed"
    assert worker.quit(NOW) == worker.release(NOW) == []


def test_incarnation_is_killed_once():
    worker = draining()
    assert worker.overdue_text == "has not drained in time; killed"
    assert worker.kill(NOW) == [Kill(7, KillSignal.KILL)]
    assert worker.was_killed
    assert worker.is_unkillable
    assert worker.deadline == NOW + KILL_GRACE
    assert worker.kill(NOW + KILL_GRACE) == []
    assert worker.deadline == NOW + 2 * KILL_GRACE
    assert worker.overdue_text == "does not die of SIGKILL"


@pytest.mark.parametrize("make", [incarnation, ready, draining, killed])
def test_incarnation_that_ended_waits_for_nothing(make):
    worker = make()
    worker.ended()
    assert (worker.state, worker.deadline) == (SlotState.EMPTY, math.inf)


@pytest.mark.parametrize(
    ("policy", "chance", "seen", "reason"),
    [
        ({}, 0.0, (10**9, 1 << 50, 1e9), ""),
        ({"max_requests": 5}, 0.0, (4, 0, 0), ""),
        ({"max_requests": 5}, 0.0, (5, 0, 0), "5 requests"),
        ({"max_requests": 5, "max_requests_jitter": 10}, 0.0, (5, 0, 0), "5 requests"),
        ({"max_requests": 5, "max_requests_jitter": 10}, 0.999, (14, 0, 0), ""),
        ({"max_requests": 5, "max_requests_jitter": 10}, 0.999, (15, 0, 0), "15 requests"),
        ({"max_worker_rss": 1 << 20}, 0.0, (0, 5 << 20, 60), "5 MiB of memory"),
        ({"max_worker_rss": 1 << 20}, 0.0, (0, 5 << 20, 59.9), ""),
        ({"max_worker_rss": 1 << 20}, 0.0, (0, 1 << 20, 60), ""),
        ({"max_worker_lifetime": 100}, 0.0, (0, 0, 99.9), ""),
        ({"max_worker_lifetime": 100}, 0.0, (0, 0, 100), "100 s of service"),
        ({"max_worker_lifetime": 100}, 1.0, (0, 0, 89.9), ""),
        ({"max_worker_lifetime": 100}, 1.0, (0, 0, 90), "90 s of service"),
    ],
)
def test_incarnation_is_due_when_it_has_done_its_part(policy, chance, seen, reason):
    requests, rss, age = seen
    worker = ready(chance=chance, **policy)
    assert worker.find_recycle_reason(requests, rss, NOW + age) == reason


@pytest.mark.parametrize("make", [incarnation, ready, draining, killed])
def test_another_program_finds_an_incarnation_where_it_was(make):
    before = make()
    before.recycle_reason = "200 requests"
    after = incarnation()
    after.restore(json.loads(json.dumps(before.to_state())))
    for name in ("state", "deadline", "ready_at", "recycle_reason"):
        assert getattr(after, name) == getattr(before, name)


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        ({"count": 8}, 120.0),  # a canary, then the others
        ({"count": 8, "reload_surge": 1}, 8 * 95.0),  # one after the other, each after a drain
        ({"count": 8, "reload_surge": 3}, 3 * 95.0),
    ],
)
def test_a_reload_is_given_the_time_of_its_turns(policy, seconds):
    assert longest_reload(WorkerConfig(**policy)) == seconds


def test_exit_texts_name_the_signal():
    assert exit_text(3) == "exited with status 3"
    assert exit_text(-signal.SIGSEGV) == "was killed by SIGSEGV"
    assert exit_text(-40) in ("was killed by signal 40", "was killed by SIGRTMIN+6")
