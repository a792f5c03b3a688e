"""Settings for every test."""

from __future__ import annotations

from hypothesis import settings

# A machine that is busy with the servers of other tests must not fail a property by the clock.
settings.register_profile("asgiri", deadline=None)
settings.load_profile("asgiri")
