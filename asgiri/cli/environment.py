"""Options in the environment: ASGIRI_ and their name, and the variables that programs share."""

from collections.abc import Mapping
from typing import Final

import click

from asgiri.cli.reading import Given, Rank, Reading, offered_options
from asgiri.options import ENVIRONMENT_PREFIX, DeclaredOption, nearest

__all__ = ["read_environment"]

OUR_OWN: Final = frozenset({"ASGIRI_WORKER_SLOT", "ASGIRI_WORKER_ID", "ASGIRI_GENERATION"})
"""Set by a worker for its application, so seen by a server that an application starts."""


def read_environment(environ: Mapping[str, str], reading: Reading) -> None:
    """Add what variables say; one of ours that is none is told, and ignored."""
    known = set(OUR_OWN)
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
            click.echo(f"asgiri: {variable}: no such option, ignored; {hint}", err=True)


def _read_variable(declared: DeclaredOption, variable: str, text: str, reading: Reading) -> None:
    rank = Rank.ENVIRONMENT if variable.startswith(ENVIRONMENT_PREFIX) else Rank.SHARED
    given = Given(
        declared=declared,
        value=None,
        place=variable,
        prefix=f"{variable}=",
        text=text,
        rank=rank,
    )
    reading.parse(given, lambda: declared.parse_environment(text))
