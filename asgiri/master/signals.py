"""Signals become bytes in a pipe that the master's loop reads. Nothing else happens in a handler.

The kernel interrupts anything, the master's tables included; the interpreter writes the signal's
number into the pipe (`signal.set_wakeup_fd`) and the loop takes it out between two callbacks, in
order of arrival. A pipe and not a socketpair: it holds 65,536 signals, a socketpair 278, and what
does not fit is lost.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from types import FrameType

READ_SIZE = 4096
"""Signals taken per turn; the rest wakes the loop again."""


class SignalSource:
    """The signals of this process as a readable descriptor. One per process, in its main thread."""

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        self._previous_wakeup_fd = signal.set_wakeup_fd(self._write_end, warn_on_full_buffer=False)
        # Without a handler of Python's nothing is written into the pipe, and the default action
        # applies.
        self._previous = {number: signal.signal(number, _ignore) for number in signals}
        # Held back by the program whose place this one has taken.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    def fileno(self) -> int:
        """Tell the descriptor that is readable when a signal came."""
        return self._read_end

    def take(self) -> list[signal.Signals]:
        """Take what came since, in order; [] when nothing did."""
        try:
            numbers = os.read(self._read_end, READ_SIZE)
        except BlockingIOError:
            return []
        return [signal.Signals(number) for number in numbers if number in self._previous]

    def pass_on(self) -> None:
        """Leave what was not taken to the next program of this process. Signals are blocked."""
        for number in self.take():
            os.kill(os.getpid(), number)

    def close(self) -> None:
        """Put the handlers back that were there before."""
        if self._read_end < 0:
            return
        for number, handler in self._previous.items():
            # None: installed by C code; it cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(self._previous_wakeup_fd)
        os.close(self._read_end)
        os.close(self._write_end)
        self._read_end = self._write_end = -1


def _ignore(number: int, frame: FrameType | None) -> None:
    """Let the interpreter write the number into the pipe."""
