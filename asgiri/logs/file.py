"""`--log-config`: a configuration for Python's logging, as JSON, TOML, YAML, ini or Python.

The file alone decides what becomes of each line: our own handlers are not installed. Loggers that
it does not mention are left on (`disable_existing_loggers` is off unless it says otherwise), and
those below "asgiri" get the level of --log-level if it gives them none.
"""

import configparser
import json
import logging
import logging.config
import os
import tomllib
from collections.abc import Callable
from typing import Any, Final

from asgiri.errors import ConfigError
from asgiri.hooks import PythonFileError, run_python

__all__ = ["apply"]

PYTHON_NAMES: Final = ("log_config", "logconfig_dict")
PREFIXES: Final = ("json:", "toml:", "yaml:", "ini:")
"""What hypercorn writes before the path of a file that is not what its name says."""


def apply(path: str, level: str) -> None:
    """Configure this process's logging. Raises ConfigError."""
    kind, name = _kind(path)
    try:
        if kind == "ini":
            _apply_ini(name)
        else:
            document = _READERS[kind](name)
            if not isinstance(document, dict):
                raise ValueError("must hold a table of dictConfig")
            logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **document})
    except ConfigError:
        raise
    except OSError as error:
        remedy = f"{error.strerror or error}; name files that can be used"
        raise ConfigError("log.config", path, remedy) from None
    except PythonFileError as error:
        raise ConfigError("log.config", f"{name}:{error.line}", error.problem) from None
    except Exception as error:  # a handler's constructor may raise anything
        raise ConfigError("log.config", path, _reason(error)) from None
    logger = logging.getLogger("asgiri")
    if logger.level == logging.NOTSET:
        logger.setLevel(level.upper())


def _kind(path: str) -> tuple[str, str]:
    for prefix in PREFIXES:
        if path.startswith(prefix):
            return prefix[:-1], path.removeprefix(prefix)
    suffix = os.path.splitext(path)[1].removeprefix(".")
    if path.startswith("python:"):
        return "py", path
    return {"yml": "yaml"}.get(suffix, suffix if suffix in _READERS else "ini"), path


def _read_json(name: str) -> Any:
    with open(name, encoding="utf-8") as file:
        return json.load(file)


def _read_toml(name: str) -> Any:
    with open(name, "rb") as file:
        return tomllib.load(file)


def _read_yaml(name: str) -> Any:
    try:
        import yaml  # noqa: PLC0415  (optional)
    except ImportError:
        remedy = "needs PyYAML to be read; install it, or write JSON or TOML"
        raise ConfigError("log.config", name, remedy) from None
    with open(name, "rb") as file:
        return yaml.safe_load(file)


def _read_python(name: str) -> Any:
    names = run_python(name)
    return next((names[key] for key in PYTHON_NAMES if isinstance(names.get(key), dict)), None)


_READERS: Final[dict[str, Callable[[str], Any]]] = {
    "json": _read_json,
    "toml": _read_toml,
    "yaml": _read_yaml,
    "py": _read_python,
}


def _apply_ini(name: str) -> None:
    parser = configparser.RawConfigParser()
    with open(name, encoding="utf-8") as file:
        parser.read_file(file)
    logging.config.fileConfig(parser, disable_existing_loggers=False)


def _reason(error: Exception) -> str:
    """DictConfig says what it was doing, and hides why in the cause."""
    parts = [str(error), str(error.__cause__ or "")]
    text = ": ".join(part.strip().replace("\n", " ") for part in parts if part.strip())
    return text or type(error).__name__
