"""Every function of ours that takes bytes from somebody else, by name."""

from __future__ import annotations

from typing import Final

from tests.fuzz import ipc, quic, tcp, tls
from tests.fuzz.target import Target

TARGETS: Final[dict[str, Target]] = {**tcp.TARGETS, **tls.TARGETS, **quic.TARGETS, **ipc.TARGETS}
