"""Sees when the files of the certificates change, as whoever renews them leaves them.

By looking: what a renewal does to the files (a rename, a symbolic link, a write in place, a mounted
secret) is different everywhere, and their names and times always change.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from typing import Final

from asgiri.config import Config
from asgiri.errors import StartError
from asgiri.master.loop import EventLoop

logger = logging.getLogger("asgiri.master")

INTERVAL: Final = 0.25
"""Seconds between two looks: 6 us for each file. New connections have the new certificate after two
of them."""

_Stamp = tuple[tuple[int, int, int], ...]


class CertificateWatch:
    """Looks from `start` on, for ever."""

    def __init__(
        self, loop: EventLoop, config: Callable[[], Config], changed: Callable[[Config], None]
    ) -> None:
        """`config` gives the one in force. `changed` is called with it when its certificates have
        changed, are readable and fit their keys.
        """
        self._loop = loop
        self._config = config
        self._changed = changed
        self._seen = self._stamp()
        self._told = self._seen

    def start(self) -> None:
        """Look now and then."""
        self._loop.call_later(INTERVAL, self._look)

    def _look(self) -> None:
        stamp = self._stamp()
        # A pair is two files: it is complete when nothing has changed between two looks.
        if stamp == self._seen and stamp != self._told:
            self._told = stamp
            self._tell()
        self._seen = stamp
        self.start()

    def _tell(self) -> None:
        from asgiri.certificates import check_pair  # noqa: PLC0415  (20 ms of each start)

        config = self._config()
        tls = config.tls
        try:
            for certfile, keyfile in zip(tls.certfile, tls.keyfile or tls.certfile, strict=True):
                for warning in check_pair(certfile, keyfile, tls.keyfile_password):
                    logger.warning("%s", warning)
        except StartError as error:
            logger.error("certificates changed, the old ones stay in use: %s", error)
            return
        logger.info("certificates changed: new connections get %s", ", ".join(tls.certfile))
        self._changed(config)

    def _stamp(self) -> _Stamp:
        tls = self._config().tls
        return tuple(_stamps((*tls.certfile, *tls.keyfile)))


def _stamps(paths: Iterable[str]) -> Iterable[tuple[int, int, int]]:
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            yield 0, 0, 0
        else:
            yield status.st_mtime_ns, status.st_ino, status.st_size
