"""Configuration files in Python: found by their name, run elsewhere, see `asgiri.hooks`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from asgiri.cli.files import FUNCTION, ConfigFile, Entry
from asgiri.cli.reading import UsageProblems
from asgiri.hooks import HOOKS, MODULE_PREFIX
from asgiri.master.processes import interpreter

__all__ = ["is_python", "parse_values", "reading_command"]

FILE_PREFIX: Final = "file:"
"""What gunicorn and hypercorn write before a path to Python."""


def is_python(name: str) -> bool:
    """Tell by its name whether a configuration file is written in Python."""
    return name.endswith(".py") or name.startswith((FILE_PREFIX, MODULE_PREFIX))


def path_of(name: str) -> str:
    """Take the prefix away that says no more than that it is Python."""
    return name.removeprefix(FILE_PREFIX)


def reading_command(path: str) -> Sequence[str]:
    """Return what runs such a file. A descriptor to write to comes last."""
    return [*interpreter(), "-m", "asgiri.attendant", path]


def parse_values(name: str, output: bytes, hooks: list[str]) -> ConfigFile:
    """Make of what the command has written what every file is. Raises UsageProblems."""
    try:
        document: Mapping[str, Any] = orjson.loads(output)
    except orjson.JSONDecodeError:
        raise UsageProblems([f"{name}: ended or hung before it had said all"]) from None
    if "problem" in document:
        where = f"{name}:{document['line']}" if document["line"] else name
        raise UsageProblems([f"{where}: {document['problem']}"])
    lines = document["lines"]
    entries = [Entry(key, value, lines.get(key, 0)) for key, value in document["values"].items()]
    for function in document["functions"]:
        if function in HOOKS:
            hooks.append(function)
        else:
            entries.append(Entry(function, FUNCTION, lines.get(function, 0)))
    return ConfigFile(name, entries, strict=False)
