"""Options in the environment: ASGIRI_ and their name, and the variables that programs share."""

from collections.abc import Mapping
from typing import Final

import click

from asgiri.cli import detach
from asgiri.cli.reading import Given, Rank, Reading, offered_options
from asgiri.options import ENVIRONMENT_PREFIX, DeclaredOption, nearest

__all__ = ["read_environment"]

OUR_OWN: Final = frozenset(
    {"ASGIRI_WORKER_SLOT", "ASGIRI_WORKER_ID", "ASGIRI_GENERATION", detach.MARK}
)
"""Set by a server, so seen by one that its application starts."""


EARLIER: Final = ("ASGIRI_CONFIG", "ASGIRI_ENV_FILE")
"""Read before a file of variables is."""


def read_environment(
    environ: Mapping[str, str], reading: Reading, places: Mapping[str, str] | None = None
) -> None:
    """Add what variables say; one of ours that is none is told, and ignored.

    `places` says where they stand, when that is a file.
    """
    known = set(OUR_OWN)
    places = places or {}
    for variable in EARLIER if places else ():
        if variable in environ:
            remedy = "comes too late in a file; set it in the environment"
            reading.problems.append(f"{places[variable]}: {variable}: {remedy}")
    for declared in offered_options():
        known.update(declared.environment)
        # Weakest first, so that the strongest one stays.
        for variable in reversed(declared.environment):
            text = environ.get(variable, "")
            if text:
                _read_variable(declared, variable, text, places.get(variable, ""), reading)
    for variable in sorted(environ.keys() - known):
        if variable.startswith(ENVIRONMENT_PREFIX):
            guess = nearest(variable, {name.lower(): name for name in known})
            hint = f"did you mean {guess.upper()}?" if guess else "leave it out"
            place = f"{places[variable]}: " if places else ""
            click.echo(f"asgiri: {place}{variable}: no such option, ignored; {hint}", err=True)


def _read_variable(
    declared: DeclaredOption, variable: str, text: str, place: str, reading: Reading
) -> None:
    rank = Rank.ENVIRONMENT if variable.startswith(ENVIRONMENT_PREFIX) else Rank.SHARED
    given = Given(
        declared=declared,
        value=None,
        place=place or variable,
        prefix=f"{place}: {variable}=" if place else f"{variable}=",
        text=text,
        rank=rank,
    )
    reading.parse(given, lambda: declared.parse_environment(text))
