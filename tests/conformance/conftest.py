"""Servers that the suites share, and the figures at the end of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.websocket_cases import MAX_MESSAGE
from tests.support.server import Server, ServerOptions

WORKERS = 4
REFLECTING_APP = "tests.support.reflecting_app:app"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """For independent clients: every version on one port, several workers."""
    # Load generators do not come again when a worker that has too many asks them to.
    options = {"http3": True, "balance": "connection"}
    server = Server.start(ServerOptions(workers=WORKERS, tls=True, options=options))
    yield server
    server.stop()


@pytest.fixture(scope="session", params=["httptools", "h11"])
def http1_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Answers with what its application saw."""
    yield from _reflecting_server(http1_parser=request.param)


@pytest.fixture(scope="session")
def cleartext_server() -> Iterator[Server]:
    yield from _reflecting_server(ws_max_size=MAX_MESSAGE)


@pytest.fixture(scope="session")
def secure_server() -> Iterator[Server]:
    # A QUIC client that has gone is waited for when the server stops.
    more = {"http3": True, "ws_max_size": MAX_MESSAGE, "graceful_timeout": 2}
    yield from _reflecting_server(tls=True, **more)


def _reflecting_server(*, tls: bool = False, **options: object) -> Iterator[Server]:
    server = Server.start(ServerOptions(app=REFLECTING_APP, workers=2, tls=tls, options=options))
    yield server
    server.stop()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say for each suite how many cases ran, passed and were skipped."""
    suites: dict[str, Counter[str]] = defaultdict(Counter)
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, ()):
            file = Path(report.nodeid.partition("::")[0])
            if file.parent.name == "conformance":
                suites[file.stem.removeprefix("test_")][outcome] += 1
    terminalreporter.section("conformance")
    for suite, counts in sorted(suites.items()):
        cases = counts.total()
        skipped, passed = counts["skipped"], counts["passed"]
        line = (
            f"{suite:20}{cases:6} cases{cases - skipped:6} run{passed:6} passed{skipped:6} skipped"
        )
        terminalreporter.write_line(line)
