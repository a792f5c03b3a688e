"""A mold: has imported the application, and forks workers (--preload). One for each generation.

Entry point: `python -m asgiri.worker.mold FD`, FD being its control channel. Started as workers are
otherwise, so that new code is really new after a reload. What it has imported, the heap's objects
frozen lest the collector touch them, is shared by all its workers until they write to it. It never
gets what belongs to one worker: of that it sees the control channel's end, for as long as a fork
takes.

A worker is forked twice. The process between the mold and the worker ends at once; the worker is
then an orphan, and becomes a child of the master (PR_SET_CHILD_SUBREAPER), which can wait for it,
and whose death the kernel tells it. The hello is sent after that, so there is nothing to race with.
clone(CLONE_PARENT) would do it in one step, but behind the back of libc and of the interpreter,
both of which have locks to mend after a fork.

A mold ends without clean-up: what the application registered with atexit belongs to the workers.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple, NoReturn

from asgiri import logs
from asgiri.errors import ChannelClosedError, ExitCode, FdsLostError
from asgiri.ipc import messages
from asgiri.ipc.channel import ControlChannel
from asgiri.ipc.messages import (
    Cast,
    Forked,
    ForkFailed,
    Importing,
    Message,
    MoldHello,
    Ready,
    ReopenLogs,
)
from asgiri.worker import boot, process
from asgiri.worker.asgi.loader import LoadedApplication
from asgiri.worker.runtime import run

_ANSWER_SIZE: Final = 256


def main(control_fd: int) -> None:
    """Be a mold; in a worker that it forks, be that."""
    process.Termination().install()
    os.set_inheritable(control_fd, False)
    control = ControlChannel.adopt(control_fd)
    try:
        hello, _ = boot.receive_first(control, MoldHello)
    except ChannelClosedError:
        _end(ExitCode.OK)
    if not process.attach_to(hello.master_pid):
        _end(ExitCode.OK)
    before = Inventory.take()
    try:
        loaded = _prepare(control, hello)
    except boot.BootError as error:
        _tell(control, error.failed)
        _end(error.status)
    _tell(control, Ready(os.getpid()))
    worker_fd = fork_workers(control, lambda: describe_leftovers(before))
    if worker_fd is None:
        _end(ExitCode.OK)
    sys.exit(run(worker_fd, loaded))


def _prepare(control: ControlChannel, hello: MoldHello) -> LoadedApplication:
    config = boot.configure_mold(hello)
    boot.event_loop_maker(config)
    boot.import_protocols(config)
    _tell(control, Importing())
    return boot.import_application(config)


def _end(status: int) -> NoReturn:
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _tell(control: ControlChannel, message: Message) -> None:
    with contextlib.suppress(ChannelClosedError):
        control.send(message)


# Forking


def fork_workers(control: ControlChannel, leftovers: Callable[[], str]) -> int | None:
    """Fork a worker for each Cast until the master is gone: None then.

    In each worker it returns the descriptor of the worker's own control channel. `leftovers` says
    what no fork can pass on, and is asked once.
    """
    gc.collect()
    gc.freeze()
    poll = select.poll()
    poll.register(control.fileno(), select.POLLIN)
    is_first = True
    while True:
        poll.poll()
        try:
            received = control.receive()
        except FdsLostError:
            continue
        except ChannelClosedError:
            return None
        match received:
            case (Cast(worker_id), [worker_fd]):
                answer = _fork_worker(worker_id)
                if answer is None:
                    control.close()
                    return worker_fd
                os.close(worker_fd)
                _tell(control, answer)
                # Only now: a library that stops its threads around a fork has none that matter.
                if is_first and (text := leftovers()):
                    _tell(control, messages.Warning(text))
                is_first = False
            case (ReopenLogs(), _):
                logs.reopen()
            case _:
                pass


def _fork_worker(worker_id: int) -> Message | None:
    """Fork twice: what to tell the master, and None in the worker."""
    _flush()  # what is in the buffers would be written by each of the three
    try:
        reading, writing = os.pipe()
    except OSError as error:
        return ForkFailed(worker_id, str(error))
    try:
        between = _fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        return ForkFailed(worker_id, str(error))
    if between:
        os.close(writing)
        answer = os.read(reading, _ANSWER_SIZE).decode()
        os.close(reading)
        os.waitpid(between, 0)
        if answer.isdecimal():
            return Forked(worker_id, int(answer))
        return ForkFailed(worker_id, answer or "the process between mold and worker was killed")
    try:
        pid = _fork()
    except OSError as error:
        os.write(writing, str(error).encode()[:_ANSWER_SIZE])
        os._exit(1)
    if pid:
        os.write(writing, b"%d" % pid)
        os._exit(0)
    os.close(reading)
    os.close(writing)
    return None


def _fork() -> int:
    with warnings.catch_warnings():
        # The interpreter warns of threads at each fork. We do so once, and say what to do.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


# What a fork cannot pass on


class Inventory(NamedTuple):
    """What this process has that a fork does not pass on, or shares."""

    files: frozenset[tuple[str, str]]
    """Descriptors, and what each one is."""
    threads: frozenset[str]
    """By the system's numbers: those that libraries in C have started are among them."""

    @classmethod
    def take(cls) -> Inventory:
        """Look into /proc."""
        files = set()
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # that of the listing itself
                files.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
        return cls(frozenset(files), frozenset(os.listdir("/proc/self/task")))


def describe_leftovers(before: Inventory) -> str:
    """Say what the application has started or opened and workers cannot use; "" for nothing.

    `before` was taken before it was imported.
    """
    now = Inventory.take()
    found = [
        *_describe_threads(now.threads - before.threads),
        *_describe_files([target for _, target in now.files - before.files]),
    ]
    if not found:
        return ""
    return (
        f"importing the application has left {' and '.join(found)} behind: "
        "forked workers have no such threads and share such descriptors; "
        "begin with them in the lifespan startup, or leave --preload out"
    )


def _describe_threads(numbers: Collection[str]) -> list[str]:
    if not numbers:
        return []
    # The others have no name that would help.
    names = [t.name for t in threading.enumerate() if str(t.native_id) in numbers]
    of_python = f" ({', '.join(names)})" if names else ""
    return [f"{len(numbers)} {'thread' if len(numbers) == 1 else 'threads'}{of_python}"]


def _describe_files(targets: Sequence[str]) -> list[str]:
    loops = sum("[eventpoll]" in target for target in targets)
    sockets = sum(target.startswith("socket:") for target in targets)
    if loops:
        sockets = max(0, sockets - 2 * loops)  # each has a pair to wake itself
    return [
        f"{count} {name}{'' if count == 1 else 's'}"
        for count, name in ((loops, "event loop"), (sockets, "socket"))
        if count
    ]


if __name__ == "__main__":
    main(int(sys.argv[1]))
