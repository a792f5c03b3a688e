"""What the supervisor has counted. Sans-IO."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["SupervisorStatistics"]


@dataclass(slots=True, kw_only=True)
class SupervisorStatistics:
    """Counters since the start of the server."""

    spawned: int = 0
    crashed: int = 0
    """Workers that ended by themselves after they had been ready."""
    failed: int = 0
    """Workers that did not become ready."""
    hung: int = 0
    """Workers that were ended because their event loop stood still."""
    recycled: int = 0
    """Workers that were replaced because of their age, requests or memory."""
    reloads: int = 0
    reloads_failed: int = 0

    def lost(self, *, was_ready: bool, expected: bool, aborted: bool) -> None:
        """Count a worker that ends, or has to be ended. `expected`: it was told to go."""
        if was_ready and aborted:
            self.hung += 1
        elif was_ready and not expected:
            self.crashed += 1
        elif not was_ready and not expected:
            self.failed += 1

    def to_state(self) -> dict[str, int]:
        """Return what `restore` reads."""
        return asdict(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what another program has counted."""
        for counter in fields(self):
            setattr(self, counter.name, int(state.get(counter.name, 0)))
