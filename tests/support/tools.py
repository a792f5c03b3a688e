"""Programs of others that tests run where they are installed.

Each is looked up in PATH, or named by an environment variable that holds its command line:
`CURL_HTTP3="chroot DIRECTORY curl"`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shlex
import shutil
import subprocess

import pytest

PATIENCE = 90.0


@functools.cache
def find(variable: str, *programs: str, shows: str = "") -> list[str] | None:
    """The command line of the first program that is there; `shows` must be in its --version."""
    given = os.environ.get(variable)
    for candidate in [shlex.split(given)] if given else [[program] for program in programs]:
        path = shutil.which(candidate[0])
        if path is None:
            continue
        command = [path, *candidate[1:]]
        if not shows or shows in version_of(command):
            return command
    return None


def version_of(command: list[str]) -> str:
    result = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return result.stdout


def require(variable: str, *programs: str, shows: str = "") -> list[str]:
    """The command line, or a skipped test that says what is missing."""
    command = find(variable, *programs, shows=shows)
    if command is None:
        with_what = f" with {shows}" if shows else ""
        pytest.skip(f"no {' or '.join(programs)}{with_what}; name one by {variable}")
    return command


async def run(command: list[str], *, standard_input: bytes = b"") -> bytes:
    """Standard output of a program that must succeed."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            output, errors = await process.communicate(standard_input)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise AssertionError(f"{shlex.join(command)}: not done after {PATIENCE} s") from None
    text = f"{shlex.join(command)}: status {process.returncode}\n{errors.decode()[-4000:]}"
    assert process.returncode == 0, text
    return output
