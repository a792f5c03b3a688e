"""A worker process from its hello to its exit. Wires everything else together.

boot     hello, configuration, TLS, application (`boot`), lifespan startup, transports, Ready
serve    connections and datagrams come, the heartbeat beats
end      Drain or Quit of the master, its death, or SIGTERM; lifespan shutdown, Drained, exit
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import itertools
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from asgiri import logs
from asgiri.config import Config
from asgiri.errors import ChannelClosedError, ExitCode, FdsLostError, LocalProtocolError
from asgiri.ipc import messages
from asgiri.ipc.board import BoardReader
from asgiri.ipc.channel import ControlChannel
from asgiri.ipc.messages import (
    Drain,
    Drained,
    DumpStacks,
    Hello,
    Importing,
    ListenerInfo,
    Message,
    Quit,
    Ready,
    ReloadCertificates,
    ReopenLogs,
    SetLogLevel,
    Shed,
)
from asgiri.ipc.scoreboard import AssignmentCell, Assignments, Cell, Scoreboard, WorkerState
from asgiri.worker import boot, process, stacks
from asgiri.worker.asgi import hop
from asgiri.worker.asgi.app_thread import AppThread, cancel_all
from asgiri.worker.asgi.application import Application
from asgiri.worker.asgi.counters import Counters
from asgiri.worker.asgi.files import FileAccess
from asgiri.worker.asgi.forwarded import ForwardedReader
from asgiri.worker.asgi.https import with_https_policy
from asgiri.worker.asgi.lifespan import Lifespan, LifespanError
from asgiri.worker.asgi.limits import RequestLimits
from asgiri.worker.asgi.loader import LoadedApplication
from asgiri.worker.asgi.request import RequestEnvironment
from asgiri.worker.asgi.scope import ScopeBuilder
from asgiri.worker.asgi.trust import TrustedPeers
from asgiri.worker.asgi.websocket import WebSocketEnvironment
from asgiri.worker.protocol.headers import ResponseDefaults
from asgiri.worker.ready import call_worker_ready
from asgiri.worker.transport import deadlines
from asgiri.worker.transport.accepting import Accepting
from asgiri.worker.transport.handback import HandBack
from asgiri.worker.transport.heartbeat import (
    MAIN_CELLS,
    WORKER_CELLS,
    Heartbeat,
    application_pulse,
)
from asgiri.worker.transport.http1 import Http1Session
from asgiri.worker.transport.services import WorkerServices
from asgiri.worker.transport.tcp import TcpEndpoint

if TYPE_CHECKING:
    from asgiri.worker.transport.quic import QuicEndpoint
    from asgiri.worker.transport.tls import ServerTls

logger = logging.getLogger("asgiri.worker")

ORPHAN_DRAIN: Final = 2.5
"""Seconds for requests in flight after the master has died: nobody will ask for more, and whoever
supervises the master waits for our end to start it again. With what follows a drain, less than
`process.HARD_STOP`."""
ORPHAN_LIFESPAN_PATIENCE: Final = 1.0
GOAWAY_INTERVAL: Final = 1.0
"""Between the two GOAWAYs of a drain: a round trip, so that requests under way are still taken."""
CANCEL_PATIENCE: Final = 1.0
"""How long cancelled applications may clean up."""
CLOSE_PATIENCE: Final = 0.5
"""How long the last bytes of closed connections may take to leave."""
LIFESPAN_PATIENCE: Final = 5.0
"""How long lifespan shutdown may take at least; longer if the drain has left more of its time."""
ROOM_INTERVAL: Final = 0.02
"""Seconds between two looks whether connections have closed, while there is no room for more."""
SETTLE_TURNS: Final = 3
"""Turns of the loop from a connection's adoption to its first request's begin: made known, watched,
read."""
USUAL_GC_THRESHOLD: Final = gc.get_threshold()
GC_THRESHOLD: Final = 10_000
"""Objects more than before until the collector looks for cycles; Python's own is 2,000, or 700. A
request of FastAPI keeps some hundred objects for its time, and to look through those of all open
ones every few requests was 11 % of its cost. Garbage in cycles waits for a few MB longer."""
CHECK_INTERVAL: Final = 0.02
"""How often a drain looks whether anything is left."""


def run(control_fd: int, loaded: LoadedApplication | None = None) -> int:
    """Be a worker; return the exit status. `loaded`: this process was forked from a mold."""
    termination = process.Termination()
    termination.install()
    # It came through exec; programs that the application starts must not hold it open.
    os.set_inheritable(control_fd, False)
    control = ControlChannel.adopt(control_fd)
    try:
        hello, resources = boot.receive_hello(control)
    except ChannelClosedError:
        return ExitCode.OK
    # After the hello: by then a worker that was forked from a mold is the master's child.
    if not process.attach_to(hello.master_pid):
        return ExitCode.OK
    scoreboard = Scoreboard(resources.segment.scoreboard)
    scoreboard.claim(hello.worker_id, os.getpid())
    stacks.offer(resources.segment.fd, scoreboard)
    status = ExitCode.OK
    try:
        _boot_and_serve(control, hello, resources, scoreboard, termination, loaded)
    except boot.BootError as error:
        scoreboard.set(Cell.STATE, WorkerState.FAILED)
        _tell(control, error.failed)
        status = error.status
    logging.shutdown()
    process.exit_soon(status)
    return status


def _boot_and_serve(
    control: ControlChannel,
    hello: Hello,
    resources: boot.Resources,
    scoreboard: Scoreboard,
    termination: process.Termination,
    loaded: LoadedApplication | None,
) -> None:
    config = boot.configure(hello)
    boot.import_protocols(config)
    tls = boot.load_tls(config)
    loop = boot.new_event_loop(config)
    app_loop = boot.new_event_loop(config) if config.workers.app_thread else loop
    asyncio.set_event_loop(app_loop)
    if loaded is None:
        scoreboard.set(Cell.STATE, WorkerState.IMPORTING)
        _tell(control, Importing())
        loaded = boot.import_application(config)
    asyncio.set_event_loop(loop)
    thread = AppThread(loaded.call, app_loop, loop) if app_loop is not loop else None
    worker = Worker(control, hello, resources, scoreboard, config, loop, loaded, tls, thread)
    termination.react_with(worker.terminated)
    try:
        loop.run_until_complete(worker.run())
    finally:
        # Whatever the application has left running gets its CancelledError, like after
        # asyncio.run().
        loop.run_until_complete(cancel_all(CANCEL_PATIENCE))
        loop.close()


def _tell(control: ControlChannel, message: Message) -> None:
    """Tell the master; its death is noticed elsewhere."""
    with contextlib.suppress(ChannelClosedError):
        control.send(message)


class Worker:
    """Everything of a worker that lives on its event loop."""

    def __init__(
        self,
        control: ControlChannel,
        hello: Hello,
        resources: boot.Resources,
        scoreboard: Scoreboard,
        config: Config,
        loop: asyncio.AbstractEventLoop,
        loaded: LoadedApplication,
        tls: ServerTls | None,
        thread: AppThread | None = None,
    ) -> None:
        """With a `thread` the application runs there."""
        self._control = control
        self._hello = hello
        self._resources = resources
        self._scoreboard = scoreboard
        self._loop = loop
        self._ending: asyncio.Future[None] = loop.create_future()
        """Done when the worker shall end; by when, is `_drain_until`."""
        self._quitting: asyncio.Future[None] = loop.create_future()
        """Done when it shall end at once."""
        self._drain_until = float("inf")
        self._lifespan_patience = LIFESPAN_PATIENCE
        self._thread = thread
        call = loaded.call if thread is None else functools.partial(hop.call, thread)
        call = with_https_policy(call, config.http, hello.listeners)
        application = Application(call, loop)
        if resources.board is not None:
            application.state |= {
                "asgiri.board": BoardReader(resources.board.buffer),
                "asgiri.config": config.admin,
            }
        self._services = make_services(
            application,
            config=config,
            scoreboard=scoreboard,
            loop=loop,
            listeners=hello.listeners,
            asgi_version=loaded.asgi_version,
            access_log=logs.open_access_log(config.log, slot=hello.slot, worker_id=hello.worker_id),
        )
        self._lifespan = Lifespan(
            application, self._services.scopes.lifespan_scope(), config.app.lifespan
        )
        self._assignments = Assignments(resources.segment.assignments)
        self._services.hand_back = HandBack(resources.connections, self._assignments, scoreboard)
        self._room = process.room_for_files()
        self._was_wanted_back = False
        self._settling = 0
        """Turns for which no connection is adopted, see `_read_connections`."""
        self._tcp = TcpEndpoint(self._services, hello.listeners, tls=tls)
        self._quic = self._make_quic_endpoint(config)
        indices = [listener.index for listener in hello.listeners]
        self._accepting = Accepting(
            loop, self._tcp, scoreboard, dict(zip(indices, resources.accepting, strict=False))
        )

    def _make_quic_endpoint(self, config: Config) -> QuicEndpoint | None:
        hello, resources = self._hello, self._resources
        if hello.secrets is None or resources.records is None:
            return None
        # By now they have been imported; see `import_protocols`.
        from asgiri.ipc.tokens import QuicSecrets  # noqa: PLC0415
        from asgiri.worker.transport.quic import QuicEndpoint  # noqa: PLC0415

        listeners = [listener for listener in hello.listeners if listener.kind == "udp"]
        return QuicEndpoint(
            self._services,
            reader=resources.records,
            sockets={
                listener.index: udp
                for listener, udp in zip(listeners, resources.udp_sockets, strict=True)
            },
            secrets=QuicSecrets.from_json(hello.secrets),
            worker_id=hello.worker_id,
            tls=config.tls,
        )

    # From start to end

    async def run(self) -> None:
        """Start, serve, end. Raises BootError."""
        heartbeat = Heartbeat(
            self._loop,
            self._scoreboard,
            self._services.requests,
            orphaned=lambda: process.is_orphan(self._hello.master_pid),
            on_orphaned=self._orphaned,
            each_beat=self._hand_back_idle,
            cells=WORKER_CELLS if self._thread is None else MAIN_CELLS,
        )
        if self._thread is not None:
            self._thread.start()
            self._thread.to_app.post(application_pulse, self._thread.loop, self._scoreboard)
        self._loop.add_reader(self._control.fileno(), self._read_control)
        try:
            await self._start()
            await self._ending
            draining = self._loop.create_task(self._drain())
            await asyncio.wait({draining, self._quitting}, return_when=asyncio.FIRST_COMPLETED)
            if draining.done():
                draining.result()
            else:
                draining.cancel()
                await asyncio.wait({draining})
                await self._break_off()
        finally:
            if self._thread is not None:
                await self._thread.stop(CANCEL_PATIENCE)
            self._loop.remove_reader(self._control.fileno())
            heartbeat.close()
            self._services.deadlines.close()
            if self._quic is not None:
                self._quic.close()

    async def _start(self) -> None:
        self._self_test()
        self._scoreboard.set(Cell.STATE, WorkerState.LIFESPAN)
        try:
            await self._lifespan.startup()
        except LifespanError as error:
            raise boot.BootError(
                "lifespan", error.summary, error.traceback, ExitCode.APP_FAILED
            ) from None
        await call_worker_ready(self._services.config, self._hello)
        # What start-up made stays: no collection has to look at it again.
        gc.collect()
        gc.freeze()
        if gc.get_threshold() == USUAL_GC_THRESHOLD:  # else the application knows better
            gc.set_threshold(GC_THRESHOLD, *USUAL_GC_THRESHOLD[1:])
        self._watch_connections()
        self._accepting.start()
        if self._quic is not None:
            self._quic.start()
        self._scoreboard.set(Cell.STATE, WorkerState.READY)
        _tell(self._control, Ready(os.getpid()))

    def _hand_back_idle(self) -> None:
        """When the master begins to want idle connections: those that are idle now, too."""
        hand_back = self._services.hand_back
        assert hand_back is not None
        wanted = hand_back.wanted
        if wanted and not self._was_wanted_back:
            for session in list(self._services.sessions):
                if isinstance(session, Http1Session):
                    session.hand_back_if_idle()
        self._was_wanted_back = wanted

    def _self_test(self) -> None:
        if self._quic is None or not self._hello.selftest:
            return
        try:
            self._quic.check_steering()
        except LocalProtocolError as error:
            raise boot.BootError("selftest", str(error), "", ExitCode.RUNTIME) from None

    # What the master sends

    def _watch_connections(self) -> None:
        if self._thread is None:
            read: Callable[[], object] = self._read_connections
        else:
            read = self._ask_application_loop
        self._loop.add_reader(self._resources.connections.fileno(), read)

    def _ask_application_loop(self) -> None:
        """Adopt nothing while the application's loop stands still: the master takes it back."""
        assert self._thread is not None
        self._loop.remove_reader(self._resources.connections.fileno())
        to_main = self._thread.to_main
        self._thread.to_app.post(to_main.post, self._application_loop_turns)

    def _application_loop_turns(self) -> None:
        if not self._ending.done():
            self._watch_connections()
            self._read_connections()

    def _read_connections(self) -> int:
        """Adopt what one message brings: at most 64 connections in a turn of the loop.

        While requests are balanced it is one, and the next one stays in the channel until the
        first has begun. If that computes for long, the master can take the next one back.
        """
        if self._settling:
            return 0
        if self._scoreboard.get(Cell.TCP_OPEN) >= self._room:
            # Left in the channel, where the master sees them; read, they would be lost.
            self._loop.remove_reader(self._resources.connections.fileno())
            self._loop.call_later(ROOM_INTERVAL, self._resume_reading)
            return 0
        try:
            received = self._resources.connections.receive()
        except FdsLostError as error:
            # One byte per descriptor. Else the master took them for unread, and us for late.
            self._tcp.lost(len(error.frame))
            self._warn(f"connections were lost: {error}")
            return 0
        except ChannelClosedError:
            self._loop.remove_reader(self._resources.connections.fileno())
            return 0
        directly = self._was_wanted_back
        begun = [self._tcp.adopt(listener, fd, directly=directly) for listener, fd in received]
        if directly and not all(begun):
            self._settling = SETTLE_TURNS
            self._loop.call_soon(self._settle)
        return len(received)

    def _settle(self) -> None:
        self._settling -= 1
        if self._settling:
            self._loop.call_soon(self._settle)

    def _resume_reading(self) -> None:
        if not self._ending.done():  # a drain looks by itself
            self._watch_connections()

    def _read_control(self) -> None:
        try:
            received = self._control.receive()
        except ChannelClosedError:
            self._loop.remove_reader(self._control.fileno())
            self._orphaned()
            return
        if received is None:
            return
        message, fds = received
        for fd in fds:
            os.close(fd)
        if message is not None:
            self._obey(message)

    def _obey(self, message: Message) -> None:
        match message:
            case Drain(seconds):
                self._end(seconds)
            case Quit():
                self._end(0.0)
                self._quitting.set_result(None)
                self._loop.remove_reader(self._control.fileno())
            case ReopenLogs():
                logs.reopen()
            case DumpStacks():
                other = None if self._thread is None else self._thread.loop
                stacks.write_tasks(self._resources.segment.fd, other)
            case SetLogLevel(level):
                logging.getLogger("asgiri").setLevel(level.upper())
            case ReloadCertificates(config):
                self._reload_certificates(config)
            case Shed(count):
                self._shed(count)
            case _:
                logger.error("the master sent %s, which is no order", type(message).__name__)

    def _reload_certificates(self, document: dict[str, object]) -> None:
        try:
            config = Config.from_json(document)
            if self._tcp.tls is not None:
                self._tcp.tls = boot.load_tls(config)
            if self._quic is not None:
                self._quic.load_certificate(config.tls)
        except (boot.BootError, ValueError) as error:
            self._warn(f"certificates not reloaded: {error}")

    def _shed(self, count: int) -> None:
        """Ask some clients to come again: the master will give them to another worker."""
        # Not those that were asked before: with long responses they are still here.
        asked = (session for session in list(self._services.sessions) if session.shed())
        for session in itertools.islice(asked, count):
            self._loop.call_later(GOAWAY_INTERVAL, session.finish_drain)

    def _warn(self, text: str) -> None:
        logger.warning("%s", text)
        _tell(self._control, messages.Warning(text))

    # The end

    def terminated(self) -> None:
        """SIGTERM: somebody wants this worker to go. Called in a handler."""
        if not self._loop.is_closed():  # else this process is about to exit anyway
            self._loop.call_soon_threadsafe(self._ask_the_master, self._services.now())

    def _ask_the_master(self, told_at: float) -> None:
        """Who sends SIGTERM to the whole group wants requests in flight to end as the master says:
        within `graceful_timeout`. Who means this worker alone does not tell the master.
        """
        if process.is_orphan(self._hello.master_pid):
            self._orphaned()
        elif self._ending.done():
            process.disarm_hard_stop()
        elif self._services.now() - told_at < process.MASTER_PATIENCE:
            self._loop.call_later(CHECK_INTERVAL, self._ask_the_master, told_at)
        else:
            self._orphaned()

    def _orphaned(self) -> None:
        # A signal, the channel and the heartbeat may all say so, also in the middle of a drain.
        if self._lifespan_patience is ORPHAN_LIFESPAN_PATIENCE:
            return
        self._lifespan_patience = ORPHAN_LIFESPAN_PATIENCE
        process.arm_hard_stop()
        logger.warning("the master is gone, or SIGTERM: ending within %g s", ORPHAN_DRAIN)
        self._loop.remove_reader(self._resources.connections.fileno())
        self._end(ORPHAN_DRAIN)

    def _end(self, seconds: float) -> None:
        """End within so many seconds, or sooner if that was said before."""
        self._drain_until = min(self._drain_until, self._services.now() + seconds)
        if not self._ending.done():
            self._ending.set_result(None)

    async def _drain(self) -> None:
        services = self._services
        self._scoreboard.set(Cell.STATE, WorkerState.DRAINING)
        services.draining = True
        self._accepting.stop()
        for session in list(services.sessions):
            session.begin_drain()
        await self._wait_empty(services.now() + GOAWAY_INTERVAL)
        for session in list(services.sessions):
            session.finish_drain()
        if not await self._wait_empty():
            await self._break_off()
        left = self._drain_until - services.now()
        await self._lifespan.shutdown(max(self._lifespan_patience, left))
        self._scoreboard.set(Cell.STATE, WorkerState.DRAINED)
        _tell(self._control, Drained())

    async def _wait_empty(self, until: float = float("inf")) -> bool:
        """Wait until nothing is open and nothing is under way; False when it took too long."""
        while True:
            # Each time: those that were on their way to us come now, or wait for room here.
            self._tcp.hand_back_unopened()
            awaited = self._settling or self._assignments.get(AssignmentCell.WAITING)
            if self._is_empty and not self._read_connections() and not awaited:
                return True
            # Looked at each time: the time left may become less on the way.
            if self._services.now() >= min(until, self._drain_until):
                return False
            await asyncio.sleep(CHECK_INTERVAL)

    @property
    def _is_empty(self) -> bool:
        quic_is_empty = self._quic is None or self._quic.is_empty
        return not self._services.sessions and self._tcp.is_empty and quic_is_empty

    async def _break_off(self) -> None:
        """The patience is over: cancel what runs, close what is open."""
        services = self._services
        sessions = list(services.sessions)
        if sessions:
            logger.warning("%d connections still open: their requests are cancelled", len(sessions))
        for session in sessions:
            session.cancel_exchanges()
        self._drain_until = services.now() + CANCEL_PATIENCE
        await self._wait_empty()
        for session in list(services.sessions):
            session.close()
        self._tcp.close_unopened()
        self._drain_until = services.now() + CLOSE_PATIENCE
        await self._wait_empty()


def make_services(
    application: Application,
    *,
    config: Config,
    scoreboard: Scoreboard,
    loop: asyncio.AbstractEventLoop,
    listeners: Sequence[ListenerInfo] = (),
    asgi_version: str = "3.0",
    access_log: logs.AccessLog | None = None,
    sweep_period: float = deadlines.PERIOD,
) -> WorkerServices:
    """Build what all connections share."""
    requests = RequestEnvironment(
        application=application,
        defaults=response_defaults(config, listeners),
        counters=Counters(scoreboard),
        loop=loop,
        now=time.monotonic,
        files=FileAccess(loop),
        access_log=access_log,
    )
    sweep = deadlines.Deadlines(loop, time.monotonic, period=sweep_period)
    http = config.http
    if http.limit_concurrency or http.request_timeout:
        requests.limits = RequestLimits(
            concurrency=http.limit_concurrency,
            queue_timeout=http.queue_timeout,
            request_timeout=http.request_timeout,
            loop=loop,
            context=application.context,
            now=time.monotonic,
            refused=scoreboard.refuse,
        )
        sweep.add(requests.limits)
    return WorkerServices(
        config=config,
        loop=loop,
        now=time.monotonic,
        requests=requests,
        websockets=WebSocketEnvironment(
            requests=requests,
            config=config.websocket,
            max_queue_size=config.flow.high_water,
            refuse=scoreboard.refuse,
            random=random.random,
            drain_spread=config.workers.graceful_timeout / 2,
        ),
        scopes=ScopeBuilder(
            root_path=config.app.root_path,
            state=application.state,
            asgi_version=asgi_version,
            forwarded=ForwardedReader(
                TrustedPeers(http.forwarded_allow_ips), http.proxy_headers_from, scoreboard.refuse
            )
            if http.proxy_headers
            else None,
        ),
        scoreboard=scoreboard,
        deadlines=sweep,
    )


def response_defaults(config: Config, listeners: Iterable[ListenerInfo]) -> ResponseDefaults:
    """Fields that each response carries unless the application sends its own."""
    http = config.http
    fields = [(b"server", b"asgiri")] if http.server_header else []
    ports = sorted({listener.port for listener in listeners if listener.kind == "udp"})
    if ports and http.alt_svc:
        age = int(http.alt_svc_max_age)
        services = ", ".join(f'h3=":{port}"; ma={age}' for port in ports)
        fields.append((b"alt-svc", services.encode("ascii")))
    for header in http.headers:
        name, _, value = header.partition(":")
        fields.append((name.lower().encode("ascii"), value.strip().encode("ascii")))
    defaults = ResponseDefaults(fields, date=http.date_header)
    defaults.set_date(time.time())
    return defaults
