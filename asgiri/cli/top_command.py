"""`asgiri top`: the workers of a running server, live in the terminal."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

import click

from asgiri.cli.ctl_command import control_options
from asgiri.cli.reading import UsageProblems
from asgiri.ctl import ControlClient, RefusedError, locate
from asgiri.errors import ExitCode, StartError

__all__ = ["run"]


@click.command(help="Show the workers of a running server, live. End it with Ctrl-C.")
@control_options
@click.option("--interval", type=click.FloatRange(0.25, 60), default=1.0, metavar="SECONDS")
@click.option("--once", is_flag=True, help="Once, without a terminal too.")
def top(path: str, pid: int, interval: float, once: bool) -> None:
    try:
        screen = importlib.import_module("asgiri.cli.top_screen")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rich":
            raise
        raise StartError("top: rich is not installed; pip install 'asgiri[top]'") from None
    client = ControlClient(locate(path, pid, os.environ))
    try:
        screen.show(client, interval=interval, once=once or not sys.stdout.isatty())
    except RefusedError as error:
        raise StartError(f"top: {error}") from None
    except KeyboardInterrupt:
        pass
    finally:
        client.close()


def run(words: Sequence[str]) -> int:
    """Run it. Raises UsageProblems and StartError."""
    try:
        top.main(list(words), "asgiri top", standalone_mode=False)
    except click.UsageError as error:
        text = error.format_message()
        raise UsageProblems([f"top: {text[:1].lower()}{text[1:].removesuffix('.')}"]) from None
    except click.exceptions.Abort:  # Ctrl-C
        pass
    return ExitCode.OK
