"""The supervisor against processes that do what they like: scenario by scenario, then at random."""

import json
from dataclasses import asdict, dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asgiri.config import WorkerConfig
from asgiri.errors import LocalProtocolError
from asgiri.master.actions import (
    Drain,
    GenerationBegun,
    Kill,
    KillSignal,
    Level,
    Quit,
    ReloadEnded,
    Report,
    Spawn,
    Started,
    StopListening,
    Stopped,
    Switch,
)
from asgiri.master.roster import FIRST_BACK_OFF, HEALTHY_AFTER, LONGEST_BACK_OFF
from asgiri.master.slots import ABORT_GRACE, DRAIN_GRACE, EXIT_GRACE, KILL_GRACE, QUIT_GRACE
from asgiri.master.supervisor import AWAY_AFTER, ReloadPhase, Supervisor, Vitals

FIRST_ID = 100


@dataclass
class Process:
    """A worker process: alive from its Spawn until `Host.exit`."""

    order: Spawn
    ready: bool = False
    going: bool = False
    """It said that it failed or drained: its exit is all that is left."""
    told: list = field(default_factory=list)


class Host:
    """Carries out what the supervisor decides, and holds every action against its contract."""

    def __init__(self, *, development=False, **policy):
        self.policy = WorkerConfig(**{"count": 3, **policy})
        self.now = 1000.0
        self.supervisor = Supervisor(
            self.policy,
            first_worker_id=FIRST_ID,
            random=lambda: self.chance,
            development=development,
        )
        self.chance = 0.0
        self.processes = {}
        self.spawned = []
        self.ready = ()
        self.lost = set()
        self.actions = []
        self.generation = 0
        self.stopping = False
        self.stopped = None
        self.spawn_failures = []
        """For each of the next spawns, whether it fails."""
        self.unstartable = set()
        self.sigkill_works_at_once = False

    # Carrying out

    def do(self, actions):
        """Carry out, check, remember; return the actions."""
        queue = list(actions)
        for action in queue:
            assert self.stopped is None
            self.actions.append(action)
            check = getattr(self, f"check_{type(action).__name__.lower()}", None)
            # Decided before it was known that the process could not be started.
            late = isinstance(action, Quit) and action.worker_id in self.unstartable
            if check is not None and not late:
                queue += check(action) or []
        return queue

    def check_spawn(self, action):
        assert action.worker_id not in self.spawned
        assert not self.stopping
        assert action.selftest is (action.generation not in self.generations)
        self.generations.add(action.generation)
        self.spawned.append(action.worker_id)
        if self.spawn_failures and self.spawn_failures.pop(0):
            self.lost.add(action.worker_id)
            self.unstartable.add(action.worker_id)
            return self.supervisor.worker_spawn_failed(action.worker_id, "no memory", self.now)
        self.processes[action.worker_id] = Process(action)
        return None

    generations = property(lambda self: self.__dict__.setdefault("_generations", set()))

    def check_switch(self, action):
        slots = [self.processes[worker_id].order.slot for worker_id in action.ready]
        assert slots == sorted(set(slots))
        assert all(self.processes[worker_id].ready for worker_id in action.ready)
        assert not any(self.processes[worker_id].told for worker_id in action.ready)
        assert not set(action.ready) & self.lost
        self.check_that_nobody_left_without_a_reason(action.ready)
        self.ready = action.ready

    def check_that_nobody_left_without_a_reason(self, ready):
        newest = {self.processes[worker_id].order.slot: worker_id for worker_id in ready}
        generation = max((self.processes[w].order.generation for w in ready), default=0)
        for worker_id in set(self.ready) - set(ready) - self.lost:
            order = self.processes[worker_id].order
            assert (
                self.stopping
                or order.slot in newest  # replaced, in its slot
                or order.generation < generation  # replaced, by a generation
                or order.slot >= self.supervisor.target  # one worker less
            )

    def check_drain(self, action):
        process = self.processes[action.worker_id]
        assert process.ready
        assert action.worker_id not in self.ready
        assert not process.told
        assert action.timeout == self.policy.graceful_timeout
        process.told.append(action)

    def check_quit(self, action):
        assert action.worker_id not in self.ready
        told = self.processes[action.worker_id].told
        assert not any(isinstance(earlier, Kill) for earlier in told)
        told.append(action)

    def check_kill(self, action):
        assert action.worker_id not in self.ready
        told = self.processes[action.worker_id].told
        assert action not in told
        told.append(action)

    def check_report(self, action):
        if action.text.startswith(("stands still", "not ready after")):
            self.lost.add(action.worker_id)

    def check_stoplistening(self, action):
        assert not self.stopping
        self.stopping = True

    def check_generationbegun(self, action):
        assert action.generation > self.generation
        self.generation = action.generation

    def check_started(self, action):
        assert len(self.ready) == self.supervisor.target
        assert self.actions.count(action) == 1

    def check_reloadended(self, action):
        assert action.generation == self.generation

    def check_stopped(self, action):
        assert not self.processes
        self.stopped = action.exit_code

    # What happens

    def begin(self):
        self.do(self.supervisor.start(self.now))
        self.boot()
        return self

    def boot(self, *worker_ids):
        """Let these become ready, or everybody who can."""
        booting = [
            w for w, p in self.processes.items() if not p.ready and not p.told and not p.going
        ]
        for worker_id in worker_ids or booting:
            self.processes[worker_id].ready = True
            self.do(self.supervisor.worker_ready(worker_id, self.now))

    def exit(self, worker_id, status=0):
        del self.processes[worker_id]
        self.lost.add(worker_id)
        return self.do(self.supervisor.worker_exited(worker_id, status, self.now))

    def fail(self, worker_id, stage="import", summary="ImportError: no module named 'app'"):
        self.lost.add(worker_id)
        self.processes[worker_id].going = True
        return self.do(self.supervisor.worker_failed(worker_id, stage, summary, self.now))

    def drain_unasked(self, worker_id):
        self.lost.add(worker_id)
        self.processes[worker_id].going = True
        return self.do(self.supervisor.worker_drained(worker_id, self.now))

    def withdraw(self, worker_id):
        del self.processes[worker_id]
        self.lost.add(worker_id)
        return self.do(self.supervisor.worker_withdrawn(worker_id, self.now))

    def obey(self):
        """Let everybody do what it was told, or has said that it would."""
        for worker_id, process in list(self.processes.items()):
            if process.going:
                self.exit(worker_id, 1)
            elif any(isinstance(order, Kill) for order in process.told):
                self.exit(worker_id, -9)
            elif process.told:
                if isinstance(process.told[0], Drain):
                    self.do(self.supervisor.worker_drained(worker_id, self.now))
                self.exit(worker_id)

    def bury(self):
        """Let everybody die who was sent SIGKILL."""
        for worker_id, process in list(self.processes.items()):
            if Kill(worker_id, KillSignal.KILL) in process.told:
                self.exit(worker_id, -9)

    def wait(self, seconds):
        """Let time pass, with a tick at each deadline; return what was done."""
        actions, end = [], self.now + seconds
        if self.sigkill_works_at_once:
            self.bury()
        while (deadline := self.supervisor.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            actions += self.do(self.supervisor.tick(self.now))
            if self.sigkill_works_at_once:
                self.bury()
        self.now = end
        return actions

    def observe(self, *, silent=(), requests=0, rss=0, ago=0.5):
        """Show the vitals; the silent ones have not beaten since they were ready."""
        vitals = {
            worker_id: Vitals(0.0 if worker_id in silent else self.now - ago, requests, rss)
            for worker_id in self.processes
        }
        return self.do(self.supervisor.observe(vitals, self.now))

    def reload(self, **changes):
        self.policy = replace(self.policy, **changes)
        return self.do(self.supervisor.reload(self.policy, self.now))

    def settle(self):
        """Let everybody become ready or go, until nothing changes any more."""
        for _ in range(200):
            before = len(self.actions)
            self.boot()
            self.obey()
            if len(self.actions) == before:
                deadline = self.supervisor.next_deadline()
                if deadline is None:
                    return
                self.wait(max(0.0, deadline - self.now))
        raise AssertionError("the dust does not settle")

    # Questions

    def ids(self, kind):
        return [action.worker_id for action in self.actions if isinstance(action, kind)]

    def reports(self, level):
        reports = [action for action in self.actions if isinstance(action, Report)]
        return [report.text for report in reports if report.level is level]

    def forget(self):
        self.actions.clear()


# Start


def test_start_fills_all_slots_and_serves_when_all_are_ready():
    host = Host()
    assert host.do(host.supervisor.start(host.now)) == [
        GenerationBegun(1),
        Spawn(100, 0, 1, selftest=True),
        Spawn(101, 1, 1, selftest=False),
        Spawn(102, 2, 1, selftest=False),
    ]
    host.boot(102, 100)
    assert host.ready == ()
    host.forget()
    host.boot(101)
    assert host.actions == [Switch(1, (100, 101, 102)), Started(1)]
    assert host.supervisor.next_deadline() is None
    assert (host.supervisor.generation, host.supervisor.target) == (1, 3)


@pytest.mark.parametrize(
    ("stage", "exit_code"),
    [("import", 3), ("lifespan", 3), ("tls", 1), ("selftest", 1), ("config", 2), ("unheard of", 3)],
)
def test_worker_that_fails_before_the_start_ends_the_server(stage, exit_code):
    host = Host()
    host.do(host.supervisor.start(host.now))
    host.boot(100)
    host.fail(101, stage, "it broke")
    assert host.reports(Level.ERROR) == [f"failed ({stage}): it broke; the server does not start"]
    assert sorted(host.ids(Quit)) == [100, 101, 102]
    host.obey()
    assert host.stopped == exit_code
    assert not {StopListening, Started, Switch} & set(map(type, host.actions))


def test_worker_that_exits_before_the_start_ends_the_server():
    host = Host()
    host.do(host.supervisor.start(host.now))
    host.exit(100, 1)
    assert host.reports(Level.ERROR) == [
        "exited with status 1 before it was ready; the server does not start"
    ]
    host.obey()
    assert host.stopped == 3


def test_worker_that_hangs_before_the_start_ends_the_server():
    host = Host(boot_timeout=20)
    host.do(host.supervisor.start(host.now))
    host.boot(100, 101)
    assert host.wait(19.9) == []
    host.wait(0.2)
    assert Kill(102, KillSignal.ABORT) in host.actions
    assert host.reports(Level.ERROR) == ["not ready after 20 s; aborted; the server does not start"]
    host.wait(ABORT_GRACE)
    assert [Kill(w, KillSignal.KILL) in host.actions for w in (100, 101, 102)] == [True] * 3
    host.obey()
    assert host.stopped == 3


def test_who_was_told_to_quit_before_it_was_a_process_is_forgotten_without_a_word():
    host = Host()
    host.do(host.supervisor.start(host.now))
    host.do(host.supervisor.stop(host.now))
    host.forget()
    for worker_id in list(host.spawned):
        host.withdraw(worker_id)
    assert host.stopped == 0
    assert [type(action) for action in host.actions] == [Stopped]


def test_process_that_cannot_be_started_ends_a_server_that_has_not():
    host = Host(count=2)
    host.spawn_failures = [True]
    host.do(host.supervisor.start(host.now))
    assert host.reports(Level.ERROR) == ["cannot be started: no memory; the server does not start"]
    host.obey()
    assert host.stopped == 1


def test_second_failure_before_the_start_changes_nothing():
    host = Host()
    host.do(host.supervisor.start(host.now))
    host.fail(100, "tls")
    host.fail(101, "import")
    host.do(host.supervisor.worker_ready(102, host.now))
    host.obey()
    assert host.stopped == 1


@pytest.mark.parametrize(("end", "code"), [("stop", 0), ("quit", 0)])
def test_stop_before_the_start_is_no_failure(end, code):
    host = Host()
    host.do(host.supervisor.start(host.now))
    host.boot(100)
    host.do(getattr(host.supervisor, end)(host.now))
    host.obey()
    assert host.stopped == code
    assert StopListening() not in host.actions


def test_reload_before_the_start_follows_it_at_once():
    host = Host(count=1)
    host.do(host.supervisor.start(host.now))
    host.reload()
    assert host.reports(Level.INFO) == ["reload follows when what is under way has ended"]
    host.boot(100)
    assert host.ids(Spawn) == [100, 101]
    assert host.supervisor.reload_phase is ReloadPhase.CANARY


def test_scaling_before_the_start_counts():
    host = Host(count=2)
    host.do(host.supervisor.start(host.now))
    host.do(host.supervisor.scale(2, host.now))
    host.boot(100, 101)
    host.do(host.supervisor.scale(-1, host.now))
    host.boot()
    assert len(host.ready) == 3
    assert host.ids(Quit) == [103]


# Exits


def test_crashed_worker_is_respawned_after_a_tenth_of_a_second():
    host = Host().begin()
    host.forget()
    host.exit(101, -11)
    assert host.actions == [
        Report(Level.ERROR, "was killed by SIGSEGV; the next one starts in 0.1 s", 101),
        Switch(1, (100, 102)),
    ]
    assert host.wait(0.09) == []
    assert host.wait(0.02) == [Spawn(103, 1, 1, selftest=False)]
    host.boot()
    assert host.ready == (100, 103, 102)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exited with status 0"),
        (3, "exited with status 3"),
        (-9, "was killed by SIGKILL"),
        (-34, "was killed by signal 34"),
    ],
)
def test_exit_is_reported_in_words(status, text):
    host = Host(count=1).begin()
    host.exit(100, status)
    assert host.reports(Level.ERROR) == [f"{text}; the next one starts in 0.1 s"]


def crash_delays(host, count):
    """Crash slot 0 so often, each time as soon as it is ready; return how long it was empty."""
    delays = []
    for _ in range(count):
        begin = host.now
        host.exit(host.ready[0], 1)
        while host.supervisor.next_deadline() is not None:
            host.wait(host.supervisor.next_deadline() - host.now)
            if any(process.order.slot == 0 for process in host.processes.values()):
                break
        delays.append(round(host.now - begin, 3))
        host.boot()
    return delays


def test_crash_loop_is_slowed_down_to_one_start_in_ten_seconds():
    host = Host(count=1).begin()
    assert crash_delays(host, 10) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10]
    assert host.stopped is None


def test_minute_of_service_ends_a_crash_loop():
    host = Host(count=1).begin()
    assert crash_delays(host, 4)[-1] == FIRST_BACK_OFF * 8
    host.wait(HEALTHY_AFTER)
    assert crash_delays(host, 2) == [0.1, 0.2]


def test_crash_loop_of_a_year_does_not_overflow():
    host = Host(count=1).begin()
    assert crash_delays(host, 1200)[-1] == LONGEST_BACK_OFF


def test_slots_are_slowed_down_one_by_one():
    host = Host(count=2).begin()
    crash_delays(host, 5)
    begin = host.now
    host.exit(101, 1)
    assert host.supervisor.next_deadline() == pytest.approx(begin + FIRST_BACK_OFF)


@pytest.mark.parametrize("how", ["fail", "exit", "hang", "cannot start"])
def test_no_boot_failure_ends_the_server_once_it_has_started(how):
    host = Host(count=2, boot_timeout=5).begin()
    for _ in range(6):
        if how == "cannot start":
            host.spawn_failures = [True]
        victim = max(host.processes)
        host.exit(victim, 1)
        host.wait(0.15)
        booting = [w for w, process in host.processes.items() if not process.ready]
        if how == "fail":
            host.fail(*booting)
        elif how == "exit":
            host.exit(*booting, 7)
        elif how == "hang":
            host.wait(5)
        host.settle()
        assert len(host.ready) == 2
        host.wait(2 * HEALTHY_AFTER)
    assert host.stopped is None


def test_failed_worker_that_does_not_exit_is_killed():
    host = Host(count=1).begin()
    host.exit(100, 1)
    host.wait(0.1)
    host.fail(101)
    host.wait(EXIT_GRACE - 0.1)
    assert Kill(101, KillSignal.KILL) not in host.actions
    host.wait(0.2)
    assert Kill(101, KillSignal.KILL) in host.actions
    assert "has not exited in time; killed" in host.reports(Level.WARNING)
    # Its slot was not held up by it.
    assert 102 in host.ids(Spawn)


def test_worker_that_drains_unasked_is_replaced():
    host = Host(count=2).begin()
    host.drain_unasked(100)
    assert host.ready == (101,)
    assert host.reports(Level.ERROR) == [
        "drained without being told to; the next one starts in 0.1 s"
    ]
    host.settle()
    assert len(host.ready) == 2


def test_words_of_a_worker_that_is_gone_are_ignored():
    host = Host(count=1).begin()
    host.exit(100, 1)
    assert host.supervisor.worker_ready(100, host.now) == []
    assert host.supervisor.worker_failed(100, "import", "late", host.now) == []
    assert host.supervisor.worker_drained(100, host.now) == []
    assert host.supervisor.recycle(100, "late", host.now) == []


def test_exit_of_nobody_is_our_bug():
    host = Host(count=1).begin()
    with pytest.raises(LocalProtocolError, match="worker_id 7"):
        host.supervisor.worker_exited(7, 0, host.now)


def test_ready_said_twice_changes_nothing():
    host = Host(count=1).begin()
    assert host.do(host.supervisor.worker_ready(100, host.now)) == []


# Reload


def test_reload_is_canary_then_all_then_one_switch_then_drain():
    host = Host().begin()
    host.forget()
    host.reload()
    assert host.actions == [GenerationBegun(2), Spawn(103, 0, 2, selftest=True)]
    assert host.supervisor.reload_phase is ReloadPhase.CANARY
    host.forget()
    host.boot(103)
    assert host.actions == [
        Spawn(104, 1, 2, selftest=False),
        Spawn(105, 2, 2, selftest=False),
    ]
    assert host.supervisor.reload_phase is ReloadPhase.SPAWN
    host.boot(105)
    assert host.ready == (100, 101, 102)
    host.forget()
    host.boot(104)
    assert host.actions == [
        Switch(2, (103, 104, 105)),
        Drain(100, 30.0),
        Drain(101, 30.0),
        Drain(102, 30.0),
        ReloadEnded(2, ""),
    ]
    assert host.supervisor.reload_phase is ReloadPhase.DRAIN
    host.obey()
    assert host.supervisor.reload_phase is ReloadPhase.IDLE
    assert host.supervisor.generation == 2


@pytest.mark.parametrize("culprit", [0, 1, 2])
@pytest.mark.parametrize("how", ["fail", "exit", "hang", "cannot start", "crash when ready"])
def test_new_generation_that_fails_disturbs_nothing(culprit, how):
    host = Host(boot_timeout=5).begin()
    host.forget()
    if how == "cannot start":
        host.spawn_failures = [position == culprit for position in range(3)]
    host.reload()
    for worker_id in (103, 104, 105)[:culprit]:
        if worker_id in host.processes:
            host.boot(worker_id)
    victim = 103 + culprit
    if how == "fail":
        host.fail(victim, "lifespan", "RuntimeError: no database")
    elif how == "exit":
        host.exit(victim, 1)
    elif how == "hang":
        host.wait(5)
        assert Kill(victim, KillSignal.ABORT) in host.actions
    elif how == "crash when ready" and culprit < 2:
        host.boot(victim)
        host.exit(victim, -11)
    elif how == "crash when ready":
        return  # the last one that is ready is the switch
    ended = [action for action in host.actions if isinstance(action, ReloadEnded)]
    assert len(ended) == 1
    assert ended[0].generation == 2
    assert ended[0].failure.startswith(f"worker[{culprit}] ")
    assert host.reports(Level.ERROR) == [ended[0].failure.removeprefix(f"worker[{culprit}] ")]
    host.settle()
    assert host.ready == (100, 101, 102)
    assert sorted(host.processes) == [100, 101, 102]
    assert not any(isinstance(action, Switch) for action in host.actions)
    assert host.supervisor.reload_phase is ReloadPhase.IDLE
    # And the next one works.
    host.reload()
    host.settle()
    assert [host.processes[w].order.generation for w in host.ready] == [3, 3, 3]


def test_discarded_candidates_drain_when_ready_and_quit_when_not():
    host = Host().begin()
    host.reload()
    host.boot(103)
    host.fail(104)
    assert Drain(103, 30.0) in host.actions
    assert Quit(105) in host.actions
    host.wait(QUIT_GRACE)
    assert Kill(105, KillSignal.KILL) in host.actions


def test_reload_during_a_reload_is_remembered_once():
    host = Host(count=2).begin()
    for _ in range(5):
        host.reload()
    host.settle()
    assert host.generation == 3
    assert [host.processes[w].order.generation for w in host.ready] == [3, 3]
    assert host.reports(Level.INFO).count("reload follows when what is under way has ended") == 4


def test_remembered_reload_follows_one_that_failed():
    host = Host(count=1).begin()
    host.reload()
    host.reload()
    host.fail(101)
    assert host.ids(Spawn)[-1] == 102
    host.settle()
    assert host.ready == (102,)


def test_remembered_reload_has_the_configuration_that_came_last():
    host = Host(count=2).begin()
    host.reload()
    host.reload(count=4)
    host.reload(count=3)
    host.settle()
    assert len(host.ready) == 3


def test_reload_does_not_wait_for_those_who_drain():
    host = Host(count=2).begin()
    for generation in (2, 3):
        host.reload()
        host.boot()
        host.boot()
        assert host.supervisor.generation == generation
    # Four workers drain now, twice as many as serve: enough.
    host.reload()
    assert host.supervisor.generation == host.generation == 3
    host.exit(100)
    assert host.generation == 3
    host.exit(101)
    assert host.generation == 4
    host.settle()
    assert host.supervisor.generation == 4


def test_reload_changes_the_number_of_workers():
    for count in (1, 5):
        host = Host(count=3).begin()
        host.reload(count=count)
        host.settle()
        assert len(host.ready) == len(host.processes) == count
        assert host.supervisor.target == count


def test_scaling_during_a_reload_counts_for_both_generations():
    host = Host(count=2).begin()
    host.reload()
    host.do(host.supervisor.scale(1, host.now))
    host.boot()
    assert len(host.ready) == 3
    host.do(host.supervisor.scale(-2, host.now))
    assert len(host.ready) == 1
    host.settle()
    assert len(host.ready) == 1
    assert host.supervisor.generation == 2


def test_surplus_candidates_go_when_the_target_shrinks_meanwhile():
    host = Host(count=3).begin()
    host.reload()
    host.boot(103)
    host.do(host.supervisor.scale(-1, host.now))
    assert 105 in host.ids(Quit)
    host.boot(104)
    assert host.ready == (103, 104)


def test_crash_of_the_old_generation_during_a_reload_is_repaired_meanwhile():
    host = Host(count=2).begin()
    host.reload()
    host.exit(100, 1)
    host.wait(0.2)
    host.boot(103)
    assert host.ready == (103, 101)
    assert host.processes[103].order.generation == 1
    host.boot(102)
    host.boot(104)
    assert host.ready == (102, 104)
    host.settle()
    assert sorted(host.processes) == [102, 104]


def test_switch_ends_what_boots_of_the_old_generation_and_its_back_off():
    host = Host(count=2).begin()
    crash_delays(host, 6)
    host.exit(101, 1)
    host.wait(0.2)
    old = [w for w, process in host.processes.items() if not process.ready]
    host.reload()
    canary = max(host.processes)
    host.boot(canary)
    host.boot(max(host.processes))
    assert old[0] in host.ids(Quit)
    begin = host.now
    host.exit(host.ready[0], 1)
    assert host.supervisor.next_deadline() == pytest.approx(begin + FIRST_BACK_OFF)


def test_reload_while_stopping_is_not_begun():
    host = Host().begin()
    host.do(host.supervisor.stop(host.now))
    assert host.reload() == []


def test_boot_timeout_of_the_new_generation_is_its_own():
    host = Host(count=1, boot_timeout=60).begin()
    host.reload(boot_timeout=2)
    host.wait(2)
    assert Kill(101, KillSignal.ABORT) in host.actions


# Reload on a host short of memory


def most_processes(host):
    """Let everything happen step by step, and return how many processes there were at most."""
    most = 0
    for _ in range(100):
        before = len(host.actions)
        for worker_id, process in list(host.processes.items()):
            if process.told:
                host.exit(worker_id)
            elif not process.ready:
                host.boot(worker_id)
            most = max(most, len(host.processes))
        if len(host.actions) == before:
            return most
    raise AssertionError("does not come to rest")


@pytest.mark.parametrize("surge", [1, 2])
def test_surge_limits_the_processes_during_a_reload(surge):
    host = Host(count=4, reload_surge=surge).begin()
    host.reload()
    assert most_processes(host) == 4 + surge
    assert [host.processes[w].order.generation for w in host.ready] == [2] * 4
    assert host.actions[-1] != ReloadEnded(2, "")
    assert host.actions.count(ReloadEnded(2, "")) == 1
    assert host.supervisor.reload_phase is ReloadPhase.IDLE


def test_rolling_reload_lets_the_canary_decide_and_never_leaves_a_slot_empty():
    host = Host(count=3, reload_surge=1).begin()
    host.reload()
    host.boot(103)
    assert host.ready == (103, 101, 102)
    assert host.supervisor.reload_phase is ReloadPhase.ROLL
    assert host.ids(Spawn) == [100, 101, 102, 103]
    host.obey()
    assert host.ids(Spawn)[-1] == 104
    host.boot(104)
    assert host.ready == (103, 104, 102)


def test_rolling_reload_whose_canary_fails_disturbs_nothing():
    host = Host(count=3, reload_surge=1).begin()
    host.reload()
    host.fail(103)
    host.settle()
    assert host.ready == (100, 101, 102)


def test_replacement_that_fails_during_a_rolling_reload_is_tried_again():
    host = Host(count=2, reload_surge=1).begin()
    host.reload()
    host.boot(102)
    host.obey()
    host.exit(103, 1)
    assert host.ready == (102, 101)
    assert host.wait(0.05) == []
    host.settle()
    assert [host.processes[w].order.generation for w in host.ready] == [2, 2]
    assert host.actions.count(ReloadEnded(2, "")) == 1


def test_reload_with_surge_waits_for_room():
    host = Host(count=2, reload_surge=1).begin()
    host.do(host.supervisor.recycle(100, "asked for", host.now))
    host.boot(102)
    host.reload()
    assert host.generation == 1
    host.exit(100)
    assert host.generation == 2


# Recycling


def test_recycled_worker_serves_until_its_replacement_is_ready():
    host = Host().begin()
    host.forget()
    host.do(host.supervisor.recycle(101, "an operator asked", host.now))
    assert host.actions == [
        Report(Level.INFO, "to be replaced: an operator asked", 101),
        Spawn(103, 1, 1, selftest=False),
    ]
    host.do(host.supervisor.recycle(101, "asked again", host.now))
    host.forget()
    host.boot(103)
    assert host.actions == [Switch(1, (100, 103, 102)), Drain(101, 30.0)]
    assert host.do(host.supervisor.recycle(101, "too late", host.now)) == []


def test_workers_are_recycled_one_at_a_time():
    host = Host(max_requests=100).begin()
    host.observe(requests=99)
    assert host.ids(Spawn) == [100, 101, 102]
    host.observe(requests=100)
    assert host.ids(Spawn)[3:] == [103]
    host.boot()
    assert host.ids(Spawn)[3:] == [103, 104]
    host.observe(requests=0)
    host.boot()
    host.boot()
    assert host.ready == (103, 104, 105)
    assert "to be replaced: 100 requests" in host.reports(Level.INFO)


def test_jitter_spreads_the_requests_after_which_workers_are_recycled():
    host = Host(count=2, max_requests=100, max_requests_jitter=50)
    host.chance = 0.999
    host.begin()
    host.observe(requests=149)
    assert len(host.spawned) == 2
    host.observe(requests=150)
    assert len(host.spawned) == 3


def test_worker_that_grows_beyond_its_memory_is_recycled_but_not_at_once():
    host = Host(count=1, max_worker_rss=100 << 20).begin()
    host.observe(rss=101 << 20)
    host.wait(59)
    host.observe(rss=101 << 20)
    assert host.spawned == [100]
    host.wait(1)
    host.observe(rss=100 << 20)
    assert host.spawned == [100]
    host.observe(rss=101 << 20)
    assert host.spawned == [100, 101]
    assert host.reports(Level.INFO) == ["to be replaced: 101 MiB of memory"]


@pytest.mark.parametrize(("chance", "lifetime"), [(0.0, 1000), (0.999, 900)])
def test_worker_is_recycled_at_the_end_of_its_lifetime(chance, lifetime):
    host = Host(count=1, max_worker_lifetime=1000)
    host.chance = chance
    host.begin()
    host.wait(lifetime - 1)
    host.observe()
    assert host.spawned == [100]
    host.wait(2)
    host.observe()
    assert host.spawned == [100, 101]
    assert host.reports(Level.INFO) == [f"to be replaced: {lifetime + 1} s of service"]


def test_replacement_that_fails_is_tried_again_and_the_old_one_stays():
    host = Host(count=1).begin()
    host.do(host.supervisor.recycle(100, "asked", host.now))
    for _ in range(4):
        host.fail(max(host.processes))
        assert host.ready == (100,)
        host.wait(HEALTHY_AFTER)
    host.boot(max(host.processes))
    assert host.ready == (max(host.processes),)


def test_worker_that_crashes_before_its_replacement_is_ready_leaves_it_the_slot():
    host = Host(count=2).begin()
    host.do(host.supervisor.recycle(100, "asked", host.now))
    host.exit(100, 1)
    assert host.ids(Spawn) == [100, 101, 102]
    host.boot(102)
    assert host.ready == (102, 101)
    host.settle()
    assert sorted(host.processes) == [101, 102]


def test_recycling_waits_for_a_reload_and_is_done_by_it():
    host = Host(count=2).begin()
    host.reload()
    host.do(host.supervisor.recycle(100, "asked", host.now))
    assert host.ids(Spawn) == [100, 101, 102]
    host.settle()
    assert host.spawned == [100, 101, 102, 103]


def test_reload_during_recycling_ends_the_replacement():
    host = Host(count=1).begin()
    host.do(host.supervisor.recycle(100, "asked", host.now))
    host.reload()
    host.boot(102)
    assert 101 in host.ids(Quit)
    assert host.ready == (102,)


# Counters


def counted(host):
    return {name: count for name, count in asdict(host.supervisor.statistics).items() if count}


def test_each_end_of_a_worker_is_counted_by_its_reason():
    host = Host(count=2, timeout=30, boot_timeout=5, graceful_timeout=1000).begin()
    assert counted(host) == {"spawned": 2}
    host.exit(100, 1)
    host.wait(0.1)
    host.exit(102, 1)  # before it was ready
    host.wait(0.2)
    host.fail(103)
    host.exit(103)
    host.wait(0.4)
    host.wait(5)  # 104 is not ready in time
    host.exit(104, -6)
    host.wait(1)
    host.boot()
    assert counted(host) == {"spawned": 6, "crashed": 1, "failed": 3}
    host.wait(31)
    host.observe(silent=[101])
    host.exit(101, -6)
    host.wait(0.1)
    host.boot()
    host.do(host.supervisor.recycle(105, "asked for", host.now))
    host.fail(host.spawned[-1])
    host.exit(host.spawned[-1])
    host.wait(2)
    host.boot()
    assert counted(host) == {"spawned": 9, "crashed": 1, "failed": 4, "hung": 1, "recycled": 1}


def test_workers_that_are_told_to_go_are_no_failures():
    host = Host(count=1).begin()
    host.reload()
    host.boot()
    host.obey()
    host.reload()
    host.fail(host.spawned[-1])
    host.settle()
    host.do(host.supervisor.stop(host.now))
    host.obey()
    assert counted(host) == {"spawned": 3, "failed": 1, "reloads": 1, "reloads_failed": 1}


# Hung workers


def test_worker_that_stands_still_is_aborted_then_killed_then_replaced():
    host = Host(timeout=30).begin()
    host.wait(29)
    host.observe(silent=[101])
    assert host.ids(Kill) == []
    host.wait(2)
    host.forget()
    host.observe(silent=[101])
    assert host.actions == [
        Report(Level.ERROR, "stands still for 31 s; aborted; the next one starts in 0.1 s", 101),
        Switch(1, (100, 102)),
        Kill(101, KillSignal.ABORT),
    ]
    host.wait(ABORT_GRACE)
    assert Kill(101, KillSignal.KILL) in host.actions
    assert host.ids(Spawn) == [103]
    host.exit(101, -9)
    assert host.reports(Level.INFO) == ["was killed by SIGKILL"]


def test_worker_that_said_it_drained_need_not_beat_any_more():
    host = Host(count=1, timeout=3, graceful_timeout=100).begin()
    host.drain_unasked(100)
    for _ in range(9):
        host.wait(1)
        host.observe(silent=[100])
    assert host.ids(Kill) == []


def test_timeout_of_nothing_lets_a_worker_stand_still():
    host = Host(timeout=0).begin()
    for _ in range(100):
        host.wait(1)
        host.observe(silent=[100, 101, 102])
    assert host.ids(Kill) == []


def test_worker_that_stands_still_while_it_drains_is_aborted_as_well():
    host = Host(count=1, graceful_timeout=1000, timeout=30).begin()
    host.reload()
    host.boot()
    for _ in range(31):
        host.wait(1)
        host.observe(silent=[100])
    assert Kill(100, KillSignal.ABORT) in host.actions
    assert host.reports(Level.WARNING) == ["stands still for 31 s; aborted"]


def test_candidate_that_stands_still_ends_its_reload():
    host = Host(count=2, timeout=30, boot_timeout=100).begin()
    host.reload()
    host.boot(102)
    for _ in range(31):
        host.wait(1)
        host.observe(silent=[102])
    assert [a.failure for a in host.actions if isinstance(a, ReloadEnded)] == [
        "worker[0] stands still for 31 s; aborted"
    ]


def test_time_in_which_the_master_stood_still_is_not_held_against_workers():
    host = Host(timeout=30).begin()
    host.observe()
    host.now += 3600  # suspended
    everybody = [100, 101, 102]
    host.observe(silent=everybody)
    for _ in range(29):
        host.wait(1)
        host.observe(silent=everybody)
    assert host.ids(Kill) == []
    host.wait(2)
    host.observe(silent=everybody)
    assert sorted(host.ids(Kill)) == everybody


def test_gap_of_a_few_seconds_is_no_suspension():
    host = Host(count=1, timeout=10).begin()
    host.observe()
    for _ in range(3):
        host.wait(AWAY_AFTER - 0.1)
        host.observe(silent=[100])
    assert host.ids(Kill) == [100]


def test_vitals_of_workers_that_boot_or_are_not_seen_are_not_needed():
    host = Host(count=2, timeout=1).begin()
    host.exit(100, 1)
    host.wait(0.5)
    host.observe(silent=[102])
    host.do(host.supervisor.observe({}, host.now + 3))
    assert host.ids(Kill) == []


def test_workers_are_not_observed_before_the_start():
    host = Host(count=2, timeout=1, boot_timeout=100)
    host.do(host.supervisor.start(host.now))
    host.boot(100)
    for _ in range(9):
        host.wait(1)
        host.observe(silent=[100])
    assert host.ids(Kill) == []


# Scaling


def test_one_more_and_one_less_worker():
    host = Host(count=2).begin()
    host.do(host.supervisor.scale(1, host.now))
    host.boot()
    assert host.ready == (100, 101, 102)
    host.forget()
    host.do(host.supervisor.scale(-2, host.now))
    assert host.ids(Drain) == [102, 101]
    assert host.ready == (100,)
    host.do(host.supervisor.scale(-5, host.now))
    assert host.supervisor.target == 1
    assert host.ready == (100,)


def test_slot_can_be_filled_again_while_its_last_worker_drains():
    host = Host(count=2).begin()
    host.do(host.supervisor.scale(-1, host.now))
    host.do(host.supervisor.scale(1, host.now))
    host.boot()
    assert host.ready == (100, 102)
    host.settle()
    assert sorted(host.processes) == [100, 102]


# Stop


def test_stop_drains_everybody_and_ends_with_zero():
    host = Host().begin()
    host.forget()
    host.do(host.supervisor.stop(host.now))
    assert host.actions == [
        StopListening(),
        Switch(1, ()),
        Drain(100, 30.0),
        Drain(101, 30.0),
        Drain(102, 30.0),
    ]
    host.obey()
    assert host.stopped == 0
    assert host.supervisor.stop(host.now) == []


def test_stop_kills_who_does_not_drain_in_time():
    host = Host(count=2, graceful_timeout=10).begin()
    host.do(host.supervisor.stop(host.now))
    host.exit(100)
    host.wait(10 + DRAIN_GRACE - 0.1)
    assert host.ids(Kill) == []
    host.wait(0.2)
    assert Kill(101, KillSignal.KILL) in host.actions
    assert host.reports(Level.WARNING) == ["has not drained in time; killed"]
    host.obey()
    assert host.stopped == 0


def test_worker_that_drained_but_does_not_exit_is_killed_at_the_same_time():
    host = Host(count=1, graceful_timeout=10).begin()
    host.do(host.supervisor.stop(host.now))
    host.do(host.supervisor.worker_drained(100, host.now))
    host.wait(10 + DRAIN_GRACE)
    assert Kill(100, KillSignal.KILL) in host.actions


@pytest.mark.parametrize("second", ["stop", "quit"])
def test_second_stop_ends_at_once(second):
    host = Host(count=2).begin()
    host.do(host.supervisor.stop(host.now))
    host.forget()
    host.do(getattr(host.supervisor, second)(host.now))
    assert host.actions == [Quit(100), Quit(101)]
    host.wait(QUIT_GRACE)
    assert host.ids(Kill) == [100, 101]
    host.obey()
    assert host.stopped == 0


def test_third_stop_does_not_ask():
    host = Host(count=1).begin()
    host.do(host.supervisor.quit(host.now))
    assert host.actions[-3:] == [StopListening(), Switch(1, ()), Quit(100)]
    host.do(host.supervisor.stop(host.now))
    assert host.actions[-1] == Kill(100, KillSignal.KILL)
    assert host.do(host.supervisor.quit(host.now)) == []
    host.obey()
    assert host.stopped == 0
    assert host.supervisor.quit(host.now) == []


def test_stop_during_a_reload_stops_both_generations():
    host = Host(count=2).begin()
    host.reload()
    host.reload()
    host.boot(102)
    host.do(host.supervisor.stop(host.now))
    assert sorted(host.ids(Drain)) == [100, 101, 102]
    assert host.ids(Quit) == [103]
    host.obey()
    assert host.stopped == 0


def test_stop_respawns_nobody():
    host = Host(count=2).begin()
    host.exit(100, 1)
    host.do(host.supervisor.stop(host.now))
    host.exit(101, 1)
    assert host.stopped == 0
    assert host.supervisor.next_deadline() is None
    assert "exited with status 1" in host.reports(Level.WARNING)


def test_process_that_survives_sigkill_does_not_hold_up_the_end():
    host = Host(count=2).begin()
    host.do(host.supervisor.quit(host.now))
    host.wait(QUIT_GRACE)
    host.exit(101, -9)
    host.wait(KILL_GRACE - 0.1)
    assert host.stopped is None
    del host.processes[100]  # as if it were none of ours any more
    host.wait(0.2)
    assert host.reports(Level.ERROR) == ["does not die of SIGKILL; left behind"]
    assert host.stopped == 0
    assert host.supervisor.worker_exited(100, -9, host.now) == []


def test_process_that_survives_sigkill_while_serving_is_reported_again_and_again():
    host = Host(count=1, timeout=1).begin()
    for _ in range(3):
        host.wait(1)
        host.observe(silent=[100])
    host.wait(ABORT_GRACE + 3 * KILL_GRACE)
    assert host.reports(Level.WARNING).count("does not die of SIGKILL") == 3
    host.exit(100, -9)
    assert host.stopped is None


# Everything at once


class SupervisorModel(RuleBasedStateMachine):
    """Random inputs; `Host` checks each action, and the dust has to settle at any time."""

    @initialize(
        count=st.integers(1, 3),
        surge=st.sampled_from([0, 0, 1, 2]),
        timeout=st.sampled_from([0, 3]),
        development=st.booleans(),
    )
    def begin(self, count, surge, timeout, development):
        self.host = Host(
            development=development,
            count=count,
            reload_surge=surge,
            timeout=timeout,
            boot_timeout=4,
            graceful_timeout=6,
            max_requests=10,
        )
        self.host.sigkill_works_at_once = True
        self.host.do(self.host.supervisor.start(self.host.now))

    def running(self):
        return bool(self.host.processes)

    def serving(self):
        return self.host.stopped is None

    def pick(self, data, *, where=lambda process: True):
        found = [w for w, process in sorted(self.host.processes.items()) if where(process)]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def becomes_ready(self, data):
        worker_id = self.pick(data, where=lambda process: not process.ready)
        if worker_id is not None:
            told = self.host.processes[worker_id].told
            self.host.processes[worker_id].ready = not told
            self.host.do(self.host.supervisor.worker_ready(worker_id, self.host.now))

    @rule(data=st.data(), stage=st.sampled_from(["import", "tls", "lifespan"]))
    @precondition(lambda self: self.running())
    def fails(self, data, stage):
        self.host.fail(self.pick(data), stage)

    @rule(data=st.data(), status=st.sampled_from([0, 1, -9, -11]))
    @precondition(lambda self: self.running())
    def exits(self, data, status):
        self.host.exit(self.pick(data), status)

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def is_never_born(self, data):
        """Told to quit while its mold still imports."""
        worker_id = self.pick(
            data, where=lambda p: not p.ready and [type(order) for order in p.told] == [Quit]
        )
        if worker_id is not None:
            self.host.withdraw(worker_id)

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def drains(self, data):
        worker_id = self.pick(data)
        self.host.drain_unasked(worker_id)

    @rule()
    @precondition(lambda self: self.running())
    def all_obey(self):
        self.host.obey()

    @rule()
    @precondition(lambda self: self.running())
    def all_boot(self):
        self.host.boot()

    @rule(count=st.integers(1, 2))
    @precondition(lambda self: self.serving())
    def cannot_start(self, count):
        self.host.spawn_failures = [True] * count

    @rule(seconds=st.sampled_from([0.05, 0.3, 1.1, 3.0, 12.0, 70.0]))
    @precondition(lambda self: self.serving())
    def time_passes(self, seconds):
        self.host.wait(seconds)

    @rule(data=st.data(), requests=st.sampled_from([0, 20]))
    @precondition(lambda self: self.running())
    def observes(self, data, requests):
        ids = sorted(self.host.processes)
        silent = data.draw(st.sets(st.sampled_from(ids)))
        self.host.observe(silent=silent, requests=requests)

    @rule(count=st.integers(1, 3), surge=st.sampled_from([0, 0, 1]))
    @precondition(lambda self: self.serving())
    def reloads(self, count, surge):
        self.host.reload(count=count, reload_surge=surge)

    @rule(change=st.sampled_from([-1, 1]))
    @precondition(lambda self: self.serving() and self.host.supervisor.target < 5)
    def scales(self, change):
        self.host.do(self.host.supervisor.scale(change, self.host.now))

    @rule(data=st.data())
    @precondition(lambda self: self.running())
    def recycles(self, data):
        worker_id = self.pick(data)
        self.host.do(self.host.supervisor.recycle(worker_id, "asked", self.host.now))

    @rule(end=st.sampled_from(["stop", "quit"]), really=st.integers(0, 9))
    @precondition(lambda self: self.serving())
    def stops(self, end, really):
        if really == 0:
            self.host.do(getattr(self.host.supervisor, end)(self.host.now))

    @rule()
    @precondition(lambda self: self.serving())
    def dust_settles(self):
        host = self.host
        host.spawn_failures = []
        host.settle()
        if host.stopped is not None or host.stopping:
            return
        if not host.processes and not any(isinstance(a, Started) for a in host.actions):
            host.reload()  # it waits for better code
            host.settle()
        orders = [host.processes[worker_id].order for worker_id in host.ready]
        assert [order.slot for order in orders] == list(range(host.supervisor.target))
        assert {order.generation for order in orders} == {host.supervisor.generation}
        assert sorted(host.processes) == sorted(host.ready)
        assert host.supervisor.reload_phase is ReloadPhase.IDLE
        assert host.supervisor.next_deadline() is None

    @rule()
    @precondition(lambda self: not self.serving())
    def the_end_is_the_end(self):
        host = self.host
        assert host.supervisor.next_deadline() is None
        for actions in (
            host.supervisor.tick(host.now + 100),
            host.supervisor.reload(host.policy, host.now),
            host.supervisor.scale(1, host.now),
            host.supervisor.observe({}, host.now),
            host.supervisor.stop(host.now),
            host.supervisor.quit(host.now),
        ):
            assert actions == []

    @invariant()
    def processes_are_bounded(self):
        serving = [process for process in self.host.processes.values() if not process.told]
        slots = [process.order.slot for process in serving]
        # Who serves, its replacement, a candidate, and one that failed but has not exited.
        assert all(slots.count(slot) <= 3 + len(self.host.lost) for slot in slots)

    @invariant()
    def somebody_is_ready_as_long_as_anybody_that_served_is_well(self):
        host = self.host
        if host.ready and not host.stopping:
            assert not set(host.ready) & host.lost

    def teardown(self):
        if not hasattr(self, "host") or self.host.stopped is not None:
            return
        host = self.host
        host.spawn_failures = []
        # Nobody does what it is told any more, but SIGKILL works.
        host.do(host.supervisor.stop(host.now))
        host.wait(60)
        assert host.stopped is not None
        assert not host.processes


TestSupervisorModel = pytest.mark.slow(SupervisorModel.TestCase)
TestSupervisorModel.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)


# Development


def developing(**policy):
    return Host(development=True, **{"count": 2, **policy})


def test_a_first_start_that_fails_waits_for_a_change_and_begins_anew():
    host = developing()
    host.do(host.supervisor.start(host.now))
    host.fail(100, "import", "it broke")
    assert host.reports(Level.ERROR) == ["failed (import): it broke; waiting for a change"]
    assert sorted(host.ids(Quit)) == [100, 101]
    host.obey()
    assert host.stopped is None
    assert host.supervisor.next_deadline() is None
    host.forget()
    host.reload(count=3)
    assert host.actions == [
        GenerationBegun(2),
        Spawn(102, 0, 2, selftest=True),
        Spawn(103, 1, 2, selftest=False),
        Spawn(104, 2, 2, selftest=False),
    ]
    host.boot()
    assert host.ready == (102, 103, 104)
    assert host.actions[-1] == Started(2)


def test_a_server_that_waits_for_a_change_can_be_stopped():
    host = developing()
    host.do(host.supervisor.start(host.now))
    host.exit(100, 1)
    host.obey()
    host.do(host.supervisor.stop(host.now))
    assert host.stopped == 0


def test_a_change_during_the_first_start_begins_it_anew_at_once():
    host = developing()
    host.do(host.supervisor.start(host.now))
    host.boot(101)
    host.forget()
    host.reload()
    assert [type(action) for action in host.actions[-3:]] == [GenerationBegun, Spawn, Spawn]
    assert sorted(host.ids(Quit)) == [100, 101]
    host.boot()
    assert len(host.ready) == 2


def test_a_reload_in_development_starts_all_workers_at_once():
    host = developing().begin()
    host.forget()
    host.reload()
    assert host.ids(Spawn) == [102, 103]
    host.boot()
    assert host.ready == (102, 103)
    assert ReloadEnded(2, "") in host.actions
    assert sorted(host.ids(Drain)) == [100, 101]


def test_a_change_during_a_reload_takes_its_place():
    """Also of one whose import hangs."""
    host = developing().begin()
    host.reload()
    host.boot(102)
    host.forget()
    host.reload()
    assert host.ids(Spawn) == [104, 105]
    assert sorted(host.ids(Quit) + host.ids(Drain)) == [102, 103]
    assert not [action for action in host.actions if isinstance(action, ReloadEnded)]
    host.boot()
    assert host.ready == (104, 105)


def test_code_that_is_broken_leaves_the_old_workers_until_it_works():
    host = developing().begin()
    host.reload()
    host.fail(102)
    assert host.ready == (100, 101)
    host.obey()
    host.reload()
    host.boot()
    assert host.ready == (104, 105)


# A takeover


def successor(host, **policy):
    """The same processes under another program's supervisor."""
    other = Host(**policy)
    other.now = host.now
    other.processes, other.generation = host.processes, 0
    other.spawned = list(host.spawned)
    other.chance = 0.5
    other.do(other.supervisor.resume(json.loads(json.dumps(host.supervisor.to_state())), host.now))
    return other


def test_another_program_goes_on_with_the_workers_as_they_are():
    host = Host(count=2, graceful_timeout=30.0).begin()
    host.do(host.supervisor.reload(host.policy, host.now))
    host.boot()
    host.boot()
    [old, _, new, _] = host.spawned
    assert host.supervisor.is_settled
    other = successor(host, count=2)
    assert other.ready == host.ready
    assert (other.supervisor.generation, other.supervisor.target) == (2, 2)
    assert counted(other) == counted(host) == {"spawned": 4, "reloads": 1}
    assert GenerationBegun(2) in other.actions
    # One that drains has the deadline that it had.
    assert other.supervisor.next_deadline() == host.supervisor.next_deadline()
    assert next(a for a in other.wait(40.0) if isinstance(a, Kill)).worker_id == old
    # One that dies is replaced, under a number that nobody had.
    other.exit(new, -9)
    other.wait(FIRST_BACK_OFF)
    assert other.spawned[-1] == max(host.spawned) + 1
    other.do(other.supervisor.reload(other.policy, other.now))
    assert other.generation == 3


def test_who_is_no_process_yet_is_not_passed_on():
    """In the state that the new program is shown; it takes over when all are born."""
    host = Host(count=2).begin()
    state = host.supervisor.to_state(without=[host.spawned[1]])
    assert [known["worker_id"] for known in state["roster"]["workers"]] == host.spawned[:1]


def test_a_start_a_stop_and_a_reload_are_finished_first():
    host = Host(count=2)
    assert not host.supervisor.is_settled
    host.begin()
    assert host.supervisor.is_settled
    host.do(host.supervisor.reload(host.policy, host.now))
    assert not host.supervisor.is_settled
    host.boot()
    host.boot()
    assert host.supervisor.reload_phase is ReloadPhase.DRAIN
    assert host.supervisor.is_settled
    host.do(host.supervisor.stop(host.now))
    assert not host.supervisor.is_settled
    assert host.supervisor.is_ending


# SIGWINCH


def test_workers_at_rest_come_back_with_a_reload_or_one_by_one():
    host = Host(count=2).begin()
    host.do(host.supervisor.rest(host.now))
    assert host.ready == ()
    host.obey()
    host.wait(60.0)
    assert not host.processes
    host.do(host.supervisor.scale(1, host.now))
    host.boot()
    assert len(host.ready) == 1
    host.do(host.supervisor.rest(host.now))
    host.obey()
    host.do(host.supervisor.reload(host.policy, host.now))
    host.boot()
    host.boot()
    assert len(host.ready) == 2


def test_who_rests_while_the_server_starts_is_not_heard():
    host = Host(count=2)
    host.do(host.supervisor.start(host.now))
    assert host.supervisor.rest(host.now) == []
    assert host.supervisor.target == 2
