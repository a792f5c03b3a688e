"""The command `asgiri`: argv, environment and file -> Config -> the server; exit codes.

Every option is generated from its declaration in `config`. A first word that names a command of
COMMANDS runs it; everything else is the application to serve.
"""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import click

from asgiri import logs
from asgiri.cli.arguments import COMPLETION, PROGRAM
from asgiri.cli.detach import Background, is_detached
from asgiri.cli.python_file import reading_command
from asgiri.cli.reading import Reading, UsageProblems, label_of, settle
from asgiri.cli.sources import read_sources
from asgiri.config import Config
from asgiri.errors import ConfigError, ExitCode, StartError, TakeoverError
from asgiri.master import runtime, takeover
from asgiri.master.renewal import check_encryption
from asgiri.master.settings import Reread, Settings

__all__ = ["main"]

logger = logging.getLogger("asgiri.master")

NEIGHBOUR: Final = "gunicorn.conf.py"
"""Read without being named by gunicorn. We run no Python by accident, but say that we do not."""
COMMANDS: Final[Mapping[str, str]] = {
    "config": "asgiri.cli.config_command",
    "ctl": "asgiri.cli.ctl_command",
    "top": "asgiri.cli.top_command",
}
"""First word -> the module whose `run` gets the others. No application is called so: these have a
colon. Imported when called: together with psutil they take 10 ms of each start."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server; returns its exit code."""
    _open_standard_streams()
    if COMPLETION in os.environ:
        return _run_module("asgiri.cli.completion")
    words = sys.argv[1:] if arguments is None else arguments
    state_fd = takeover.inherited_state(os.environ)
    try:
        if words and words[0] in COMMANDS:
            return _run_module(COMMANDS[words[0]], words[1:])
        if words[:1] == [takeover.CHECK_OPTION]:
            return _check_upgrade(words[1:], state_fd)
        return _serve(words, state_fd)
    except UsageProblems as problems:
        return _fail(problems.lines, ExitCode.USAGE)
    except ConfigError as error:
        lines = [f"{label_of(problem)}: {problem.remedy}" for problem in error.problems()]
        return _fail(lines, ExitCode.USAGE)
    except StartError as error:
        return _fail([str(error)], ExitCode.RUNTIME)


def _run_module(name: str, *arguments: Sequence[str]) -> int:
    run: Callable[..., int] = importlib.import_module(name).run
    return run(*arguments)


def _check_upgrade(words: Sequence[str], state_fd: int) -> int:
    """Say whether this program could take the place of the one whose state this is."""
    importlib.import_module("asgiri.worker.runtime")  # or its workers could not start
    try:
        state = takeover.read_state(state_fd)
    except TakeoverError as error:
        return _fail([str(error)], ExitCode.RUNTIME)
    reading = read_sources(words, os.environ)
    if isinstance(reading, Reading):
        settings = _settings(reading, os.getcwd())
        check_encryption(settings.config, http3=state.secrets is not None, tls=state.tls)
    return ExitCode.OK


def _serve(words: Sequence[str], state_fd: int) -> int:
    started_in = os.getcwd()
    reading = read_sources(words, os.environ, started_in)
    if isinstance(reading, int):
        return reading
    settings = _settings(reading, started_in, opens_log=True)
    if not reading.file and os.path.exists(NEIGHBOUR):
        click.echo(f"{PROGRAM}: {NEIGHBOUR} is not read; name it by --config to have it", err=True)

    def reread(output: bytes) -> Settings:
        """Read everything anew for a reload: files may have changed, and `auto` may mean more."""
        try:
            fresh = read_sources(words, os.environ, started_in, output)
            assert isinstance(fresh, Reading)
            return _settings(fresh, started_in)
        except UsageProblems as problems:
            raise StartError("; ".join(problems.lines)) from None

    command = reading_command(reading.program) if reading.program else ()
    if settings.folder:
        os.chdir(settings.folder)
    log, started = settings.config.log, None
    if settings.config.process.daemon and state_fd < 0 and not is_detached():
        if not log.error_log_file and not log.config:
            logger.warning("--daemon: the log ends with the start; give --error-logfile")
        background = Background.enter(log)
        if isinstance(background, int):
            return background
        started = background.started
    return runtime.run(
        settings, Reread(reread, command, started_in), words, state_fd=state_fd, started=started
    )


def _settings(reading: Reading, started_in: str, *, opens_log: bool = False) -> Settings:
    """Make of what was read what the server runs with. Raises UsageProblems and StartError."""
    config = settle(reading)
    if not config.process.chdir:
        return Settings(_provide(config, opens_log), environment=reading.environment)
    folder = os.path.realpath(os.path.join(started_in, config.process.chdir))
    try:
        with contextlib.chdir(folder):
            config = _provide(config, opens_log)
    except OSError as error:
        remedy = "name a folder that can be entered"
        raise StartError.from_os_error(error, f"--chdir {folder}", remedy) from None
    return Settings(config, environment=reading.environment, folder=folder, started_in=started_in)


def _provide(config: Config, opens_log: bool) -> Config:
    """Have certificates, after the log in which they are told of."""
    if opens_log:
        logs.configure(config.log, "master")
    if not config.needs_self_signed and not config.tls.certfile:
        return config
    from asgiri.certificates import provide_certificates  # noqa: PLC0415  (20 ms of each start)

    return provide_certificates(config)


def _fail(lines: Iterable[str], code: ExitCode) -> int:
    for line in lines:
        click.echo(f"{PROGRAM}: {line}", err=True)
    return code


def _open_standard_streams() -> None:
    """Fill descriptors 0 to 2 where they are closed, lest a socket becomes standard error.

    For the workers, too: they inherit them, or would be in the same danger.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
