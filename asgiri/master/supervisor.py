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

Stop. Everything drains; what is not gone by its deadline is killed. A second request ends at once
what the first let finish.
"""

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

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
from asgiri.master.slots import Incarnation, SlotInput, WorkerPolicy

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
    "Switch",
    "Vitals",
    "WorkerPolicy",
]

FIRST_BACK_OFF: Final = 0.1
LONGEST_BACK_OFF: Final = 10.0
HEALTHY_AFTER: Final = 60.0
"""Seconds of service after which a crash is no longer part of a crash loop."""
AWAY_AFTER: Final = 5.0
"""Seconds between two `observe` that say that this process itself stood still: a suspended machine,
a debugger. All beats are stale then, and none of it is the workers' fault."""

_EXIT_CODES: Final = {"config": 2, "tls": 1, "selftest": 1}
_APPLICATION_FAILED: Final = 3
_SIGNAL_NAMES: Final = {4: "SIGILL", 6: "SIGABRT", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV"} | {
    15: "SIGTERM"
}


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
    SERVING = "serving"
    STOPPING = "stopping"
    STOPPED = "stopped"


class _Role(enum.Enum):
    """What a worker is there for."""

    SERVING = "serving"
    CANDIDATE = "candidate"
    REPLACEMENT = "replacement"
    LEAVING = "leaving"


class _Worker(Incarnation):
    """An incarnation and its part in the plan."""

    __slots__ = ("role",)
    role: _Role


class _BackOff:
    """How long a slot stays empty after a crash."""

    __slots__ = ("_failures", "not_before")

    def __init__(self) -> None:
        self._failures = 0
        self.not_before = -math.inf

    def failed(self, *, healthy: bool, now: float) -> float:
        """Return how many seconds to wait."""
        if healthy:
            self._failures = 0
        delay: float = min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2.0**self._failures)
        # The exponent stops where the delay does: a float would overflow after a week of crashes.
        self._failures = min(self._failures + 1, 10)
        self.not_before = now + delay
        return delay


class Supervisor:
    """Feed it what happened, carry out what it returns, in that order."""

    def __init__(
        self, policy: WorkerPolicy, *, first_worker_id: int, random: Callable[[], float]
    ) -> None:
        self._policy = policy
        self._target = policy.count
        self._random = random
        self._next_worker_id = first_worker_id
        self._workers: dict[int, _Worker] = {}
        self._back_offs: dict[int, _BackOff] = {}
        self._phase = _Phase.STARTING
        self._generation = 0
        self._last_generation = 0
        self._selftested = 0
        self._reload = ReloadPhase.IDLE
        self._next_policy = policy
        self._next_target = policy.count
        self._remembered: WorkerPolicy | None = None
        self._published: tuple[int, ...] = ()
        self._exit_code = 0
        self._quitting = False
        self._now = -math.inf
        self._observed_at = math.inf
        self._awake_since = -math.inf
        self._actions: list[Action] = []

    @property
    def generation(self) -> int:
        """The generation that serves."""
        return self._generation

    @property
    def target(self) -> int:
        """How many workers should serve."""
        return self._target

    @property
    def reload_phase(self) -> ReloadPhase:
        """How far a reload is."""
        return self._reload

    def start(self, now: float) -> list[Action]:
        """Spawn the first generation."""
        self._generation = self._begin_generation()
        return self._settle(now)

    # What workers do

    def worker_spawn_failed(self, worker_id: int, reason: str, now: float) -> list[Action]:
        """The process could not be started; there is nothing to reap."""
        worker = self._workers.pop(worker_id)
        worker.ended()
        self._lose(worker, f"cannot be started: {reason}", now)
        return self._settle(now)

    def worker_ready(self, worker_id: int, now: float) -> list[Action]:
        """The worker sent Ready."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return []
        worker.reported(SlotInput.REPORTED_READY, now)
        if worker.role is _Role.REPLACEMENT and worker.is_ready:
            worker.role = _Role.SERVING
            self._release(
                [other for other in self._holders(worker.slot) if other is not worker], now
            )
        return self._settle(now)

    def worker_failed(self, worker_id: int, stage: str, summary: str, now: float) -> list[Action]:
        """The worker sent Failed; it exits by itself."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return []
        worker.reported(SlotInput.REPORTED_FAILED, now)
        self._lose(
            worker,
            f"failed ({stage}): {summary}",
            now,
            exit_code=_EXIT_CODES.get(stage, _APPLICATION_FAILED),
        )
        return self._settle(now)

    def worker_drained(self, worker_id: int, now: float) -> list[Action]:
        """The worker sent Drained; it exits by itself."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return []
        worker.reported(SlotInput.REPORTED_DRAINED, now)
        if worker.role is not _Role.LEAVING:
            self._lose(worker, "drained without being told to", now)
        return self._settle(now)

    def worker_exited(self, worker_id: int, status: int, now: float) -> list[Action]:
        """The process was reaped. `status` as in subprocess: negative for a signal."""
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            raise LocalProtocolError(f"worker_id {worker_id} exited, which is not known")
        expected = status == 0 or worker.was_killed or self._quitting
        unready = " before it was ready" if worker.is_booting else ""
        worker.ended()
        what = f"{_exit_text(status)}{unready}"
        if worker.role is _Role.LEAVING:
            self._report(Level.INFO if expected else Level.WARNING, what, worker)
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
        for worker in list(self._workers.values()):
            vital = vitals.get(worker.worker_id)
            if vital is None or not worker.is_running:
                continue
            silence = now - max(vital.beat, worker.ready_at, self._awake_since)
            if 0 < worker.policy.timeout < silence:
                self._abort(worker, f"stands still for {silence:.0f} s; aborted", now)
            elif worker.role is _Role.SERVING and not worker.recycle_reason:
                worker.recycle_reason = worker.find_recycle_reason(vital.requests, vital.rss, now)
        return self._settle(now)

    # What the operator wants

    def reload(self, policy: WorkerPolicy, now: float) -> list[Action]:
        """Begin a new generation, now or when the reload under way has ended."""
        if self._phase in (_Phase.STOPPING, _Phase.STOPPED):
            return []
        self._remembered = policy
        actions = self._settle(now)
        if self._remembered is not None:
            actions.append(Report(Level.INFO, "reload follows when what is under way has ended"))
        return actions

    def recycle(self, worker_id: int, reason: str, now: float) -> list[Action]:
        """Replace one worker; the replacement is ready before the old one drains."""
        worker = self._workers.get(worker_id)
        if worker is None or worker.role is not _Role.SERVING:
            return []
        worker.recycle_reason = worker.recycle_reason or reason
        return self._settle(now)

    def scale(self, change: int, now: float) -> list[Action]:
        """One worker more or less (SIGTTIN, SIGTTOU); never less than one. Lasts until a reload."""
        self._target = max(1, self._target + change)
        self._next_target = max(1, self._next_target + change)
        return self._settle(now)

    def stop(self, now: float) -> list[Action]:
        """Drain everything, then stop; at once when called again."""
        if self._phase in (_Phase.STOPPING, _Phase.STOPPED):
            return self.quit(now)
        self._begin_stopping()
        self._release(self._workers.values(), now)
        return self._settle(now)

    def quit(self, now: float) -> list[Action]:
        """Stop without finishing what is in flight; called again, without asking either."""
        if self._phase is _Phase.STOPPED:
            return []
        again, self._quitting = self._quitting, True
        self._begin_stopping()
        self._end_all(now, ask=not again)
        return self._settle(now)

    # Time

    def tick(self, now: float) -> list[Action]:
        """Carry on whatever waited for this moment."""
        for worker in [w for w in self._workers.values() if w.deadline <= now]:
            if worker.is_booting:
                text = f"not ready after {worker.policy.boot_timeout:g} s; aborted"
                self._abort(worker, text, now)
            else:
                self._overdue(worker, now)
        return self._settle(now)

    def next_deadline(self) -> float | None:
        """Return when `tick` is due, None when nothing waits."""
        deadlines = [w.deadline for w in self._workers.values() if w.deadline < math.inf]
        if self._phase is _Phase.SERVING:
            # One that has passed was acted upon, or waits for something else than time.
            deadlines += [
                b.not_before for b in self._back_offs.values() if b.not_before > self._now
            ]
        return min(deadlines, default=None)

    # The plan: called after every input, and done when nothing is left to decide

    def _settle(self, now: float) -> list[Action]:
        self._now = now
        self._publish()
        match self._phase:
            case _Phase.STARTING:
                self._settle_slots(now)
                self._settle_start()
            case _Phase.SERVING:
                self._settle_reload(now)
                self._settle_slots(now)
                self._settle_recycling(now)
            case _Phase.STOPPING if not self._workers:
                self._phase = _Phase.STOPPED
                self._actions.append(Stopped(self._exit_code))
        actions, self._actions = self._actions, []
        return actions

    def _settle_start(self) -> None:
        serving = self._with_role(_Role.SERVING)
        if all(worker.is_ready for worker in serving):
            self._phase = _Phase.SERVING
            self._publish()
            self._actions.append(Started(self._generation))

    def _settle_slots(self, now: float) -> None:
        """Fill what is empty, empty what is too much."""
        for slot in range(self._target):
            holders = self._holders(slot)
            if not any(worker.role is _Role.SERVING for worker in holders):
                if holders:
                    holders[0].role = _Role.SERVING
                elif now >= self._back_off(slot).not_before:
                    self._spawn(slot, self._generation, self._policy, _Role.SERVING, now)
        slots = {worker.slot for worker in self._workers.values()}
        for slot in sorted(slots - set(range(self._target)), reverse=True):
            self._release(self._holders(slot), now)

    def _settle_reload(self, now: float) -> None:
        candidates = self._with_role(_Role.CANDIDATE)
        if self._reload is ReloadPhase.CANARY and candidates[0].is_ready:
            self._reload = ReloadPhase.SPAWN
        if self._reload is ReloadPhase.SPAWN:
            self._settle_new_generation(candidates, now)
        if self._reload is ReloadPhase.ROLL and not self._outdated():
            self._end_reload("")
        if self._reload is ReloadPhase.DRAIN and not self._stragglers():
            self._reload = ReloadPhase.IDLE
        if self._remembered is not None and self._may_begin(self._remembered):
            self._next_policy, self._remembered = self._remembered, None
            self._next_target = self._next_policy.count
            self._reload = ReloadPhase.CANARY
            generation = self._begin_generation()
            self._spawn(0, generation, self._next_policy, _Role.CANDIDATE, now)

    def _settle_new_generation(self, candidates: list[_Worker], now: float) -> None:
        rolling = self._next_policy.reload_surge > 0
        if not rolling:
            slots = {worker.slot for worker in candidates}
            self._release([w for w in candidates if w.slot >= self._next_target], now)
            for slot in range(self._next_target):
                if slot not in slots:
                    generation = self._last_generation
                    self._spawn(slot, generation, self._next_policy, _Role.CANDIDATE, now)
            candidates = self._with_role(_Role.CANDIDATE)
            if not all(worker.is_ready for worker in candidates):
                return
        slots = {worker.slot for worker in candidates}
        leaving = [
            worker
            for worker in self._workers.values()
            if worker.role is _Role.REPLACEMENT
            or (worker.role is _Role.SERVING and (not rolling or worker.slot in slots))
        ]
        self._generation = self._last_generation
        self._policy = self._next_policy
        self._target = self._next_target
        self._back_offs.clear()
        for worker in candidates:
            worker.role = _Role.SERVING
        self._reload = ReloadPhase.ROLL
        self._release(leaving, now)

    def _settle_recycling(self, now: float) -> None:
        """Begin to replace workers that are due, as many at a time as the host stands."""
        if self._reload in (ReloadPhase.CANARY, ReloadPhase.SPAWN):
            return
        for worker in self._due():
            surge = self._policy.reload_surge
            if surge and len(self._workers) - self._target >= surge:
                return
            if not surge and self._with_role(_Role.REPLACEMENT):
                return
            if (
                len(self._holders(worker.slot)) == 1
                and now >= self._back_off(worker.slot).not_before
            ):
                if worker.recycle_reason:
                    self._report(Level.INFO, f"to be replaced: {worker.recycle_reason}", worker)
                self._spawn(worker.slot, self._generation, self._policy, _Role.REPLACEMENT, now)

    def _may_begin(self, policy: WorkerPolicy) -> bool:
        if self._reload not in (ReloadPhase.IDLE, ReloadPhase.DRAIN):
            return False
        if policy.reload_surge:
            return len(self._workers) - self._target < policy.reload_surge
        # A stream may go on for hours; new code need not wait for it, unless old workers pile up.
        return len(self._with_role(_Role.LEAVING)) <= self._target

    # Questions

    def _with_role(self, role: _Role) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.role is role]

    def _holders(self, slot: int) -> list[_Worker]:
        """Return who serves in a slot, and who is about to take it over."""
        held_by = (_Role.SERVING, _Role.REPLACEMENT)
        return [w for w in self._workers.values() if w.slot == slot and w.role in held_by]

    def _outdated(self) -> list[_Worker]:
        return [w for w in self._with_role(_Role.SERVING) if w.generation != self._generation]

    def _stragglers(self) -> list[_Worker]:
        return [w for w in self._with_role(_Role.LEAVING) if w.generation < self._generation]

    def _due(self) -> list[_Worker]:
        return [
            worker
            for worker in sorted(self._with_role(_Role.SERVING), key=lambda worker: worker.slot)
            if worker.is_ready and (worker.recycle_reason or worker.generation != self._generation)
        ]

    def _back_off(self, slot: int) -> _BackOff:
        return self._back_offs.setdefault(slot, _BackOff())

    # Steps

    def _report(self, level: Level, text: str, worker: _Worker) -> None:
        self._actions.append(Report(level, text, worker.worker_id))

    def _publish(self) -> None:
        """Say who is ready, when that has changed. Before anybody among them is told to drain."""
        if self._phase is _Phase.STARTING:
            return
        serving = sorted(self._with_role(_Role.SERVING), key=lambda worker: worker.slot)
        ready = tuple(worker.worker_id for worker in serving if worker.is_ready)
        if ready != self._published:
            self._published = ready
            self._actions.append(Switch(self._generation, ready))

    def _begin_generation(self) -> int:
        self._last_generation += 1
        self._actions.append(GenerationBegun(self._last_generation))
        return self._last_generation

    def _spawn(
        self, slot: int, generation: int, policy: WorkerPolicy, role: _Role, now: float
    ) -> None:
        order = Spawn(self._next_worker_id, slot, generation, self._selftested != generation)
        self._selftested = generation
        self._next_worker_id = (self._next_worker_id + 1) % (1 << 32)
        worker = _Worker(order, policy, now, self._random)
        worker.role = role
        self._workers[worker.worker_id] = worker
        self._actions.append(order)

    def _release(self, workers: Iterable[_Worker], now: float) -> None:
        """Let workers finish what they have, then go."""
        leaving = list(workers)
        for worker in leaving:
            worker.role = _Role.LEAVING
        self._publish()
        for worker in leaving:
            self._actions += worker.release(now)

    def _abort(self, worker: _Worker, text: str, now: float) -> None:
        """End a worker that does not answer, and have it say where it stands."""
        kill = worker.abort(now)
        self._lose(worker, text, now)
        self._publish()
        self._actions += kill

    def _overdue(self, worker: _Worker, now: float) -> None:
        """Kill a worker that had its time."""
        if worker.is_unkillable and self._phase is _Phase.STOPPING:
            self._report(Level.ERROR, "does not die of SIGKILL; left behind", worker)
            del self._workers[worker.worker_id]
            return
        self._report(Level.WARNING, worker.overdue_text, worker)
        self._actions += worker.kill(now)

    def _lose(
        self, worker: _Worker, what: str, now: float, *, exit_code: int = _APPLICATION_FAILED
    ) -> None:
        """Give up a worker that ends, or has to be ended, without having been told to go."""
        role, worker.role = worker.role, _Role.LEAVING
        if role is _Role.LEAVING:
            self._report(Level.WARNING, what, worker)
        elif self._phase is _Phase.STARTING:
            self._report(Level.ERROR, f"{what}; the server does not start", worker)
            self._exit_code = exit_code
            self._begin_stopping()
            self._end_all(now, ask=True)
        elif role is _Role.CANDIDATE:
            self._report(Level.ERROR, what, worker)
            self._release(self._with_role(_Role.CANDIDATE), now)
            self._end_reload(f"worker[{worker.slot}] {what}")
        else:
            healthy = worker.has_served(HEALTHY_AFTER, now)
            delay = self._back_off(worker.slot).failed(healthy=healthy, now=now)
            self._report(Level.ERROR, f"{what}; the next one starts in {delay:g} s", worker)

    def _end_reload(self, failure: str) -> None:
        self._actions.append(ReloadEnded(self._last_generation, failure))
        self._reload = ReloadPhase.DRAIN

    def _begin_stopping(self) -> None:
        if self._phase is _Phase.SERVING:
            # Before Switch: what is in the backlogs still goes to workers.
            self._actions.append(StopListening())
        self._phase = _Phase.STOPPING
        self._reload = ReloadPhase.IDLE
        self._remembered = None

    def _end_all(self, now: float, *, ask: bool) -> None:
        for worker in self._workers.values():
            worker.role = _Role.LEAVING
        self._publish()
        for worker in self._workers.values():
            self._actions += worker.quit(now) if ask else worker.kill(now)


def _exit_text(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    return f"was killed by {_SIGNAL_NAMES.get(-status, f'signal {-status}')}"
