"""What was said about the options, and where; then one Config of all of it.

Every source adds what it says to one `Reading`. All problems are told at once, each in one line
that names the option as it was given, its value and the remedy.
"""

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

from asgiri.config import BindAddress, Config, ListenShorthand, all_options
from asgiri.errors import ConfigError
from asgiri.logs.access import compile_format
from asgiri.options import DeclaredOption, options_of

__all__ = ["Given", "Rank", "Reading", "UsageProblems", "label_of", "offered_options", "settle"]

Values = dict[str, dict[str, Any]]

MISSING_APP: Final = "APP: missing; name the application as module:attribute, such as main:app"
UNKNOWN_APP: Final = "unknown:app"


class Rank(enum.IntEnum):
    """Which place wins: the higher one."""

    FILE = 1
    SHARED = 2
    """A variable that other programs read as well, such as PORT."""
    ENVIRONMENT = 3
    ARGUMENT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A value, and how it was written."""

    declared: DeclaredOption
    value: Any
    place: str
    """Where it stood: `--workers`, `ASGIRI_WORKERS` or `asgiri.toml:3`."""
    prefix: str
    """What stood before it: `--workers `, `ASGIRI_WORKERS=` or `asgiri.toml:3: workers = `."""
    text: str
    rank: Rank

    def label(self, value: object = None) -> str:
        """Call it what its user calls it; of several values, show the one that is meant."""
        several = self.declared.repeated and isinstance(value, str)
        text = value if several else "***" if self.declared.option.secret else self.text
        return f"{self.prefix}{text}".rstrip()


@dataclass(slots=True)
class Reading:
    """Everything that was found, before it becomes a Config."""

    given: dict[str, Given] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    file: str = ""
    """The configuration file that was read, as its user knows it; "" when there is none."""
    file_failed: bool = False
    """Whether it could not be read: then nobody knows what is missing."""
    program: str = ""
    """The file as it is run, when it is written in Python."""
    hooks: list[str] = field(default_factory=list)
    """Those that the file, which is Python then, defines."""
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    """Variables of --env-file that the environment does not have."""

    def add(self, given: Given) -> None:
        """Keep it unless a stronger place has said something else."""
        known = self.given.get(given.declared.name)
        if known is None or known.rank <= given.rank:
            self.given[given.declared.name] = given

    def parse(self, given: Given, parse: Callable[[], Any]) -> None:
        """Add what `parse` makes of the text, or the reason why it makes nothing of it."""
        try:
            self.add(replace(given, value=parse()))
        except ConfigError as error:
            self.problems.append(f"{given.label(error.value)}: {error.remedy}")

    def explain(self, error: ConfigError) -> None:
        """Tell each problem by the name that its user knows."""
        for problem in error.problems():
            given = self.given.get(problem.option)
            label = given.label(problem.value) if given else label_of(problem)
            line = f"{label}: {problem.remedy}"
            if line not in self.problems:
                self.problems.append(line)


class UsageProblems(Exception):
    """What the user wrote is wrong; holds every line to print."""

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__(tuple(lines))
        self.lines: tuple[str, ...] = self.args[0]


def label_of(problem: ConfigError) -> str:
    """Call an option by its flag when nobody gave it."""
    for declared in all_options():
        if declared.name == problem.option:
            return f"{declared.flags[0] if declared.flags else declared.metavar} {problem.value}"
    return f"{problem.option} {problem.value}"


def offered_options() -> Iterator[DeclaredOption]:
    """List what can be given from outside of Python."""
    return (declared for declared in all_options() if not declared.pending)


# Together


def settle(reading: Reading, *, app_needed: bool = True) -> Config:
    """Make one Config of everything that was read. Raises UsageProblems."""
    values = _fold_shorthands(reading)
    if reading.hooks:
        hooks = {"hooks": tuple(reading.hooks), "hooks_file": reading.program}
        values.setdefault("process", {}).update(hooks)
    app = values.setdefault("app", {})
    if "target" not in app:
        if app_needed and not reading.file_failed:
            reading.problems.append(MISSING_APP)
        app["target"] = UNKNOWN_APP
    _check_access_log_format(values, reading)
    if reading.problems:
        _collect_further_problems(values, reading)
        raise UsageProblems(reading.problems)
    try:
        return Config.from_values(values)
    except ConfigError as error:
        reading.explain(error)
        raise UsageProblems(reading.problems) from None


def _check_access_log_format(values: Values, reading: Reading) -> None:
    """Else it would be found when the log is opened: after all other problems were mended."""
    try:
        compile_format(values.get("log", {}).get("access_log_format", ""))
    except ConfigError as error:
        reading.explain(error)


def _fold_shorthands(reading: Reading) -> Values:
    """Sort by section, with --host, --port, --uds and --fd turned into --bind."""
    values: Values = {}
    for name, given in reading.given.items():
        section, _, option = name.partition(".")
        values.setdefault(section, {})[option] = given.value
    listen = values.setdefault("listen", {})
    names = [declared.field for declared in options_of(ListenShorthand)]
    shorthand = {name: listen.pop(name) for name in names if name in listen}
    if shorthand:
        _fold_into_bind(shorthand, listen, reading)
    return values


def _fold_into_bind(shorthand: dict[str, Any], listen: dict[str, Any], reading: Reading) -> None:
    strongest = max(
        (reading.given[f"listen.{name}"] for name in shorthand), key=lambda given: given.rank
    )
    bind = reading.given.get("listen.bind")
    if bind is not None and bind.rank > strongest.rank:
        return
    if bind is not None and bind.rank == strongest.rank:
        reading.problems.append(
            f"{strongest.label()}: cannot go with --bind; give every address by it"
        )
        return
    if strongest.rank is Rank.SHARED:
        # PORT alone is how hosting platforms say where their proxy will come from.
        address = BindAddress(kind="tcp", host="0.0.0.0", port=shorthand["port"])  # noqa: S104
        listen["bind"] = (str(address),)
    else:
        try:
            listen["bind"] = ListenShorthand(**shorthand).bind()
        except ConfigError as error:
            reading.explain(error)
            return
    reading.given["listen.bind"] = strongest


def _collect_further_problems(values: Values, reading: Reading) -> None:
    """Go on after the first problems, as far as what was understood allows."""
    try:
        Config.from_values(values)
    except ConfigError as error:
        reading.explain(error)
