"""Who the master is to the system: pid file, user and group, file limit, title."""

from __future__ import annotations

import contextlib
import grp
import logging
import os
import pwd
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import setproctitle

from asgiri.errors import StartError

logger = logging.getLogger("asgiri.master")

MACOS_OPEN_MAX: Final = 10240
"""What setrlimit accepts there although the hard limit reads as unlimited."""


def set_title(text: str) -> None:
    """Show `text` in the process list."""
    setproctitle.setproctitle(text)


def has_terminal() -> bool:
    """Tell whether this process was started from a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def raise_file_limit() -> int:
    """Allow this process and its workers as many descriptors as the system grants."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    for wanted in (hard, max(soft, MACOS_OPEN_MAX)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft


@dataclass(frozen=True, slots=True)
class Account:
    """User and group to become."""

    uid: int
    gid: int
    name: str
    """"" for a user without an entry: then there are no supplementary groups."""

    @classmethod
    def find(cls, user: str, group: str) -> Self | None:
        """Look the names up, numbers included; None when neither is given."""
        if not user and not group:
            return None
        uid, gid, name = os.geteuid(), os.getegid(), ""
        if user:
            entry = _find_user(user)
            if entry is not None:
                uid, gid, name = entry.pw_uid, entry.pw_gid, entry.pw_name
            else:
                uid = int(user)
        if group:
            gid = _find_group(group)
        return cls(uid, gid, name)

    def become(self) -> None:
        """Give up what we were. The group first: afterwards it would not be allowed."""
        if (self.uid, self.gid) == (os.geteuid(), os.getegid()):
            return
        try:
            if self.name:
                os.initgroups(self.name, self.gid)
            elif os.geteuid() == 0:
                os.setgroups([self.gid])
            os.setgid(self.gid)
            os.setuid(self.uid)
        except OSError as error:
            raise StartError.from_os_error(
                error,
                f"cannot become user {self.name or self.uid}, group {self.gid}",
                "start as root, or leave --user and --group out",
            ) from None


def _find_user(user: str) -> pwd.struct_passwd | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(user)
    if not user.isdecimal():
        raise StartError(f"--user {user}: no such user; see: getent passwd")
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(int(user))
    return None


def _find_group(group: str) -> int:
    with contextlib.suppress(KeyError):
        return grp.getgrnam(group).gr_gid
    if not group.isdecimal():
        raise StartError(f"--group {group}: no such group; see: getent group")
    return int(group)


class PidFile:
    """A file with our process ID. It also keeps a second server from starting by mistake."""

    def __init__(self, path: Path, *, resumed: bool = False) -> None:
        """`resumed`: an earlier program of this process has written it, as a user who may."""
        self._path = path
        self._content = f"{os.getpid()}\n"
        if resumed:
            return
        try:
            self._write()
        except OSError as error:
            raise StartError.from_os_error(
                error, f"pid file {path}", "name one that can be written"
            ) from None

    def _write(self) -> None:
        other = _running(self._path)
        if other:
            raise StartError(
                f"pid file {self._path}: process {other} runs already; stop it, or remove the file"
            )
        # A new file under the name, never a half-written one, and never through somebody's link.
        draft = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(fd, "w") as file:
            file.write(self._content)
        draft.replace(self._path)

    def remove(self) -> None:
        """Remove the file if it is still ours; may be repeated."""
        try:
            if self._path.read_text() == self._content:
                self._path.unlink()
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            logger.warning("cannot remove the pid file %s: %s", self._path, error)


def _running(path: Path) -> int:
    """Return the process that a pid file names if it exists, 0 otherwise."""
    try:
        pid = int(path.read_text())
        if pid > 0 and pid != os.getpid():
            os.kill(pid, 0)
            return pid
    except PermissionError:
        return pid
    except (ValueError, OSError, OverflowError):
        pass
    return 0
