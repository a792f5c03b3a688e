"""Load over all versions with faults, for as long as wanted: `python -m tests.soak --minutes 10`.

Exits with 1 when a request failed that no fault explains, or when something has grown.
"""

from __future__ import annotations

import argparse
import sys

from tests.soak.run import Plan, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--cycle", type=float, default=30.0, help="seconds between two rests")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = run(
        Plan(
            seconds=options.minutes * 60,
            cycle=options.cycle,
            workers=options.workers,
            seed=options.seed,
        )
    )
    print("\n".join(report.lines()))
    return 1 if report.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
