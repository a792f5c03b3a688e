"""Watch files for --reload and tell the master which ones have changed. A process of its own.

Started by the master as `python -m asgiri.watch CONFIG`, CONFIG being its `ReloadConfig` as JSON.
What it finds it writes to its standard output, one JSON object a line:

    {"watching": [folder, ...]}   it has begun
    {"changed": [path, ...]}      files that matter, after they have rested for a moment
    {"failed": reason}            it cannot watch, and ends

Which files matter is as with uvicorn: `*.py`, unless excluded, and what is included; not `.*`,
`.py[cod]`, `.sw.*` and `~*`, unless included. Folders are watched and not files, so it does not
matter whether an editor writes into a file or moves another one over it.

A process, because the master has no threads and imports nothing that could block or crash it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, Final

import orjson

from asgiri.config import ReloadConfig
from asgiri.options import options_of
from asgiri.prctl import set_death_signal

__all__ = ["FileFilter", "folders_to_watch", "readable_parts"]

DEFAULT_INCLUDES: Final = ("*.py",)
DEFAULT_EXCLUDES: Final = (".*", ".py[cod]", ".sw.*", "~*")
LOOK_INTERVAL: Final = 0.2
"""Seconds between two looks whether the master is still there, where the kernel does not tell."""
LONGEST_REST: Final = 1.6
"""Seconds after the first change, at which it is told although others follow."""


class FileFilter:
    """Tells which files matter."""

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._includes = [p for p in (*DEFAULT_INCLUDES, *include) if p not in exclude]
        self._excludes = [p for p in DEFAULT_EXCLUDES if p not in include]
        self._excludes += [pattern for pattern in exclude if pattern]
        self._excluded_folders = set(_folders(exclude))

    def __call__(self, path: PurePath) -> bool:
        """Tell whether a change of this file, named by its full path, matters."""
        included = [pattern for pattern in self._includes if _matches(path, pattern)]
        if any(str(path).endswith(pattern) for pattern in included):
            return True  # it was called by its name
        return bool(included) and not (
            any(_matches(path, pattern) for pattern in self._excludes)
            or any(folder in self._excluded_folders for folder in path.parents)
        )


def folders_to_watch(config: ReloadConfig) -> list[Path]:
    """List the folders to watch, none of them inside another one, and none that is excluded."""
    wanted = {Path(folder).resolve() for folder in config.dirs} | set(_folders(config.include))
    excluded = set(_folders(config.exclude))
    return sorted(
        folder
        for folder in wanted
        if not wanted & set(folder.parents) and not excluded & {folder, *folder.parents}
    )


def readable_parts(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Leave out what may not be read: folders to watch with all below them, and without."""
    whole: list[Path] = []
    single: list[Path] = []

    def is_whole(folder: Path) -> bool:
        with os.scandir(folder) as entries:
            below = [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
        readable = [each for each in below if os.access(each, os.R_OK | os.X_OK)]
        complete = [each for each in readable if is_whole(each)]
        if len(complete) == len(below):
            return True
        whole.extend(complete)
        single.append(folder)
        return False

    whole += [folder for folder in folders if is_whole(folder)]
    return whole, single


def _folders(patterns: Iterable[str]) -> Iterator[Path]:
    """Find the folders that patterns name, by a path or by a pattern below the current folder."""
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            yield path.resolve()
        elif pattern and pattern != ".*" and not path.is_absolute():
            # ".*" means hidden files; the folders of that name were not meant.
            with contextlib.suppress(ValueError):  # a pattern for files only, before Python 3.13
                yield from (found.resolve() for found in Path.cwd().glob(pattern) if found.is_dir())


def _matches(path: PurePath, pattern: str) -> bool:
    try:
        return path.match(pattern)
    except ValueError:  # an empty one
        return False


# The process


def main(argument: str) -> int:
    """Watch until the master is gone; return the exit status."""
    set_death_signal(signal.SIGKILL)
    master_pid = os.getppid()
    values = orjson.loads(argument)
    options = options_of(ReloadConfig)
    config = ReloadConfig(**{each.field: each.from_json(values[each.field]) for each in options})
    try:
        for message in _messages(config):
            if os.getppid() != master_pid:
                break
            if message:
                _tell(message)
    except BrokenPipeError:
        pass  # it was gone before we asked who it is
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        _tell({"failed": _explain(error)})
        return 1
    return 0


def _tell(message: dict[str, Any]) -> None:
    os.write(sys.stdout.fileno(), orjson.dumps(message) + b"\n")


def _messages(config: ReloadConfig) -> Iterator[dict[str, Any]]:
    """What to tell the master; nothing, every now and then."""
    matters = FileFilter(config.include, config.exclude)
    folders = folders_to_watch(config)
    for folder in folders:
        os.stat(folder)  # a missing one would be passed over with those that may not be read
    try:
        watches = [_watch(folders, matters, config.delay)]
        found = next(watches[0])
    except PermissionError:
        # Told to pass over such folders, watchfiles leaves out whatever comes after the first one.
        whole, single = readable_parts(folders)
        watches = [
            _watch(whole, matters, config.delay),
            _watch(single, matters, config.delay, recursive=False),
        ]
        found = next(watches[0]) | next(watches[1])
    yield {"watching": [str(folder) for folder in folders]}
    while True:
        paths = {file for _, path in found for file in _files_of(path, matters)}
        yield {"changed": sorted(paths)} if paths else {}
        found = set().union(*(next(watch) for watch in watches))


def _watch(
    folders: Iterable[Path], matters: FileFilter, delay: float, *, recursive: bool = True
) -> Iterator[set[tuple[Any, str]]]:
    """Yield what has changed, or after a moment that nothing has."""
    import watchfiles  # noqa: PLC0415  (comes with asgiri[reload])

    def wanted(change: watchfiles.Change, path: str) -> bool:
        return matters(PurePath(path)) or (
            change is watchfiles.Change.added and os.path.isdir(path)
        )

    return watchfiles.watch(
        *folders,
        watch_filter=wanted,
        step=round(delay * 1000),
        debounce=round(max(LONGEST_REST, delay) * 1000),
        rust_timeout=round(LOOK_INTERVAL * 1000),
        yield_on_timeout=True,
        recursive=recursive,
    )


def _files_of(path: str, matters: FileFilter) -> Iterator[str]:
    """Name the file, or in a new folder those that were there before it could be watched."""
    if not os.path.isdir(path):
        yield path
        return
    for folder, _, names in os.walk(path):
        for name in names:
            if matters(PurePath(folder, name)):
                yield os.path.join(folder, name)


def _explain(error: Exception) -> str:
    reason = str(error).strip().partition("\n")[0].partition(" about ")[0] or type(error).__name__
    if "limit" in reason:
        return f"{reason} Raise fs.inotify.max_user_watches, or watch less (--reload-dir)"
    if "Too many open files" in reason:
        return f"{reason}; raise fs.inotify.max_user_instances"
    return reason


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
