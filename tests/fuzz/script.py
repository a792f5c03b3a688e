"""Reads a fuzzer's bytes as a list of steps: a byte that changes shall change one step, not all.

What is missing at the end reads as zeros. `pack` writes what a `Script` reads, to make seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
_LONG = 255


class Script:
    """Takes numbers and byte strings off the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        return self.integer(1)

    def integer(self, size: int) -> int:
        return int.from_bytes(self.raw(size).ljust(size, b"\0"))

    def choice(self, options: Sequence[T]) -> T:
        return options[self.byte() % len(options)]

    def raw(self, size: int) -> bytes:
        start = self._at
        self._at = min(start + size, len(self._data))
        return self._data[start : self._at]

    def take(self) -> bytes:
        """A string with its length in front."""
        size = self.byte()
        return self.raw(self.integer(2) if size == _LONG else size)

    def rest(self) -> bytes:
        return self.raw(len(self._data))

    def cut(self, data: bytes) -> list[bytes]:
        """`data` in up to four parts, none of them empty."""
        parts = []
        for _ in range(self.byte() & 3):
            size = self.byte()
            parts.append(data[:size])
            data = data[size:]
        return [part for part in (*parts, data) if part]


def pack(*steps: int | bytes) -> bytes:
    """Numbers as `byte` reads them, strings as `take` does."""
    packed = bytearray()
    for step in steps:
        if isinstance(step, int):
            packed.append(step)
        elif len(step) < _LONG:
            packed += bytes((len(step),)) + step
        else:
            packed += bytes((_LONG,)) + len(step).to_bytes(2) + step
    return bytes(packed)
