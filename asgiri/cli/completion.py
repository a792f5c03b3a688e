"""Shell completion: what could stand next on the command line, asked for by a variable.

click writes the scripts for bash, zsh and fish, and reads what they ask. The commands that `main`
tells apart by their first word are one tree for it here.
"""

import os

import click
from click.shell_completion import CompletionItem, shell_complete

from asgiri.cli.arguments import COMPLETION, PROGRAM, SWITCHES, GeneratedOption, build_command
from asgiri.cli.ctl_command import ctl
from asgiri.cli.top_command import top

__all__ = ["run"]


class _Completed(click.Group):
    """The options of the server, without those that are for the hands of others."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = super().shell_complete(ctx, incomplete)
        aliases = {
            name
            for parameter in self.params
            if isinstance(parameter, GeneratedOption)
            for name in parameter.declared.aliases
        }
        aliases |= {
            alias.replace("--", "--no-", 1) for option in SWITCHES for alias in option.aliases
        }
        return [item for item in found if item.value not in aliases]


def run() -> int:
    """Answer the shell."""
    options = [parameter for parameter in build_command().params if parameter.name != "words"]
    check, show = (_Completed(name, params=options) for name in ("check", "show"))
    tree = _Completed(
        PROGRAM,
        params=options,
        commands=[click.Group("config", commands=[check, show]), ctl, top],
    )
    return shell_complete(tree, {}, PROGRAM, COMPLETION, os.environ[COMPLETION])
