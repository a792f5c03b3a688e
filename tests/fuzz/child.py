"""Runs one target under atheris; started by `python -m tests.fuzz`, or by hand with its arguments.

    python -m tests.fuzz.child TARGET REPORT [arguments of libFuzzer, files to run again]

REPORT gets the number of executions and the slowest of them, as JSON. An input that takes longer
than HANG seconds of this process's time is a crash: the machine may be busy, so the clock on the
wall tells nothing.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path

import atheris

HANG = 1.0
_REPORT_EVERY = 1000

with atheris.instrument_imports(
    include=["asgiri", "h2", "h11", "hpack", "hyperframe", "wsproto", "aioquic"],
    enable_loader_override=False,
):
    from tests.fuzz.targets import TARGETS


class Measured:
    """The function that libFuzzer calls."""

    def __init__(self, run: Callable[[bytes], None], report: Path) -> None:
        self._run = run
        self._report = report
        self._executions = 0
        self._slowest = 0.0

    def __call__(self, data: bytes) -> None:
        begin = time.process_time()
        try:
            self._run(data)
        except BaseException:
            self._write()
            raise
        taken = time.process_time() - begin
        self._executions += 1
        if taken > self._slowest or self._executions % _REPORT_EVERY == 0:
            self._slowest = max(taken, self._slowest)
            self._write()
        if taken > HANG:
            raise TimeoutError(f"{taken:.1f} s for {len(data)} bytes")

    def _write(self) -> None:
        figures = {"executions": self._executions, "slowest": self._slowest}
        self._report.write_text(json.dumps(figures))


def main() -> None:
    name, report, *arguments = sys.argv[1:]
    # What libraries and we log about peers would be all that there is to see.
    logging.disable()
    atheris.Setup([sys.argv[0], *arguments], Measured(TARGETS[name].run, Path(report)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
