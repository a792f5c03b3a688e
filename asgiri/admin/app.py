"""The application that the admin worker serves.

/          the dashboard, which asks for /status once a second
/status    everything, as JSON
/metrics   the same for Prometheus
/healthz   200 while the master works, else 503
/readyz    200 while enough workers are ready, else 503; ?workers=N says how many that is
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qs

import orjson

from asgiri.admin import health, prometheus
from asgiri.admin.statsd import StatsdSender
from asgiri.admin.watch import Watch

__all__ = ["app"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WATCH: Final = "asgiri.watch"
"""Key of ours in the state."""
HTML: Final = b"text/html; charset=utf-8"
TEXT: Final = b"text/plain; charset=utf-8"
JSON: Final = b"application/json"
POLICY: Final = (
    b"default-src 'none'; img-src data:; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", POLICY),
    # No page of anybody else may read what this one tells, nor show it.
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one scope."""
    match scope["type"]:
        case "lifespan":
            await _lifespan(scope["state"], receive, send)
        case "http":
            await _answer(scope, send)
        case "websocket":
            await receive()
            await send({"type": "websocket.close"})


async def _lifespan(state: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """`state` has what the worker was given: the board, and our part of the configuration."""
    await receive()
    watch = state[WATCH] = Watch(state["asgiri.board"])
    config = state["asgiri.config"]
    sender = None
    if config.statsd_host:
        statsd = StatsdSender(config.statsd_host, config.statsd_prefix)
        sender = asyncio.ensure_future(statsd.run(watch))
    await send({"type": "lifespan.startup.complete"})
    await receive()
    if sender is not None:
        sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sender
    await send({"type": "lifespan.shutdown.complete"})


async def _answer(scope: Scope, send: Send) -> None:
    respond = ROUTES.get(scope["path"])
    if respond is None:
        await _send(send, 404, TEXT, f"not found; try {', '.join(ROUTES)}\n".encode())
    elif scope["method"] not in ("GET", "HEAD"):
        await _send(send, 405, TEXT, b"only GET\n", (b"allow", b"GET, HEAD"))
    else:
        await respond(await scope["state"][WATCH].status(), scope, send)


async def _page(_: Any, __: Scope, send: Send) -> None:
    await _send(send, 200, HTML, _page_source())


async def _status(status: Any, _: Scope, send: Send) -> None:
    await _send(send, 200, JSON, orjson.dumps(status))


async def _metrics(status: Any, _: Scope, send: Send) -> None:
    if status:
        await _send(send, 200, prometheus.CONTENT_TYPE, prometheus.render(status))
    else:
        await _send(send, 503, TEXT, b"the master has not spoken yet\n")


async def _healthz(status: Any, _: Scope, send: Send) -> None:
    await _verdict(send, health.alive(status))


async def _readyz(status: Any, scope: Scope, send: Send) -> None:
    values = parse_qs(scope["query_string"].decode("latin-1")).get("workers", [])
    text = values[-1] if values else ""
    if text and not (text.isascii() and text.isdigit() and len(text) < 6):
        await _send(send, 400, TEXT, b"workers: must be a number\n")
        return
    await _verdict(send, health.ready(status, int(text) if text else None))


async def _verdict(send: Send, verdict: health.Verdict) -> None:
    await _send(send, 200 if verdict.good else 503, TEXT, f"{verdict.reason}\n".encode())


async def _send(
    send: Send, status: int, content_type: bytes, body: bytes, *more: tuple[bytes, bytes]
) -> None:
    length = str(len(body)).encode()
    headers = [(b"content-type", content_type), (b"content-length", length), *HEADERS, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


ROUTES: Final = {
    "/": _page,
    "/status": _status,
    "/metrics": _metrics,
    "/healthz": _healthz,
    "/readyz": _readyz,
}


@functools.cache
def _page_source() -> bytes:
    return resources.files("asgiri.admin").joinpath("dashboard.html").read_bytes()
