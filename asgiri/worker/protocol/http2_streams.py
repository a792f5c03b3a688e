"""The streams of an HTTP/2 connection and the order in which their bodies leave. Sans-IO.

Order (RFC 9218 §10): the most urgent first; of equal urgency those that are of use only as a whole,
one after the other by their number; then those of which a part is of use, in turns of one frame.

A stream whose window is closed is set aside until a window opens, so that choosing the next one
costs no look at those that can't send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Final

from asgiri.worker.protocol.events import Headers
from asgiri.worker.protocol.priority import DEFAULT, Priority

Rank = tuple[int, bool, int, int]
"""Urgency, incremental, turn, stream id: the smallest is sent next."""


class Stream:
    """One exchange: what the peer may still send, and what waits to be sent."""

    __slots__ = (
        "begun",
        "blocked_since",
        "ending",
        "expected",
        "head_only",
        "id",
        "length_left",
        "local_ended",
        "parts",
        "paused",
        "priority",
        "queued",
        "rank",
        "released",
        "remote_ended",
        "trailers",
        "tunnel",
        "turn",
        "unacknowledged",
    )

    def __init__(self, stream_id: int, *, remote_ended: bool) -> None:
        self.id: Final = stream_id
        self.head_only = False
        self.priority = DEFAULT
        self.tunnel = False
        self.released = False
        """The application's call has returned."""
        # Receiving
        self.remote_ended = remote_ended
        self.expected: int | None = None
        """Bytes of the body that its content-length still promises."""
        self.unacknowledged = 0
        """Bytes received whose credit the peer has not got back."""
        # Sending
        self.begun = False
        """The final response head is sent."""
        self.ending = False
        """The application has given everything; END_STREAM goes with the last frame."""
        self.local_ended = False
        self.length_left: int | None = None
        """Bytes of the response that its content-length still promises."""
        self.parts: deque[bytes | memoryview] = deque()
        self.queued = 0
        """Size of `parts`."""
        self.trailers: Headers | None = None
        self.paused = False
        self.turn = 0
        """When an incremental stream was last served; others stay at 0."""
        self.rank: Rank | None = None
        """Its place among those that may send; None while it is not one of them."""
        self.blocked_since: float | None = None
        """Since when its own window lets nothing more of it go."""

    def count_body(self, size: int) -> bool:
        """Count a part of the peer's body; False when its sum can't be the content-length."""
        if self.expected is None:
            return True
        self.expected -= size
        return self.expected == 0 if self.remote_ended else self.expected >= 0

    def take(self, size: int) -> bytes | memoryview:
        """Take at most `size` bytes of what waits; b"" when nothing does."""
        if not self.parts:
            return b""
        part = self.parts.popleft()
        if len(part) > size:
            view = memoryview(part)
            self.parts.appendleft(view[size:])
            part = view[:size]
        self.queued -= len(part)
        return part


class SendQueue:
    """Streams that have something to send. `window_of` gives what the peer lets one send now, and
    `connection_window` what it lets all of them send together.
    """

    def __init__(
        self, window_of: Callable[[int], int], connection_window: Callable[[], int]
    ) -> None:
        self._window_of = window_of
        self._connection_window = connection_window
        self._members: dict[int, Stream] = {}
        self._ready: list[Rank] = []
        """Heap of those that are not known to be blocked."""
        self._turn = 0
        self.blocked_since: float | None = None
        """Since when the window of the connection lets nothing go, though a stream waits for it."""

    def __iter__(self) -> Iterator[Stream]:
        return iter(list(self._members.values()))

    def add(self, stream: Stream) -> None:
        """Something of the stream waits to be sent. One that is a member already stays in place."""
        if stream.id not in self._members:
            self._members[stream.id] = stream
            self._make_ready(stream)

    def discard(self, stream: Stream) -> None:
        """Nothing of the stream is left to be sent."""
        if self._members.pop(stream.id, None) is not None:
            self._make_unready(stream)

    def prioritize(self, stream: Stream, priority: Priority) -> None:
        """Give it another place."""
        stream.priority = priority
        if stream.rank is not None:
            self._make_unready(stream)
            self._make_ready(stream)

    def window_opened(self, stream_id: int) -> None:
        """The peer has made the window of a stream larger; 0 stands for any, or the connection."""
        if stream_id:
            stream = self._members.get(stream_id)
            if stream is not None and stream.rank is None:
                stream.blocked_since = None
                self._make_ready(stream)
        elif len(self._ready) < len(self._members):
            for stream in self._members.values():
                if stream.rank is None:
                    self._make_ready(stream)

    def next(self, now: Callable[[], float]) -> tuple[Stream, int] | None:
        """Give the stream whose turn it is, and its window; None when none may send."""
        while self._ready:
            stream = self._members[self._ready[0][3]]
            window = self._window_of(stream.id)
            # END_STREAM and trailers need no window.
            if window > 0 or not stream.queued:
                return stream, window
            heappop(self._ready)
            stream.rank = None
            # Who is to blame matters: a stream behind more urgent ones is not stalled by its peer.
            blocked = stream if self._connection_window() > 0 else self
            if blocked.blocked_since is None:
                blocked.blocked_since = now()
        return None

    def served(self, stream: Stream) -> None:
        """A frame of the stream was sent; it stays a member."""
        stream.blocked_since = self.blocked_since = None
        if stream.priority.incremental:
            self._turn += 1
            stream.turn = self._turn
            self._make_unready(stream)
            self._make_ready(stream)

    def stalled_since(self, deadline: float) -> list[Stream]:
        """Streams that the peer has let send nothing since `deadline`; all of them when that holds
        for the connection.
        """
        if self.blocked_since is not None and self.blocked_since <= deadline:
            return list(self)
        return [
            stream
            for stream in self._members.values()
            if stream.blocked_since is not None and stream.blocked_since <= deadline
        ]

    def _make_ready(self, stream: Stream) -> None:
        stream.rank = (*stream.priority, stream.turn, stream.id)
        heappush(self._ready, stream.rank)

    def _make_unready(self, stream: Stream) -> None:
        if stream.rank is None:
            return
        if self._ready[0] == stream.rank:
            heappop(self._ready)
        else:
            self._ready.remove(stream.rank)
            heapify(self._ready)
        stream.rank = None
