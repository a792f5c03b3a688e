"""What a configuration file in Python sets: its values, their lines, the functions it defines."""

import importlib.util
import inspect
import math
import os
from collections.abc import Mapping
from typing import Any, Final

from asgiri.hooks import MODULE_PREFIX, PythonFileError, lines_of, run_python
from asgiri.logs.file import PYTHON_NAMES

__all__ = ["read_values"]

UNTOLD: Final = object()
"""A value that no option can have."""


def read_values(name: str) -> dict[str, Any]:
    """Run the file. Returns what JSON can carry: a problem, or the values."""
    try:
        names = run_python(name)
    except PythonFileError as error:
        return {"line": error.line, "problem": error.problem}
    values = {}
    for key, value in names.items():
        if key.startswith("_") or (told := _tell(value)) is UNTOLD:
            continue
        values[key] = told
    if any(isinstance(names.get(key), dict) for key in PYTHON_NAMES):
        values["log_config"] = name
    functions = [
        key for key, value in names.items() if inspect.isroutine(value) or inspect.isclass(value)
    ]
    return {"values": values, "functions": functions, "lines": _lines(name)}


def _tell(value: Any) -> Any:
    match value:
        case bool() | str():
            return value
        case int():
            # An IntEnum, such as ssl.CERT_REQUIRED; JSON has no numbers beyond 64 bits.
            return int(value) if abs(value) < 1 << 63 else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case os.PathLike():
            return os.fspath(value)
        case list() | tuple() | set() | frozenset():
            return [item if isinstance(item, str) else repr(item) for item in value]
        case _:  # None is gunicorn's way to say nothing
            return UNTOLD


def _lines(name: str) -> Mapping[str, int]:
    path: str | None = name
    if name.startswith(MODULE_PREFIX):
        spec = importlib.util.find_spec(name.removeprefix(MODULE_PREFIX))
        path = spec.origin if spec else None
    try:
        with open(path or "", encoding="utf-8") as file:
            return lines_of(file.read())
    except (OSError, ValueError, SyntaxError):  # frozen, compiled: it has no lines
        return {}
