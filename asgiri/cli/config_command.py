"""`asgiri config check` and `config show`: what a start with the same words would use."""

import os
from collections.abc import Iterator, Sequence
from typing import Final

import click

from asgiri.certificates import provide_certificates
from asgiri.cli.reading import Reading, UsageProblems, offered_options, settle
from asgiri.cli.sources import read_sources
from asgiri.config import Config, ListenShorthand, SourceOptions
from asgiri.errors import ExitCode

__all__ = ["run"]

USAGE: Final = (
    "config: say `config check` or `config show`, then what the server would be started with"
)
HIDDEN: Final = "***"


def run(words: Sequence[str]) -> int:
    """Check or show the configuration. Raises UsageProblems and StartError."""
    if words[:1] == ["--help"]:
        click.echo(USAGE)
        return ExitCode.OK
    if not words or words[0] not in ("check", "show"):
        raise UsageProblems([USAGE])
    reading = read_sources(words[1:], os.environ)
    if isinstance(reading, int):
        return reading
    config = settle(reading, app_needed=False)
    if words[0] == "show":
        click.echo("\n".join(show(config, reading)))
    else:
        if not config.needs_self_signed:
            provide_certificates(config)
        click.echo(f"no problems found; {reading.file or 'no configuration file'} was read")
    return ExitCode.OK


def show(config: Config, reading: Reading) -> Iterator[str]:
    """Yield the lines of a configuration file that says it all, and where each value is from."""
    title = ""
    for declared in offered_options():
        if declared.owner in (SourceOptions, ListenShorthand) or not declared.keys:
            continue  # the file itself, what has become a --bind, what follows from another one
        value = getattr(getattr(config, declared.section), declared.field)
        given = reading.given.get(declared.name)
        if title != declared.owner.TITLE:
            title = declared.owner.TITLE
            yield f"{'' if title == 'Application' else chr(10)}# {title}"
        key = declared.keys[0]
        place = "default" if given is None else given.place
        if value is None or (key == "app" and given is None):
            yield f"# {key} is not set"
        elif declared.option.secret and value:
            yield f"# {key} = {HIDDEN}  # {place}"
        else:
            yield f"{f'{key} = {declared.spell_toml(value)}':<48}  # {place}"
