"""Load generators: run one on its own processor and read how many requests it saw answered."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    requests: int
    failed: int
    per_second: float


def run_load(command: Sequence[str], processor: int) -> str:
    pinned = ["taskset", "--cpu-list", str(processor), *command]
    result = subprocess.run(pinned, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def wrk(
    program: str,
    url: str,
    processor: int,
    *,
    connections: int,
    seconds: float,
    options: Sequence[str] = (),
) -> Outcome:
    """wrk: requests on keep-alive connections, one at a time on each."""
    command = [program, "-t1", f"-c{connections}", f"-d{seconds:.0f}s", *options, url]
    text = run_load(command, processor)
    total = find(r"(\d+) requests in", text)
    errors = sum(map(int, re.findall(r"(?:connect|read|write|timeout) (\d+)", text)))
    errors += int((re.search(r"Non-2xx or 3xx responses: (\d+)", text) or [0, 0])[1])
    return Outcome(int(total), errors, float(find(r"Requests/sec:\s+([\d.]+)", text)))


def h2load(
    command: Sequence[str],
    url: str,
    processor: int,
    *,
    connections: int,
    streams: int,
    requests: int,
    options: Sequence[str] = (),
) -> Outcome:
    """h2load: HTTP/2 and 3, several streams at once on each connection."""
    counts = [f"-n{requests}", f"-c{connections}", f"-m{streams}", "-t1"]
    text = run_load([*command, *counts, *options, url], processor)
    succeeded = int(find(r"(\d+) succeeded", text))
    failed = int(find(r"(\d+) failed", text)) + int(find(r"(\d+) errored", text))
    return Outcome(succeeded, failed, float(find(r"([\d.]+) req/s", text)))


def find(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"no {pattern!r} in:\n{text}")
    return match[1]
