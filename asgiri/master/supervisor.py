"""Which workers should exist: start, exits, reload, recycling, stop. Sans-IO.

Called by the master's `fleet` and `runtime` only. Each input returns the actions to carry out, in
their order, before the next input; `next_deadline` says when `tick` is due.

Every living worker has a role:

    SERVING      holds its slot: one per slot 0..target-1, or none while back-off lasts
    CANDIDATE    of a new generation that does not serve yet
    REPLACEMENT  takes over its slot, and the role of who is there, once it is ready
    LEAVING      was told to go, or failed: whatever it does now, only its end matters

Only SERVING workers that are ready are in `Switch`, and a worker leaves `Switch` before it is told
to drain. A role never changes back from LEAVING.

Start. All slots are filled; when all are ready the server has started. The first worker that fails
before that ends the server: nobody waits for a broken deployment.

Exits. A worker that ends unasked is respawned in its slot, after 0.1 s, then twice as long each
time up to 10 s, until one has served for a minute. After the start no failure ends the master.

Reload: IDLE -> CANARY -> SPAWN -> (switch) -> DRAIN -> IDLE. One worker of the new generation has
to become ready, then all of them; then new connections go to them, in one step, and the old ones
drain. Until that step any failure of the new generation discards it, and nothing was disturbed. On
a host short of memory (`reload_surge`) the canary decides alone: SPAWN -> ROLL, in which slot after
slot is replaced, with so many processes too many at a time. A reload asked for while one is under
way follows it; it does not wait for stragglers to drain, unless there are as many as workers.

Recycling. A worker that is due keeps serving until its replacement is ready.

Development (--reload). Somebody waits for the new code, and changes it until it works: a first
generation that fails does not end the server, which waits for a reload then. There is no canary,
and a reload takes the place of one that has not switched yet.

Stop. Everything drains; what is not gone by its deadline is killed. A second request ends at once
what the first let finish.
"""

import enum
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, NamedTuple

from asgiri.errors import LocalProtocolError
from asgiri.master.actions import (
    Action,
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
from asgiri.master.roster import Role, Roster, Worker
from asgiri.master.slots import SlotInput, WorkerPolicy, exit_text
from asgiri.master.tally import SupervisorStatistics

__all__ = [
    "Action",
    "Drain",
    "GenerationBegun",
    "Kill",
    "KillSignal",
    "Level",
    "Quit",
    "ReloadEnded",
    "ReloadPhase",
    "Report",
    "Spawn",
    "Started",
    "StopListening",
    "Stopped",
    "Supervisor",
    "SupervisorStatistics",
    "Switch",
    "Vitals",
    "WorkerPolicy",
]

AWAY_AFTER: Final = 5.0
"""Seconds between two `observe` that say that this process itself stood still: a suspended machine,
a debugger. All beats are stale then, and none of it is the workers' fault."""

_EXIT_CODES: Final = {"config": 2, "tls": 1, "selftest": 1}
_APPLICATION_FAILED: Final = 3
_CANNOT_RUN: Final = 1


class Vitals(NamedTuple):
    """What one worker's scoreboard says, read by the fleet."""

    beat: float
    """Seconds on the clock of `now`; 0 before the first beat."""
    requests: int
    rss: int


class ReloadPhase(enum.Enum):
    """How far a reload is."""

    IDLE = "idle"
    CANARY = "canary"
    SPAWN = "spawn"
    ROLL = "roll"
    DRAIN = "drain"


class _Phase(enum.Enum):
    """How far the server is."""

    STARTING = "starting"
    WAITING = "waiting"
    """The start has failed, and may be tried again: in development."""
    SERVING = "serving"
    STOPPING = "stopping"
    STOPPED = "stopped"


_ENDED: Final = (_Phase.STOPPING, _Phase.STOPPED)


class Supervisor:
    """Feed it what happened, carry out what it returns, in that order."""

    def __init__(
        self,
        policy: WorkerPolicy,
        *,
        first_worker_id: int,
        random: Callable[[], float],
        development: bool = False,
    ) -> None:
        self._roster = Roster(first_worker_id=first_worker_id, random=random)
        self._development = development
        self._policy = policy
        self._target = policy.count
        self._phase = _Phase.STARTING
        self._generation = 0
        self._last_generation = 0
        self._reload = ReloadPhase.IDLE
        self._next_policy = policy
        self._next_target = policy.count
        self._remembered: WorkerPolicy | None = None
        self._exit_code = 0
        self._quitting = False
        self._left_behind: set[int] = set()
        self.statistics: Final = SupervisorStatistics()
        self._now = -math.inf
        self._observed_at = math.inf
        self._awake_since = -math.inf

    @property
    def generation(self) -> int:
        """The generation that serves."""
        return self._generation

    @property
    def next_generation(self) -> int:
        """The newest generation that was asked for, begun or not."""
        return self._last_generation + (self._remembered is not None)

    @property
    def target(self) -> int:
        """How many workers should serve."""
        return self._target

    @property
    def reload_phase(self) -> ReloadPhase:
        """How far a reload is."""
        return self._reload

    def start(self, now: float, *, patient: bool = False) -> list[Action]:
        """Spawn the first generation. `patient`: if it fails it is tried again like a later one."""
        self._generation = self._begin_generation()
        if patient:
            self._phase = _Phase.SERVING
            self._roster.serving_generation = self._generation
        return self._settle(now)

    # A takeover

    @property
    def is_settled(self) -> bool:
        """True while nothing is under way that another master could not go on with: no start, no
        stop, no reload before its switch.
        """
        settled = (ReloadPhase.IDLE, ReloadPhase.DRAIN)
        return self._phase is _Phase.SERVING and self._reload in settled and not self._remembered

    @property
    def is_ending(self) -> bool:
        """True once the server stops."""
        return self._phase in _ENDED

    @property
    def is_stopped(self) -> bool:
        """True once no worker is left of a server that was to stop."""
        return self._phase is _Phase.STOPPED

    def to_state(self, without: Collection[int] = ()) -> dict[str, Any]:
        """Return what `resume` reads; when settled. `without` these, which are no process yet."""
        return {
            "generation": self._generation,
            "last_generation": self._last_generation,
            "target": self._target,
            "roster": self._roster.to_state(without),
            "statistics": self.statistics.to_state(),
        }

    def resume(self, state: Mapping[str, Any], now: float) -> list[Action]:
        """Go on with the workers of an earlier master, instead of `start`."""
        self._phase = _Phase.SERVING
        self._generation = int(state["generation"])
        self._last_generation = int(state["last_generation"])
        self._target = self._next_target = int(state["target"])
        self.statistics.restore(state.get("statistics", {}))
        self._reload = ReloadPhase.DRAIN
        self._roster.serving_generation = self._generation
        self._roster.restore(state["roster"], self._policy, now)
        # One that crashes before the reload is replaced within its generation.
        self._roster.act(GenerationBegun(self._generation))
        return self._settle(now)

    # What workers do

    def worker_spawn_failed(self, worker_id: int, reason: str, now: float) -> list[Action]:
        """The process could not be started; there is nothing to reap."""
        worker = self._known(worker_id)
        self._roster.remove(worker)
        self._lose(worker, f"cannot be started: {reason}", now, exit_code=_CANNOT_RUN)
        return self._settle(now)

    def worker_withdrawn(self, worker_id: int, now: float) -> list[Action]:
        """It was told to quit before it was a process, and never will be one."""
        self._roster.remove(self._known(worker_id))
        return self._settle(now)

    def worker_ready(self, worker_id: int, now: float) -> list[Action]:
        """The worker sent Ready."""
        worker = self._roster.get(worker_id)
        if worker is None:
            return []
        worker.reported(SlotInput.REPORTED_READY, now)
        if worker.role is Role.REPLACEMENT:
            replaced = [other for other in self._roster.holders(worker.slot) if other is not worker]
            self.statistics.recycled += sum(bool(other.recycle_reason) for other in replaced)
            worker.role = Role.SERVING
            self._roster.release(replaced, now)
        return self._settle(now)

    def worker_failed(self, worker_id: int, stage: str, summary: str, now: float) -> list[Action]:
        """The worker sent Failed; it exits by itself."""
        worker = self._roster.get(worker_id)
        if worker is None:
            return []
        worker.reported(SlotInput.REPORTED_FAILED, now)
        exit_code = _EXIT_CODES.get(stage, _APPLICATION_FAILED)
        self._lose(worker, f"failed ({stage}): {summary}", now, exit_code=exit_code)
        return self._settle(now)

    def worker_drained(self, worker_id: int, now: float) -> list[Action]:
        """The worker sent Drained; it exits by itself."""
        worker = self._roster.get(worker_id)
        if worker is None:
            return []
        worker.reported(SlotInput.REPORTED_DRAINED, now)
        if worker.role is not Role.LEAVING:
            self._lose(worker, "drained without being told to", now)
        return self._settle(now)

    def worker_exited(self, worker_id: int, status: int, now: float) -> list[Action]:
        """The process was reaped. `status` as in subprocess: negative for a signal."""
        if worker_id in self._left_behind:
            return []
        worker = self._known(worker_id)
        expected = status == 0 or worker.was_killed or self._quitting
        unready = " before it was ready" if worker.is_booting else ""
        what = f"{exit_text(status)}{unready}"
        self._roster.remove(worker)
        if worker.role is Role.LEAVING:
            self._roster.report(Level.INFO if expected else Level.WARNING, what, worker)
        else:
            self._lose(worker, what, now)
        return self._settle(now)

    def observe(self, vitals: Mapping[int, Vitals], now: float) -> list[Action]:
        """Find hung workers and those due for recycling. Call it about once a second."""
        if now - self._observed_at > AWAY_AFTER:
            self._awake_since = now
        self._observed_at = now
        if self._phase is not _Phase.SERVING:
            return []
        for worker in self._roster.all():
            vital = vitals.get(worker.worker_id)
            if vital is None or not worker.is_running:
                continue
            silence = now - max(vital.beat, worker.ready_at, self._awake_since)
            if 0 < worker.policy.timeout < silence:
                self._abort(worker, f"stands still for {silence:.0f} s; aborted", now)
            elif worker.role is Role.SERVING and not worker.recycle_reason:
                worker.recycle_reason = worker.find_recycle_reason(vital.requests, vital.rss, now)
        return self._settle(now)

    # What the operator wants

    def reload(self, policy: WorkerPolicy, now: float) -> list[Action]:
        """Begin a new generation, now or when the reload under way has ended."""
        if self._phase in _ENDED:
            return []
        self._remembered = policy
        if self._development:
            self._supersede(now)
        actions = self._settle(now)
        if self._remembered is not None:
            actions.append(Report(Level.INFO, "reload follows when what is under way has ended"))
        return actions

    def recycle(self, worker_id: int, reason: str, now: float) -> list[Action]:
        """Replace one worker; the replacement is ready before the old one drains."""
        worker = self._roster.get(worker_id)
        if worker is None or worker.role is not Role.SERVING:
            return []
        worker.recycle_reason = worker.recycle_reason or reason
        return self._settle(now)

    def scale(self, change: int, now: float) -> list[Action]:
        """One worker more or less (SIGTTIN, SIGTTOU); never less than one. Lasts until a reload."""
        self._target = max(1, self._target + change)
        self._next_target = max(1, self._next_target + change)
        return self._settle(now)

    def rest(self, now: float) -> list[Action]:
        """Let all workers go, and stay (SIGWINCH): a reload or SIGTTIN begins with new ones."""
        if self._phase is not _Phase.SERVING:
            return []
        self._target = 0
        return self._settle(now)

    def stop(self, now: float) -> list[Action]:
        """Drain everything, then stop; at once when called again."""
        if self._phase in _ENDED:
            return self.quit(now)
        self._begin_stopping()
        self._roster.release(self._roster.all(), now)
        return self._settle(now)

    def quit(self, now: float) -> list[Action]:
        """Stop without finishing what is in flight; called again, without asking either."""
        if self._phase is _Phase.STOPPED:
            return []
        again, self._quitting = self._quitting, True
        self._begin_stopping()
        self._roster.end_all(now, ask=not again)
        return self._settle(now)

    # Time

    def tick(self, now: float) -> list[Action]:
        """Carry on whatever waited for this moment."""
        for worker in self._roster.all():
            # Looked at one by one: what is done about one may end the others.
            if worker.deadline > now:
                continue
            if worker.is_booting:
                text = f"not ready after {worker.policy.boot_timeout:g} s; aborted"
                self._abort(worker, text, now)
            else:
                self._overdue(worker, now)
        return self._settle(now)

    def next_deadline(self) -> float | None:
        """Return when `tick` is due, None when nothing waits."""
        deadlines = self._roster.deadlines()
        if self._phase is _Phase.SERVING:
            # One that has passed was acted upon, or waits for something else than time.
            deadlines += self._roster.back_offs_after(self._now)
        return min(deadlines, default=None)

    # The plan: looked at after every input, until nothing is left to decide

    def _settle(self, now: float) -> list[Action]:
        self._now = now
        self._roster.publish()
        if self._phase is _Phase.WAITING and self._remembered is not None:
            self._start_anew(self._remembered)
        if self._phase is _Phase.STARTING:
            self._settle_slots(now)
            self._settle_start()
        if self._phase is _Phase.SERVING:
            self._settle_reload(now)
            self._settle_slots(now)
            self._settle_recycling(now)
        if self._phase is _Phase.STOPPING and not len(self._roster):
            self._phase = _Phase.STOPPED
            self._roster.act(Stopped(self._exit_code))
        return self._roster.take_actions()

    def _settle_start(self) -> None:
        if all(worker.is_ready for worker in self._roster.with_role(Role.SERVING)):
            self._phase = _Phase.SERVING
            self._roster.serving_generation = self._generation
            self._roster.publish()
            self._roster.act(Started(self._generation))

    def _settle_slots(self, now: float) -> None:
        """Fill what is empty, empty what is too much."""
        for slot in range(self._target):
            # A replacement holds it as well, if who was to be replaced is gone before its time.
            if not self._roster.holders(slot) and self._roster.may_spawn(slot, now):
                self._spawn(slot, Role.SERVING, now)
        for slot in sorted(self._roster.slots(), reverse=True):
            if slot >= self._target:
                self._roster.release(self._roster.holders(slot), now)

    def _settle_reload(self, now: float) -> None:
        if self._reload is ReloadPhase.CANARY and self._candidates_ready():
            self._reload = ReloadPhase.SPAWN
        if self._reload is ReloadPhase.SPAWN:
            rolling = self._next_policy.reload_surge > 0
            if not rolling:
                self._settle_candidates(now)
            if self._candidates_ready():
                self._switch(now, everybody=not rolling)
        if self._reload is ReloadPhase.ROLL and not self._outdated(Role.SERVING):
            self._end_reload("")
        if self._reload is ReloadPhase.DRAIN and not self._outdated(Role.LEAVING):
            self._reload = ReloadPhase.IDLE
        if self._remembered is not None and self._may_begin(self._remembered):
            self._next_policy, self._remembered = self._remembered, None
            self._next_target = self._next_policy.count
            self._begin_generation()
            if self._development:
                self._reload = ReloadPhase.SPAWN
                self._settle_candidates(now)
            else:
                self._reload = ReloadPhase.CANARY
                self._spawn(0, Role.CANDIDATE, now)

    def _settle_candidates(self, now: float) -> None:
        """One in each slot that the new generation will have."""
        candidates = self._roster.with_role(Role.CANDIDATE)
        slots = {worker.slot for worker in candidates}
        self._roster.release([w for w in candidates if w.slot >= self._next_target], now)
        for slot in range(self._next_target):
            if slot not in slots:
                self._spawn(slot, Role.CANDIDATE, now)

    def _settle_recycling(self, now: float) -> None:
        """Begin to replace workers that are due, as many at a time as the host stands."""
        if self._reload in (ReloadPhase.CANARY, ReloadPhase.SPAWN):
            return  # those of the new generation are replacements enough
        for worker in self._due(now):
            surge = self._policy.reload_surge
            if surge and len(self._roster) - self._target >= surge:
                return
            if not surge and self._roster.with_role(Role.REPLACEMENT):
                return
            if worker.recycle_reason:
                text = f"to be replaced: {worker.recycle_reason}"
                self._roster.report(Level.INFO, text, worker)
            self._spawn(worker.slot, Role.REPLACEMENT, now)

    # Questions

    def _known(self, worker_id: int) -> Worker:
        worker = self._roster.get(worker_id)
        if worker is None:
            raise LocalProtocolError(f"worker_id {worker_id} ended, which is not known")
        return worker

    def _candidates_ready(self) -> bool:
        return all(worker.is_ready for worker in self._roster.with_role(Role.CANDIDATE))

    def _outdated(self, role: Role) -> list[Worker]:
        return [w for w in self._roster.with_role(role) if w.generation < self._generation]

    def _due(self, now: float) -> list[Worker]:
        """Return who should be replaced and is not being replaced yet."""
        return [
            worker
            for worker in self._roster.with_role(Role.SERVING)
            if worker.is_ready
            and (worker.recycle_reason or worker.generation < self._generation)
            and len(self._roster.holders(worker.slot)) == 1
            and self._roster.may_spawn(worker.slot, now)
        ]

    def _may_begin(self, policy: WorkerPolicy) -> bool:
        if self._reload not in (ReloadPhase.IDLE, ReloadPhase.DRAIN):
            return False
        if policy.reload_surge:
            return len(self._roster) - self._target < policy.reload_surge
        # A stream may go on for hours; new code need not wait for it, unless old workers pile up.
        most = max(self._target, policy.count)
        return len(self._roster.with_role(Role.LEAVING)) <= most

    # Steps

    def _begin_generation(self) -> int:
        self._last_generation += 1
        self._roster.act(GenerationBegun(self._last_generation))
        return self._last_generation

    def _start_anew(self, policy: WorkerPolicy) -> None:
        self._policy = self._next_policy = policy
        self._target = self._next_target = policy.count
        self._remembered = None
        self._generation = self._begin_generation()
        self._phase = _Phase.STARTING

    def _supersede(self, now: float) -> None:
        """Give up what does not serve yet: there is newer code."""
        if self._phase is _Phase.STARTING:
            self._phase = _Phase.WAITING
            self._roster.end_all(now, ask=True)
        elif self._reload in (ReloadPhase.CANARY, ReloadPhase.SPAWN):
            self._reload = ReloadPhase.DRAIN
            self._roster.release(self._roster.with_role(Role.CANDIDATE), now)

    def _spawn(self, slot: int, role: Role, now: float) -> None:
        new = role is Role.CANDIDATE
        generation = self._last_generation if new else self._generation
        policy = self._next_policy if new else self._policy
        self._roster.spawn(slot, generation, role, policy=policy, now=now)
        self.statistics.spawned += 1

    def _switch(self, now: float, *, everybody: bool) -> None:
        """Let the new generation serve, and the old one drain: all of it, or the canary's slot."""
        candidates = self._roster.with_role(Role.CANDIDATE)
        slots = {worker.slot for worker in candidates}
        serving = self._roster.with_role(Role.SERVING)
        leaving = [worker for worker in serving if everybody or worker.slot in slots]
        leaving += self._roster.with_role(Role.REPLACEMENT)
        self._generation = self._roster.serving_generation = self._last_generation
        self._policy, self._target = self._next_policy, self._next_target
        self._reload = ReloadPhase.ROLL
        self._roster.forget_back_offs()
        for worker in candidates:
            worker.role = Role.SERVING
        self._roster.release(leaving, now)

    def _end_reload(self, failure: str) -> None:
        if failure:
            self.statistics.reloads_failed += 1
        else:
            self.statistics.reloads += 1
        self._roster.act(ReloadEnded(self._last_generation, failure))
        self._reload = ReloadPhase.DRAIN

    def _begin_stopping(self) -> None:
        if self._phase is _Phase.SERVING:
            # Before Switch: what is in the backlogs still goes to workers.
            self._roster.act(StopListening())
        self._phase = _Phase.STOPPING
        self._reload = ReloadPhase.IDLE
        self._remembered = None

    def _abort(self, worker: Worker, text: str, now: float) -> None:
        """End a worker that does not answer, and have it say where it stands."""
        kill = worker.abort(now)
        self._lose(worker, text, now, aborted=True)
        self._roster.publish()
        for action in kill:
            self._roster.act(action)

    def _overdue(self, worker: Worker, now: float) -> None:
        """Kill a worker that had its time."""
        if worker.is_unkillable and self._phase is _Phase.STOPPING:
            self._roster.report(Level.ERROR, "does not die of SIGKILL; left behind", worker)
            self._left_behind.add(worker.worker_id)
            self._roster.remove(worker)
            return
        self._roster.report(Level.WARNING, worker.overdue_text, worker)
        for action in worker.kill(now):
            self._roster.act(action)

    def _lose(
        self,
        worker: Worker,
        what: str,
        now: float,
        *,
        exit_code: int = _APPLICATION_FAILED,
        aborted: bool = False,
    ) -> None:
        """Give up a worker that ends, or has to be ended, without having been told to go."""
        role, worker.role = worker.role, Role.LEAVING
        self.statistics.lost(
            was_ready=worker.was_ready, expected=role is Role.LEAVING, aborted=aborted
        )
        if role is Role.LEAVING:
            self._roster.report(Level.WARNING, what, worker)
        elif self._phase is _Phase.STARTING and self._development:
            self._roster.report(Level.ERROR, f"{what}; waiting for a change", worker)
            self._phase = _Phase.WAITING
            self._roster.end_all(now, ask=True)
        elif self._phase is _Phase.STARTING:
            self._roster.report(Level.ERROR, f"{what}; the server does not start", worker)
            self._exit_code = exit_code
            self._begin_stopping()
            self._roster.end_all(now, ask=True)
        elif role is Role.CANDIDATE:
            self._roster.report(Level.ERROR, what, worker)
            self._roster.release(self._roster.with_role(Role.CANDIDATE), now)
            self._end_reload(f"worker[{worker.slot}] {what}")
        else:
            delay = self._roster.back_off(worker.slot).failed(worker, now)
            text = f"{what}; the next one starts in {delay:g} s"
            self._roster.report(Level.ERROR, text, worker)
