"""The process that watches files for --reload (`asgiri.watch`), as the master sees it."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import orjson

from asgiri.config import Config
from asgiri.errors import StartError
from asgiri.master.loop import EventLoop, Timer
from asgiri.master.processes import child_environment, interpreter

logger = logging.getLogger("asgiri.master")

WATCH_MODULE: Final = "asgiri.watch"
DRAIN: Final = 2.0
"""Longest --graceful-timeout in development: an open page or a debugger must not hold up the next
change, and what is cut off is one's own."""
RESTART_DELAY: Final = 1.0
READ_SIZE: Final = 1 << 16
NAMED: Final = 3
"""Files that are named in the log; of a branch that is checked out the number will do."""


def for_development(config: Config) -> Config:
    """Return what --reload means for the lives of workers; the same without it."""
    if not config.reload.enabled:
        return config
    workers = config.workers
    drain = min(workers.graceful_timeout, DRAIN)
    workers = replace(workers, graceful_timeout=drain, timeout=0.0, reload_surge=0)
    return replace(config, workers=workers)


def check_reload(config: Config) -> None:
    """Find out what would keep files from being watched. Raises StartError."""
    if not config.reload.enabled:
        return
    if importlib.util.find_spec("watchfiles") is None:
        raise StartError("--reload: watchfiles is not installed; pip install 'asgiri[reload]'")
    for folder in config.reload.dirs:
        if not Path(folder).is_dir():
            raise StartError(f"--reload-dir {folder}: no such folder; name one that exists")


class Watcher:
    """Owns the process. It is started again when it ends for no reason."""

    def __init__(
        self,
        loop: EventLoop,
        config: Config,
        on_change: Callable[[], None],
        bystanders: dict[int, Callable[[], None]],
    ) -> None:
        """`bystanders`: children that are no workers, and who reaps them."""
        app_dir = config.app.app_dir
        dirs = config.reload.dirs or (os.curdir, *([app_dir] if app_dir else []))
        self._config = replace(config.reload, dirs=dirs)
        self._loop = loop
        self._on_change = on_change
        self._bystanders = bystanders
        self._process: subprocess.Popen[bytes] | None = None
        self._timer: Timer | None = None
        self._unread = b""
        self._has_begun = False

    def start(self) -> None:
        """Start the process. What goes wrong is said in the log: the server serves all the same."""
        document = orjson.dumps(asdict(self._config)).decode()
        command = [*interpreter(), "-m", WATCH_MODULE, document]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                env=child_environment(),
                process_group=0,  # what a terminal sends to its group is for the master
            )
        except OSError as error:
            logger.error("--reload: changes are not seen: %s", error)
            return
        self._unread, self._has_begun = b"", False
        os.set_blocking(self._fileno(), False)
        self._loop.watch_readable(self._fileno(), self._on_readable)
        self._bystanders[self._process.pid] = self._on_readable

    def _fileno(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def _on_readable(self) -> None:
        if self._process is None:
            return
        try:
            content = os.read(self._fileno(), READ_SIZE)
        except BlockingIOError:
            return
        *lines, self._unread = (self._unread + content).split(b"\n")
        for line in lines:
            self._take(orjson.loads(line))
        if not content:
            self._on_end()

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"watching": folders}:
                self._has_begun = True
                logger.info("--reload: watching %s", ", ".join(folders))
            case {"changed": paths}:
                logger.info("%s changed: reloading", describe(paths))
                self._on_change()
            case {"failed": reason}:
                logger.error("--reload: changes are not seen: %s", reason)

    def _on_end(self) -> None:
        self.close()
        if not self._has_begun:
            logger.error("--reload: changes are not seen until the server is started again")
            return
        logger.warning("--reload: whoever watches the files has ended; another one begins")
        self._timer = self._loop.call_later(RESTART_DELAY, self.start)

    def kill(self) -> None:
        """End the process, in the place of which another one comes unless this one ends as well."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def close(self) -> None:
        """Watch no more; a second call does nothing."""
        if self._timer is not None:
            self._timer.cancel()
        if self._process is None:
            return
        self._loop.unwatch(self._fileno())
        self._bystanders.pop(self._process.pid, None)
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None


def describe(paths: Sequence[str]) -> str:
    """Name changed files, as seen from the current folder."""
    named = [path.removeprefix(f"{os.getcwd()}{os.sep}") for path in paths[:NAMED]]
    more = len(paths) - NAMED
    return ", ".join(named) + (f" and {more} more" if more > 0 else "")
