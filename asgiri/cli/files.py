"""Options in a configuration file: asgiri.toml, or the table [tool.asgiri] of pyproject.toml.

A key is an option's name without dashes, or what another server calls it. Every problem names the
file, the line and the key.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from asgiri.cli.peers import answer
from asgiri.cli.reading import Given, Rank, Reading, UsageProblems, offered_options
from asgiri.options import DeclaredOption, nearest

__all__ = ["ConfigFile", "Entry", "find_file", "read_entries", "read_toml"]

OWN_NAME: Final = "asgiri.toml"
PROJECT_NAME: Final = "pyproject.toml"
PROJECT_TABLE: Final = ("tool", "asgiri")
LIKELY: Final = 0.85
"""How much a name in Python must be like an option's to be taken for a slip of the fingers."""
POSITION: Final = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)
"""How tomllib ends its messages."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a file."""

    key: str
    value: Any
    line: int
    """0 when it cannot be told."""


FUNCTION: Final = object()
"""Value of a name that a file in Python gives to a function: no option, perhaps a hook."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says. `name` is its path as its user knows it."""

    name: str
    entries: Sequence[Entry]
    strict: bool = True
    """Whether every key must be an option. Python has other names in it, too."""


def find_file(folder: Path) -> str:
    """Tell which file is read when none is named: its name, or "" when there is none."""
    if (folder / OWN_NAME).is_file():
        return OWN_NAME
    try:
        project = (folder / PROJECT_NAME).read_text()
    except (OSError, ValueError):
        return ""
    # A project file that does not mention us may be as broken as it likes.
    return PROJECT_NAME if f"[{'.'.join(PROJECT_TABLE)}]" in project else ""


def read_toml(name: str, folder: str = "") -> ConfigFile:
    """Read a file of TOML, named from `folder`. Raises UsageProblems."""
    try:
        text = Path(folder, name).read_text()
        document = tomllib.loads(text)
    except OSError as error:
        remedy = f"{error.strerror}; name a file that can be read"
        raise UsageProblems([f"{name}: {remedy}"]) from None
    except tomllib.TOMLDecodeError as error:
        raise UsageProblems([_syntax_problem(name, text, str(error))]) from None
    except ValueError:
        raise UsageProblems([f"{name}: must be text in UTF-8"]) from None
    path = PROJECT_TABLE if Path(name).name == PROJECT_NAME else ()
    table: Any = document
    for key in path:
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UsageProblems([f"{name}: has no table [{'.'.join(path)}]"])
    entries = [Entry(key, value, line_of(text, (*path, key))) for key, value in table.items()]
    return ConfigFile(name, entries)


def _syntax_problem(name: str, text: str, message: str) -> str:
    match = POSITION.fullmatch(message)
    if match is None:
        return f"{name}: {message}"
    line = match[2] or max(1, len(text.splitlines()))
    return f"{name}:{line}: {match[1][0].lower()}{match[1][1:]}"


def line_of(text: str, path: Sequence[str]) -> int:
    """Find where a key of a valid document is set; 0 when it cannot be told.

    tomllib does not say. A line sets the key if the document up to it lacks the key, and has it
    with the statement that begins there.
    """
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if path[-1] not in line:
            continue
        before = _parse("".join(lines[:number]))
        if before is None or _has(before, path):
            continue
        for end in range(number + 1, len(lines) + 1):
            document = _parse("".join(lines[:end]))
            if document is not None:
                if _has(document, path):
                    return number + 1
                break
    return 0


def _parse(text: str) -> Mapping[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _has(document: Any, path: Sequence[str]) -> bool:
    for key in path:
        if not isinstance(document, dict) or key not in document:
            return False
        document = document[key]
    return True


# What the keys mean


def read_entries(file: ConfigFile, reading: Reading) -> None:
    """Add what a file says."""
    options = {key: declared for declared in _options() for key in declared.keys}
    seen: dict[str, Entry] = {}
    for entry in file.entries:
        declared = options.get(entry.key.replace("-", "_"))
        where = f"{file.name}:{entry.line}" if entry.line else file.name
        if declared is None and not file.strict:
            _judge_name(entry, where, options, reading)
        elif declared is None:
            reading.problems.append(f"{where}: {entry.key}: {_unknown(entry, options)}")
        elif entry.value is FUNCTION:
            pass  # `def name()` is nobody's way to set an option
        elif declared.name in seen:
            first = seen[declared.name]
            reading.problems.append(
                f"{where}: {entry.key}: is the same as {first.key} in line {first.line}"
            )
        else:
            seen[declared.name] = entry
            _read_entry(declared, entry, where, reading)


def _options() -> Iterable[DeclaredOption]:
    return (declared for declared in offered_options() if declared.name != "sources.config")


def _read_entry(declared: DeclaredOption, entry: Entry, where: str, reading: Reading) -> None:
    given = Given(
        declared=declared,
        value=None,
        place=where,
        prefix=f"{where}: {entry.key} = ",
        text=_spell(entry.value),
        rank=Rank.FILE,
    )
    reading.parse(given, lambda: declared.parse_value(entry.value))


def _spell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value)) if value else "[]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _judge_name(entry: Entry, where: str, options: Iterable[str], reading: Reading) -> None:
    """Refuse what other servers obey and we do not; say what looks like a mistake."""
    if elsewhere := answer(entry.key):
        reading.problems.append(f"{where}: {entry.key}: {elsewhere}")
    elif entry.value is not FUNCTION:
        close = difflib.get_close_matches(entry.key, options, n=1, cutoff=LIKELY)
        if close:
            hint = f"no such option, ignored; did you mean {close[0]}?"
            click.echo(f"asgiri: {where}: {entry.key}: {hint}", err=True)


def _unknown(entry: Entry, options: Iterable[str]) -> str:
    key = entry.key.replace("-", "_")
    if elsewhere := answer(key):
        return elsewhere
    if isinstance(entry.value, dict):
        return "is a table; options stand by their own name, such as ring_size"
    if key == "config":
        return "names another file; write its options here"
    guess = nearest(key, options)
    return "no such option; " + (f"did you mean {guess}?" if guess else "see --help")
