"""`--daemon`: go to the background, and let whoever waits know how the start went.

The command that was typed stays until the server is ready, or has failed: then it exits with what
the server would have exited with, and a script that goes on meets a server that answers. The
process that serves has no terminal. Its standard streams and those of its workers are /dev/null;
what the master says during the start still goes to where the command's errors go.
"""

import os
import signal
import sys
from typing import Final, Self

import click

from asgiri import logs
from asgiri.config import LogConfig
from asgiri.errors import ExitCode

__all__ = ["MARK", "Background", "is_detached"]

MARK: Final = "ASGIRI_DETACHED"
"""Our process ID, for a later program of this process that finds --daemon on its command line."""


def is_detached() -> bool:
    """Tell whether this process has gone to the background already."""
    return os.environ.get(MARK) == str(os.getpid())


class Background:
    """The process in the background, until the server is ready."""

    def __init__(self, log: LogConfig, news: int) -> None:
        self._log = log
        self._news = news
        os.setsid()
        if os.environ.get("LISTEN_PID") == str(os.getppid()):
            os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ[MARK] = str(os.getpid())
        self._terminal = os.dup(2)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in range(3):
            os.dup2(null, descriptor)
        os.close(null)
        sys.stderr = os.fdopen(self._terminal, "w", buffering=1, closefd=False)
        logs.configure(log, "master", standard_error=self._terminal)

    @classmethod
    def enter(cls, log: LogConfig) -> Self | int:
        """Part into two processes: what serves goes on, the other one has an exit code."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            return cls(log, writing)
        os.close(writing)
        return _wait(reading, child, log)

    def started(self) -> None:
        """Let the command exit, and the terminal be closed."""
        logs.configure(self._log, "master")
        sys.stderr = sys.__stderr__
        os.close(self._terminal)
        os.write(self._news, b"r")
        os.close(self._news)


def _wait(news: int, child: int, log: LogConfig) -> int:
    try:
        if os.read(news, 1):
            return ExitCode.OK
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if log.error_log_file:
        click.echo(f"asgiri: not started; see also {log.error_log_file}", err=True)
    return status if status >= 0 else 128 - status
