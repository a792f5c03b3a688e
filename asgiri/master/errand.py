"""Run a command that writes its result to a pipe, without waiting for it.

So a configuration file in Python is read: it is not our code, and may hang.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Final

from asgiri.master.loop import EventLoop
from asgiri.master.processes import child_environment

__all__ = ["PATIENCE", "Errand", "run_errand"]

PATIENCE: Final = 10.0
"""Seconds for a configuration file: more than imports take, less than an operator waits."""
CHUNK: Final = 65536


class _Running:
    """A process, and the pipe that it writes to: its descriptor is the command's last word."""

    def __init__(self, command: Sequence[str], folder: str) -> None:
        self.pipe, writing = os.pipe()
        try:
            self.process = subprocess.Popen(
                [*command, str(writing)],
                stdin=subprocess.DEVNULL,
                pass_fds=(writing,),
                env=child_environment(),
                cwd=folder or None,
            )
        except BaseException:
            os.close(self.pipe)
            raise
        finally:
            os.close(writing)
        self._parts: list[bytes] = []

    def read(self) -> bool:
        """Read some of the result, when the pipe is readable; False at its end."""
        self._parts.append(os.read(self.pipe, CHUNK))
        return bool(self._parts[-1])

    def end(self) -> bytes:
        """Give everything back; the result as far as it came."""
        os.close(self.pipe)
        self.process.kill()  # it has said all, or has had its time
        self.process.wait()
        return b"".join(self._parts)


class Errand:
    """One run beside the loop. `done` gets the result, as far as it came in time."""

    def __init__(
        self,
        loop: EventLoop,
        command: Sequence[str],
        done: Callable[[bytes], None],
        *,
        folder: str = "",
        patience: float = PATIENCE,
    ) -> None:
        """Raises OSError when it cannot be started."""
        self._loop = loop
        self._done = done
        self._running = _Running(command, folder)
        loop.watch_readable(self._running.pipe, self._on_readable)
        self._timer = loop.call_later(patience, self._finish)

    def _on_readable(self) -> None:
        if not self._running.read():
            self._finish()

    def _finish(self) -> None:
        self._done(self._end())

    def cancel(self) -> None:
        """End it; `done` is not called."""
        self._end()

    def _end(self) -> bytes:
        self._timer.cancel()
        self._loop.unwatch(self._running.pipe)
        return self._running.end()


def run_errand(command: Sequence[str], *, folder: str = "", patience: float = PATIENCE) -> bytes:
    """Run one before there is a loop. Raises OSError when it cannot be started."""
    running = _Running(command, folder)
    deadline = time.monotonic() + patience
    with contextlib.suppress(KeyboardInterrupt):
        while (left := deadline - time.monotonic()) > 0:
            if select.select([running.pipe], [], [], left)[0] and not running.read():
                break
    return running.end()
