"""The hook worker_ready of a configuration file in Python: it runs in each worker."""

from __future__ import annotations

import inspect
import logging
import os

from asgiri.config import Config
from asgiri.hooks import PythonFileError, ServerFacts, WorkerFacts, run_python
from asgiri.ipc.messages import Hello, ListenerInfo

logger = logging.getLogger("asgiri.hooks")

NAME = "worker_ready"


async def call_worker_ready(config: Config, hello: Hello) -> None:
    """Call it if there is one. What it raises is logged: the worker serves all the same."""
    if NAME not in config.process.hooks:
        return
    try:
        hook = run_python(config.process.hooks_file)[NAME]
        result = hook(_server(config, hello), _worker(hello))
        if inspect.isawaitable(result):
            await result
    except PythonFileError as error:
        file = config.process.hooks_file
        logger.error("%s was not called: %s:%d: %s", NAME, file, error.line, error.problem)
    except Exception:
        logger.exception("%s failed", NAME)


def _server(config: Config, hello: Hello) -> ServerFacts:
    return ServerFacts(
        pid=hello.master_pid,
        app=config.app.target,
        name=config.process.name,
        workers=config.workers.count,
        generation=hello.generation,
        addresses=", ".join(map(_address, hello.listeners)),
    )


def _address(listener: ListenerInfo) -> str:
    if listener.kind == "unix":
        return f"unix:{listener.path}"
    host = f"[{listener.host}]" if ":" in listener.host else listener.host
    secure = listener.tls and not listener.insecure
    return f"{'https' if secure else 'http'}://{host}:{listener.port}"


def _worker(hello: Hello) -> WorkerFacts:
    return WorkerFacts(
        pid=os.getpid(), slot=hello.slot, worker_id=hello.worker_id, generation=hello.generation
    )
