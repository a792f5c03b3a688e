"""The workers that exist: carry out what the supervisor decides, tell it what became of them.

All that concerns one worker meets here: its process, its messages, its place in dispatcher and
steering, its undelivered connections. Whatever concerns the server as a whole goes to the runtime.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from asgiri.config import Config
from asgiri.errors import ChannelClosedError, FdsLostError, StartError
from asgiri.ipc import messages
from asgiri.ipc.scoreboard import AssignmentCell, Cell, WorkerState
from asgiri.master import actions
from asgiri.master.acceptor import Acceptor
from asgiri.master.actions import Action
from asgiri.master.balance import BalanceMode, BalanceSwitch, Shedding
from asgiri.master.dispatcher import OBSERVE_INTERVAL, BalancePolicy, Dispatcher
from asgiri.master.foundry import Foundry
from asgiri.master.loop import EventLoop, Timer
from asgiri.master.processes import WorkerHandle, WorkerIdentity, WorkerOrder, exit_text, spawn
from asgiri.master.steering import Steering
from asgiri.master.supervisor import Supervisor, Vitals
from asgiri.prctl import is_subreaper

logger = logging.getLogger("asgiri.master")

SUPERVISE_EVERY: Final = 10
"""Looks at the beats per look for hung workers and those due for recycling: twice a second."""
CONTROL_LOST_GRACE: Final = 10.0
"""Seconds that a worker may live on after it closed its control channel. It cannot be told to stop
any more, so it is killed then."""
ABANDON_PATIENCE: Final = 2.0
"""Seconds to wait for a process that was sent SIGKILL."""

_SERVES: Final = (WorkerState.READY, WorkerState.DRAINING)
_HAS_SERVED: Final = (*_SERVES, WorkerState.DRAINED)
_LEVELS: Final = {
    actions.Level.INFO: logging.INFO,
    actions.Level.WARNING: logging.WARNING,
    actions.Level.ERROR: logging.ERROR,
}


class Fleet:
    """Owns the worker handles. `outcome` gets every action that is not about one worker."""

    def __init__(
        self,
        loop: EventLoop,
        supervisor: Supervisor,
        dispatcher: Dispatcher,
        steering: Steering[WorkerHandle] | None,
        outcome: Callable[[Action], None],
        config: Config,
    ) -> None:
        self.workers: dict[int, WorkerHandle] = {}
        self.acceptor = Acceptor(
            loop,
            dispatcher,
            self.workers,
            keep_alive=config.http1.keep_alive,
            queue_timeout=config.http.queue_timeout or math.inf,
            tls=config.speaks_tls,
            by_client_ip=config.workers.balance_policy == "client-ip",
        )
        self.bystanders: dict[int, Callable[[], None]] = {}
        """Children that are no workers, and who reaps them."""
        self.ready: frozenset[int] = frozenset()
        """Those that new connections go to."""
        self.on_reaped: list[Callable[[WorkerHandle], None]] = []
        """Told of a worker that is about to be taken apart."""
        self.log_level = ""
        """What workers that start are to log from, when it is not what their order says."""
        self.on_switched: Callable[[], None] = lambda: None
        """Told that others are ready."""
        self._balance = BalanceSwitch(_balance_mode(config))
        self._shedding = _make_shedding(self._balance)
        self._loop = loop
        self._supervisor = supervisor
        self._dispatcher = dispatcher
        self._steering = steering
        self._outcome = outcome
        self._orders: dict[int, WorkerOrder] = {}
        self._foundry = Foundry(loop, supervisor, self, self.bystanders)
        self._serving = 0
        """The generation that new connections go to."""
        self._actions: deque[Action] = deque()
        self._deciding = False
        self._started = False
        self._tick: Timer | None = None
        self._looks = 0
        self._observe_timer = loop.call_later(OBSERVE_INTERVAL, self._observe)
        self._balance_switched()

    @property
    def unborn(self) -> tuple[int, ...]:
        """Workers that their mold has still to fork."""
        return self._foundry.unborn

    def end_molds(self) -> None:
        """Let go of what workers are forked from; a subreaper collects them (`reap`)."""
        self._foundry.end_all()

    def configure(self, config: Config) -> None:
        """Go on with other options, after a reload."""
        self._dispatcher.policy = BalancePolicy(config.workers.balance_policy)
        self._dispatcher.request_limit = config.http.limit_concurrency
        self.acceptor.configure(
            keep_alive=config.http1.keep_alive,
            queue_timeout=config.http.queue_timeout or math.inf,
            by_client_ip=config.workers.balance_policy == "client-ip",
        )
        mode = _balance_mode(config)
        if mode is not self._balance.mode:
            self._balance = BalanceSwitch(mode)
            self._shedding = _make_shedding(self._balance)
            self._balance_switched()

    # Deciding

    def decide(self, decided: Sequence[Action]) -> None:
        """Carry out actions in their order, then set the clock for the next ones."""
        self._actions.extend(decided)
        if self._deciding:
            return  # what an action led to comes after those decided before it
        self._deciding = True
        try:
            while self._actions:
                self._carry_out(self._actions.popleft())
        finally:
            self._deciding = False
        if self._tick is not None:
            self._tick.cancel()
        deadline = self._supervisor.next_deadline()
        self._tick = None if deadline is None else self._loop.call_at(deadline, self._on_tick)

    def _on_tick(self) -> None:
        self.decide(self._supervisor.tick(time.monotonic()))

    def _carry_out(self, action: Action) -> None:
        match action:
            case actions.Spawn():
                self._spawn(action)
            case actions.Switch(generation=generation, ready=ready):
                if generation != self._serving:
                    self._serving = generation
                    self._foundry.retire(generation)
                self._switch(ready)
            case actions.Drain(worker_id=worker_id, timeout=timeout):
                self._aim(worker_id, WorkerState.DRAINING)
                self._hand_over(worker_id)
                self._tell(worker_id, messages.Drain(timeout))
            case actions.Quit(worker_id=worker_id):
                if not self._foundry.quit(worker_id):
                    self.dismiss(worker_id)
            case actions.Kill(worker_id=worker_id, signal=kill):
                if worker_id in self.workers:
                    self.workers[worker_id].signal(signal.Signals[kill.value])
                else:
                    self._foundry.kill(worker_id, kill)
            case actions.Report():
                self._report(action)
            case actions.ReloadEnded(failure=failure):
                if failure:
                    self._foundry.retire(self._serving)
                self._outcome(action)
            case actions.StopListening():
                # What it has not handed back by now, a worker ends itself.
                for worker in self.workers.values():
                    worker.assignments.set(AssignmentCell.HAND_BACK, 0)
                    self._take_all_handed_back(worker)
                self._outcome(action)
            case _:
                self._started = self._started or isinstance(action, actions.Started)
                self._outcome(action)

    def order(self, generation: int, order: WorkerOrder) -> None:
        """Say what the workers of a generation are started with; forget what is in no use."""
        needed = {worker.generation for worker in self.workers.values()}
        # All workers of the generation that serves may be dead and about to be started again.
        needed.add(self._serving)
        self._orders = {known: kept for known, kept in self._orders.items() if known in needed} | {
            generation: order
        }
        self._foundry.retire(self._serving, generation)

    def _spawn(self, action: actions.Spawn) -> None:
        order = self._orders[action.generation]
        if order.mold:
            self._foundry.spawn(action, order)
            return
        identity = WorkerIdentity(
            worker_id=action.worker_id,
            slot=action.slot,
            generation=action.generation,
            role=order.role,
        )
        try:
            worker = spawn(identity, order, selftest=action.selftest)
        except (OSError, StartError) as error:
            reason = str(error)
            self.decide(
                self._supervisor.worker_spawn_failed(action.worker_id, reason, time.monotonic())
            )
            return
        self._begin(worker)

    def _begin(self, worker: WorkerHandle) -> None:
        worker.assignments.set(AssignmentCell.HAND_BACK, int(self._balance.on))
        self._add(worker)
        logger.debug("%s: started", worker)

    def born(self, worker: WorkerHandle) -> None:
        """Own a worker that a mold has forked."""
        self._begin(worker)
        if not self._foundry.is_forking:
            self.reap()  # strangers that died meanwhile

    def adopt(self, workers: Iterable[WorkerHandle]) -> None:
        """Own the workers of an earlier program of this process."""
        self._started = True
        for worker in workers:
            self._add(worker)

    def _add(self, worker: WorkerHandle) -> None:
        self.workers[worker.worker_id] = worker
        self._dispatcher.add_worker(
            worker.worker_id,
            worker.slot,
            worker.scoreboard,
            tcp_assigned=worker.assignments.get(AssignmentCell.TCP_ASSIGNED),
        )
        if self._steering is not None and worker.records is not None:
            self._steering.add_worker(worker.worker_id, worker, worker)
        self._loop.watch_readable(worker.control.fileno(), _Call(self._on_messages, worker))
        self._loop.watch_readable(worker.connections.fileno(), _Call(self._on_handed_back, worker))
        if worker.pidfd >= 0:
            self._loop.watch_readable(worker.pidfd, _Call(self.on_exit, worker))
        if self.log_level:
            self._tell(worker.worker_id, messages.SetLogLevel(self.log_level))
        if worker.unsent:
            self._loop.watch_writable(worker.control.fileno(), _Call(self._on_writable, worker))

    def _switch(self, ready: Sequence[int]) -> None:
        self.ready = frozenset(ready)
        self._dispatcher.set_ready(self._last_takers() if self.acceptor.stopping else ready)
        if self._steering is not None:
            self._steering.set_ready(ready)
        self.acceptor.serve_queue()
        self.on_switched()

    def _last_takers(self) -> list[int]:
        """Return who takes what is left when the server stops: it has been accepted."""
        return [
            worker.worker_id
            for worker in self.workers.values()
            if worker.scoreboard.get(Cell.STATE) in _SERVES
        ]

    def _report(self, report: actions.Report) -> None:
        level, text = _LEVELS[report.level], report.text
        worker = None if report.worker_id is None else self.workers.get(report.worker_id)
        if worker is None:
            logger.log(level, "%s", f"{report.place}: {text}" if report.place else text)
        elif self._is_echo(worker):
            logger.debug("%s: %s", worker, text)
        else:
            logger.log(level, "%s: %s", worker, text)

    def _is_echo(self, worker: WorkerHandle) -> bool:
        """Tell whether it only fails like another one before it, for which it was given up."""
        target = worker.assignments.get(AssignmentCell.TARGET_STATE)
        served = worker.scoreboard.get(Cell.STATE) in _HAS_SERVED
        return target == WorkerState.DRAINED and not (self._started and served)

    # Talking to workers

    def broadcast(self, message: messages.Message) -> None:
        """Tell every worker, and every mold what it understands."""
        self._foundry.broadcast(message)
        for worker_id in list(self.workers):
            self._tell(worker_id, message)

    def dismiss(self, worker_id: int) -> None:
        """Tell a worker to quit."""
        self._aim(worker_id, WorkerState.DRAINED)
        self._tell(worker_id, messages.Quit())

    def _aim(self, worker_id: int, state: WorkerState) -> None:
        if worker_id in self.workers:
            self.workers[worker_id].assignments.set(AssignmentCell.TARGET_STATE, state)

    def _hand_over(self, worker_id: int) -> None:
        """Let the others have its idle connections, if there are others."""
        if worker_id in self.workers and self.acceptor.takes_back:
            self.workers[worker_id].assignments.set(AssignmentCell.HAND_BACK, 1)

    def _tell(self, worker_id: int, message: messages.Message) -> None:
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        if not worker.send(message):
            logger.error("%s: reads no messages; killed", worker)
            worker.signal(signal.SIGKILL)
        elif worker.unsent:
            self._loop.watch_writable(worker.control.fileno(), _Call(self._on_writable, worker))

    def _on_writable(self, worker: WorkerHandle) -> None:
        worker.flush()
        if not worker.unsent:
            self._loop.unwatch_writable(worker.control.fileno())

    def _on_messages(self, worker: WorkerHandle) -> None:
        try:
            for message in worker.receive():
                self._take(worker, message)
        except ChannelClosedError:
            self._loop.unwatch(worker.control.fileno())
            self._loop.call_later(CONTROL_LOST_GRACE, _Call(self._on_control_lost, worker))

    def _on_control_lost(self, worker: WorkerHandle) -> None:
        if self.workers.get(worker.worker_id) is worker:
            logger.error("%s: closed its control channel and lives on; killed", worker)
            worker.signal(signal.SIGKILL)

    def _take(self, worker: WorkerHandle, message: messages.Message) -> None:
        now = time.monotonic()
        worker_id = worker.worker_id
        match message:
            case messages.Ready():
                logger.info("%s: ready", worker)
                self.decide(self._supervisor.worker_ready(worker_id, now))
            case messages.Failed(stage=stage, summary=summary, traceback=traceback):
                echo = self._is_echo(worker)
                self.decide(self._supervisor.worker_failed(worker_id, stage, summary, now))
                if traceback and not echo:
                    logger.error("%s: where it failed:\n%s", worker, traceback.rstrip())
            case messages.Drained():
                if self.acceptor.stopping:
                    self._dispatcher.set_ready(self._last_takers())
                self.decide(self._supervisor.worker_drained(worker_id, now))
            case messages.Warning(text=text):
                logger.warning("%s: %s", worker, text)
            case messages.Importing():
                logger.debug("%s: imports the application", worker)
            case _:
                worker.rubbish += 1  # the master's own messages, echoed

    def _on_handed_back(self, worker: WorkerHandle) -> None:
        """One message of connections that a worker has nothing to do for."""
        try:
            self.acceptor.handed_back(worker.receive_handed_back())
        except FdsLostError as error:
            logger.error("%s: connections it handed back were lost: %s", worker, error)
        except ChannelClosedError:
            self._loop.unwatch(worker.connections.fileno())

    # Exits

    def on_exit(self, worker: WorkerHandle) -> None:
        """See whether a worker has ended; if so, take it apart."""
        status = worker.reap()
        if status is None or self.workers.get(worker.worker_id) is not worker:
            return
        # What it said last, why it failed for example, is still in the channel.
        self._on_messages(worker)
        self._loop.unwatch(worker.control.fileno())
        self._loop.unwatch(worker.connections.fileno())
        if worker.pidfd >= 0:
            self._loop.unwatch(worker.pidfd)
        if worker.records is not None:
            self._loop.unwatch(worker.records.fileno())
        self._dispatcher.remove_worker(worker.worker_id)
        if self._steering is not None:
            self._steering.remove_worker(worker.worker_id)
        self._take_all_handed_back(worker)
        recovered = self.acceptor.recover(worker)
        if recovered:
            logger.info("%s: %d connections it had not read go to others", worker, recovered)
        logger.debug("%s: %s", worker, exit_text(status))
        decided = self._supervisor.worker_exited(worker.worker_id, status, time.monotonic())
        try:
            self.decide(decided)
        finally:
            # Kept until here for the name in what is reported.
            del self.workers[worker.worker_id]
            for callback in self.on_reaped:
                callback(worker)
            worker.close()

    def _take_all_handed_back(self, worker: WorkerHandle) -> None:
        """What it had handed back before it died, or is told to end."""
        while handed_back := worker.connections.recover():
            for index, fd in handed_back:
                self.acceptor.handed_back([(index, fd, 0)])

    def reap(self, *others: Fleet) -> None:
        """Collect exits that no pidfd tells of, also of other fleets. Called on SIGCHLD."""
        fleets = (self, *others)
        for fleet in fleets:
            for worker in list(fleet.workers.values()):
                if worker.pidfd < 0:
                    fleet.on_exit(worker)
        self._foundry.reap()
        # One that a mold has forked is no stranger, and may have ended before we hear of it.
        if (os.getpid() == 1 or is_subreaper()) and not self._foundry.is_forking:
            self._reap_strangers(fleets)

    def _reap_strangers(self, fleets: Sequence[Fleet]) -> None:
        """Collect the orphans that a container's first process, or a subreaper, inherits."""
        while True:
            try:
                peeked = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if peeked is None:
                return
            ours = [
                (fleet, worker)
                for fleet in fleets
                for worker in fleet.workers.values()
                if worker.pid == peeked.si_pid
            ]
            if ours:
                # It would hide the others behind it.
                fleet, worker = ours[0]
                fleet.on_exit(worker)
            elif peeked.si_pid in self.bystanders:
                self.bystanders[peeked.si_pid]()
            else:
                os.waitpid(peeked.si_pid, 0)

    # Watching

    def _observe(self) -> None:
        self._observe_timer = self._loop.call_later(OBSERVE_INTERVAL, self._observe)
        now = time.monotonic()
        self._dispatcher.observe(now)
        self.acceptor.take_back_late()
        self._balance_requests(now)
        self._looks += 1
        if self._looks % SUPERVISE_EVERY == 0:
            vitals = {worker_id: _vitals(worker) for worker_id, worker in self.workers.items()}
            self.decide(self._supervisor.observe(vitals, now))

    def _balance_requests(self, now: float) -> None:
        was_on = self._balance.on
        moved = self.acceptor.statistics().handed_back
        if self._balance.observe(self._dispatcher.lags(now), moved, now) is not was_on:
            self._balance_switched()
        if self._shedding is not None:
            for worker_id, count in self._shedding.observe(self._dispatcher.loads(), now).items():
                self._tell(worker_id, messages.Shed(count))

    def _balance_switched(self) -> None:
        on = self._balance.on
        logger.debug("balance: %s", "requests" if on else "connections")
        self._dispatcher.hold = on
        self.acceptor.balances_requests = on
        for worker in self.workers.values() if self.acceptor.takes_back else ():
            if worker.assignments.get(AssignmentCell.TARGET_STATE) != WorkerState.DRAINING:
                worker.assignments.set(AssignmentCell.HAND_BACK, int(on))

    def abandon(self) -> None:
        """Kill whoever is left, after an error of our own. Nothing is finished."""
        self._foundry.close()
        for worker in self.workers.values():
            worker.signal(signal.SIGKILL)
        for worker in self.workers.values():
            # One that hangs in the kernel is left to it.
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(ABANDON_PATIENCE)
            worker.close()
        self.workers.clear()


class _Call:
    """A callback about one worker."""

    __slots__ = ("_callback", "_worker")

    def __init__(self, callback: Callable[[WorkerHandle], None], worker: WorkerHandle) -> None:
        self._callback = callback
        self._worker = worker

    def __call__(self) -> None:
        self._callback(self._worker)


def _vitals(worker: WorkerHandle) -> Vitals:
    get = worker.scoreboard.get
    return Vitals(
        beat=get(Cell.BEAT_NS) * 1e-9,
        requests=get(Cell.REQUESTS_HTTP1) + get(Cell.REQUESTS_HTTP2) + get(Cell.REQUESTS_HTTP3),
        rss=get(Cell.RSS_BYTES),
    )


def _make_shedding(balance: BalanceSwitch) -> Shedding | None:
    """Who wants connections to stay where they are does not want them closed either."""
    return None if balance.mode is BalanceMode.CONNECTION else Shedding()


def _balance_mode(config: Config) -> BalanceMode:
    """A limit of requests means that they are long, and a worker that is free cannot come to those
    that wait at another one.
    """
    mode = BalanceMode(config.workers.balance)
    if mode is BalanceMode.AUTO and config.http.limit_concurrency:
        return BalanceMode.REQUEST
    return mode
