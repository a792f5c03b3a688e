"""What a site does to have everybody on HTTPS: send those who come by HTTP there, and tell browsers
to come that way by themselves (RFC 6797).

A wrapper around the application, so that who asks for neither pays for neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from asgiri.config import HttpConfig
from asgiri.ipc.messages import ListenerInfo
from asgiri.worker.asgi import types
from asgiri.worker.asgi.types import Message, Scope
from asgiri.worker.protocol.headers import authority_is_valid

HTTPS_PORT: Final = 443


class HttpsPolicy:
    """An ASGI 3 application around another one."""

    def __init__(
        self, application: types.Application, *, redirect_port: int | None, max_age: float
    ) -> None:
        """`redirect_port`: where HTTPS is, None to redirect nobody. `max_age`: seconds for which
        browsers shall come by HTTPS only, 0 not to tell them.
        """
        self._application = application
        self._port = redirect_port
        self._transport_security = (
            (b"strict-transport-security", b"max-age=%d" % max_age) if max_age else None
        )

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._application(scope, receive, send)
        elif scope["scheme"] in ("https", "wss"):
            # "An HSTS Host MUST NOT include the STS header field in HTTP responses conveyed over
            # non-secure transport" (RFC 6797 §7.2).
            if self._transport_security is not None and kind == "http":
                send = self._announcing(send)
            await self._application(scope, receive, send)
        elif self._port is None:
            await self._application(scope, receive, send)
        else:
            await self._redirect(scope, send)

    def _announcing(self, send: Any) -> Any:
        field = self._transport_security
        assert field is not None

        async def announce(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(bytes(name).lower() == field[0] for name, _ in headers):
                    message = {**message, "headers": [*headers, field]}
            await send(message)

        return announce

    async def _redirect(self, scope: Scope, send: Any) -> None:
        """Answer 308 (RFC 9110 §15.4.9), which keeps the method; 400 without a host to go to."""
        kind = "http" if scope["type"] == "http" else "websocket.http"
        location = self._location(scope)
        status, headers = 400, [(b"content-length", b"0")]
        if location is not None:
            status = 308
            headers.append((b"location", location))
        await send({"type": f"{kind}.response.start", "status": status, "headers": headers})
        await send({"type": f"{kind}.response.body", "body": b""})

    def _location(self, scope: Scope) -> bytes | None:
        hosts = [bytes(value) for name, value in scope["headers"] if name == b"host"]
        host = hosts[0] if hosts else b""
        target: bytes = scope["raw_path"]
        if not authority_is_valid(host) or target[:1] != b"/":
            return None
        end = host.rfind(b":")
        if end > host.rfind(b"]"):
            host = host[:end]
        if self._port != HTTPS_PORT:
            host += b":%d" % (self._port or HTTPS_PORT)
        if query := scope["query_string"]:
            target += b"?" + query
        scheme = b"https" if scope["type"] == "http" else b"wss"
        return scheme + b"://" + host + target


def with_https_policy(
    application: types.Application, http: HttpConfig, listeners: Iterable[ListenerInfo]
) -> types.Application:
    """Wrap the application if the configuration asks for it."""
    ports = [one.port for one in listeners if one.kind == "tcp" and one.tls and not one.insecure]
    redirect_port = ports[0] if ports and http.redirect_https else None
    if redirect_port is None and not http.hsts:
        return application
    return HttpsPolicy(application, redirect_port=redirect_port, max_age=http.hsts)
