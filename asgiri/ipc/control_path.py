"""Where the control socket is when nobody says, for the master that opens it and `ctl` that looks
for it.

The master's process ID is part of the name: it stays when the program is exchanged, no two masters
share one, and who finds the socket knows whose it is.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

NAME: Final = re.compile(r"asgiri-(\d+)\.sock")
SOCKETS: Final = Path("/proc/net/unix")
"""All Unix sockets of this network namespace, with their paths (proc_net(5))."""
LISTENING: Final = 0x10000
"""__SO_ACCEPTCON among their flags."""


class Found(NamedTuple):
    """A control socket, and the master that has opened it."""

    pid: int
    path: Path


def default_directory(environ: Mapping[str, str], uid: int) -> Path:
    """Return the folder for the control socket of a server that runs as this user."""
    service = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if service:  # of systemd, which removes it with the service
        return Path(service)
    session = environ.get("XDG_RUNTIME_DIR", "")
    if session and _owner(Path(session)) == uid:
        return Path(session) / "asgiri"
    if os.geteuid() == 0 and Path("/run").is_dir():
        return Path("/run") / (f"asgiri-{uid}" if uid else "asgiri")
    return Path(tempfile.gettempdir()) / f"asgiri-{uid}"


def socket_name(pid: int) -> str:
    """Return the name of a master's socket in that folder."""
    return f"asgiri-{pid}.sock"


def find_sockets(environ: Mapping[str, str], table: Path = SOCKETS) -> list[Found]:
    """Return the control sockets that this user may use, by the number of their master."""
    paths = {*_listed(table), *default_directory(environ, os.geteuid()).glob("asgiri-*.sock")}
    found = []
    for path in paths:
        match = NAME.fullmatch(path.name)
        if match is not None and os.access(path, os.W_OK):
            found.append(Found(int(match[1]), path))
    return sorted(found)


def _listed(table: Path) -> Iterator[Path]:
    """Wherever they are: under systemd, in another user's folder, in a container's /tmp."""
    try:
        lines = table.read_text(errors="replace").splitlines()[1:]
    except OSError:  # not Linux
        return
    for line in lines:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and int(fields[3], 16) & LISTENING and fields[7].startswith("/"):
            yield Path(fields[7])


def _owner(path: Path) -> int:
    try:
        return path.stat().st_uid
    except OSError:
        return -1
