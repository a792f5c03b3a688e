"""Tell the master where this worker stands: its threads, and the tasks of its event loop.

Threads are written by a signal handler in C, so that they are told also while the interpreter
stands in a computation of C code. Tasks are told by the loop, so only while it turns. Both go to
the segment's descriptor, as to a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, Final

from asgiri.ipc.scoreboard import Cell, Scoreboard
from asgiri.ipc.segment import stacks_signal

MAX_TASKS: Final = 200
"""Tasks that are told by name; of more there is only the number. More do not fit."""
MAX_DEPTH: Final = 50
"""Coroutines that wait for each other, of one task."""


def offer(fd: int, scoreboard: Scoreboard) -> None:
    """Write the stacks of all threads to `fd` whenever the master sends its signal."""
    number = stacks_signal()
    if number is not None:
        faulthandler.register(number, fd, all_threads=True, chain=False)
        # The master starts us with it held back, like all of its signals.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        scoreboard.set(Cell.TELLS_STACKS, 1)


def write_tasks(fd: int, other: asyncio.AbstractEventLoop | None = None) -> None:
    """Write where the tasks of the running loop stand, and those of the application's own one.

    Nothing happens when that does not fit.
    """
    if stacks_signal() is None:  # no signal has done it
        faulthandler.dump_traceback(fd, all_threads=True)
    tasks = asyncio.all_tasks() | (set() if other is None else asyncio.all_tasks(other))
    text = "\n".join(describe_tasks(tasks))
    with contextlib.suppress(OSError):
        os.write(fd, f"\n{text}\n".encode(errors="backslashreplace"))


def describe_tasks(tasks: Iterable[asyncio.Task[Any]]) -> Iterator[str]:
    """Yield lines: each task, and the coroutines in it from the outermost to the one that waits."""
    named = sorted(tasks, key=lambda task: task.get_name())
    yield f"Tasks: {len(named)}"
    for task in named[:MAX_TASKS]:
        yield f"Task {task.get_name()} (most recent call last):"
        for code, line in chain(task.get_coro()):
            yield f'  File "{code.co_filename}", line {line} in {code.co_name}'
    if len(named) > MAX_TASKS:
        yield f"and {len(named) - MAX_TASKS} more"


def chain(coroutine: Any) -> Iterator[tuple[CodeType, int]]:
    """Yield where each of the coroutines stands that wait for each other."""
    for _ in range(MAX_DEPTH):
        frame: FrameType | None = None
        for prefix in ("cr", "ag", "gi"):
            frame = frame or getattr(coroutine, f"{prefix}_frame", None)
        if frame is None:
            return
        yield frame.f_code, frame.f_lineno
        coroutine = next(
            (
                waited
                for name in ("cr_await", "ag_await", "gi_yieldfrom")
                if (waited := getattr(coroutine, name, None)) is not None
            ),
            None,
        )
