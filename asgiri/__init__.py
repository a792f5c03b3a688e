"""ASGI server whose master process owns every socket and whose workers run the application."""

from typing import Final

__all__ = ["__version__"]

__version__: Final = "0.1.0"
