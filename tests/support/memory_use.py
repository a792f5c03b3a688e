"""How much memory a process uses, as Linux tells it."""

from __future__ import annotations

import re
from pathlib import Path


def peak_memory(pid: int) -> int:
    """Most bytes resident since `reset_peak_memory`, or since the start."""
    return _field(pid, "VmHWM")


def resident_memory(pid: int) -> int:
    return _field(pid, "VmRSS")


def reset_peak_memory(pid: int) -> None:
    """Let the peak be what is resident now (proc(5): clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _field(pid: int, name: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
    assert match is not None, status
    return int(match[1]) * 1024
