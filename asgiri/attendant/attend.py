"""Attend to one master: write its log, call its hooks, until it closes the socket."""

import asyncio
import inspect
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import orjson
from setproctitle import setproctitle

from asgiri import logs
from asgiri.config import LogConfig
from asgiri.errors import ConfigError, StartError
from asgiri.hooks import ATTENDED, PythonFileError, ServerFacts, WorkerFacts, run_python

__all__ = ["attend"]

PATIENCE: Final = 5
"""Seconds for hooks to end after the master has. It waits for less."""
IGNORED: Final = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGWINCH,
)
"""What is sent to the whole group is the master's business: it closes the socket when it ends."""

Hooks = Mapping[str, Callable[..., Any]]

logger = logging.getLogger("asgiri.hooks")


def attend(fd: int) -> None:
    """Do what the lines say; return when there are no more."""
    os.set_inheritable(fd, False)
    for number in IGNORED:
        # A function, not SIG_IGN: programs that a hook starts would inherit that.
        signal.signal(number, lambda _number, _frame: None)
    # The master started us with some of these held back.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    with socket.socket(fileno=fd) as master:
        lines = _lines(master)
        try:
            hooks = _configure(next(lines)["configure"])
        except ConfigError as error:
            _tell(master, {"problem": [error.option, str(error.value), error.remedy]})
            return
        except (StartError, PythonFileError) as error:
            _tell(master, {"problem": str(error)})
            return
        except StopIteration:
            return
        level = logging.getLogger("asgiri.master").getEffectiveLevel()
        _tell(master, {"ready": True, "level": level})
        calls: queue.SimpleQueue[Mapping[str, Any] | None] = queue.SimpleQueue()
        # Beside the log: a hook may take its time.
        caller = threading.Thread(target=_call_hooks, args=(hooks, calls), daemon=True)
        caller.start()
        for line in lines:
            _obey(line, calls)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        calls.put(None)
        caller.join()
    logging.shutdown()


def _tell(master: socket.socket, document: Mapping[str, Any]) -> None:
    try:
        master.sendall(orjson.dumps(document) + b"\n")
    except OSError:
        pass  # it has gone, and the lines end


def _lines(master: socket.socket) -> Iterator[Mapping[str, Any]]:
    with master.makefile("rb") as file:
        try:
            for line in file:
                yield orjson.loads(line)
        except (ConnectionError, orjson.JSONDecodeError):
            return  # the master was killed in the midst of a line


def _configure(settings: Mapping[str, Any]) -> Hooks:
    setproctitle(f"asgiri: attendant [{settings['title']}]")
    # The log configuration may name classes of the application.
    sys.path.insert(0, os.path.abspath(settings["app_folder"]))
    logs.configure(LogConfig(**settings["log"]), "attendant")
    if not settings["hooks"]:
        return {}
    names = run_python(settings["hooks"])
    return {name: names[name] for name in ATTENDED if callable(names.get(name))}


def _obey(line: Mapping[str, Any], calls: "queue.SimpleQueue[Mapping[str, Any] | None]") -> None:
    if "record" in line:
        record = logging.makeLogRecord(line["record"])
        logging.getLogger(record.name).handle(record)
    elif "hook" in line:
        calls.put(line)
    elif "reopen" in line:
        logs.reopen()


def _call_hooks(hooks: Hooks, calls: "queue.SimpleQueue[Mapping[str, Any] | None]") -> None:
    while (line := calls.get()) is not None:
        hook = hooks.get(line["hook"])
        if hook is None:
            continue
        facts: list[ServerFacts | WorkerFacts] = [ServerFacts(**line["server"])]
        if "worker" in line:
            facts.append(WorkerFacts(**line["worker"]))
        try:
            result = hook(*facts)
            if inspect.isawaitable(result):
                asyncio.run(_wait_for(result))
        except BaseException:
            logger.exception("%s failed", line["hook"])


async def _wait_for(result: Any) -> None:
    await result
