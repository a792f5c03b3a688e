"""Fuzz by coverage: `python -m tests.fuzz --seconds 600 [TARGET...]`; needs `pip install atheris`.

Prints a line for each target: how many inputs ran, what crashed, which took longest. What crashes
is kept in the folder of --artifacts; run it again by `--again FILE TARGET`. The exit code is 1 when
anything crashed or took over a second.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
_STUCK = 60
"""Seconds on the wall after which libFuzzer gives an input up: one that sleeps, say."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one target."""

    target: str
    executions: int
    slowest: float
    corpus: int
    crashes: tuple[Path, ...]
    failed: bool
    output: str


def main() -> int:
    arguments = _parse()
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install atheris (Linux, Python 3.11 to 3.13)")
        return 2
    artifacts = arguments.artifacts.resolve()
    artifacts.mkdir(parents=True, exist_ok=True)
    results = []
    print(
        f"{'target':<12} {'executions':>10} {'corpus':>7} {'slowest':>9} {'crashes':>8}", flush=True
    )
    for name in arguments.targets or TARGETS:
        result = fuzz(name, arguments.seconds, artifacts, arguments.again)
        results.append(result)
        print(
            f"{name:<12} {result.executions:>10} {result.corpus:>7} "
            f"{result.slowest * 1000:>6.0f} ms {len(result.crashes):>8}",
            flush=True,
        )
        if result.failed:
            print(result.output[-4000:])
            for crash in result.crashes:
                print(f"again: python -m tests.fuzz --again {crash} {name}", flush=True)
    return int(any(result.failed for result in results))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--again", type=Path, help="run this input, and nothing else")
    parser.add_argument(
        "--artifacts", type=Path, default=Path(tempfile.gettempdir(), "asgiri-fuzz")
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of: {', '.join(TARGETS)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    return arguments


def fuzz(name: str, seconds: int, artifacts: Path, again: Path | None = None) -> Result:
    """Run one target in a process of its own, which a crash ends."""
    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as folder:
        corpus, report = Path(folder, "corpus"), Path(folder, "report")
        corpus.mkdir()
        for seed in target.seeds():
            (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
        before = _crashes(artifacts)
        options = [
            f"-max_total_time={seconds}",
            f"-max_len={target.longest}",
            f"-timeout={_STUCK}",
            "-rss_limit_mb=2048",
            f"-artifact_prefix={artifacts}/{name}-",
            "-verbosity=0",
            str(again or corpus),
        ]
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.child", name, str(report), *options],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            errors="backslashreplace",
            check=False,
        )
        figures = json.loads(report.read_text()) if report.exists() else {}
        return Result(
            target=name,
            executions=figures.get("executions", 0),
            slowest=figures.get("slowest", 0.0),
            corpus=len(list(corpus.iterdir())),
            crashes=tuple(sorted(_crashes(artifacts) - before)),
            failed=done.returncode != 0,
            output=done.stdout + done.stderr,
        )


def _crashes(artifacts: Path) -> set[Path]:
    """Return what is there but slow units: by the clock on the wall, which tells nothing."""
    return {path for path in artifacts.iterdir() if "-slow-unit-" not in path.name}


if __name__ == "__main__":
    sys.exit(main())
