"""What a line looks like: for people, or for machines.

What a peer chose has its control characters escaped before it is written (CVE-2020-7694): a line
in the log is one that we wrote.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any, Final

import orjson

CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")
"""Everything that moves a terminal's cursor or ends a line, except the newline."""
COLORS: Final = {
    logging.CRITICAL: "\x1b[1;31m",
    logging.ERROR: "\x1b[31m",
    logging.WARNING: "\x1b[33m",
    logging.INFO: "\x1b[32m",
    logging.DEBUG: "\x1b[2m",
}
RESET: Final = "\x1b[0m"


def escape_match(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class TextFormatter(logging.Formatter):
    """For people: time, level, message. Further lines are indented, lest one poses as ours."""

    def __init__(self, *, color: bool = False) -> None:
        super().__init__()
        self._color = color

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if exception := _exception_text(self, record):
            text = f"{text}\n{exception}"
        if CONTROL.search(text):
            text = CONTROL.sub(escape_match, text.replace("\t", "    "))
        text = text.replace("\n", "\n    ")
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = f"{record.levelname.lower():<8}"
        if self._color:
            level = f"{COLORS.get(record.levelno, '')}{level}{RESET}"
        return f"{moment}.{int(record.msecs):03d} {level} [{record.process}] {text}"


class JsonFormatter(logging.Formatter):
    """For machines: one object per line, with keys that stay."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": iso_time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if exception := _exception_text(self, record):
            fields["exception"] = exception
        return json_line(fields)


def _exception_text(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    if record.exc_info:
        return formatter.formatException(record.exc_info)
    return record.exc_text or ""  # of another process


def iso_time(moment: float) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment))
    return f"{seconds}.{int(moment % 1 * 1000):03d}Z"


def json_line(fields: Mapping[str, Any]) -> str:
    try:
        return orjson.dumps(fields).decode()
    except TypeError:  # a lone surrogate, as os.fsdecode() makes them from file names
        clean = {
            key: value.encode(errors="backslashreplace").decode()
            if isinstance(value, str)
            else value
            for key, value in fields.items()
        }
        return orjson.dumps(clean, default=str).decode()
