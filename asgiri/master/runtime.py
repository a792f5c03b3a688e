"""Wire the master together, start it, stop it. The only event loop of the master runs here.

Order of the start: what can fail for reasons of the machine comes first (ports, pid file, user,
secrets) and raises StartError while nothing runs yet. Then the first generation of workers is
started. Connections wait in the kernel until all of it is ready; a first generation that fails
ends the server.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import platform
import random
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from asgiri import __version__, logs
from asgiri.config import Config
from asgiri.errors import ConfigError, ExitCode, StartError, TakeoverError
from asgiri.hooks import ServerFacts, WorkerFacts
from asgiri.ipc.channel import largest_batch
from asgiri.ipc.connection_id import ConnectionIdCodec, ConnectionIdMint
from asgiri.ipc.messages import ReloadCertificates, ReopenLogs
from asgiri.ipc.records import PeerTable
from asgiri.ipc.tokens import QuicSecrets, ResetTokens, RetryTokens
from asgiri.master import actions
from asgiri.master.actions import Action
from asgiri.master.admission import RetryMode
from asgiri.master.attendant import Attendance
from asgiri.master.binding import UnixAccess
from asgiri.master.certificate_watch import CertificateWatch
from asgiri.master.dispatcher import BalancePolicy, Dispatcher
from asgiri.master.fleet import Fleet
from asgiri.master.identity import Account, PidFile, has_terminal, raise_file_limit, set_title
from asgiri.master.kept import NAME as KEPT_NAME
from asgiri.master.listeners import Listeners, inherited_sockets, open_listeners
from asgiri.master.loop import EventLoop
from asgiri.master.notify import ServiceManager
from asgiri.master.oversight import Oversight, OversightSockets, Server
from asgiri.master.processes import MOLD_MODULE, WorkerHandle, WorkerOrder, interpreter
from asgiri.master.receiver import KERNEL_DROPS_INTERVAL, KernelDrops, Receiver
from asgiri.master.renewal import check_encryption, renew
from asgiri.master.reporting import Reporting
from asgiri.master.settings import Reread, Rereading, Settings
from asgiri.master.signals import SignalSource
from asgiri.master.slots import DRAIN_GRACE, longest_reload
from asgiri.master.steering import Steering
from asgiri.master.supervisor import Supervisor
from asgiri.master.takeover import MasterState, Takeover, read_state, start_cold
from asgiri.master.watcher import Watcher, check_reload, for_development
from asgiri.prctl import become_subreaper

logger = logging.getLogger("asgiri.master")

SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
    signal.SIGCHLD,
)
LOAD_INTERVAL: Final = 10.0
"""Seconds over which the master's own utilisation is taken."""
LOAD_WARNING: Final = 0.7
"""Share of one processor beyond which the master says that it is about to become the limit."""
GC_THRESHOLD: Final = 50_000
"""Objects more than before until the collector looks for cycles: some MB at most."""
ERRORS_TOLERATED: Final = 10
"""Errors of our own within ERRORS_WINDOW before the master gives up: a callback that fails once
must not end every connection, one that always fails must not fill the disk."""
ERRORS_WINDOW: Final = 60.0


def run(
    settings: Settings | Config,
    reread: Reread | None = None,
    words: Sequence[str] | None = None,
    *,
    state_fd: int = -1,
    started: Callable[[], None] | None = None,
) -> int:
    """Serve until told to stop; return the exit status.

    The configuration names its certificates by now. `reread` is for SIGHUP. `words` is the command
    line, for SIGUSR2; `state_fd` has the state of the program that was exchanged. `started` is
    called when the first generation serves. Raises StartError when the server cannot start.
    """
    if isinstance(settings, Config):
        settings = Settings(settings)
    fixed = settings
    reread = reread or Reread(lambda _: fixed)
    with contextlib.ExitStack() as cleanup:
        if state_fd < 0:
            return Master(settings, reread, words, cleanup, started=started).run()
        state = None
        try:
            state = read_state(state_fd)
            config = settings.config
            check_encryption(config, http3=state.secrets is not None, tls=state.tls)
            master = Master(settings, reread, words, cleanup, state)
            master.resume(state)
        except (TakeoverError, StartError, OSError, ValueError, LookupError, TypeError) as error:
            command = [*interpreter(), "-m", "asgiri", *(words or ())]
            listeners = [] if state is None else state.listeners
            start_cold(command, error, listeners, folder=settings.started_in)
        return master.run()


class Master:
    """All parts of the master. `cleanup` gives everything back, in the reverse order."""

    def __init__(
        self,
        settings: Settings,
        reread: Reread,
        words: Sequence[str] | None,
        cleanup: contextlib.ExitStack,
        state: MasterState | None = None,
        *,
        started: Callable[[], None] | None = None,
    ) -> None:
        """`state`: of the program whose place this one takes."""
        self._started = started
        config = for_development(settings.config)
        self._config = config
        """Of the generation that serves."""
        self._candidate = self._wanted = replace(settings, config=config)
        """Of the newest generation; of the one that begins next."""
        self._refusal = ""
        """Why the last reload that was asked for did not begin."""
        self._tls = config.speaks_tls
        self._exit_code = int(ExitCode.RUNTIME)
        self._loop = EventLoop()
        cleanup.callback(self._loop.close)
        self._signals = SignalSource(SIGNALS)
        cleanup.callback(self._signals.close)
        self._service = ServiceManager(os.environ, os.getpid())
        cleanup.callback(self._service.close)
        _show(config)
        files = raise_file_limit()
        _prepare_for(config)
        check_reload(config)
        if state is None:
            self._listeners, sockets = self._open_sockets(cleanup)
        else:
            self._listeners, sockets = self._resume_sockets(state, cleanup)
        self._attendance = Attendance(self._loop, () if state is None else state.attendants)
        cleanup.callback(self._attendance.close)
        if state is None:
            self._attendance.begin(settings.attendant())
        else:
            self._attendance.renew(settings.attendant())
        self._secrets = self._load_secrets(state)
        self._dispatcher = Dispatcher(
            BalancePolicy(config.workers.balance_policy),
            random=random.random,
            hash_key=os.urandom(16) if self._secrets is None else self._secrets.reset_key,
            # What a worker leaves unread when it dies comes back, and must find room here.
            unread_limit=largest_batch(files),
            request_limit=config.http.limit_concurrency,
        )
        self._steering = None if self._secrets is None else self._create_steering(self._secrets)
        self._receivers = self._create_receivers(self._steering)
        self._supervisor = Supervisor(
            config.workers,
            # A restarted server must not take its predecessor's connections for its own.
            first_worker_id=random.SystemRandom().randrange(1, 1 << 31),
            random=random.random,
            development=config.reload.enabled,
        )
        self._fleet = Fleet(
            self._loop, self._supervisor, self._dispatcher, self._steering, self._carry_out, config
        )
        cleanup.callback(self._fleet.acceptor.close)
        cleanup.callback(self._fleet.abandon)
        self._watcher: Watcher | None = None
        if config.reload.enabled:
            watcher = Watcher(self._loop, config, self._on_change, self._fleet.bystanders)
            cleanup.callback(watcher.close)
            self._watcher = watcher
        self._reporting = Reporting(
            self._loop,
            self._supervisor,
            self._dispatcher,
            self._steering,
            self._receivers,
            self._fleet,
        )
        self._reporting.facts = {
            "asgiri": __version__,
            "python": platform.python_version(),
            **_names(config),
            "addresses": "",
            "reload_failure": "",
        }
        cleanup.callback(self._reporting.close)
        self._oversight = Oversight(
            Server(
                loop=self._loop,
                supervisor=self._supervisor,
                fleet=self._fleet,
                reporting=self._reporting,
                reload=self._reload,
                stop=lambda at_once: self._stop(at_once=at_once),
                stopped=self._loop.stop,
            ),
            config,
            sockets,
        )
        cleanup.callback(self._oversight.close)
        self._fleet.on_reaped.append(self._worker_reaped)
        self._rereading = Rereading(self._loop, reread, self._reload_with, self._reload_refused)
        cleanup.callback(self._rereading.cancel)
        self._takeover = Takeover(
            self._loop,
            words,
            settings.started_in,
            snapshot=self._snapshot,
            is_settled=lambda: self._supervisor.is_settled and not self._fleet.unborn,
            before=self._let_go,
            bystanders=self._fleet.bystanders,
        )
        cleanup.callback(self._takeover.cancel)

    # Parts

    def _open_sockets(self, cleanup: contextlib.ExitStack) -> tuple[Listeners, OversightSockets]:
        process = self._config.process
        account = Account.find(process.user, process.group)
        mode = 0o666
        if process.umask is not None:
            os.umask(process.umask)
            mode &= ~process.umask
        access = UnixAccess(mode, None if account is None else (account.uid, account.gid))
        listeners = open_listeners(
            self._config.listen,
            quic=self._config.http.http3,
            inherited=inherited_sockets(os.environ, os.getpid()),
            unix_access=access,
        )
        cleanup.callback(listeners.close)
        sockets = OversightSockets.open(self._config, access)
        cleanup.callback(sockets.close)
        if process.pid_file:
            cleanup.callback(PidFile(Path(process.pid_file).absolute()).remove)
        if account is not None:
            logs.give_files_to(account.uid, account.gid)
            account.become()
        return listeners, sockets

    def _resume_sockets(
        self, state: MasterState, cleanup: contextlib.ExitStack
    ) -> tuple[Listeners, OversightSockets]:
        config = self._config
        listeners = Listeners(
            backlog=config.listen.backlog, unix_access=UnixAccess(), quic=config.http.http3
        )
        cleanup.callback(listeners.close)
        listeners.resume(state.listeners)
        sockets = OversightSockets.resume(state.oversight)
        cleanup.callback(sockets.close)
        if config.process.pid_file:
            pid_file = PidFile(Path(config.process.pid_file).absolute(), resumed=True)
            cleanup.callback(pid_file.remove)
        return listeners, sockets

    def _load_secrets(self, state: MasterState | None) -> QuicSecrets | None:
        if state is not None and state.secrets is not None:
            # The connection IDs that clients hold were made with these.
            return QuicSecrets.from_json(state.secrets)
        config = self._config
        if not config.http.http3:
            return None
        from asgiri.master.quic_secrets import load_quic_secrets  # noqa: PLC0415  (20 ms of each start)

        return load_quic_secrets(config.http3, config.tls)

    def _create_steering(self, secrets: QuicSecrets) -> Steering[WorkerHandle]:
        codec = ConnectionIdCodec(secrets.connection_id_key, server_id=secrets.server_id)
        return Steering(
            codec=codec,
            mint=ConnectionIdMint(codec, 0, random=os.urandom),
            reset_tokens=ResetTokens(secrets.reset_key),
            retry_tokens=RetryTokens(secrets.token_key, random=os.urandom),
            chooser=self._dispatcher,
            random=os.urandom,
            retry=RetryMode(self._config.http3.quic_retry),
        )

    def _create_receivers(self, steering: Steering[WorkerHandle] | None) -> list[Receiver]:
        if steering is None:
            return []
        peers = PeerTable()
        return [
            Receiver(self._loop, listener, steering, peers)
            for listener in self._listeners.datagrams
        ]

    def _order(self, settings: Settings) -> WorkerOrder:
        config = settings.config
        return WorkerOrder(
            config=config.to_json(),
            ring=config.ring,
            secrets=None if self._secrets is None else self._secrets.to_json(),
            listeners=[listener.info(tls=self._tls) for listener in self._listeners],
            udp_fds=[listener.fileno() for listener in self._listeners.datagrams],
            environment=settings.environment,
            folder=settings.folder or None,
            mold=MOLD_MODULE if config.workers.preload else "",
        )

    # Running

    def run(self) -> int:
        """Start the first generation and serve until the supervisor says that all has stopped."""
        self._loop.watch_readable(self._signals.fileno(), self._on_signals)
        if self._watcher is not None:
            self._watcher.start()
        self._watch_over_us()
        if not self._fleet.workers:
            self._service.starting(self._config.workers.boot_timeout)
            self._oversight.start()
            self._fleet.decide(self._supervisor.start(time.monotonic()))
        failures: deque[float] = deque(maxlen=ERRORS_TOLERATED)
        while True:
            try:
                self._loop.run()
            except Exception:
                # The top of this process. What was ready stays ready, so nothing is skipped.
                logger.exception("error in the master; it goes on")
                now = time.monotonic()
                if len(failures) == ERRORS_TOLERATED and now - failures[0] < ERRORS_WINDOW:
                    logger.critical("too many errors in the master; it stops")
                    return int(ExitCode.RUNTIME)
                failures.append(now)
            else:
                return self._exit_code

    def resume(self, state: MasterState) -> None:
        """Go on in the place of another program, then give the workers its code. Before `run`."""
        now = time.monotonic()
        self._fleet.adopt([WorkerHandle.adopt(worker) for worker in state.workers])
        if self._steering is not None:
            begun = [(bytes.fromhex(text), worker_id) for text, worker_id in state.begun]
            self._steering.restore_begun(begun, now)
        self._fleet.acceptor.resume(state.acceptor)
        self._reporting.resume(state.reporting)
        self._oversight.resume(state.oversight)
        self._fleet.decide(self._supervisor.resume(state.supervisor, now))
        logger.info("upgraded: asgiri %s goes on with the workers", __version__)
        self._on_started()
        self._fleet.decide(self._supervisor.reload(self._config.workers, now))

    def _snapshot(self) -> tuple[MasterState, list[int]]:
        """Tell the state, and the descriptors that it names."""
        workers = list(self._fleet.workers.values())
        acceptor = self._fleet.acceptor
        begun = [] if self._steering is None else self._steering.begun(time.monotonic())
        state = MasterState(
            secrets=None if self._secrets is None else self._secrets.to_json(),
            tls=self._tls,
            listeners=self._listeners.to_state(),
            workers=[worker.to_state() for worker in workers],
            supervisor=self._supervisor.to_state(self._fleet.unborn),
            acceptor=acceptor.to_state(),
            begun=[(connection_id.hex(), worker_id) for connection_id, worker_id in begun],
            reporting=self._reporting.to_state(),
            oversight=self._oversight.to_state(),
            attendants=self._attendance.pids,
        )
        fds = [listener.fileno() for listener in self._listeners]
        for worker in workers:
            fds += worker.inherited_fds()
        return state, fds + acceptor.inherited_fds() + self._oversight.inherited_fds()

    def _let_go(self) -> None:
        """Leave to the next program of this process what it needs, and nothing more."""
        self._fleet.end_molds()
        if self._watcher is not None:
            self._watcher.kill()
        self._attendance.release()
        self._signals.pass_on()

    def _carry_out(self, action: Action) -> None:
        """Carry out what concerns the server as a whole."""
        match action:
            case actions.GenerationBegun(generation=generation):
                self._candidate = self._wanted
                self._fleet.order(generation, self._order(self._candidate))
            case actions.Started():
                self._on_started()
            case actions.ReloadEnded(generation=generation, failure=failure):
                self._reporting.facts["reload_failure"] = failure
                if failure:
                    logger.error("reload failed, the old workers stay: %s", failure)
                    self._reload_ended(f"reload failed, the old workers stay: {failure}")
                else:
                    self._renew()
                    logger.info("reloaded: generation %d serves", generation)
                    self._reload_ended(self._status())
                    self._attendance.renew(self._candidate.attendant())
                self._attendance.hook("on_reload", self._facts(failure))
                self._oversight.orders.reload_ended(generation, failure)
                self._reporting.renew()
            case actions.StopListening():
                self._oversight.orders.server_stops()
                self._service.stopping(self._config.workers.graceful_timeout + DRAIN_GRACE)
                if self._watcher is not None:
                    self._watcher.close()
                self._takeover.cancel()
                self._rereading.cancel()
                self._fleet.acceptor.stop()
                self._listeners.close_streams()
                self._reporting.renew()
            case actions.Stopped(exit_code=exit_code):
                self._exit_code = exit_code
                self._oversight.stop()  # last of all, it stops the loop
            case _:
                raise AssertionError(f"nobody carries out {action}")

    def _on_started(self) -> None:
        http = self._config.http
        versions = [name for name, on in (("http/1.1", http.http1), ("h2", http.http2)) if on]
        count = self._config.workers.count
        where = self._listeners.describe(tls=self._tls, versions=versions)
        logger.info("listening on %s, %d %s", where, count, "worker" if count == 1 else "workers")
        self._reporting.facts["addresses"] = where
        self._fleet.acceptor.start(self._listeners.streams)
        for receiver in self._receivers:
            receiver.start()
        if self._receivers:
            self._watch_kernel_drops(KernelDrops(self._receivers))
        self._watch_load(time.monotonic(), self._loop.busy)
        if self._tls:
            CertificateWatch(self._loop, lambda: self._config, self._renew_certificates).start()
        # What exists by now stays. The hot paths make no cycles, and looking for some in each burst
        # was 7 % of the cost of a connection.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        ours = [listener.fileno() for listener in self._listeners if not listener.inherited]
        self._service.keep(KEPT_NAME, ours)
        self._service.ready(self._status())
        if self._started is not None:
            self._started()
        self._attendance.hook("when_ready", self._facts())

    def _facts(self, failure: str = "") -> ServerFacts:
        config = self._config
        return ServerFacts(
            pid=os.getpid(),
            app=config.app.target,
            name=config.process.name,
            workers=self._supervisor.target,
            generation=self._supervisor.generation,
            addresses=str(self._reporting.facts.get("addresses", "")),
            failure=failure,
        )

    def _worker_reaped(self, worker: WorkerHandle) -> None:
        facts = WorkerFacts(
            pid=worker.pid,
            slot=worker.slot,
            worker_id=worker.worker_id,
            generation=worker.generation,
            status=worker.reap(),
        )
        self._attendance.hook("worker_exit", self._facts(), facts)

    def _status(self) -> str:
        count = self._supervisor.target
        workers = f"{count} worker{'' if count == 1 else 's'}"
        return f"generation {self._supervisor.generation} serves, {workers}"

    # Signals

    def _on_signals(self) -> None:
        for number in self._signals.take():
            self._on_signal(number)

    def _on_signal(self, number: signal.Signals) -> None:
        now = time.monotonic()
        match number:
            case signal.SIGTERM | signal.SIGINT:
                self._stop()
            case signal.SIGQUIT:
                self._stop(at_once=True)
            case signal.SIGHUP:
                self._reload()
            case signal.SIGTTIN:
                self._scale(1, now)
            case signal.SIGTTOU:
                self._scale(-1, now)
            case signal.SIGWINCH:
                self._rest(now)
            case signal.SIGUSR1:
                self._reopen_logs()
            case signal.SIGUSR2:
                self._takeover.request()
            case _:  # SIGCHLD
                self._fleet.reap(*self._oversight.fleets)
                self._attendance.reap()

    def _stop(self, *, at_once: bool = False) -> None:
        if self._supervisor.is_stopped:
            self._oversight.stop()  # asked again, while only that is left
        stop = self._supervisor.quit if at_once else self._supervisor.stop
        self._fleet.decide(stop(time.monotonic()))

    def _scale(self, change: int, now: float) -> None:
        self._fleet.decide(self._supervisor.scale(change, now))
        self._service.status(self._status())

    def _rest(self, now: float) -> None:
        """As gunicorn: a daemon's workers go. To others it says that their window has changed."""
        if has_terminal():
            logger.debug("SIGWINCH of a terminal: ignored")
            return
        logger.info("SIGWINCH: the workers finish what they have; SIGHUP starts new ones")
        self._fleet.decide(self._supervisor.rest(now))
        self._service.status(self._status())

    # Reload

    def _on_change(self) -> None:
        """Files have changed: --reload."""
        if not self._supervisor.is_ending:
            self._reload()

    def _reload(self) -> str:
        """Read the configuration, then begin a new generation; return why not, or ""."""
        self._service.reloading(longest_reload(self._config.workers))
        self._refusal = ""
        self._rereading.begin()
        return self._refusal

    def _reload_refused(self, reason: str) -> None:
        logger.error("reload refused, everything stays as it is: %s", reason)
        self._refusal = f"reload refused: {reason}"
        self._reporting.facts["reload_failure"] = f"refused: {reason}"
        self._reload_ended(self._refusal)
        self._attendance.hook("on_reload", self._facts(reason))

    def _reload_with(self, fresh: Settings) -> None:
        try:
            config, waiting = renew(self._config, fresh.config)
            _prepare_for(config)
        except (ConfigError, StartError) as error:
            self._reload_refused(str(error))
            return
        if waiting:
            logger.warning("changed, but takes a restart: %s", ", ".join(waiting))
        config = for_development(config)
        self._wanted = replace(fresh, config=config)
        self._fleet.decide(self._supervisor.reload(config.workers, time.monotonic()))

    def _reload_ended(self, status: str) -> None:
        # If another one is under way, or follows, the manager waits for that.
        tell = self._service.ready if self._supervisor.is_settled else self._service.status
        tell(status)

    def _renew(self) -> None:
        """Go by the configuration of the workers that serve now."""
        before, self._config = self._config, self._candidate.config
        _show(self._config)
        self._reporting.facts |= _names(self._config)
        self._fleet.configure(self._config)
        self._oversight.configure(self._config)
        if self._steering is not None:
            self._steering.set_retry(RetryMode(self._config.http3.quic_retry))
        if self._config.log != before.log:
            try:
                logs.configure(self._config.log, "master")
            except StartError as error:
                logger.error("the master's log stays where it is: %s", error)

    def _reopen_logs(self) -> None:
        logs.reopen()
        self._oversight.tell(ReopenLogs())
        self._attendance.reopen()

    def _renew_certificates(self, config: Config) -> None:
        self._fleet.broadcast(ReloadCertificates(config.to_json()))

    # Watching ourselves

    def _watch_over_us(self) -> None:
        if self._service.watchdog_interval:
            self._service.alive()
            self._loop.call_later(self._service.watchdog_interval, self._watch_over_us)

    def _watch_kernel_drops(self, drops: KernelDrops) -> None:
        drops.poll()
        self._loop.call_later(KERNEL_DROPS_INTERVAL, lambda: self._watch_kernel_drops(drops))

    def _watch_load(self, since: float, busy_before: float) -> None:
        now = time.monotonic()
        busy = self._loop.busy
        if now - since >= LOAD_INTERVAL and busy - busy_before > LOAD_WARNING * (now - since):
            logger.warning(
                "the master is busy for %d%% of the time: more workers will not serve more",
                100 * (busy - busy_before) / (now - since),
            )
        self._loop.call_later(LOAD_INTERVAL, lambda: self._watch_load(now, busy))


def _names(config: Config) -> dict[str, str]:
    return {"app": config.app.target, "name": config.process.name}


def _show(config: Config) -> None:
    set_title(f"asgiri: master [{config.process.name or config.app.target}]")


def _prepare_for(config: Config) -> None:
    """Make this process what the configuration asks for. Raises StartError."""
    if config.workers.preload and not become_subreaper():
        raise StartError(
            "--preload: this system has no PR_SET_CHILD_SUBREAPER (Linux 3.4); leave it out"
        )
