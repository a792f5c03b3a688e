"""What the master is given, and how it asks again at a reload."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from asgiri.config import Config

__all__ = ["Reread", "Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What the server runs with until a reload brings something else."""

    config: Config
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Variables that workers get beside the master's own. Some may be secret."""
    folder: str = ""
    """Where workers begin, without links: they may lead elsewhere at the next reload. "" for the
    master's own.
    """
    started_in: str = ""
    """Where the command was given, if the master has left that folder."""


Reread = Callable[[], Settings]
"""Reads everything again. May raise ConfigError or StartError."""
