"""What the server says, and how: loggers, formats, files, the access log.

Three standard loggers below "asgiri": "asgiri.master", "asgiri.worker" and "asgiri.access", and
"asgiri.hooks" for what hooks say. Writing never blocks and never raises (`handlers`), unless
--log-config brings handlers that do.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, cast

from asgiri.config import LogConfig
from asgiri.errors import StartError
from asgiri.logs import file
from asgiri.logs.access import (
    AccessLog,
    SampledAccessLog,
    access_logger,
    compile_format,
    json_access,
)
from asgiri.logs.formats import JsonFormatter, TextFormatter
from asgiri.logs.handlers import STANDARD_ERROR, STANDARD_OUTPUT, ForwardHandler, LineHandler

__all__ = [
    "AccessLog",
    "JsonFormatter",
    "LineHandler",
    "TextFormatter",
    "configure",
    "forward",
    "give_files_to",
    "lines_dropped",
    "lines_left_out",
    "open_access_log",
    "reopen",
]

logger = logging.getLogger("asgiri")

Role = Literal["master", "worker", "admin", "attendant"]

_handlers: Final[dict[str, LineHandler | ForwardHandler]] = {}
"""Our handlers in this process, by the name of their logger."""
_of_file: Final[list[LineHandler]] = []
"""Those of our kind that --log-config has made."""
_sampled: Final[list[SampledAccessLog]] = []


def configure(config: LogConfig, role: Role, *, standard_error: int = STANDARD_ERROR) -> None:
    """Send this process's log where the configuration says. May be called again after a change.

    The master never runs the handlers of --log-config: it may `forward` its records instead.
    """
    if config.config and role != "master":
        _remove(*_handlers)
        file.apply(config.config, config.level)
        if access_logger.level == logging.NOTSET:
            access_logger.setLevel(logging.INFO)
        _of_file[:] = [found for found in _all_handlers() if isinstance(found, LineHandler)]
        return
    errors = LineHandler(config.error_log_file, standard_error)
    errors.setFormatter(_formatter(config, errors))
    _install(logging.getLogger("asgiri"), errors, config.level)
    if role == "admin" or not config.access_log:
        return
    # The master writes no access log, but finds out at the start what would keep workers from it.
    compile_format(config.access_log_format)
    access = LineHandler(config.access_log_file, STANDARD_OUTPUT)
    access.setFormatter(logging.Formatter("%(message)s"))
    _install(access_logger, access, "info")


def forward(send: Callable[[Mapping[str, Any]], bool], level: int) -> None:
    """Give this process's records to somebody else, until it is configured again."""
    _install(logging.getLogger("asgiri"), ForwardHandler(send), logging.getLevelName(level))


def reopen() -> None:
    """Open every log file again (SIGUSR1), so that a moved file is let go.

    One that cannot be opened stays as it is, and says so.
    """
    for handler in _all_handlers():
        try:
            _reopen(handler)
        except (OSError, StartError) as error:
            logger.error("goes on in the old file: %s", error)


def _reopen(handler: logging.Handler) -> None:
    if isinstance(handler, LineHandler):
        handler.reopen()
    elif isinstance(handler, logging.FileHandler) and handler.stream is not None:
        # Of --log-config. This is the public way to give one another stream.
        fresh = open(handler.baseFilename, handler.mode, encoding=handler.encoding)  # noqa: SIM115
        if old := handler.setStream(cast(io.TextIOWrapper, fresh)):
            old.close()


def give_files_to(uid: int, gid: int) -> None:
    """Give the log files that this process has made to the user that it is about to become."""
    for handler in _handlers.values():
        if isinstance(handler, LineHandler):
            with contextlib.suppress(OSError):  # who cannot do this cannot become another user
                handler.give_to(uid, gid)


def lines_dropped() -> int:
    """Return how many lines this process could not write."""
    return sum(handler.dropped for handler in (*_handlers.values(), *_of_file))


def lines_left_out() -> int:
    """Return how many lines --access-log-sampling has kept out of the access log."""
    return sum(log.left_out for log in _sampled)


def _all_handlers() -> set[logging.Handler]:
    found = set(logging.root.handlers)
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            found.update(logger.handlers)
    return found


def _remove(*names: str) -> None:
    for name in names:
        handler = _handlers.pop(name)
        logger = logging.getLogger(name)
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        handler.close()


def _install(logger: logging.Logger, handler: LineHandler | ForwardHandler, level: str) -> None:
    if logger.name in _handlers:
        _remove(logger.name)
    _handlers[logger.name] = handler
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    # An application that configures the root logger would have each line twice.
    logger.propagate = False


def _formatter(config: LogConfig, handler: LineHandler) -> logging.Formatter:
    if config.format == "json":
        return JsonFormatter()
    wanted = handler.is_terminal and not os.environ.get("NO_COLOR")
    return TextFormatter(color=wanted if config.color == "auto" else config.color == "on")


def open_access_log(config: LogConfig, *, slot: int, worker_id: int) -> AccessLog | None:
    """Build the access log of a worker, after `configure`; None when it is off."""
    if not config.access_log:
        return None
    line = json_access if config.format == "json" else compile_format(config.access_log_format)
    found = _handlers.get(access_logger.name)
    handler = found if isinstance(found, LineHandler) else None
    if config.access_log_sampling == 1:
        return AccessLog(line, handler, slot=slot, worker_id=worker_id)
    log = SampledAccessLog(
        line,
        handler,
        slot=slot,
        worker_id=worker_id,
        fraction=config.access_log_sampling,
        random=random.random,
    )
    _sampled.append(log)
    return log
