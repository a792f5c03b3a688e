"""What a fuzz target is: a function that is fed bytes and fails only by raising."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """One entry point for bytes that nobody vouches for."""

    run: Callable[[bytes], None]
    """Raises for what must not be. What the code under test may raise by contract is caught in it.
    """
    seeds: Callable[[], Iterable[bytes]]
    """The corpus to begin with: generated, so that it is kept as code."""
    longest: int = 4096
