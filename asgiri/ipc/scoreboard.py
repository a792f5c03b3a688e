"""Two pages of numbers per worker: what it reports and what the master has sent it. Sans-IO.

Each page is 512 u64 cells in the byte order of the host, with one writer:

    page          writer   cells
    scoreboard    worker   0-127 `Cell`, 256-511 `Refusal` (cell 256 + value)
    assignments   master   `AssignmentCell`

Atomicity. Cells go through memoryview.cast("Q"): one aligned 8-byte store or load in CPython.
struct.pack_into(">Q") writes byte by byte: 1.9 % torn reads were seen. `add` is a load and a store,
so a cell has one writing thread.
Ordering. None is promised between cells: read each as a number of its own.
Trust. A worker can only falsify its own row. Readers take every value as a number and no more.
Versions. A master that took over reads rows that older code writes: numbers are only ever appended,
and another meaning needs another MAGIC.
"""

import bisect
import enum
from typing import Final

__all__ = [
    "COUNTERS",
    "DURATION_BOUNDS",
    "MAGIC",
    "PAGE_SIZE",
    "REFUSALS",
    "AssignmentCell",
    "Assignments",
    "Cell",
    "DropReason",
    "Refusal",
    "Scoreboard",
    "WorkerState",
]

PAGE_SIZE: Final = 4096
MAGIC: Final = 0xA561_7169_0000_0001
"""First cell of both pages: what they are, and the version of their layout."""
REFUSALS: Final = 256
"""Cell of the refusal with value 0."""
DURATION_BOUNDS: Final = (
    *(100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
    *(1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000, 120_000_000),
)
"""Upper bounds, in microseconds, of the buckets of request durations; one more takes the rest."""


class WorkerState(enum.IntEnum):
    """What a worker says of itself in `Cell.STATE`."""

    SPAWNED = 0
    IMPORTING = 1
    LIFESPAN = 2
    READY = 3
    DRAINING = 4
    DRAINED = 5
    FAILED = 6


class Cell(enum.IntEnum):
    """Cells of the scoreboard. Gauges go up and down, the others only up."""

    MAGIC = 0
    WORKER_ID = 1
    PID = 2
    STATE = 3
    BEAT_NS = 4
    """CLOCK_MONOTONIC when the event loop last ran its heartbeat. Of two (--app-thread) this and
    the next three are about the application's."""
    BEAT_COUNT = 5
    LAG_EWMA_US = 6
    LAG_MAX_US = 7
    REQUESTS_ACTIVE = 8
    TCP_OPEN = 9
    QUIC_OPEN = 10
    QUIC_HALF_OPEN = 11
    TCP_ADOPTED = 12
    TCP_CLOSED = 13
    TCP_HANDED_BACK = 14
    QUIC_OPENED = 15
    QUIC_CLOSED = 16
    REQUESTS_HTTP1 = 17
    REQUESTS_HTTP2 = 18
    REQUESTS_HTTP3 = 19
    WEBSOCKETS_OPEN = 20
    WEBSOCKETS_TOTAL = 21
    RING_RECORDS = 22
    RING_CORRUPT = 23
    DATAGRAMS_SENT = 24
    DATAGRAMS_BLOCKED = 25
    DATAGRAMS_FAILED = 26
    RESETS_SENT = 27
    HANDSHAKE_TIMEOUTS = 28
    BODY_BYTES_IN = 29
    BODY_BYTES_OUT = 30
    RESPONSES_1XX = 31
    RESPONSES_2XX = 32
    RESPONSES_3XX = 33
    RESPONSES_4XX = 34
    RESPONSES_5XX = 35
    APP_ERRORS = 36
    RSS_BYTES = 37
    TLS_HANDSHAKE_FAILURES = 38
    DURATION_BUCKETS = 40
    """First of 20 cells, 40 to 59: see DURATION_BOUNDS."""
    DURATION_SUM_US = 60
    HTTP1_OPENED = 61
    """TCP connections that turned out to speak HTTP/1, each time that a worker took one."""
    HTTP2_OPENED = 62
    HTTP2_OPEN = 63
    """Part of TCP_OPEN."""
    LOG_LINES_DROPPED = 64
    MAIN_BEAT_NS = 65
    """And these about the other one, which runs the protocols."""
    MAIN_BEAT_COUNT = 66
    MAIN_LAG_EWMA_US = 67
    MAIN_LAG_MAX_US = 68
    TELLS_STACKS = 69
    """1 once the worker answers the signal that asks for its stacks."""
    ACCESS_LINES_LEFT_OUT = 70


_GAUGES: Final = frozenset(
    {
        *(Cell.REQUESTS_ACTIVE, Cell.TCP_OPEN, Cell.QUIC_OPEN, Cell.QUIC_HALF_OPEN),
        *(Cell.WEBSOCKETS_OPEN, Cell.RSS_BYTES, Cell.HTTP2_OPEN, Cell.TELLS_STACKS),
        *(Cell.MAIN_BEAT_NS, Cell.MAIN_BEAT_COUNT, Cell.MAIN_LAG_EWMA_US, Cell.MAIN_LAG_MAX_US),
    }
)
COUNTERS: Final = tuple(
    cell for cell in range(Cell.REQUESTS_ACTIVE, max(Cell) + 1) if cell not in _GAUGES
)
"""Cells that only go up: a sum of them outlives their worker. So do the refusals."""


class Refusal(enum.IntEnum):
    """Why something that a peer sent was refused. At most 256; appended, never renumbered."""

    HTTP1_BAD_REQUEST = 0
    HTTP1_TARGET_TOO_LONG = 1
    HTTP1_HEAD_TOO_LARGE = 2
    HTTP1_TOO_MANY_FIELDS = 3
    HTTP1_BAD_HOST = 4
    HTTP1_BAD_FRAMING = 5
    """Content-Length and Transfer-Encoding that could be read in two ways."""
    HTTP1_BAD_CHUNK = 6
    HTTP1_UNSUPPORTED_CODING = 7
    HTTP1_UNSUPPORTED_VERSION = 8
    HTTP1_UNSUPPORTED_METHOD = 9
    HTTP1_UNSUPPORTED_EXPECTATION = 10
    HTTP1_HEAD_TIMEOUT = 11
    HTTP1_TRUNCATED = 12
    HTTP1_BAD_TRAILER = 13
    HTTP1_UPGRADE_REFUSED = 14
    HTTP1_PIPELINE_LIMIT = 15
    BODY_TOO_LARGE = 20
    BODY_TIMEOUT = 21
    BODY_LENGTH_MISMATCH = 22
    WRITE_TIMEOUT = 23
    CONNECTION_LIMIT = 24
    CONCURRENCY_LIMIT = 25
    REQUEST_TIMEOUT = 26
    VERSION_DISABLED = 27
    UNTRUSTED_PROXY = 28
    BAD_PROXY_HEADER = 29
    TLS_HANDSHAKE_TIMEOUT = 30
    TLS_NO_PROTOCOL = 31
    TLS_CLIENT_CERTIFICATE = 32
    PLAINTEXT_ON_TLS = 33
    HTTP2_PROTOCOL_ERROR = 40
    HTTP2_FLOW_CONTROL = 41
    HTTP2_FRAME_SIZE = 42
    HTTP2_COMPRESSION = 43
    HTTP2_BAD_HEADERS = 44
    HTTP2_HEADERS_TOO_LARGE = 45
    HTTP2_STREAM_LIMIT = 46
    HTTP2_STREAM_CLOSED = 47
    HTTP2_RESET_FLOOD = 48
    HTTP2_PING_FLOOD = 49
    HTTP2_SETTINGS_FLOOD = 50
    HTTP2_CONTINUATION_FLOOD = 51
    HTTP2_EMPTY_FRAME_FLOOD = 52
    HTTP2_PRIORITY_FLOOD = 53
    HTTP2_OUTPUT_LIMIT = 54
    HTTP2_BAD_PREFACE = 55
    HTTP2_STALLED = 56
    HTTP2_PING_TIMEOUT = 57
    QUIC_UNKNOWN_CONNECTION = 70
    QUIC_HALF_OPEN_LIMIT = 71
    QUIC_HANDSHAKE_TIMEOUT = 72
    QUIC_HANDSHAKE_FAILED = 73
    QUIC_BAD_INITIAL = 74
    QUIC_BAD_TOKEN = 75
    QUIC_PROTOCOL_ERROR = 76
    QUIC_UNKNOWN_LISTENER = 77
    QUIC_RETIRED_CONNECTION_ID = 78
    QUIC_CRYPTO_BUFFER = 79
    QUIC_FRAME_FLOOD = 80
    HTTP3_PROTOCOL_ERROR = 90
    HTTP3_BAD_FRAME = 91
    HTTP3_BAD_HEADERS = 92
    HTTP3_HEADERS_TOO_LARGE = 93
    HTTP3_COMPRESSION = 94
    HTTP3_CRITICAL_STREAM = 95
    HTTP3_STREAM_LIMIT = 96
    HTTP3_RESET_FLOOD = 97
    HTTP3_TRUNCATED = 98
    HTTP3_STALLED = 99
    WEBSOCKET_BAD_HANDSHAKE = 110
    WEBSOCKET_PROTOCOL_ERROR = 111
    WEBSOCKET_BAD_TEXT = 112
    WEBSOCKET_TOO_BIG = 113
    WEBSOCKET_PING_TIMEOUT = 114
    WEBSOCKET_PING_FLOOD = 115
    WEBSOCKET_FRAGMENT_FLOOD = 116
    WEBSOCKET_CLOSE_TIMEOUT = 117
    WEBSOCKET_QUEUE_LIMIT = 118


class DropReason(enum.IntEnum):
    """Why the master discarded a datagram. Appended, never renumbered."""

    TOO_SHORT = 0
    FIXED_BIT_CLEAR = 1
    UNKNOWN_CONNECTION_ID = 2
    """Does not authenticate: silence."""
    RETRY_ID_IN_SHORT_HEADER = 3
    """No connection has the source connection ID of a Retry."""
    WORKER_GONE = 4
    """A long header, or a short one that is too short to be answered by a reset."""
    RESET_RATE = 5
    """Its worker is gone, and enough resets were sent."""
    MALFORMED_LONG_HEADER = 6
    VERSION_NEGOTIATION = 7
    """Version 0, which only servers send; to answer could begin a loop."""
    VERSION_UNKNOWN = 8
    """And too short to be answered by version negotiation."""
    CONNECTION_ID_LENGTH = 9
    INITIAL_TOO_SHORT = 10
    PACKET_TYPE = 11
    """Retry, which only servers send."""
    NO_INITIAL_BEFORE = 12
    """0-RTT or Handshake of a connection that nobody has begun."""
    TOKEN_INVALID = 13
    """To the connection ID of a Retry without its token, so no handshake can succeed: the client
    expects its first connection ID in our transport parameters, and the token had it."""
    NETWORK_RATE = 14
    """Proven addresses of one network began more than their share."""
    NO_WORKER = 15
    RING_HALF_FULL = 16
    """The upper half is for what follows a handshake."""
    RING_FULL = 17
    """Counted by the receiver."""


class AssignmentCell(enum.IntEnum):
    """Cells of the master's page."""

    MAGIC = 0
    WORKER_ID = 1
    GENERATION = 2
    TARGET_STATE = 3
    """The WorkerState that the master has asked for."""
    TCP_ASSIGNED = 4
    QUIC_ASSIGNED = 5
    RING_DROP_FULL = 6
    RING_DROP_INITIAL = 7
    """New connections refused because the ring was fuller than they may fill it."""
    TAKEN_BACK = 8
    """Connections that the worker had not read in time."""
    HAND_BACK = 9
    """1 while the worker shall give idle connections back, else 0."""
    WAITING = 10
    """While the server stops: accepted connections that wait for room at a worker. None ends its
    drain before they are dealt with."""


class _Page:
    """One page of cells. Its writer is one thread of one process; anybody may read."""

    def __init__(self, buffer: memoryview) -> None:
        self._cells = buffer.cast("Q")

    @property
    def cells(self) -> memoryview:
        """The cells themselves, for a hot path of the writer: 60 ns less than `set`."""
        return self._cells

    @property
    def valid(self) -> bool:
        """True when the page was claimed by code that gives its cells the same meaning."""
        return self._cells[0] == MAGIC

    def add(self, cell: int, count: int = 1) -> None:
        """Add to a cell; the writer only. A gauge takes negative counts."""
        self._cells[cell] += count

    def set(self, cell: int, value: int) -> None:
        """Store a value; the writer only."""
        self._cells[cell] = value

    def get(self, cell: int) -> int:
        """Load a value."""
        return self._cells[cell]

    def release(self) -> None:
        """Let go of the memory, so that its segment can be unmapped."""
        self._cells.release()


class Scoreboard(_Page):
    """What one worker reports. The worker writes; master and admin only read."""

    def claim(self, worker_id: int, pid: int) -> None:
        """Begin the row of this incarnation. Called by the worker, once."""
        self.set(Cell.WORKER_ID, worker_id)
        self.set(Cell.PID, pid)
        self.set(Cell.MAGIC, MAGIC)

    def refuse(self, reason: Refusal, count: int = 1) -> None:
        """Count something that a peer sent and we did not accept."""
        self._cells[REFUSALS + reason] += count

    def observe(self, duration_us: int) -> None:
        """Count one finished request by its duration."""
        bucket = bisect.bisect_left(DURATION_BOUNDS, duration_us)
        self._cells[Cell.DURATION_BUCKETS + bucket] += 1
        self._cells[Cell.DURATION_SUM_US] += duration_us

    def durations(self) -> tuple[int, ...]:
        """Return how many requests fell into each bucket, not added up."""
        first = int(Cell.DURATION_BUCKETS)
        return tuple(self._cells[first : first + len(DURATION_BOUNDS) + 1])

    def snapshot(self) -> dict[str, int]:
        """Return all cells by their names in lower case, without the buckets of `durations`."""
        return {
            cell.name.lower(): self._cells[cell] for cell in Cell if cell != Cell.DURATION_BUCKETS
        }

    def refusals(self) -> dict[str, int]:
        """Return how often each reason was counted, by its name in lower case; no zeros."""
        counts = {reason.name.lower(): self._cells[REFUSALS + reason] for reason in Refusal}
        return {name: count for name, count in counts.items() if count}


class Assignments(_Page):
    """What the master has sent one worker. The master writes; worker and admin only read."""

    def claim(self, worker_id: int, generation: int) -> None:
        """Begin the row of this incarnation. Called by the master, before it spawns the worker."""
        self.set(AssignmentCell.WORKER_ID, worker_id)
        self.set(AssignmentCell.GENERATION, generation)
        self.set(AssignmentCell.MAGIC, MAGIC)

    def snapshot(self) -> dict[str, int]:
        """Return all cells by their names in lower case."""
        return {cell.name.lower(): self._cells[cell] for cell in AssignmentCell}
