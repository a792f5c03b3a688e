"""ASGI server whose master process owns every socket and whose workers run the application."""

__all__ = ["__version__"]

__version__ = "0.1.0"
