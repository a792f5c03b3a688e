"""Autobahn's test suite for WebSockets, against a real server with two workers.

    python -m tests.conformance.autobahn               all 517 cases: about ten minutes
    python -m tests.conformance.autobahn quick         259 of them, as in the test run
    python -m tests.conformance.autobahn '9.*,12.1.3'  these

The suite runs on Python 2.7 only, and names no versions of what it needs: PACKAGES is a set that
works. It is installed once, into the user's cache. Exit status: 1 when a case failed, 77 when there
is no Python 2.7 (AUTOBAHN_PYTHON names one).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.support.server import Server, ServerOptions

PACKAGES = (
    "autobahntestsuite==25.10.1",
    "autobahn[twisted]==0.10.9",
    "cryptography==3.3.2",
    "incremental==16.10.1",
    "jinja2==2.11.3",
    "klein==17.10.0",
    "markupsafe==1.1.1",
    "pyOpenSSL==19.1.0",
    "service_identity==18.1.0",
    "setuptools==44.0.0",
    "six==1.16.0",
    "Twisted==19.10.0",
    "txaio==2.1.0",
    "unittest2==1.1.0",
    "Werkzeug==1.0.1",
    "wsaccel==0.6.2",
    "zope.interface==4.6.0",
)
AGENT = "server"
PASSED = frozenset(("OK", "NON-STRICT", "INFORMATIONAL"))
"""UNIMPLEMENTED is not among them: it would hide a deflate that was not negotiated."""
QUICK = (
    *(f"{group}.*" for group in range(1, 8)),
    "10.*",
    *(f"12.{group}.1" for group in range(1, 6)),
    *(f"13.{group}.1" for group in range(1, 8)),
)
"""Without 9 (large messages) and most of 12 and 13 (1,000 compressed messages for each case), which
take most of the time."""
PATIENCE = 3600.0
SKIPPED = 77

RUN = """
import site, sys
site.addsitedir(sys.argv.pop(1))
from autobahntestsuite.wstest import run
run()
"""


class NotInstalled(Exception):
    """The suite cannot run here. One line."""


@dataclass(frozen=True, slots=True)
class Verdict:
    count: int
    behaviours: Counter[str]
    failures: list[str]


def find_python() -> str:
    """A Python 2.7 with pip."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    candidates = [
        os.environ.get("AUTOBAHN_PYTHON", ""),
        shutil.which("python2.7") or "",
        *map(str, sorted(pyenv.glob("versions/2.7.*/bin/python2.7"))),
    ]
    check = "import sys, pip; sys.exit(sys.version_info[:2] != (2, 7))"
    for candidate in filter(None, candidates):
        result = subprocess.run([candidate, "-c", check], capture_output=True, check=False)
        if result.returncode == 0:
            return candidate
    raise NotInstalled("no Python 2.7 with pip; AUTOBAHN_PYTHON may name one")


def install(python: str) -> Path:
    """Where the suite is; installed when it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    version = hashlib.sha256(" ".join(PACKAGES).encode()).hexdigest()[:8]
    target = cache / "asgiri-tests" / f"autobahn-{version}"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        result = subprocess.run(
            [*command, "--target", f"{folder}/new", *PACKAGES],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            raise NotInstalled(f"pip: {result.stdout.strip().splitlines()[-1]}")
        if not target.exists():
            os.rename(f"{folder}/new", target)
    return target


def judge(python: str, suite: Path, url: str, cases: tuple[str, ...]) -> Verdict:
    """Run these cases against an echo server."""
    with tempfile.TemporaryDirectory(prefix="autobahn-") as folder:
        specification = {
            "outdir": f"{folder}/report",
            "options": {"failByDrop": False},
            "servers": [{"agent": AGENT, "url": url}],
            "cases": list(cases),
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        Path(folder, "specification.json").write_text(json.dumps(specification))
        subprocess.run(
            [python, "-c", RUN, suite, "-m", "fuzzingclient", "-s", "specification.json"],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=PATIENCE,
            check=True,
        )
        results = json.loads(Path(folder, "report", "index.json").read_text())[AGENT]
    failures = [
        f"{name}: {result['behavior']}, closing {result['behaviorClose']}"
        for name, result in results.items()
        if not PASSED.issuperset((result["behavior"], result["behaviorClose"]))
    ]
    behaviours = Counter(result["behavior"] for result in results.values())
    return Verdict(len(results), behaviours, failures)


def main(arguments: list[str]) -> int:
    try:
        python = find_python()
        suite = install(python)
    except NotInstalled as error:
        print(f"autobahn: {error}", file=sys.stderr)
        return SKIPPED
    match arguments:
        case []:
            cases = ("*",)
        case ["quick"]:
            cases = QUICK
        case _:
            cases = tuple(",".join(arguments).split(","))
    server = Server.start(ServerOptions(workers=2))
    try:
        verdict = judge(python, suite, f"ws://127.0.0.1:{server.port}/", cases)
    finally:
        server.stop()
    told = ", ".join(f"{count} {name}" for name, count in verdict.behaviours.most_common())
    print(
        f"{verdict.count} cases: {told}; {len(verdict.failures)} failed",
        *verdict.failures,
        sep="\n",
    )
    return bool(verdict.failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
