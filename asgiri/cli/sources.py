"""Ask every place that may say something: arguments, environment, configuration file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from asgiri.cli.arguments import parse_arguments, read_arguments
from asgiri.cli.environment import read_environment
from asgiri.cli.files import find_file, read_entries, read_toml
from asgiri.cli.reading import Reading, UsageProblems, settle
from asgiri.config import Config

__all__ = ["read_config", "read_sources"]


def read_config(arguments: Sequence[str], environ: Mapping[str, str]) -> Config | int:
    """Build the configuration; an exit code when --help or --version was all that was asked.

    Raises UsageProblems.
    """
    reading = read_sources(arguments, environ)
    return reading if isinstance(reading, int) else settle(reading)


def read_sources(arguments: Sequence[str], environ: Mapping[str, str]) -> Reading | int:
    """Read what every place says; an exit code as in `read_config`. Raises UsageProblems."""
    reading = Reading()
    context = parse_arguments(arguments, reading)
    if isinstance(context, int):
        return context
    if context is not None:
        read_arguments(context, reading)
    read_environment(environ, reading)
    if context is None:  # nothing but the environment was understood
        raise UsageProblems(reading.problems)
    named = reading.given.get("sources.config")
    reading.file = named.value if named is not None else find_file(Path.cwd())
    if reading.file:
        try:
            read_entries(read_toml(reading.file), reading)
        except UsageProblems as problems:
            reading.problems += problems.lines
    return reading
