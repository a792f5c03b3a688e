"""Which molds exist and who waits for them: scenario by scenario, then at random."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from asgiri.master.actions import KillSignal, Spawn
from asgiri.master.molds import (
    Fork,
    KillMold,
    Molds,
    MoldState,
    StartMold,
    TellExited,
    TellFailed,
    TellUnstartable,
    TellWithdrawn,
)


def spawn(worker_id: int, generation: int = 1) -> Spawn:
    return Spawn(worker_id, slot=worker_id % 10, generation=generation, selftest=False)


def ready_molds(*waiting: int) -> Molds:
    """A mold of generation 1, ready, whose workers are being forked."""
    molds = Molds()
    for worker_id in waiting or (1,):
        molds.spawn(spawn(worker_id))
    molds.ready(1)
    return molds


def test_the_first_worker_of_a_generation_starts_its_mold_and_all_wait_for_it():
    molds = Molds()
    assert molds.spawn(spawn(1)) == [StartMold(1)]
    assert molds.spawn(spawn(2)) == []
    assert molds.unborn == (1, 2)
    assert not molds.is_forking
    assert molds.state(1) is MoldState.IMPORTING
    assert molds.ready(1) == [Fork(1, 1), Fork(1, 2)]
    assert molds.is_forking


def test_a_worker_is_born_once_and_only_if_it_was_asked_for():
    molds = ready_molds()
    assert molds.forked(1, 4711) is None
    assert molds.forked(2, 1) is None
    worker = molds.forked(1, 1)
    assert worker is not None
    assert worker.order == spawn(1)
    assert molds.forked(1, 1) is None
    assert molds.unborn == ()


def test_a_mold_that_is_ready_forks_at_once_and_nobody_twice():
    molds = ready_molds()
    assert molds.spawn(spawn(2)) == [Fork(1, 2)]
    assert molds.ready(1) == []


def test_generations_have_molds_of_their_own():
    molds = ready_molds()
    assert molds.spawn(spawn(2, generation=2)) == [StartMold(2)]
    assert molds.spawn(spawn(3)) == [Fork(1, 3)]


def test_a_mold_that_cannot_be_started_is_told_for_each_worker_and_tried_again():
    molds = Molds()
    molds.spawn(spawn(1))
    assert molds.unstartable(1, "no memory") == [TellUnstartable(1, "no memory")]
    assert molds.unborn == ()
    assert molds.spawn(spawn(2)) == [StartMold(1)]


def test_what_fails_in_the_mold_fails_for_all_who_wait_and_then_they_have_ended():
    molds = Molds()
    molds.spawn(spawn(1))
    molds.spawn(spawn(2))
    assert molds.failed(1, "import", "no shop") == [
        TellFailed(1, "import", "no shop"),
        TellFailed(2, "import", "no shop"),
    ]
    # One that comes too late ends with it.
    assert molds.spawn(spawn(3)) == []
    assert molds.ready(1) == []
    assert molds.exited(1, 3) == [TellExited(1, 3), TellExited(2, 3), TellExited(3, 3)]
    assert molds.spawn(spawn(4)) == [StartMold(1)]


def test_a_mold_that_dies_takes_along_who_was_being_forked():
    molds = ready_molds(1, 2)
    molds.forked(1, 1)
    assert molds.exited(1, -9) == [TellExited(2, -9)]
    assert not molds.is_forking


def test_a_fork_that_fails_concerns_one_worker():
    molds = ready_molds(1, 2)
    assert molds.fork_failed(1, 1, "no memory") == [TellUnstartable(1, "no memory")]
    assert molds.fork_failed(1, 1, "no memory") == []
    assert molds.unborn == (2,)
    assert molds.state(1) is MoldState.READY


def test_who_is_told_to_quit_while_the_mold_imports_is_never_born():
    molds = Molds()
    molds.spawn(spawn(1))
    molds.spawn(spawn(2))
    assert molds.quit(1) == [TellWithdrawn(1)]
    assert molds.ready(1) == [Fork(1, 2)]


def test_who_is_told_to_quit_while_being_forked_hears_it_afterwards():
    molds = ready_molds()
    assert molds.quit(1) == []
    worker = molds.forked(1, 1)
    assert worker is not None
    assert worker.dismissed


def test_killing_an_unborn_worker_kills_the_mold_that_keeps_it_waiting():
    molds = Molds()
    molds.spawn(spawn(1))
    assert molds.kill(1, KillSignal.ABORT) == [KillMold(1, KillSignal.ABORT)]
    assert molds.kill(1, KillSignal.KILL) == [KillMold(1, KillSignal.KILL)]
    assert molds.exited(1, -6) == [TellExited(1, -6)]


def test_a_mold_goes_when_its_generation_is_over():
    molds = ready_molds()
    molds.forked(1, 1)
    molds.spawn(spawn(2, generation=2))
    assert molds.retire({1, 2}) == []
    assert molds.retire({2}) == [KillMold(1, KillSignal.KILL)]
    assert molds.retire({2}) == []
    assert molds.exited(1, -9) == []
    assert molds.state(1) is None
    assert molds.retire({2}) == []


def test_a_mold_that_somebody_waits_for_goes_after_that():
    """Of a generation that was given up: its stacks are wanted before it goes."""
    molds = Molds()
    molds.spawn(spawn(1))
    molds.spawn(spawn(2))
    assert molds.retire(set()) == []
    assert molds.quit(2) == [TellWithdrawn(2)]
    assert molds.kill(1, KillSignal.ABORT) == [KillMold(1, KillSignal.ABORT)]
    assert molds.exited(1, -6) == [TellExited(1, -6)]


def test_a_mold_goes_with_the_last_one_that_waits():
    molds = Molds()
    molds.spawn(spawn(1))
    molds.retire(set())
    assert molds.quit(1) == [TellWithdrawn(1), KillMold(1, KillSignal.KILL)]


def test_a_retired_mold_goes_once_its_last_worker_is_born():
    molds = ready_molds()
    molds.retire(set())
    molds.forked(1, 1)
    assert molds.end_retired() == [KillMold(1, KillSignal.KILL)]


def test_a_generation_that_spawns_again_keeps_its_mold():
    molds = ready_molds()
    molds.retire(set())
    molds.spawn(spawn(2))
    molds.forked(1, 1)
    assert molds.forked(1, 2) is not None
    assert molds.state(1) is MoldState.READY


class Anything(RuleBasedStateMachine):
    """Molds and supervisors that do what they like: every spawned worker has one end."""

    def __init__(self) -> None:
        super().__init__()
        self.molds = Molds()
        self.processes: dict[int, str] = {}
        """Generation to what its mold is about to do."""
        self.spawned = 0
        self.waiting: dict[int, int] = {}
        """Worker to generation, until it had its end."""
        self.asked: set[int] = set()

    def do(self, steps) -> None:
        for step in steps:
            match step:
                case StartMold(generation):
                    assert generation not in self.processes
                    self.processes[generation] = "importing"
                case Fork(generation, worker_id):
                    assert self.processes[generation] == "ready"
                    assert self.waiting[worker_id] == generation
                    assert worker_id not in self.asked
                    self.asked.add(worker_id)
                case KillMold(generation, _):
                    assert generation in self.processes
                    self.processes[generation] = "ending"
                case TellFailed(worker_id, _, _):
                    assert worker_id in self.waiting
                case TellUnstartable(worker_id, _) | TellExited(worker_id, _):
                    del self.waiting[worker_id]
                case TellWithdrawn(worker_id):
                    assert worker_id not in self.asked
                    del self.waiting[worker_id]

    @rule(generation=st.integers(1, 3))
    def spawn(self, generation):
        self.spawned += 1
        self.waiting[self.spawned] = generation
        self.do(self.molds.spawn(spawn(self.spawned, generation)))

    @rule(needed=st.sets(st.integers(1, 3)))
    def retire(self, needed):
        self.do(self.molds.retire(needed))
        for generation, state in self.processes.items():
            if generation not in needed and generation not in self.waiting.values():
                assert state == "ending"

    @precondition(lambda self: self.waiting)
    @rule(chosen=st.data(), signal=st.sampled_from([None, *KillSignal]))
    def end_worker(self, chosen, signal):
        worker_id = chosen.draw(st.sampled_from(sorted(self.waiting)))
        if signal is None:
            self.do(self.molds.quit(worker_id))
        else:
            self.do(self.molds.kill(worker_id, signal))

    @precondition(lambda self: self.processes)
    @rule(chosen=st.data(), event=st.sampled_from(["ready", "failed", "exited", "unstartable"]))
    def mold(self, chosen, event):
        generation = chosen.draw(st.sampled_from(sorted(self.processes)))
        state = self.processes[generation]
        match event:
            case "ready" if state == "importing":
                self.processes[generation] = "ready"
                self.do(self.molds.ready(generation))
            case "failed" if state == "importing":
                self.processes[generation] = "ending"
                self.do(self.molds.failed(generation, "import", "because"))
            case "exited":
                del self.processes[generation]
                self.do(self.molds.exited(generation, 1))
                assert generation not in self.waiting.values()
            case "unstartable" if state == "importing" and not self.asked & self.waiting.keys():
                del self.processes[generation]
                self.do(self.molds.unstartable(generation, "because"))

    @precondition(lambda self: self.asked & self.waiting.keys())
    @rule(chosen=st.data(), works=st.booleans())
    def answer(self, chosen, works):
        worker_id = chosen.draw(st.sampled_from(sorted(self.asked & self.waiting.keys())))
        generation = self.waiting[worker_id]
        if works:
            assert self.molds.forked(generation, worker_id) is not None
            del self.waiting[worker_id]
            self.do(self.molds.end_retired())
        else:
            self.do(self.molds.fork_failed(generation, worker_id, "because"))

    @invariant()
    def nobody_is_forgotten(self):
        assert set(self.molds.unborn) == self.waiting.keys()
        # Who waits, waits for something that exists.
        assert set(self.waiting.values()) <= self.processes.keys()
        assert self.molds.is_forking == bool(self.asked & self.waiting.keys())


TestAnything = Anything.TestCase
TestAnything.pytestmark = [pytest.mark.slow]
TestAnything.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
