"""argv and environment -> Config; exit codes.

Every option is generated from its declaration in `config`. All problems are told at once, each in
one line that names the option as it was given, its value and the remedy.
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import click
from click.core import ParameterSource

from asgiri import __version__, logs
from asgiri.certificates import provide_certificates
from asgiri.config import BindAddress, Config, ListenShorthand, all_options, options_in
from asgiri.errors import ConfigError, ExitCode, StartError, TakeoverError
from asgiri.master import runtime, takeover
from asgiri.options import ENVIRONMENT_PREFIX, DeclaredOption, nearest, options_of

__all__ = ["main", "options_markdown", "read_config"]

PROGRAM: Final = "asgiri"
LATER: Final = "comes with a later version; leave it out"
NOT_NEEDED: Final = "is not needed here; leave it out"

ELSEWHERE: Final[Mapping[str, str]] = {
    # uvicorn
    "--reload": LATER,
    "--reload-dir": LATER,
    "--reload-include": LATER,
    "--reload-exclude": LATER,
    "--reload-delay": LATER,
    "--ws": "is not needed: WebSockets are always on; leave it out",
    "--ssl-version": "is not needed: TLS 1.2 and 1.3 are spoken; leave it out",
    "--use-colors": "is written --log-color on",
    "--no-use-colors": "is written --log-color off",
    "--reset-contextvars": NOT_NEEDED,
    # gunicorn
    "--threads": "is not needed: a worker is one event loop; start more --workers",
    "--worker-connections": "is not needed: idle connections are not limited; leave it out",
    "--worker-tmp-dir": "is not needed: heartbeats go through shared memory; leave it out",
    "--reuse-port": "is not needed: the master hands connections to the workers; leave it out",
    "--no-sendfile": NOT_NEEDED,
    "--limit-request-field_size": "is written --h1-max-head-size, for all fields together",
    "--check-config": LATER,
    "--print-config": LATER,
    "--config": LATER,
    "-c": LATER,
    "--statsd-host": LATER,
    "--statsd-prefix": LATER,
    "--proxy-protocol": LATER,
    "--capture-output": NOT_NEEDED,
    # hypercorn
    "--debug": "is written --log-level debug",
    "--verify-mode": "is written --cert-reqs",
    "--server-name": LATER,
    "--read-timeout": "is written --body-timeout",
    # granian
    "--backpressure": "is written --limit-concurrency",
    "--runtime-mode": NOT_NEEDED,
    "--runtime-threads": NOT_NEEDED,
    "--runtime-blocking-threads": NOT_NEEDED,
    "--blocking-threads": NOT_NEEDED,
    "--task-impl": NOT_NEEDED,
    "--respawn-failed-workers": "is not needed: workers that die are always replaced; leave it out",
    "--http1-buffer-size": "is written --h1-max-head-size",
    "--ws-enabled": NOT_NEEDED,
}
"""What people look for who come from another server: option -> what to do instead."""

WORKERS_VARIABLES: Final = frozenset(
    {"ASGIRI_WORKER_SLOT", "ASGIRI_WORKER_ID", "ASGIRI_GENERATION"}
)
"""Set by a worker for its application, so seen by a server that an application starts."""


# What was said, and where


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A value, and how it was written."""

    declared: DeclaredOption
    value: Any
    prefix: str
    """What stood before it: `--workers ` or `ASGIRI_WORKERS=`."""
    text: str
    rank: int
    """The higher one wins: an argument 3, ASGIRI_* 2, a variable shared with other programs 1."""

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

    def add(self, given: Given) -> None:
        self.given[given.declared.name] = given

    def explain(self, error: ConfigError) -> None:
        for problem in error.problems():
            given = self.given.get(problem.option)
            label = given.label(problem.value) if given else _default_label(problem)
            line = f"{label}: {problem.remedy}"
            if line not in self.problems:
                self.problems.append(line)


class UsageProblems(Exception):
    """The command line or the environment is wrong; holds every line to print."""

    def __init__(self, lines: Iterable[str]) -> None:
        super().__init__(tuple(lines))
        self.lines: tuple[str, ...] = self.args[0]


def _default_label(problem: ConfigError) -> str:
    for declared in all_options():
        if declared.name == problem.option:
            return f"{declared.flags[0] if declared.flags else declared.metavar} {problem.value}"
    return f"{problem.option} {problem.value}"


SWITCHES: Final = tuple(declared for declared in all_options() if declared.base is bool)


def offered_options() -> Iterator[DeclaredOption]:
    """List what can be given from outside of Python."""
    return (declared for declared in all_options() if not declared.pending)


# The command line


class GeneratedOption(click.Option):
    """One declared option: takes its text as it is, and parses nothing itself."""

    def __init__(self, declared: DeclaredOption) -> None:
        self.declared = declared
        names = [*declared.flags, *declared.aliases]
        if declared.base is bool:
            names = [_with_negative(name) for name in names]
            super().__init__([_parameter(declared), *names], default=None)
        else:
            super().__init__(
                [_parameter(declared), *names],
                multiple=True,
                type=str,
                metavar=declared.metavar,
            )

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Show our own names only: the other servers' are for hands that know them."""
        flags = sorted(self.declared.flags, key=len)
        if self.declared.base is bool:
            names = ", ".join(flag.replace("--", "--[no-]", 1) for flag in flags)
        else:
            names = f"{', '.join(flags)} {self.declared.metavar}"
        default = self.declared.default_text()
        text = self.declared.help
        return names, f"{text} [{default}]" if default else text


def _with_negative(name: str) -> str:
    return f"{name}/--no-{name.removeprefix('--')}" if name.startswith("--") else name


def _parameter(declared: DeclaredOption) -> str:
    return f"{declared.section}__{declared.field}"


class GeneratedCommand(click.Command):
    """The command; its help is in groups, as the sections are."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.params:
            record = parameter.get_help_record(ctx)
            if isinstance(parameter, GeneratedOption) and record is not None:
                groups.setdefault(parameter.declared.owner.TITLE, []).append(record)
        groups["Help"] = [("-h, --help", "Show this text."), ("--version", "Show the version.")]
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=34)


EPILOG: Final = (
    "Every option can also be given in the environment, as ASGIRI_ and its name, such as "
    "ASGIRI_WORKERS=auto; an argument wins. Durations are written 30, 30s or 5m, sizes 65536 or "
    "16MiB. The README says why each default is what it is."
)


@functools.cache
def build_command() -> click.Command:
    """Generate the command from the declarations."""
    parameters: list[click.Parameter] = [click.Argument(["words"], nargs=-1, metavar="APP")]
    parameters += [GeneratedOption(declared) for declared in offered_options() if declared.flags]
    command = GeneratedCommand(
        PROGRAM,
        params=parameters,
        callback=lambda **_: click.get_current_context(),
        help="Serve the ASGI application APP, written as module:attribute.",
        epilog=EPILOG,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    return click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")(
        command
    )


def read_config(arguments: Sequence[str], environ: Mapping[str, str]) -> Config | int:
    """Build the configuration; an exit code when --help or --version was all that was asked.

    Raises UsageProblems.
    """
    reading = Reading()
    context = _parse_arguments(list(arguments), reading)
    if isinstance(context, int):
        return context
    _read_environment(environ, reading)
    if context is None:  # nothing but the environment was understood
        raise UsageProblems(reading.problems)
    _read_arguments(context, reading)
    values = _fold_shorthands(reading)
    if reading.problems:
        _collect_further_problems(values, reading)
        raise UsageProblems(reading.problems)
    try:
        return Config.from_values(values)
    except ConfigError as error:
        reading.explain(error)
        raise UsageProblems(reading.problems) from None


def _parse_arguments(arguments: list[str], reading: Reading) -> click.Context | int | None:
    """Let click take the arguments apart, again and again until it knows what is left."""
    while True:
        try:
            result = build_command().main(arguments, PROGRAM, standalone_mode=False)
        except click.NoSuchOption as error:
            reading.problems.append(_unknown(error.option_name))
            rest = [word for word in arguments if word.partition("=")[0] != error.option_name]
            if len(rest) == len(arguments):  # a letter in the midst of others, such as -wx
                return None
            arguments = rest
        except click.BadOptionUsage as error:
            switch = any(error.option_name in option.flags for option in SWITCHES)
            needs = "takes no value" if switch else "needs a value"
            reading.problems.append(f"{error.option_name}: {needs}")
            return None
        except click.ClickException as error:
            reading.problems.append(error.format_message())
            return None
        else:
            assert isinstance(result, click.Context | int)
            return result


def _unknown(name: str) -> str:
    offered = [flag for option in offered_options() for flag in (*option.flags, *option.aliases)]
    pending = {
        flag
        for option in all_options()
        if option.pending
        for flag in (*option.flags, *option.aliases)
    }
    if name in ELSEWHERE:
        return f"{name}: {ELSEWHERE[name]}"
    if name in pending or name.replace("--no-", "--", 1) in pending:
        return f"{name}: {LATER}"
    negatives = [flag.replace("--", "--no-", 1) for flag in offered if flag.startswith("--")]
    guess = nearest(name, [*offered, *negatives])
    return f"{name}: no such option; " + (f"did you mean {guess}?" if guess else "see --help")


def _read_arguments(context: click.Context, reading: Reading) -> None:
    words: tuple[str, ...] = context.params["words"]
    if reading.problems:  # then some word may be the value of an option that we do not know
        words = tuple(word for word in words if ":" in word)[-1:]
    for word in words[:1]:
        declared = next(iter(options_in("app")))
        prefix = f"{declared.metavar} "
        reading.add(Given(declared=declared, value=word, prefix=prefix, text=word, rank=3))
    reading.problems += [f"{word}: one argument too many" for word in words[1:]]
    for parameter in context.command.params:
        if not isinstance(parameter, GeneratedOption):
            continue
        assert parameter.name is not None
        if context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            _read_argument(parameter.declared, context.params[parameter.name], reading)


def _read_argument(declared: DeclaredOption, raw: Any, reading: Reading) -> None:
    flag = declared.flags[0]
    if isinstance(raw, bool):
        prefix = flag if raw else flag.replace("--", "--no-", 1)
        reading.add(Given(declared=declared, value=raw, prefix=prefix, text="", rank=3))
        return
    text = " ".join(raw) if declared.repeated else raw[-1]
    given = Given(declared=declared, value=None, prefix=f"{flag} ", text=text, rank=3)
    _parse_into(reading, given, lambda: declared.parse_arguments(raw))


# The environment


def _read_environment(environ: Mapping[str, str], reading: Reading) -> None:
    known = set(WORKERS_VARIABLES)
    for declared in offered_options():
        known.update(declared.environment)
        # Weakest first, so that the strongest one stays.
        for variable in reversed(declared.environment):
            text = environ.get(variable, "")
            if text:
                _read_variable(declared, variable, text, reading)
    for variable in sorted(environ.keys() - known):
        if variable.startswith(ENVIRONMENT_PREFIX):
            guess = nearest(variable, {name.lower(): name for name in known})
            hint = f"did you mean {guess.upper()}?" if guess else "leave it out"
            click.echo(f"{PROGRAM}: {variable}: no such option, ignored; {hint}", err=True)


def _read_variable(declared: DeclaredOption, variable: str, text: str, reading: Reading) -> None:
    rank = 2 if variable.startswith(ENVIRONMENT_PREFIX) else 1
    given = Given(declared=declared, value=None, prefix=f"{variable}=", text=text, rank=rank)
    _parse_into(reading, given, lambda: declared.parse_environment(text))


def _parse_into(reading: Reading, given: Given, parse: Callable[[], Any]) -> None:
    try:
        reading.add(replace(given, value=parse()))
    except ConfigError as error:
        reading.problems.append(f"{given.label(error.value)}: {error.remedy}")


# Together


def _fold_shorthands(reading: Reading) -> dict[str, dict[str, Any]]:
    """Sort by section, with --host, --port, --uds and --fd turned into --bind."""
    values: dict[str, dict[str, Any]] = {}
    for name, given in reading.given.items():
        section, _, option = name.partition(".")
        values.setdefault(section, {})[option] = given.value
    if "app" not in values or "target" not in values["app"]:
        reading.problems.append(
            "APP: missing; name the application as module:attribute, such as main:app"
        )
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
    if strongest.rank == 1:
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


def _collect_further_problems(values: dict[str, dict[str, Any]], reading: Reading) -> None:
    """Go on after the first problems, as far as what was understood allows."""
    values.setdefault("app", {}).setdefault("target", "unknown:app")
    try:
        Config.from_values(values)
    except ConfigError as error:
        reading.explain(error)


# Description


def options_markdown() -> str:
    """Write the README's tables of options."""
    lines: list[str] = []
    section = ""
    for declared in offered_options():
        if not declared.flags:
            continue
        if section != declared.owner.TITLE:
            section = declared.owner.TITLE
            lines += [
                "",
                f"**{section}**",
                "",
                "| option | default | what and why |",
                "|---|---|---|",
            ]
        lines.append(_markdown_row(declared))
    return "\n".join(lines).strip() + "\n"


def _markdown_row(declared: DeclaredOption) -> str:
    names = ", ".join(f"`{flag}`" for flag in declared.flags)
    if declared.base is not bool:
        names += f" {declared.metavar}"
    also = [f"`{name}`" for name in (*declared.aliases, *declared.option.env.split())]
    default = declared.default_text()
    text = f"{declared.help} {declared.reason}".strip()
    if also:
        text += f" Also {', '.join(also)}."
    cells = (names, f"`{default}`" if default else "", text)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# The program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server; returns its exit code."""
    _open_standard_streams()
    words = sys.argv[1:] if arguments is None else arguments
    state_fd = takeover.inherited_state(os.environ)
    try:
        if words[:1] == [takeover.CHECK_OPTION]:
            return _check_upgrade(words[1:], state_fd)
        config = read_config(words, os.environ)
        return config if isinstance(config, int) else _serve(config, words, state_fd)
    except UsageProblems as problems:
        return _fail(problems.lines, ExitCode.USAGE)
    except ConfigError as error:
        lines = [f"{_default_label(problem)}: {problem.remedy}" for problem in error.problems()]
        return _fail(lines, ExitCode.USAGE)
    except StartError as error:
        return _fail([str(error)], ExitCode.RUNTIME)


def _check_upgrade(words: Sequence[str], state_fd: int) -> int:
    """Say whether this program could take the place of the one whose state this is."""
    importlib.import_module("asgiri.worker.runtime")  # or its workers could not start
    try:
        takeover.read_state(state_fd)
    except TakeoverError as error:
        return _fail([str(error)], ExitCode.RUNTIME)
    config = read_config(words, os.environ)
    if isinstance(config, Config):
        provide_certificates(config)
    return ExitCode.OK


def _serve(config: Config, words: Sequence[str], state_fd: int) -> int:
    def reread() -> Config:
        """Read everything anew for a reload: files may have changed, and `auto` may mean more."""
        try:
            fresh = read_config(words, os.environ)
        except UsageProblems as problems:
            raise StartError("; ".join(problems.lines)) from None
        assert isinstance(fresh, Config)
        return provide_certificates(fresh)

    logs.configure(config.log, "master")
    return runtime.run(provide_certificates(config), reread, words, state_fd=state_fd)


def _fail(lines: Iterable[str], code: ExitCode) -> int:
    for line in lines:
        click.echo(f"{PROGRAM}: {line}", err=True)
    return code


def _open_standard_streams() -> None:
    """Fill descriptors 0 to 2 where they are closed, lest a socket becomes standard error."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
