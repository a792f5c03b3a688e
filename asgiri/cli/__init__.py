"""The command `asgiri`: argv, environment and file -> Config -> the server; exit codes.

Every option is generated from its declaration in `config`. A first word that names a command of
COMMANDS runs it; everything else is the application to serve.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import click

from asgiri import logs
from asgiri.certificates import provide_certificates
from asgiri.cli import config_command
from asgiri.cli.arguments import PROGRAM
from asgiri.cli.reading import UsageProblems, label_of
from asgiri.cli.sources import read_config
from asgiri.config import Config
from asgiri.errors import ConfigError, ExitCode, StartError, TakeoverError
from asgiri.master import runtime, takeover

__all__ = ["main", "read_config"]

COMMANDS: Final[Mapping[str, Callable[[Sequence[str]], int]]] = {"config": config_command.run}
"""First word -> what it runs with the others. No application is called so: these have a colon."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server; returns its exit code."""
    _open_standard_streams()
    words = sys.argv[1:] if arguments is None else arguments
    state_fd = takeover.inherited_state(os.environ)
    try:
        if words and words[0] in COMMANDS:
            return COMMANDS[words[0]](words[1:])
        if words[:1] == [takeover.CHECK_OPTION]:
            return _check_upgrade(words[1:], state_fd)
        config = read_config(words, os.environ)
        return config if isinstance(config, int) else _serve(config, words, state_fd)
    except UsageProblems as problems:
        return _fail(problems.lines, ExitCode.USAGE)
    except ConfigError as error:
        lines = [f"{label_of(problem)}: {problem.remedy}" for problem in error.problems()]
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
