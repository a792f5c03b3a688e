"""Shell completion, asked as the shells do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from asgiri.cli import main
from tests.support.server import PROJECT

COMMAND = [sys.executable, "-m", "asgiri"]


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env={**os.environ, **environment},
        check=True,
        timeout=60,
    )
    return done.stdout


@pytest.fixture
def completed(monkeypatch, capsys):
    """Ask: each with its kind, as the shell's script is given them."""

    def ask(shell: str, *words: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", " ".join(["asgiri", *words]))
        # fish says the word itself, the others say which it is.
        monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words)))
        monkeypatch.setenv("_ASGIRI_COMPLETE", f"{shell}_complete")
        assert main([]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line]

    return ask


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--access-logf"], ["plain,--access-logfile", "plain,--access-logformat"]),
        (["--no-access"], ["plain,--no-access-log"]),
        (["--ssl-c"], []),  # only ours
        (["main:app", "--loop", "u"], ["plain,uvloop"]),
        (["main:app", "--certfile", "c"], ["file,c"]),
        (["c"], ["plain,config", "plain,ctl"]),
        (["ctl", "s"], ["plain,scale", "plain,stacks", "plain,status", "plain,stop"]),
        (["config", ""], ["plain,check", "plain,show"]),
        (["config", "check", "--loop", "a"], ["plain,auto", "plain,asyncio"]),
        (["top", "--o"], ["plain,--once"]),
    ],
    ids=" ".join,
)
def test_bash_is_told_what_may_come_next(completed, words: list[str], expected: list[str]):
    assert completed("bash", *words) == expected


def test_zsh_and_fish_are_told_the_same(completed):
    assert "uvloop" in completed("zsh", "main:app", "--loop", "u")
    assert completed("fish", "main:app", "--loop", "u") == ["plain,uvloop"]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_one(shell: str):
    script = run(COMMAND, _ASGIRI_COMPLETE=f"{shell}_source")
    assert f"_ASGIRI_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        run([shell, "-n", "-c", script])


@pytest.mark.slow
def test_bash_completes():
    """With its own script, and a name by which it finds us."""
    script = run(COMMAND, _ASGIRI_COMPLETE="bash_source")
    lines = [
        f'asgiri() {{ {" ".join(COMMAND)} "$@"; }}; export -f asgiri',
        script.replace("env COMP_WORDS", "COMP_WORDS"),
        "COMP_WORDS=(asgiri main:app --log-format j); COMP_CWORD=3",
        '_asgiri_completion asgiri; echo "${COMPREPLY[@]}"',
    ]
    assert run(["bash", "-c", "\n".join(lines)]) == "json\n"
