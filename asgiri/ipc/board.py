"""What the master tells about the whole server, for whoever watches it. Sans-IO over a buffer.

The admin worker, `asgiri ctl` and `asgiri top` map this memory, and can only read it. The master
copies into it four times a second what its workers report and what it counts itself; nobody asks
it for anything, so that it has the same work for any number of watchers, and none without them.

    offset   size     field     meaning
    0        4096     head      u64 cells: `MasterCell`, 256-511 `DropReason` (cell 256 + value)
    4096     4096     facts     u64 size, then an orjson object: versions, addresses, last failure
    8192     4096     retired   sums over the workers that are gone: cells as in a scoreboard
    12288    n*4096   rows      one for each worker that is not reaped

Cells of a row, and of `retired`:

    0-127     `Cell`, copied from the worker's scoreboard
    128-191   `AssignmentCell`, copied from its assignments
    192-255   `RowCell`, what only the master knows
    256-511   `Refusal` (cell 256 + value), copied from the scoreboard

Totals. A counter of the server is `retired` plus all rows. A worker moves from one to the other
between two publications, so that no sum counts it twice or not at all.
Publication. A reader copies everything, then compares the checksum: a copy that was made while the
master wrote has another one, whatever the order in which stores become visible, and is made again.
Trust. The master writes, and has no reason to lie. MAGIC tells a reader of another version.
"""

import enum
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from asgiri.errors import IpcError
from asgiri.ipc.scoreboard import (
    COUNTERS,
    PAGE_SIZE,
    REFUSALS,
    AssignmentCell,
    Assignments,
    Cell,
    DropReason,
    Refusal,
    Scoreboard,
)

__all__ = [
    "BOARD_MAGIC",
    "DROPS",
    "MAX_ROWS",
    "BoardReader",
    "BoardSnapshot",
    "BoardWriter",
    "MasterCell",
    "ReloadState",
    "Row",
    "RowCell",
    "board_size",
]

BOARD_MAGIC: Final = 0xA561_7169_0001_0001
MAX_ROWS: Final = 4096
"""Workers that are shown, of four generations at most. Memory is used for those that exist."""
DROPS: Final = 256
"""Cell of the drop reason with value 0."""

_FACTS: Final = PAGE_SIZE
_RETIRED: Final = 2 * PAGE_SIZE
_ROWS: Final = 3 * PAGE_SIZE
_CELLS: Final = PAGE_SIZE // 8
_ASSIGNMENTS: Final = 128
_LARGEST: Final = (1 << 64) - 1
_SUMMED_FROM: Final = 16
"""The checksum covers what comes behind itself."""


class ReloadState(enum.IntEnum):
    """How far a reload is, as `supervisor` has it."""

    IDLE = 0
    CANARY = 1
    SPAWN = 2
    ROLL = 3
    DRAIN = 4


class MasterCell(enum.IntEnum):
    """Cells of the head. Appended, never renumbered."""

    MAGIC = 0
    CHECKSUM = 1
    ROWS = 2
    ROWS_LEFT_OUT = 3
    PID = 4
    BEAT_NS = 5
    """CLOCK_MONOTONIC of this publication."""
    STARTED_NS = 6
    """CLOCK_MONOTONIC of the server's start; an exchanged program goes on with it."""
    BUSY_US = 7
    """Time that the master's loop has spent otherwise than waiting."""
    GENERATION = 10
    TARGET = 11
    """Workers that should serve."""
    READY = 12
    """Workers that do."""
    RELOAD_STATE = 13
    STOPPING = 14
    BALANCES_REQUESTS = 15
    # Workers, since the start
    WORKERS_SPAWNED = 20
    WORKERS_CRASHED = 21
    """Ended by themselves after they had been ready."""
    WORKERS_FAILED = 22
    """Did not become ready."""
    WORKERS_HUNG = 23
    """Ended because their event loop stood still."""
    WORKERS_RECYCLED = 24
    """Replaced because of their age, requests or memory."""
    RELOADS = 25
    RELOADS_FAILED = 26
    UPGRADES = 27
    ADMIN_SPAWNED = 28
    # Connections: `acceptor.AcceptorStatistics`
    ACCEPTED = 40
    HANDED_OFF = 41
    QUEUED = 42
    WAITING = 43
    RECOVERED = 44
    TAKEN_BACK = 45
    ABORTED = 46
    EXHAUSTED = 47
    ABANDONED = 48
    HANDED_BACK = 49
    IDLE = 50
    EXPIRED = 51
    OVERDUE = 52
    NOBODY_ELIGIBLE = 53
    STALE_BURSTS = 54
    # Datagrams: `receiver.ReceiverStatistics`, `steering.SteeringStatistics`
    DATAGRAMS = 70
    TRAINS = 71
    REPLIES_SENT = 72
    REPLIES_FAILED = 73
    RECEIVE_ERRORS = 74
    KERNEL_DROPS = 75
    VERSIONS_SENT = 76
    RETRIES_SENT = 77
    RESETS_SENT = 78
    NEW_CONNECTIONS = 79
    TOKENS_VALID = 80
    MAP_ENTRIES = 81
    MAP_FULL = 82
    # The control socket
    CONTROL_REQUESTS = 90
    CONTROL_REFUSED = 91
    LOG_LINES_DROPPED = 92


class RowCell(enum.IntEnum):
    """Cells of a row that the master fills."""

    SLOT = 192
    READY = 193
    """1 while new connections go to it."""
    RING_SIZE = 194
    """0 without HTTP/3."""
    RING_FILL = 195
    """Bytes that wait."""
    SPAWNED_NS = 196


def board_size(rows: int) -> int:
    """Return the size of memory for so many workers."""
    return _ROWS + rows * PAGE_SIZE


class BoardWriter:
    """The master's end. Fill, then `publish`, in one turn of its loop."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._cells = buffer.cast("Q")
        self._capacity = (len(buffer) - _ROWS) // PAGE_SIZE
        self._rows = 0
        self._left_out = 0
        self._retired = [0] * _CELLS
        self._facts = b""

    def retire(self, scoreboard: Scoreboard) -> None:
        """Add the counters of a worker that was reaped to those of its predecessors."""
        cells, sums = scoreboard.cells, self._retired
        for cell in (*COUNTERS, *range(REFUSALS, _CELLS)):
            # As cells wrap: a worker may have reported anything, and the sum has to fit one.
            sums[cell] = sums[cell] + cells[cell] & _LARGEST

    def retired(self) -> dict[str, int]:
        """Return the sums for the next program of this process, which `restore`s them."""
        return {str(cell): count for cell, count in enumerate(self._retired) if count}

    def restore(self, retired: Mapping[str, Any]) -> None:
        """Go on with the sums of an earlier program."""
        for cell, count in retired.items():
            self._retired[int(cell)] = int(count)

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Tell what is no number. What does not fit the page is left out, the largest first."""
        known = dict(facts)
        while len(encoded := orjson.dumps(known)) > PAGE_SIZE - 8:
            del known[max(known, key=lambda name: len(orjson.dumps(known[name])))]
        self._facts = encoded

    def begin(self) -> None:
        """Forget the rows of the last publication."""
        self._rows = self._left_out = 0

    def add_row(
        self, scoreboard: Scoreboard, assignments: Assignments, own: Mapping[RowCell, int]
    ) -> None:
        """Copy one worker's pages."""
        if self._rows >= self._capacity:
            self._left_out += 1
            return
        start = (_ROWS + self._rows * PAGE_SIZE) // 8
        cells = self._cells
        cells[start : start + _ASSIGNMENTS] = scoreboard.cells[:_ASSIGNMENTS]
        known = RowCell.SLOT - _ASSIGNMENTS
        cells[start + _ASSIGNMENTS : start + RowCell.SLOT] = assignments.cells[:known]
        for cell, value in own.items():
            cells[start + cell] = value
        cells[start + REFUSALS : start + _CELLS] = scoreboard.cells[REFUSALS:]
        self._rows += 1

    def publish(self, head: Mapping[int, int]) -> None:
        """Tell it all. `head`: by MasterCell, and DROPS + DropReason."""
        cells = self._cells
        for cell, value in head.items():
            cells[cell] = value
        cells[MasterCell.MAGIC] = BOARD_MAGIC
        cells[MasterCell.ROWS] = self._rows
        cells[MasterCell.ROWS_LEFT_OUT] = self._left_out
        cells[_FACTS // 8] = len(self._facts)
        self._buffer[_FACTS + 8 : _FACTS + 8 + len(self._facts)] = self._facts
        for cell in (*COUNTERS, *range(REFUSALS, REFUSALS + len(Refusal))):
            cells[_RETIRED // 8 + cell] = self._retired[cell]
        written = self._buffer[_SUMMED_FROM : board_size(self._rows)]
        cells[MasterCell.CHECKSUM] = zlib.crc32(written)

    def release(self) -> None:
        """Let go of the memory, so that it can be unmapped."""
        self._cells.release()
        self._buffer.release()


class BoardReader:
    """A watcher's end."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer

    def read(self) -> "BoardSnapshot | None":
        """Return a copy; None when the master is writing: try again. Raises IpcError when it is
        the board of another version.
        """
        buffer = self._buffer
        head = bytes(buffer[: 8 * (MasterCell.ROWS + 1)])
        magic, _, rows = memoryview(head).cast("Q")
        if magic != BOARD_MAGIC:
            if magic:
                raise IpcError("the server is of another version of asgiri")
            return None  # nothing was published yet
        copy = bytes(buffer[: board_size(min(rows, MAX_ROWS))])
        snapshot = BoardSnapshot(copy)
        return snapshot if snapshot.is_whole else None


class Row:
    """One worker, or the sum of those that are gone."""

    __slots__ = ("_cells", "scoreboard")

    def __init__(self, page: memoryview) -> None:
        self._cells = page.cast("Q")
        self.scoreboard = Scoreboard(page)
        """The row has the cells of a scoreboard in their places."""

    def get(self, cell: Cell | RowCell) -> int:
        """Load what the worker, or the master about it, says."""
        return self._cells[cell]

    def assigned(self, cell: AssignmentCell) -> int:
        """Load what the master has sent it."""
        return self._cells[_ASSIGNMENTS + cell]


class BoardSnapshot:
    """What the board said at one moment."""

    def __init__(self, copy: bytes) -> None:
        whole = memoryview(copy)
        self._cells = whole[:PAGE_SIZE].cast("Q")
        self.is_whole = self._cells[MasterCell.CHECKSUM] == zlib.crc32(whole[_SUMMED_FROM:])
        """False for one that was copied while it was being written."""
        self._facts = whole[_FACTS:_RETIRED]
        self.retired = Row(whole[_RETIRED:_ROWS])
        starts = range(_ROWS, len(copy), PAGE_SIZE)
        self.rows: Sequence[Row] = [Row(whole[start : start + PAGE_SIZE]) for start in starts]

    def get(self, cell: MasterCell) -> int:
        """Load one of the master's own numbers."""
        return self._cells[cell]

    def drops(self) -> dict[str, int]:
        """Return how many datagrams were dropped for each reason, by its name in lower case."""
        return {reason.name.lower(): self._cells[DROPS + reason] for reason in DropReason}

    def facts(self) -> dict[str, Any]:
        """Return what is no number."""
        size = self._facts[:8].cast("Q")[0]
        facts: dict[str, Any] = orjson.loads(bytes(self._facts[8 : 8 + size]) or b"{}")
        return facts

    def total(self, cell: int) -> int:
        """Add a counter up, over the workers that are gone and those that are there."""
        return sum(row.scoreboard.get(cell) for row in (self.retired, *self.rows))
