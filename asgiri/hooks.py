"""Configuration files in Python, and the hooks that they define.

Such a file is the operator's code, and the master runs no code but its own. So it is run:

    for its values      in a process that ends with it, at the start and at each reload
    when_ready,         in the attendant, which stays beside the master: what blocks or crashes
    worker_exit,        there holds up nobody
    on_reload
    worker_ready        in each worker, on its event loop, before it gets connections

A hook may be a coroutine function. What it raises is logged, and the server goes on.
"""

import ast
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "ATTENDED",
    "HOOKS",
    "MODULE_PREFIX",
    "PythonFileError",
    "ServerFacts",
    "WorkerFacts",
    "lines_of",
    "run_python",
]

ATTENDED: Final = ("when_ready", "worker_exit", "on_reload")
"""Called in the attendant."""
HOOKS: Final = (*ATTENDED, "worker_ready")
MODULE_PREFIX: Final = "python:"
"""Stands before the name of a module instead of a path."""

logger = logging.getLogger("asgiri.hooks")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """First argument of each hook."""

    pid: int
    """Of the master."""
    app: str
    name: str
    workers: int
    """How many there should be."""
    generation: int
    """The one that serves."""
    addresses: str
    """As the log tells them."""
    failure: str = ""
    """Why a reload failed; "" when it did not."""

    @property
    def log(self) -> logging.Logger:
        """The server's own log."""
        return logger


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """Second argument of the hooks about a worker."""

    pid: int
    slot: int
    worker_id: int
    generation: int
    status: int | None = None
    """What it exited with, negative for a signal; None while it runs."""

    @property
    def log(self) -> logging.Logger:
        """The server's own log."""
        return logger


class PythonFileError(Exception):
    """The file cannot be run. `line` is 0 when it cannot be told."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(line, problem)
        self.line = line
        self.problem = problem


def run_python(name: str) -> dict[str, Any]:
    """Run a file, or import a module; returns its global names. Raises PythonFileError."""
    if name.startswith(MODULE_PREFIX):
        folder, path = os.getcwd(), ""
    else:
        folder, path = os.path.dirname(os.path.abspath(name)), name
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        if not path:
            return dict(vars(importlib.import_module(name.removeprefix(MODULE_PREFIX))))
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec")
        names: dict[str, Any] = {"__name__": "__config__", "__file__": path}
        exec(code, names)  # noqa: S102 (that is what such a file is for)
    except SyntaxError as error:
        raise PythonFileError(error.lineno or 0, f"{error.msg}") from None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise PythonFileError(_line_inside(path, error), _summary(error)) from None
    return names


def _line_inside(path: str, error: BaseException) -> int:
    frames = traceback.extract_tb(error.__traceback__)
    return next((f.lineno or 0 for f in reversed(frames) if f.filename == path), 0)


def _summary(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}; name a file that can be read"
    reason = str(error).strip().partition("\n")[0]
    name = type(error).__name__
    return f"{name}: {reason}" if reason else name


def lines_of(source: str) -> Mapping[str, int]:
    """Tell where each global name is bound last."""
    return dict(_bound_names(ast.parse(source)))


def _bound_names(node: ast.AST) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, child.lineno
            case ast.ClassDef() | ast.Lambda():
                pass  # what is bound inside is nobody's option
            case ast.alias():
                yield child.asname or child.name.partition(".")[0], child.lineno
            case ast.Name(id=name, ctx=ast.Store()):
                yield name, child.lineno
            case _:
                yield from _bound_names(child)
