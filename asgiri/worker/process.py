"""What ties a worker process to its master and to the system: signals, parent, limits.

Nothing here knows the event loop: a handler has to work while the loop is blocked (D19).
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final

from asgiri.ipc.channel import largest_batch
from asgiri.prctl import set_death_signal

HARD_STOP: Final = 5
"""Seconds from the death of the master (or SIGTERM) to the end of a worker that will not end by
itself. The number of SIGTRAP, see `attach_to`."""
MASTER_PATIENCE: Final = 1
"""Seconds for the master to say what SIGTERM means: service managers send it to the whole group."""
EXIT_PATIENCE: Final = 2.0
"""How long the interpreter may wait for threads of the application when it exits."""

# The master speaks for the whole server: what a terminal or an operator sends to the group is its
# business.
MASTER_SIGNALS: Final = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
)


class Termination:
    """SIGTERM, from somebody who means this worker; and the hard stop when the master dies."""

    def __init__(self) -> None:
        self._react: Callable[[], None] | None = None

    def install(self) -> None:
        """Take over all signals of this process. Called first, in the main thread."""
        faulthandler.enable()  # SIGABRT of the master's watchdog prints the stacks of all threads
        signal.signal(signal.SIGTERM, self._on_signal)
        # The default ends the process: this is the hard stop, also when the loop is blocked.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for number in MASTER_SIGNALS:
            # A function, not SIG_IGN: programs that the application starts would inherit that.
            signal.signal(number, _ignore)
        # The master started us with these held back.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, MASTER_SIGNALS)

    def react_with(self, react: Callable[[], None]) -> None:
        """From now on call this, in the main thread between two instructions; before, just exit."""
        self._react = react

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        arm_hard_stop(MASTER_PATIENCE + HARD_STOP)
        if self._react is None:
            # Nothing is being served yet, and an import may take for ever.
            os._exit(0)
        self._react()


def arm_hard_stop(seconds: int = HARD_STOP) -> None:
    """End the process in so many seconds, whatever it does then; sooner if that was said before."""
    left = signal.alarm(seconds)
    if 0 < left < seconds:
        signal.alarm(left)


def disarm_hard_stop() -> None:
    """The master lives, and sees to our end."""
    signal.alarm(0)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    pass


def attach_to(master_pid: int) -> bool:
    """Have Linux end this process HARD_STOP seconds after the master, if not earlier.

    That is for a worker that is blocked: one whose loop turns sees the end of its channel and goes
    in order. A handler of Python's would not do, nor one that ctypes makes: code in C that keeps
    the interpreter's lock runs neither. So the handler is alarm(2) itself, which is safe as one
    (signal-safety(7)); it is called with the signal's number. Elsewhere only `is_orphan` tells.

    False when the master has ended already, or is not our parent.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.signal(signal.SIGTRAP, libc.alarm)
            set_death_signal(signal.SIGTRAP)
    return not is_orphan(master_pid)


def is_orphan(master_pid: int) -> bool:
    """Whether the master is no longer our parent. Covers its death before we asked for a signal."""
    return os.getppid() != master_pid


def raise_file_limit() -> None:
    """Every connection is a descriptor: allow as many as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def pin(slot: int) -> None:
    """Run on one processor only: the workers take turns in choosing theirs. Linux only."""
    if sys.platform == "linux":
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[slot % len(allowed)]})


def room_for_files() -> int:
    """Tell with how many connections open another message of them still fits into our limit.

    Called when a worker has opened its own; an eighth is left for the files of the application.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lowest_free = os.dup(0)
    os.close(lowest_free)
    return max(1, limit - lowest_free - limit // 8 - largest_batch(limit))


def exit_soon(status: int) -> None:
    """See to it that the process ends with this status even if a thread of the application goes on.

    The interpreter waits for threads that are no daemons, and for those of executors, without a
    limit.
    """

    def force() -> None:
        time.sleep(EXIT_PATIENCE)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)

    threading.Thread(target=force, daemon=True).start()
