"""The metrics: every name is declared here, once, with where in the status its numbers are.

Metrics without `worker` are of the whole server and go on when workers end. Those with it are of
the worker that serves in this slot at the moment: they begin anew with its successor, as counters
of a restarted process do. One that drains is in the totals only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

__all__ = ["FAMILIES", "Family", "Sample", "Status"]

LEAVING: Final = ("draining", "leaving")

Status = Mapping[str, Any]
Sample = tuple[Mapping[str, object], float]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its declaration and where its samples come from."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Callable[[Status], Iterable[Sample]]
    labels: tuple[str, ...] = ()


# Where samples come from


def _at(*path: str) -> Callable[[Status], Iterator[Sample]]:
    """One number."""

    def samples(status: Status) -> Iterator[Sample]:
        yield {}, _follow(status, path)

    return samples


def _each(label: str, *path: str) -> Callable[[Status], Iterator[Sample]]:
    """A number for each key of a mapping."""

    def samples(status: Status) -> Iterator[Sample]:
        for key, value in sorted(_follow(status, path).items()):
            yield {label: key}, value

    return samples


def _sum(*path: str) -> Callable[[Status], Iterator[Sample]]:
    """The sum of a number over all workers, those that drain included."""

    def samples(status: Status) -> Iterator[Sample]:
        yield {}, sum(_follow(worker, path) for worker in status["workers"])

    return samples


def _sum_each(label: str, *path: str) -> Callable[[Status], Iterator[Sample]]:
    """The same for each key of a mapping."""

    def samples(status: Status) -> Iterator[Sample]:
        sums: dict[str, float] = {}
        for worker in status["workers"]:
            for key, value in _follow(worker, path).items():
                sums[key] = sums.get(key, 0) + value
        for key, value in sorted(sums.items()):
            yield {label: key}, value

    return samples


def _by_worker(*path: str) -> Callable[[Status], Iterator[Sample]]:
    """A number of each worker that serves."""

    def samples(status: Status) -> Iterator[Sample]:
        for worker in _serving(status):
            yield {"worker": worker["slot"]}, _follow(worker, path)

    return samples


def _by_worker_and(label: str, *path: str) -> Callable[[Status], Iterator[Sample]]:
    """A number of each worker that serves, for each key of a mapping."""

    def samples(status: Status) -> Iterator[Sample]:
        for worker in _serving(status):
            for key, value in sorted(_follow(worker, path).items()):
                yield {"worker": worker["slot"], label: key}, value

    return samples


def _serving(status: Status) -> Iterator[Status]:
    """One worker for each slot: the newest generation whose worker is not on its way out."""
    chosen: dict[int, Status] = {}
    for worker in status["workers"]:
        if worker["state"] not in LEAVING and worker["ready"]:
            chosen.setdefault(worker["slot"], worker)
    yield from chosen.values()


def _states(status: Status) -> Iterator[Sample]:
    states = [worker["state"] for worker in status["workers"]]
    for state in ("ready", "blocked", "waiting", "booting", "draining", "leaving"):
        yield {"state": state}, states.count(state)


def _info(status: Status) -> Iterator[Sample]:
    yield {label: status.get(key, "") for label, key in _INFO.items()}, 1


def _start_time(status: Status) -> Iterator[Sample]:
    yield {}, status["time"] - status["uptime"]


def _blocked(status: Status) -> Iterator[Sample]:
    for worker in _serving(status):
        yield {"worker": worker["slot"]}, worker["state"] == "blocked"


def _reloads(status: Status) -> Iterator[Sample]:
    for result in ("done", "failed"):
        yield {"result": result}, status["reload"][result]


def _reloading(status: Status) -> Iterator[Sample]:
    yield {}, status["reload"]["state"] != "idle"


def _ring_drops(status: Status) -> Iterator[Sample]:
    for worker in _serving(status):
        for reason in ("full", "half_full"):
            labels = {"worker": worker["slot"], "reason": reason}
            yield labels, worker["ring"][f"drops_{reason}"]


def _follow(value: Any, path: Iterable[str]) -> Any:
    for name in path:
        value = value[name]
    return value


# The metrics

_INFO: Final = {"version": "asgiri", "python": "python", "app": "app", "name": "name"}
_PER_WORKER: Final = ("worker",)

FAMILIES: Final = (
    Family("asgiri_info", "gauge", "What runs; always 1.", _info, tuple(_INFO)),
    Family("asgiri_start_time_seconds", "gauge", "When the server was started.", _start_time),
    # Requests
    Family(
        "asgiri_requests_total",
        "counter",
        "Requests begun, by HTTP version.",
        _each("version", "totals", "requests"),
        ("version",),
    ),
    Family(
        "asgiri_requests_active",
        "gauge",
        "Requests that the application works on.",
        _sum("requests_active"),
    ),
    Family(
        "asgiri_responses_total",
        "counter",
        "Responses completed, by class of status.",
        _each("status", "totals", "responses"),
        ("status",),
    ),
    Family(
        "asgiri_request_duration_seconds",
        "histogram",
        "Time from a request's head to the end of its response.",
        lambda _: (),
    ),
    Family(
        "asgiri_request_body_bytes_total",
        "counter",
        "Bytes of request bodies.",
        _at("totals", "body_bytes_in"),
    ),
    Family(
        "asgiri_response_body_bytes_total",
        "counter",
        "Bytes of response bodies.",
        _at("totals", "body_bytes_out"),
    ),
    Family(
        "asgiri_application_errors_total",
        "counter",
        "Exceptions that the application let out, and breaches of ASGI.",
        _at("totals", "app_errors"),
    ),
    Family(
        "asgiri_refusals_total",
        "counter",
        "What peers sent and was refused, by reason.",
        _each("reason", "totals", "refusals"),
        ("reason",),
    ),
    # Connections
    Family(
        "asgiri_connections_open",
        "gauge",
        "Open connections, by HTTP version; one that has said nothing yet counts as 1.",
        _sum_each("version", "connections"),
        ("version",),
    ),
    Family(
        "asgiri_connections_opened_total",
        "counter",
        "Connections that a worker began to serve, by HTTP version; again after a hand-back.",
        _each("version", "totals", "connections_opened"),
        ("version",),
    ),
    Family(
        "asgiri_websockets_open", "gauge", "Open WebSockets, over any version.", _sum("websockets")
    ),
    Family(
        "asgiri_websockets_opened_total",
        "counter",
        "WebSockets begun.",
        _at("totals", "websockets_total"),
    ),
    Family(
        "asgiri_tls_handshake_failures_total",
        "counter",
        "TLS handshakes on TCP that failed.",
        _at("totals", "tls_handshake_failures"),
    ),
    Family(
        "asgiri_connections_accepted_total",
        "counter",
        "TCP and Unix connections accepted by the master.",
        _at("connections", "accepted"),
    ),
    Family(
        "asgiri_connections_handed_off_total",
        "counter",
        "Connections passed to a worker; one that is handed back is passed again.",
        _at("connections", "handed_off"),
    ),
    Family(
        "asgiri_connections_handed_back_total",
        "counter",
        "Idle connections that workers gave back, so that each request goes to who is free.",
        _at("connections", "handed_back"),
    ),
    Family(
        "asgiri_connections_taken_back_total",
        "counter",
        "Connections taken back unread from workers that stood still.",
        _at("connections", "taken_back"),
    ),
    Family(
        "asgiri_connections_recovered_total",
        "counter",
        "Connections taken back unread from workers that died.",
        _at("connections", "recovered"),
    ),
    Family(
        "asgiri_connections_queued_total",
        "counter",
        "Connections that had to wait in the master for a worker.",
        _at("connections", "queued"),
    ),
    Family(
        "asgiri_connections_waiting",
        "gauge",
        "Connections that wait in the master for a worker.",
        _at("connections", "waiting"),
    ),
    Family(
        "asgiri_connections_idle",
        "gauge",
        "Connections that wait in the master for their next request.",
        _at("connections", "idle"),
    ),
    Family(
        "asgiri_connections_expired_total",
        "counter",
        "Connections closed in the master because no next request came.",
        _at("connections", "expired"),
    ),
    Family(
        "asgiri_connections_overdue_total",
        "counter",
        "Connections that waited for too long and were answered with 503.",
        _at("connections", "overdue"),
    ),
    Family(
        "asgiri_connections_aborted_total",
        "counter",
        "Connections that were gone before they were accepted.",
        _at("connections", "aborted"),
    ),
    Family(
        "asgiri_accept_exhausted_total",
        "counter",
        "Times that the system was out of descriptors or memory for a connection.",
        _at("connections", "exhausted"),
    ),
    # QUIC
    Family(
        "asgiri_datagrams_received_total",
        "counter",
        "UDP datagrams read by the master.",
        _at("datagrams", "datagrams"),
    ),
    Family(
        "asgiri_datagrams_sent_total",
        "counter",
        "UDP datagrams sent by workers.",
        _at("totals", "datagrams_sent"),
    ),
    Family(
        "asgiri_datagrams_send_failures_total",
        "counter",
        "UDP datagrams that the system did not take from a worker.",
        _at("totals", "datagrams_failed"),
    ),
    Family(
        "asgiri_datagrams_dropped_total",
        "counter",
        "UDP datagrams discarded by the master, by reason.",
        _each("reason", "totals", "drops"),
        ("reason",),
    ),
    Family(
        "asgiri_datagrams_lost_in_kernel_total",
        "counter",
        "UDP datagrams dropped because a socket's buffer was full.",
        _at("datagrams", "kernel_drops"),
    ),
    Family(
        "asgiri_quic_connections_begun_total",
        "counter",
        "QUIC connections given to a worker.",
        _at("datagrams", "new_connections"),
    ),
    Family("asgiri_quic_half_open", "gauge", "QUIC handshakes under way.", _sum("half_open")),
    Family(
        "asgiri_quic_handshake_timeouts_total",
        "counter",
        "QUIC handshakes given up.",
        _at("totals", "handshake_timeouts"),
    ),
    Family(
        "asgiri_quic_retries_sent_total",
        "counter",
        "Clients asked to prove their address.",
        _at("datagrams", "retries_sent"),
    ),
    Family(
        "asgiri_quic_version_negotiations_sent_total",
        "counter",
        "Clients told which QUIC versions there are.",
        _at("datagrams", "versions_sent"),
    ),
    Family(
        "asgiri_quic_resets_sent_total",
        "counter",
        "Stateless resets by the master: clients of workers that died.",
        _at("datagrams", "resets_sent"),
    ),
    # Workers
    Family(
        "asgiri_workers_wanted",
        "gauge",
        "Workers that should serve.",
        _at("counts", "wanted"),
    ),
    Family(
        "asgiri_workers",
        "gauge",
        "Workers by state: ready; blocked in a handler; waiting for the others of their "
        "generation; booting; draining; leaving.",
        _states,
        ("state",),
    ),
    Family(
        "asgiri_workers_started_total",
        "counter",
        "Worker processes started.",
        _at("started", "workers"),
    ),
    Family(
        "asgiri_worker_restarts_total",
        "counter",
        "Workers that were replaced out of order: crashed, failed to start, hung, or recycled.",
        _each("reason", "ended"),
        ("reason",),
    ),
    Family("asgiri_generation", "gauge", "Generation that serves.", _at("generation")),
    Family("asgiri_reloads_total", "counter", "Reloads, by result.", _reloads, ("result",)),
    Family("asgiri_reloading", "gauge", "1 while two generations overlap.", _reloading),
    Family(
        "asgiri_upgrades_total",
        "counter",
        "Times that the program of the master was exchanged.",
        _at("reload", "upgrades"),
    ),
    # Each worker
    Family(
        "asgiri_worker_requests_total",
        "counter",
        "Requests begun, by HTTP version.",
        _by_worker_and("version", "requests"),
        (*_PER_WORKER, "version"),
    ),
    Family(
        "asgiri_worker_requests_active",
        "gauge",
        "Requests that the application works on.",
        _by_worker("requests_active"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_connections_open",
        "gauge",
        "Open connections, by HTTP version.",
        _by_worker_and("version", "connections"),
        (*_PER_WORKER, "version"),
    ),
    Family(
        "asgiri_worker_connections_unread",
        "gauge",
        "Connections passed to it that it has not taken.",
        _by_worker("unread"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_websockets_open",
        "gauge",
        "Open WebSockets.",
        _by_worker("websockets"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_blocked",
        "gauge",
        "1 while its event loop stands in a handler.",
        _blocked,
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_heartbeat_age_seconds",
        "gauge",
        "Time since its event loop last turned.",
        _by_worker("silence"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_loop_lag_seconds",
        "gauge",
        "How late its event loop is, on average over half a second.",
        _by_worker("lag"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_loop_lag_max_seconds",
        "gauge",
        "How late it has ever been.",
        _by_worker("lag_max"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_protocol_loop_lag_seconds",
        "gauge",
        "With --app-thread, how late the event loop of its protocols is.",
        _by_worker("protocol_lag"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_ring_bytes",
        "gauge",
        "Bytes of datagrams that wait for it.",
        _by_worker("ring", "fill"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_ring_size_bytes",
        "gauge",
        "Bytes of datagrams that may wait.",
        _by_worker("ring", "size"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_ring_drops_total",
        "counter",
        "Datagrams dropped: the ring was full, or half full and this one began a connection.",
        _ring_drops,
        (*_PER_WORKER, "reason"),
    ),
    Family(
        "asgiri_worker_application_errors_total",
        "counter",
        "Exceptions that the application let out.",
        _by_worker("app_errors"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_cpu_seconds_total",
        "counter",
        "Processor time used.",
        _by_worker("cpu_seconds"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_resident_memory_bytes",
        "gauge",
        "Memory in use.",
        _by_worker("rss"),
        _PER_WORKER,
    ),
    Family(
        "asgiri_worker_age_seconds",
        "gauge",
        "Time since it was started.",
        _by_worker("age"),
        _PER_WORKER,
    ),
    # The master
    Family(
        "asgiri_master_busy_seconds_total",
        "counter",
        "Time that the master's loop has worked: near 1 per second it is the limit.",
        _at("master", "busy_seconds"),
    ),
    Family(
        "asgiri_master_cpu_seconds_total",
        "counter",
        "Processor time used by the master.",
        _at("master", "cpu_seconds"),
    ),
    Family(
        "asgiri_master_resident_memory_bytes",
        "gauge",
        "Memory in use by the master.",
        _at("master", "rss"),
    ),
    Family(
        "asgiri_master_silence_seconds",
        "gauge",
        "Time since the master last wrote these numbers; a quarter of a second at most.",
        _at("master", "silence"),
    ),
    Family(
        "asgiri_log_lines_dropped_total",
        "counter",
        "Log lines that nobody took: a full disk, a pipe without a reader.",
        lambda status: [
            ({}, status["totals"]["log_lines_dropped"] + status["master"]["log_lines_dropped"])
        ],
    ),
    Family(
        "asgiri_access_log_lines_left_out_total",
        "counter",
        "Requests that --access-log-sampling has left out of the access log.",
        _at("totals", "access_lines_left_out"),
    ),
    Family(
        "asgiri_control_requests_total",
        "counter",
        "Orders through the control socket.",
        _at("control", "requests"),
    ),
    Family(
        "asgiri_control_refused_total",
        "counter",
        "What came through the control socket and was refused.",
        _at("control", "refused"),
    ),
)
