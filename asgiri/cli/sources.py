"""Ask every place that may say something: arguments, environment, files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from asgiri.cli.arguments import parse_arguments, read_arguments
from asgiri.cli.env_file import EnvFileError, parse_env_file
from asgiri.cli.environment import read_environment
from asgiri.cli.files import ConfigFile, find_file, read_entries, read_toml
from asgiri.cli.python_file import is_python, parse_values, path_of, reading_command
from asgiri.cli.reading import Reading, UsageProblems, settle
from asgiri.config import Config
from asgiri.hooks import MODULE_PREFIX
from asgiri.master.errand import run_errand

__all__ = ["read_config", "read_sources"]


def read_config(arguments: Sequence[str], environ: Mapping[str, str]) -> Config | int:
    """Build the configuration; an exit code when --help or --version was all that was asked.

    Raises UsageProblems.
    """
    reading = read_sources(arguments, environ)
    return reading if isinstance(reading, int) else settle(reading)


def read_sources(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    folder: str = "",
    output: bytes | None = None,
) -> Reading | int:
    """Read what every place says; an exit code as in `read_config`. Raises UsageProblems.

    `folder` is where the command was given, "" for the current one. `output` is what running a
    configuration file in Python has brought, if that was done already.
    """
    reading = Reading()
    context = parse_arguments(arguments, reading)
    if isinstance(context, int):
        return context
    if context is not None:
        read_arguments(context, reading)
    read_environment(environ, reading)
    _read_file(folder, output, reading)
    places = _read_env_files(environ, folder, reading)
    read_environment(reading.environment, reading, places)
    if context is None:  # the arguments were not understood
        raise UsageProblems(reading.problems)
    return reading


def _read_file(folder: str, output: bytes | None, reading: Reading) -> None:
    named = reading.given.get("sources.config")
    reading.file = find_file(Path(folder)) if named is None else named.value
    if not reading.file:
        return
    try:
        if is_python(reading.file):
            file = _run_file(folder, output, reading)
        else:
            file = read_toml(reading.file, folder)
        read_entries(file, reading)
    except UsageProblems as problems:
        reading.problems += problems.lines
        reading.file_failed = True


def _run_file(folder: str, output: bytes | None, reading: Reading) -> ConfigFile:
    name = path_of(reading.file)
    reading.program = (
        name if name.startswith(MODULE_PREFIX) else os.path.abspath(os.path.join(folder, name))
    )
    if output is None:
        try:
            output = run_errand(reading_command(reading.program), folder=folder)
        except OSError as error:
            raise UsageProblems([f"{name}: cannot be run: {error}"]) from None
    return parse_values(name, output, reading.hooks)


def _read_env_files(environ: Mapping[str, str], folder: str, reading: Reading) -> dict[str, str]:
    """Read the files of variables; returns where each of these stands."""
    given = reading.given.get("sources.env_file")
    places = {}
    for name in () if given is None else given.value:
        try:
            text = Path(os.path.join(folder, name)).read_text()
            variables = parse_env_file(text, {**reading.environment, **environ})
        except OSError as error:
            reading.problems.append(f"{name}: {error.strerror}; name a file that can be read")
        except EnvFileError as error:
            reading.problems.append(f"{name}:{error.line}: {error.remedy}")
        except ValueError:
            reading.problems.append(f"{name}: must be text in UTF-8")
        else:
            for variable in variables:
                if variable.name not in environ:
                    reading.environment[variable.name] = variable.value
                    places[variable.name] = f"{name}:{variable.line}"
    return places
