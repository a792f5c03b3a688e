"""The command line: taken apart by click, from options that are generated of their declarations."""

import functools
from collections.abc import Sequence
from typing import Any, Final

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from asgiri import __version__
from asgiri.cli.peers import ELSEWHERE, LATER
from asgiri.cli.reading import Given, Rank, Reading, offered_options
from asgiri.config import all_options, options_in
from asgiri.options import DeclaredOption, nearest

__all__ = ["PROGRAM", "parse_arguments", "read_arguments"]

PROGRAM: Final = "asgiri"
COMPLETION: Final = "_ASGIRI_COMPLETE"
"""Variable that the scripts set which click writes for shells, and those who want one."""
SWITCHES: Final = tuple(declared for declared in all_options() if declared.base is bool)
COMMANDS: Final = {
    "config check": "Say what is wrong with the configuration.",
    "config show": "Show each option, and where its value is from.",
    "ctl": "Steer a running server: reload, stop, scale, status, stacks, log-level.",
    "top": "Show the workers of a running server, live.",
}
"""What can stand in the place of APP."""
EPILOG: Final = (
    "Every option can also be given in the environment, as ASGIRI_ and its name, such as "
    'ASGIRI_WORKERS=auto, or in a configuration file, such as workers = "auto" in asgiri.toml. An '
    "argument wins over the environment, and that over the file. Durations are written 30, 30s or "
    "5m, sizes 65536 or 16MiB. The README says why each default is what it is."
)


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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Say what a value can be, or that it is a file."""
        if self.declared.metavar == "PATH":
            return [CompletionItem(incomplete, type="file")]
        choices = [word for word in self.declared.choices if word.startswith(incomplete)]
        return [CompletionItem(word) for word in choices]

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
        groups["Commands, instead of APP"] = list(COMMANDS.items())
        groups["Help"] = [("-h, --help", "Show this text."), ("--version", "Show the version.")]
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=34)


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


def parse_arguments(arguments: Sequence[str], reading: Reading) -> click.Context | int | None:
    """Let click take the arguments apart, again and again until it knows what is left.

    None when nothing could be made of them; an exit code when --help or --version was asked for.
    """
    words = list(arguments)
    while True:
        try:
            result = build_command().main(words, PROGRAM, standalone_mode=False)
        except click.NoSuchOption as error:
            reading.problems.append(_unknown(error.option_name))
            rest = [word for word in words if word.partition("=")[0] != error.option_name]
            if len(rest) == len(words):  # a letter in the midst of others, such as -wx
                return None
            words = rest
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
    negatives = [
        flag.replace("--", "--no-", 1)
        for option in SWITCHES
        for flag in option.flags
        if flag in offered
    ]
    guess = nearest(name, [*offered, *negatives])
    return f"{name}: no such option; " + (f"did you mean {guess}?" if guess else "see --help")


def read_arguments(context: click.Context, reading: Reading) -> None:
    """Add what the arguments say."""
    words: tuple[str, ...] = context.params["words"]
    if reading.problems:  # then some word may be the value of an option that we do not know
        words = tuple(word for word in words if ":" in word)[-1:]
    for word in words[:1]:
        declared = next(iter(options_in("app")))
        reading.add(_given(declared, declared.metavar, word, value=word))
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
        flag = flag if raw else flag.replace("--", "--no-", 1)
        reading.add(_given(declared, flag, "", value=raw))
        return
    text = " ".join(raw) if declared.repeated else raw[-1]
    reading.parse(_given(declared, flag, text), lambda: declared.parse_arguments(raw))


def _given(declared: DeclaredOption, place: str, text: str, value: Any = None) -> Given:
    return Given(
        declared=declared,
        value=value,
        place=place,
        prefix=f"{place} ",
        text=text,
        rank=Rank.ARGUMENT,
    )
