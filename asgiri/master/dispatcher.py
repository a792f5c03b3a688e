"""Which worker a new connection goes to. Sans-IO; called by the master only.

`acceptor` asks for TCP connections, `steering` for QUIC ones, `runtime` says which workers there
are, and takes connections back from those that stand still.

What is outstanding at a worker is exact, not as old as its last heartbeat: the master's own count
of what it has sent minus the worker's count of what it has closed, so a burst within one heartbeat
does not run into the worker that happened to look idle. To that come the requests that it works
on, and how late its event loop runs. A worker whose heart has not beaten for STALE_AFTER stands
in a handler: what is sent there would wait for it, so it gets nothing while another one beats. A
worker that has something unread and gives no sign of life for LATE_AFTER is late: it gets nothing
while another one is in time, and what it has not read is taken back as soon as another one is free.
When all are late each may have PREFETCH unread, and the caller keeps the others: whichever goes on
first is given them.

A worker at its limit of requests (`request_limit`) gets no connections, and while requests are
balanced (`hold`) none that stands still does: the caller keeps what nobody may take.

QUIC connections are counted the same way, except that a worker may never see what was sent (the
ring was full, the Initial was garbage, the handshake was refused): an assignment that was not
opened by the second heartbeat after it is forgotten.

Scores are kept, not computed for each choice: worker pages are read once per SAMPLE_INTERVAL, our
own assignments are added as they happen. Reading costs 0.75 us per worker; choice and assignment
0.7 us with 4 workers, 1.1 with 16.
"""

import enum
import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from asgiri.ipc.scoreboard import Cell
from asgiri.master.balance import WorkerLoad

__all__ = ["OBSERVE_INTERVAL", "BalancePolicy", "Dispatcher", "DispatcherStatistics", "LoadView"]

BEAT_INTERVAL: Final = 0.05
"""Seconds between two beats of a worker whose event loop turns."""
STALE_AFTER: Final = 0.15
"""Seconds without a beat. Three beats: one late timer is no reason to go elsewhere."""
LATE_AFTER: Final = 0.004
"""Seconds for which connections may lie unread without a sign of life of their worker. A loop that
turns reads them within 0.2 ms; on a processor that others use too, within a time slice or two."""
PREFETCH: Final = 2
"""Connections that may lie unread at a worker that is late, when no other one is in time: it begins
with the next one at once, without the master."""
OBSERVE_INTERVAL: Final = 0.05
SAMPLE_INTERVAL: Final = 0.001
"""Seconds for which what the workers' pages said is good enough."""
UNADOPTED_LIMIT: Final = 64
"""Connections that a worker may leave unread: as many as it takes with one call. The master, which
reads them back when it dies, gives a lower one where few files may be open (`unread_limit`)."""
FULL_SCAN_LIMIT: Final = 16
"""Workers beyond which two are compared, not all: nearly as even, and does not grow."""

REQUEST_WEIGHT: Final = 4
"""A request that is worked on, in connections: most connections are idle most of the time."""
LAG_SLACK: Final = 0.0015
"""An idle loop counts milliseconds: its beats are 0.1 to 1.3 ms late, which ones is chance. If that
counted, the same worker would get every connection that finds all of them idle."""
LAG_UNIT: Final = 0.0005
LAG_LIMIT: Final = 64
"""A loop late by LAG_UNIT more counts as one connection, by 2 ms as one request; by 32 ms as 16
requests and no more, so that no lag keeps a worker empty while the others fill up."""

_BEAT_NS: Final = int(Cell.BEAT_NS)
_BEAT_COUNT: Final = int(Cell.BEAT_COUNT)
_LAG_EWMA_US: Final = int(Cell.LAG_EWMA_US)
_REQUESTS_ACTIVE: Final = int(Cell.REQUESTS_ACTIVE)
_TCP_ADOPTED: Final = int(Cell.TCP_ADOPTED)
_TCP_CLOSED: Final = int(Cell.TCP_CLOSED)
_TCP_HANDED_BACK: Final = int(Cell.TCP_HANDED_BACK)
_TCP_OPEN: Final = int(Cell.TCP_OPEN)
_QUIC_OPEN: Final = int(Cell.QUIC_OPEN)
_QUIC_OPENED: Final = int(Cell.QUIC_OPENED)
_QUIC_CLOSED: Final = int(Cell.QUIC_CLOSED)
_U64: Final = (1 << 64) - 1


class BalancePolicy(enum.Enum):
    """What decides between workers that may take a connection."""

    LEAST_LOADED = "least-loaded"
    ROUND_ROBIN = "round-robin"
    CLIENT_IP = "client-ip"
    """The same client address goes to the same slot, late, blocked or not: for applications that
    keep state in a worker. Another slot only while its own is empty, leaves as much unread as
    UNADOPTED_LIMIT says, or is at its limit of requests."""


class LoadView(Protocol):
    """What a worker says about itself: `ipc.scoreboard.Scoreboard`, of which `Cell`s are read."""

    def get(self, cell: int, /) -> int:
        """Return one cell of the worker's page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherStatistics:
    """Counters since the start."""

    tcp_assigned: int
    quic_assigned: int
    tcp_withdrawn: int
    nobody_eligible: int
    stale_bursts: int
    holding: bool
    """Requests are balanced: nothing is sent to who stands still."""


class _Worker:
    """The dispatcher's view of one worker."""

    __slots__ = (
        "_beat_count",
        "_life",
        "_load",
        "_quic_assigned",
        "_quic_assigned_before_beat",
        "_quic_assigned_since_beat",
        "_unread_since",
        "fresh",
        "lag",
        "late",
        "own_room",
        "room",
        "score",
        "slot",
        "tcp_assigned",
        "unadopted",
        "worker_id",
    )

    def __init__(self, worker_id: int, slot: int, load: LoadView, tcp_assigned: int) -> None:
        self.worker_id = worker_id
        self.slot = slot
        self.tcp_assigned = tcp_assigned
        self.fresh = False
        self.lag = 0.0
        self.late = False
        """It left something unread, and has given no sign of life since."""
        self.room = 0
        """Connections that it may be given before the next look."""
        self.own_room = 0
        """The same for clients that nobody else shall serve: they wait for it although it is late.
        """
        self.score = 0
        self.unadopted = 0
        self._life = 0
        self._unread_since = 0.0
        self._load = load
        self._beat_count = 0
        self._quic_assigned = 0
        self._quic_assigned_since_beat = 0
        self._quic_assigned_before_beat = 0

    def sample(self, now: float, *, forgive: bool, unread_limit: int, request_limit: int) -> None:
        """Read the worker's page; `forgive` a beat that does not come."""
        get = self._load.get
        beat = now if forgive else get(_BEAT_NS) * 1e-9
        self.fresh = now - beat <= STALE_AFTER
        adopted = get(_TCP_ADOPTED)
        unadopted = self.unadopted = self.tcp_assigned - adopted
        # A beat that is forgiven is a sign of life: whoever looks was away, not the worker.
        ended = get(_TCP_CLOSED) + get(_TCP_HANDED_BACK)
        self._look_for_life(-1 if forgive else adopted + ended + get(_BEAT_COUNT), now)
        # Between two beats the loop is at least as late as its beat.
        lag = self.lag = max(get(_LAG_EWMA_US) * 1e-6, now - beat - BEAT_INTERVAL)
        active = get(_REQUESTS_ACTIVE)
        self.own_room = unread_limit + 1 - unadopted
        if request_limit:
            # What it has not read is as many requests, soon.
            self.own_room = min(self.own_room, request_limit - active - unadopted)
        self.room = min(self.own_room, PREFETCH - unadopted) if self.late else self.own_room
        self.score = (
            self.tcp_assigned
            - ended
            + self._outstanding_quic(get)
            + active * REQUEST_WEIGHT
            + int(min(max(lag - LAG_SLACK, 0.0) / LAG_UNIT, LAG_LIMIT))
        )

    def _look_for_life(self, life: int, now: float) -> None:
        """`life` grows with each sign of life; -1 is one that is believed."""
        if life != self._life or life < 0:
            self._life = life
            self._unread_since = now
            self.late = False
        elif self.unadopted <= 0:
            # But who was late stays late, although its connections were taken back: else two
            # workers in long handlers would be given them in turns.
            self._unread_since = now
        elif now - self._unread_since > LATE_AFTER:
            self.late = True

    @property
    def open_connections(self) -> int:
        """Connections that it has, whichever way they came."""
        return self._load.get(_TCP_OPEN) + self._load.get(_QUIC_OPEN)

    def assigned_tcp(self, count: int) -> None:
        self.tcp_assigned += count
        self.unadopted += count
        self.room -= count
        self.own_room -= count
        self.score += count

    def assigned_quic(self) -> None:
        self._quic_assigned += 1
        self._quic_assigned_since_beat += 1
        self.score += 1

    def _outstanding_quic(self, get: Callable[[int], int]) -> int:
        beats = get(_BEAT_COUNT)
        if beats != self._beat_count:
            self._beat_count = beats
            self._quic_assigned_before_beat = self._quic_assigned_since_beat
            self._quic_assigned_since_beat = 0
        opened = get(_QUIC_OPENED)
        recent = self._quic_assigned_before_beat + self._quic_assigned_since_beat
        # Above: the worker will not open them any more. Below: a client came back to a connection
        # that its worker had given up, or began one past the full table.
        self._quic_assigned = max(opened, min(self._quic_assigned, opened + recent))
        return self._quic_assigned - get(_QUIC_CLOSED)


class Dispatcher:
    """Choose among the ready workers by what is outstanding at each.

    `choose_*` decides and counts nothing; the caller says `assigned_*` once the connection is on
    its way, and `withdrawn_tcp` when it was not delivered after all.
    """

    def __init__(
        self,
        policy: BalancePolicy,
        *,
        random: Callable[[], float],
        hash_key: bytes,
        unread_limit: int = UNADOPTED_LIMIT,
        request_limit: int = 0,
    ) -> None:
        """Take `random` as random.random.

        `unread_limit`: connections that a worker may leave unread.

        `request_limit`: requests that a worker handles at once; 0: as many as come.

        `hash_key`: up to 64 bytes, the same as long as clients are to find their slots again;
        unknown to them, or they could choose their slot.
        """
        self.policy = policy
        self._random = random
        self._hash_key = hash_key
        self._unread_limit = unread_limit
        self.request_limit = request_limit
        self.hold = False
        """Choose nobody rather than a worker that stands still."""
        self._workers: dict[int, _Worker] = {}
        self._ready: list[_Worker] = []
        self._candidates: list[_Worker] = []
        """The ready ones in the best state that any of them is in: those that are in time, else
        those whose heart beats, else all. Which of them has room changes all the time.
        """
        self._turn = 0
        self._sample_at = -math.inf
        self._looked_at = math.inf  # the first look comes after no absence
        self._ignore_stale_until = -math.inf
        self._tcp_assigned = 0
        self._quic_assigned = 0
        self._tcp_withdrawn = 0
        self._nobody_eligible = 0
        self._stale_bursts = 0

    # Workers

    def add_worker(
        self, worker_id: int, slot: int, load: LoadView, *, tcp_assigned: int = 0
    ) -> None:
        """Know a worker; nothing goes to it before `set_ready` names it.

        `tcp_assigned`: what an earlier master had sent it.
        """
        self._workers[worker_id] = _Worker(worker_id, slot, load, tcp_assigned)

    def remove_worker(self, worker_id: int) -> None:
        """Forget a worker that exited; after its undelivered connections were withdrawn."""
        worker = self._workers.pop(worker_id)
        self._ready = [other for other in self._ready if other is not worker]
        self._candidates = [other for other in self._candidates if other is not worker]

    def set_ready(self, worker_ids: Collection[int]) -> None:
        """Say who takes new connections. One assignment: a reload switches in one step."""
        self._ready = [self._workers[worker_id] for worker_id in worker_ids]
        self._candidates = []
        self._sample_at = -math.inf

    # New connections

    def choose_tcp(self, now: float, client_ip: str = "") -> int | None:
        """Return a worker_id; None: nobody may take it, stop accepting or keep it.

        `client_ip` matters for the policy of that name only; "" for a unix socket.
        """
        if now >= self._sample_at:
            self._sample(now)
        worker = self._choose(client_ip)
        if worker is None and self._ready:
            # They may have read what they had since the last look.
            self._sample(now)
            worker = self._choose(client_ip)
        if worker is None:
            self._nobody_eligible += 1
            return None
        return worker.worker_id

    def choose_quic(self, now: float, client_ip: str = "") -> int | None:
        """Return a worker_id for a new QUIC connection, None when nobody may take it.

        Unread TCP connections count here as well: a worker that leaves 65 of them does not read
        its ring either. Its datagrams cannot wait in the master, so `hold` and `request_limit` do
        not concern it: it waits in the worker.
        """
        worker_id = self.choose_tcp(now, client_ip)
        return self.choose_anyway(now) if worker_id is None else worker_id

    def choose_anyway(self, now: float) -> int | None:
        """Return the least loaded worker, at its limit or standing still, that reads what it gets;
        None when each has too much unread.
        """
        if now >= self._sample_at:
            self._sample(now)
        readers = [worker for worker in self._ready if worker.unadopted <= self._unread_limit]
        readers = [worker for worker in readers if worker.fresh and not worker.late] or readers
        return min(readers, key=_score).worker_id if readers else None

    def rendezvous(self, key: bytes) -> int | None:
        """Return the ready worker that `key` leads to, whatever its load; None: nobody is ready.

        By slot, not by worker: when one is replaced, only its own clients move, and come back.
        """
        worker = self._heaviest(key, self._ready)
        return None if worker is None else worker.worker_id

    def assigned_tcp(self, worker_id: int, count: int = 1) -> int:
        """Count connections as this worker's; return its total, for the assignments page."""
        worker = self._workers[worker_id]
        worker.assigned_tcp(count)
        self._tcp_assigned += count
        return worker.tcp_assigned

    def withdrawn_tcp(self, worker_id: int, count: int = 1) -> int:
        """Count connections that the worker never read; return its total of assigned ones."""
        worker = self._workers[worker_id]
        worker.assigned_tcp(-count)
        self._tcp_withdrawn += count
        return worker.tcp_assigned

    def assigned_quic(self, worker_id: int) -> None:
        """Count a QUIC connection as this worker's."""
        self._workers[worker_id].assigned_quic()
        self._quic_assigned += 1

    # Workers that stand still

    def observe(self, now: float) -> None:
        """Look at every beat. Call it each OBSERVE_INTERVAL, also when nothing arrives.

        When the caller itself was away for longer than STALE_AFTER (a suspended machine, a host out
        of processor time), it finds beats stale that are about to come. So if that is said of more
        than half of the workers, nobody counts as stale for one period. Without the first
        condition, 3 of 4 workers that begin a long request together would be taken for a burst.
        """
        self._sample(now)

    def take_back(self, now: float) -> list[int]:
        """Return the workers whose undelivered connections others could serve now (D23).

        The caller reads them back, says `withdrawn_tcp`, and chooses again for each. Workers that
        drain are looked at as well.
        """
        if self.policy is BalancePolicy.CLIENT_IP:
            return []
        self._sample(now)
        takers = [worker for worker in self._ready if worker.fresh and not worker.late]
        takers = [worker for worker in takers if worker.room > 0]
        if not takers:
            return []
        # Who is only late will soon go on: it is not worth the work unless somebody is idle.
        idle = any(worker.unadopted <= 0 for worker in takers)
        return [
            worker.worker_id
            for worker in self._workers.values()
            if worker.unadopted > 0 and (not worker.fresh or (worker.late and idle))
        ]

    @property
    def has_unread(self) -> bool:
        """Some worker had connections to read when it was last looked at, or was sent some."""
        return any(worker.unadopted > 0 for worker in self._workers.values())

    def lags(self, now: float) -> dict[int, float]:
        """Return how many seconds the event loop of each ready worker is late."""
        if now >= self._sample_at:
            self._sample(now)
        return {worker.worker_id: worker.lag for worker in self._ready}

    def loads(self) -> dict[int, WorkerLoad]:
        """Return what is outstanding at each ready worker, as of the last look."""
        return {
            worker.worker_id: WorkerLoad(worker.score, worker.open_connections)
            for worker in self._ready
        }

    def statistics(self) -> DispatcherStatistics:
        """Return the counters."""
        return DispatcherStatistics(
            tcp_assigned=self._tcp_assigned,
            quic_assigned=self._quic_assigned,
            tcp_withdrawn=self._tcp_withdrawn,
            nobody_eligible=self._nobody_eligible,
            stale_bursts=self._stale_bursts,
            holding=self.hold,
        )

    def _sample(self, now: float) -> None:
        was_away = now - self._looked_at > STALE_AFTER
        self._looked_at = now
        self._sample_at = now + SAMPLE_INTERVAL
        self._sample_each(now)
        fresh = [worker for worker in self._ready if worker.fresh]
        if was_away and len(fresh) * 2 < len(self._ready):
            self._stale_bursts += 1
            self._ignore_stale_until = now + STALE_AFTER
            self._sample_each(now)
            fresh = self._ready
        in_time = [worker for worker in fresh if not worker.late]
        if in_time or self.hold:
            self._candidates = in_time or fresh
        else:
            # When all stand still, one is as good as the other.
            self._candidates = list(fresh or self._ready)

    def _sample_each(self, now: float) -> None:
        forgive = now < self._ignore_stale_until
        for worker in self._workers.values():
            worker.sample(
                now,
                forgive=forgive,
                unread_limit=self._unread_limit,
                request_limit=self.request_limit,
            )

    def _choose(self, client_ip: str) -> _Worker | None:
        match self.policy:
            case BalancePolicy.CLIENT_IP if client_ip:
                with_room = (worker for worker in self._ready if worker.own_room > 0)
                return self._heaviest(client_ip.encode(), with_room)
            case BalancePolicy.ROUND_ROBIN:
                return next(self._with_room(), None)
            case _:
                return self._least_loaded()

    def _with_room(self) -> Iterator[_Worker]:
        """Go round the candidates that may take a connection, each time from the next one on."""
        workers = self._candidates
        start = self._turn % len(workers) if workers else 0
        for position, worker in enumerate(workers[start:] + workers[:start], start + 1):
            if worker.room > 0:
                self._turn = position
                yield worker

    def _least_loaded(self) -> _Worker | None:
        count = len(self._candidates)
        if count > FULL_SCAN_LIMIT:
            first = int(self._random() * count)
            second = (first + 1 + int(self._random() * (count - 1))) % count
            pair = [self._candidates[first], self._candidates[second]]
            pair = [worker for worker in pair if worker.room > 0]
            if pair:
                return min(pair, key=_score)
        # Not `min`: this is the hot path, and equals must take turns.
        best, best_score = None, 1 << 64
        self._turn += 1
        start = self._turn % count if count else 0
        for worker in self._candidates[start:] + self._candidates[:start]:
            if worker.score < best_score and worker.room > 0:
                best, best_score = worker, worker.score
        return best

    def _heaviest(self, key: bytes, workers: Iterable[_Worker]) -> _Worker | None:
        """Rendezvous hash: every key has its own order of the slots."""
        digest = hashlib.blake2b(key, digest_size=8, key=self._hash_key).digest()
        hashed = int.from_bytes(digest, "big")
        return max(workers, key=lambda worker: _weight(hashed, worker.slot), default=None)


def _score(worker: _Worker) -> int:
    return worker.score


def _weight(hashed: int, slot: int) -> int:
    """Mix a key's hash with a slot (the last steps of SplitMix64)."""
    mixed = hashed + (slot + 1) * 0x9E3779B97F4A7C15 & _U64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _U64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _U64
    return mixed ^ mixed >> 31
