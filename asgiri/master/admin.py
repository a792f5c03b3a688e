"""The admin worker: a fleet of one beside the application's, with a supervisor of its own.

It is started with the others, survives their reloads, is replaced when it dies, hangs or has other
options, and goes last, so that it tells how the others end. It accepts from its listeners itself:
it answers when the master stands still, too. Nothing of the application's is ever given to it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import asgiri
from asgiri.config import (
    AdminConfig,
    AppConfig,
    Config,
    Http1Config,
    Http2Config,
    Http3Config,
    HttpConfig,
    TlsConfig,
    WorkerConfig,
    parse_bind,
)
from asgiri.master import actions
from asgiri.master.actions import Action
from asgiri.master.binding import UnixAccess
from asgiri.master.dispatcher import BalancePolicy, Dispatcher
from asgiri.master.fleet import Fleet
from asgiri.master.listeners import Listeners
from asgiri.master.loop import EventLoop
from asgiri.master.processes import WorkerHandle, WorkerOrder
from asgiri.master.reporting import Reporting
from asgiri.master.supervisor import Supervisor

logger = logging.getLogger("asgiri.master")

APPLICATION: Final = "asgiri.admin.app:app"
BACKLOG: Final = 128
"""Connections that wait for the admin worker, while it is replaced for example."""
WORKER: Final = WorkerConfig(
    count=1,
    graceful_timeout=2.0,  # its answers are short, and whoever stops the server waits for it
    timeout=30.0,
    balance="connection",
)
FIRST_WORKER_ID: Final = 1
"""Its numbers are its own: they are in no connection ID."""


def is_wanted(config: AdminConfig) -> bool:
    """Whether there is anything for it to do."""
    return bool(config.bind or config.statsd_host)


def admin_config(config: Config) -> Config:
    """Return what it runs with: the defaults, but for what concerns all processes."""
    return replace(
        config,
        app=AppConfig(
            target=APPLICATION,
            # Not the application's folder, where anything may have the name of a module of ours.
            app_dir=str(Path(asgiri.__file__).resolve().parent.parent),
            lifespan="on",
            loop=config.app.loop,
        ),
        tls=TlsConfig(),
        http=HttpConfig(alt_svc=False),
        http1=Http1Config(),
        http2=Http2Config(),
        http3=Http3Config(),
        workers=WORKER,
        log=replace(config.log, access_log=False),
    )


def open_listeners(config: AdminConfig, access: UnixAccess) -> Listeners:
    """Open where it is asked; nothing when it only sends. Raises StartError."""
    listeners = Listeners(backlog=BACKLOG, unix_access=access, quic=False)
    if config.bind:
        listeners.open_bind(parse_bind(config.bind), quic=False)
    return listeners


class AdminWorker:
    """Owns its fleet."""

    def __init__(
        self,
        loop: EventLoop,
        config: Config,
        listeners: Listeners,
        reporting: Reporting,
        stopped: Callable[[], None],
    ) -> None:
        """`stopped` is called when it has ended after `stop` or `quit`."""
        self._loop = loop
        self._config = admin_config(config)
        self._listeners = listeners
        self._reporting = reporting
        self._stopped = stopped
        self.supervisor = Supervisor(WORKER, first_worker_id=FIRST_WORKER_ID, random=random.random)
        dispatcher = Dispatcher(BalancePolicy.LEAST_LOADED, random=random.random, hash_key=b"")
        self.fleet = Fleet(loop, self.supervisor, dispatcher, None, self._carry_out, self._config)

    def describe(self) -> str:
        """Say where it is to be found; "" when it only sends."""
        return ", ".join(
            str(listener) if listener.kind == "unix" else f"http://{listener}"
            for listener in self._listeners
        )

    # Its life

    def start(self) -> None:
        """Begin. If it fails, it is tried again: the application serves without it."""
        self._reporting.watch()
        self.fleet.adopt([])
        self.fleet.decide(self.supervisor.start(time.monotonic(), patient=True))

    def reload(self, config: Config) -> None:
        """Replace it if its options have changed."""
        fresh = admin_config(config)
        if fresh != self._config and not self.supervisor.is_ending:
            self._config = fresh
            self.fleet.decide(self.supervisor.reload(WORKER, time.monotonic()))

    def stop(self) -> None:
        """Let it go; at once when asked again."""
        self.fleet.decide(self.supervisor.stop(time.monotonic()))

    def quit(self) -> None:
        """Let it go at once."""
        self.fleet.decide(self.supervisor.quit(time.monotonic()))

    def abandon(self) -> None:
        """Kill it, after an error of our own."""
        self.fleet.abandon()
        self.fleet.acceptor.close()

    def _carry_out(self, action: Action) -> None:
        match action:
            case actions.GenerationBegun(generation=generation):
                self.fleet.order(generation, self._order())
            case actions.ReloadEnded(failure=failure) if failure:
                logger.error("the admin worker stays as it is: %s", failure)
            case actions.Stopped():
                self._reporting.unwatch()
                self._listeners.close()
                self._stopped()
            case _:
                pass

    def _order(self) -> WorkerOrder:
        listeners = list(self._listeners)
        return WorkerOrder(
            config=self._config.to_json(),
            ring=self._config.ring,
            secrets=None,
            listeners=[listener.info(tls=False) for listener in listeners],
            udp_fds=(),
            role="admin",
            admin_fds=[self._reporting.fileno(), *(each.fileno() for each in listeners)],
        )

    # A takeover

    def to_state(self) -> dict[str, Any]:
        """Describe it to the next program of this process."""
        return {
            "supervisor": self.supervisor.to_state(),
            "workers": [worker.to_state() for worker in self.fleet.workers.values()],
        }

    def inherited_fds(self) -> list[int]:
        """Return the descriptors that `to_state` names."""
        fds: list[int] = []
        for worker in self.fleet.workers.values():
            fds += worker.inherited_fds()
        return fds

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on with the one that `to_state` told of until another one, which knows this program's
        board, is ready.
        """
        self._adopt(state)
        self.fleet.decide(self.supervisor.reload(WORKER, time.monotonic()))

    def end(self, state: Mapping[str, Any]) -> None:
        """End the one that `to_state` told of: this program is to have none."""
        self._adopt(state)
        self.quit()

    def _adopt(self, state: Mapping[str, Any]) -> None:
        self._reporting.watch()
        self.fleet.adopt([WorkerHandle.adopt(worker) for worker in state["workers"]])
        self.fleet.decide(self.supervisor.resume(state["supervisor"], time.monotonic()))
