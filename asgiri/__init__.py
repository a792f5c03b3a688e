"""ASGI server whose master process owns every socket and whose workers run the application."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asgiri.config import Config
    from asgiri.server import Server, run

__all__ = ["Config", "Server", "__version__", "run"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what is asked for: every process imports this module, and few need the rest."""
    if home := {"Config": "config", "Server": "server", "run": "server"}.get(name):
        return getattr(importlib.import_module(f"asgiri.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
