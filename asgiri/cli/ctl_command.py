"""`asgiri ctl`: tell a running server what to do, through its control socket."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final

import click
import orjson

from asgiri.cli.reading import UsageProblems
from asgiri.cli.worker_table import describe_lines
from asgiri.ctl import ControlClient, RefusedError, locate
from asgiri.errors import ExitCode, StartError
from asgiri.ipc.control import Reload, Request, Scale, SetLevel, Stacks, Stop
from asgiri.status import ProcessTable, build_status, read_board

__all__ = ["client_for", "control_options", "run"]

PROGRAM: Final = "asgiri ctl"
FOREVER: Final = None


def run(words: Sequence[str]) -> int:
    """Run one command. Raises UsageProblems and StartError."""
    try:
        result = ctl.main(list(words), PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help(), err=True)
        return ExitCode.USAGE
    except click.UsageError as error:
        place = error.ctx.command_path.removeprefix("asgiri ") if error.ctx else "ctl"
        raise UsageProblems([f"{place}: {_lower(error.format_message())}"]) from None
    except click.exceptions.Abort:
        return ExitCode.RUNTIME
    return result if isinstance(result, int) else ExitCode.OK


def _lower(text: str) -> str:
    return f"{text[:1].lower()}{text[1:].removesuffix('.')}"


def control_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what tells which server is meant."""
    for option in (
        click.option("--pid", type=int, default=0, metavar="N", help="Process ID of its master."),
        click.option(
            "--control-socket",
            "path",
            default="",
            metavar="PATH",
            help="Its control socket, if it is not where it is by default.",
        ),
    ):
        command = option(command)
    return command


def client_for(path: str, pid: int) -> ControlClient:
    """Connect to the server that is meant."""
    return ControlClient(locate(path, pid, os.environ))


@click.group(help="Tell a running server what to do.", no_args_is_help=True)
@control_options
@click.pass_context
def ctl(context: click.Context, path: str, pid: int) -> None:
    context.obj = (path, pid)


def _command(**settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a command whose function gets a client."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        @wraps(function)
        def with_client(*arguments: Any, **options: Any) -> Any:
            context = click.get_current_context()
            client = client_for(*context.obj)
            try:
                return function(client, *arguments, **options)
            except RefusedError as error:
                raise StartError(f"{_label(context)}: {error}") from None
            finally:
                client.close()

        return ctl.command(**settings)(with_client)

    return decorate


def _label(context: click.Context) -> str:
    """Call a command as it was given, without what only says which server is meant."""
    arguments = [each.name for each in context.command.params if isinstance(each, click.Argument)]
    values = [str(context.params[name]) for name in arguments if name is not None]
    return " ".join(["ctl", context.info_name or "", *values])


def _tell(client: ControlClient, request: Request, timeout: float | None = 20.0) -> None:
    click.echo(client.ask(request, timeout))


@_command(help="Start a new generation of workers; wait until it serves.")
def reload(client: ControlClient) -> None:
    _tell(client, Reload(), FOREVER)


@_command(help="Stop the server; wait until it is gone.")
@click.option("--now", is_flag=True, help="Without finishing what is in flight.")
def stop(client: ControlClient, now: bool) -> None:
    client.ask(Stop(at_once=now))
    client.wait_end()
    click.echo("the server has stopped")


@_command(help="Have N workers until the next reload.")
@click.argument("count", type=int, metavar="N")
def scale(client: ControlClient, count: int) -> None:
    _tell(client, Scale(count))


@_command(help="Show what the server and its workers do.")
@click.option("--json", "as_json", is_flag=True, help="Everything, for machines.")
def status(client: ControlClient, as_json: bool) -> None:
    with client.watch() as reader:
        snapshot = read_board(reader)
        if snapshot is None:
            raise StartError("the master stands still")
        known = build_status(snapshot, ProcessTable())
    if as_json:
        click.echo(orjson.dumps(known, option=orjson.OPT_INDENT_2))
    else:
        click.echo("\n".join(describe_lines(known)))


@_command(help="Show where the workers in slot WORKER stand: their threads and tasks.")
@click.argument("worker", type=int)
def stacks(client: ControlClient, worker: int) -> None:
    _tell(client, Stacks(worker))


@_command(name="log-level", help="Log from LEVEL on, in all processes, until the next reload.")
@click.argument("level")
def log_level(client: ControlClient, level: str) -> None:
    _tell(client, SetLevel(level))
