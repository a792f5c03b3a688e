"""What other processes have open. Linux."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple


class OpenFile(NamedTuple):
    inode: int
    target: str
    """`socket:[12]`, `/memfd:name (deleted)`, a path."""


def open_files(pid: int) -> list[OpenFile]:
    """What is behind the descriptors of a process, which may close some while this looks."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        with contextlib.suppress(FileNotFoundError):
            found.append(OpenFile(os.stat(path).st_ino, os.readlink(path)))
    return found


def memory_files(pid: int) -> set[int]:
    """Inodes of shared memory: mmap(2) of Python keeps duplicates of descriptors."""
    return {file.inode for file in open_files(pid) if "memfd" in file.target}
